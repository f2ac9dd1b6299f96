package cluster

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHostnameChanges(t *testing.T) {
	n := newNodes(t, 1)[1]
	n.start()
	n.add()
	if err := n.shard.Compact(patience(t), 0); err != nil { // so that there is a snapshot record
		t.Fatal(err)
	}
	n.add()
	n.stop()
	// The folder is as another host would have left it; the adoption is interrupted
	// before and after the rename.
	for _, renamed := range []bool{true, false} {
		flag := filepath.Join(n.cfg.Dir, flagFile)
		data, err := os.ReadFile(flag)
		if err != nil {
			t.Fatal(err)
		}
		status, err := decodeStatus(data)
		if err != nil {
			t.Fatal(err)
		}
		if renamed {
			if err := os.Rename(filepath.Join(n.cfg.Dir, status.Hostname), filepath.Join(n.cfg.Dir, "elsewhere")); err != nil {
				t.Fatal(err)
			}
		}
		status.Hostname = "elsewhere"
		if err := writeStatus(flag, status); err != nil {
			t.Fatal(err)
		}
		before := n.total()
		n.start()
		n.wantTotal(before)
		n.add()
		n.stop()
	}
	if err := os.WriteFile(filepath.Join(n.cfg.Dir, flagFile), []byte("garbage, not a status"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(n.cfg); !errors.Is(err, ErrUnreadable) {
		t.Fatal(err)
	}
}

func TestOpenErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	address := taken.Addr().String()
	dir := t.TempDir()
	for _, test := range []struct {
		cfg  Config
		want []string
	}{
		{Config{Dir: dir, Node: 1, Members: map[uint64]string{1: address, 2: "127.0.0.1:1"}}, []string{address, "stop what uses the port"}},
		{Config{Dir: dir, Node: 1, Members: map[uint64]string{1: "192.0.2.1:2000", 2: "127.0.0.1:1"}}, []string{"192.0.2.1:2000", "listen address"}},
		{Config{Dir: dir, Node: 1, Members: map[uint64]string{1: "a:0", 2: ":1"}, Listen: "a"}, []string{"a:0", "no host", "listen address"}},
		{Config{Dir: dir, Node: 3, Members: map[uint64]string{1: "a:1", 2: "b:1"}}, []string{"this node, 3", "[1 2]"}},
		{Config{Node: 0, Members: map[uint64]string{0: "a:1", 1: "nonsense", 2: "c:1", 3: "c:1"}, Tick: 1},
			[]string{"Dir is empty", "node id 0", "nonsense", "nodes 2 and 3", "Tick"}},
		{Config{Dir: filepath.Join(file, "sub"), Node: 1, Members: map[uint64]string{1: ""}}, []string{"cannot create", "not a directory"}},
		{Config{Dir: file, Node: 1, Members: map[uint64]string{1: ""}}, []string{file}},
	} {
		h, err := Open(test.cfg)
		if err == nil {
			h.Close()
			t.Fatalf("%+v: no error", test.cfg)
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not say %q", err, want)
			}
		}
	}
}

func TestFolderOfAnotherNode(t *testing.T) {
	dir := t.TempDir()
	h, err := Open(Config{Dir: dir, Node: 1, Members: map[uint64]string{1: ""}})
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	if _, err := Open(Config{Dir: dir, Node: 2, Members: map[uint64]string{2: ""}}); err == nil || !strings.Contains(err.Error(), "another node") {
		t.Fatal(err)
	}
	// With a damaged id file Dragonboat panics.
	if err := os.WriteFile(filepath.Join(dir, "NODEHOST.ID"), []byte("damaged, badly"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir, Node: 1, Members: map[uint64]string{1: ""}}); err == nil {
		t.Fatal("a damaged folder was opened")
	}
}
