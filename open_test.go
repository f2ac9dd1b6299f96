package hiqlite_test

import (
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// The tests of this file open nodes with configurations, folders and ports that cannot be
// used.

// Open refuses each of these folders, says why, and changes nothing.
func TestFoldersThatCannotBeUsed(t *testing.T) {
	s := newCheckedCluster(t, 1)
	used := s.Config(0)
	file := filepath.Join(t.TempDir(), "file")
	foreign, newer := t.TempDir(), t.TempDir()
	for path, content := range map[string]string{file: "x", filepath.Join(foreign, "letter.txt"): "x", filepath.Join(newer, "hiqlite.json"): `{"format": 99, "node_id": 1, "nodes": [1]}`} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	other := newCluster(t, 1)
	closed := other.Config(0)
	other.Stop(0)
	apart := process.NewNodes(t, 1, 0)[0]
	for name, test := range map[string]struct {
		cfg   hiqlite.Config
		words []string
	}{
		"none":                      {hiqlite.Config{}, []string{"DataDir is empty"}},
		"in use":                    {used, []string{used.DataDir, "already open in this process"}},
		"in use by another process": {apart.Config, []string{apart.Config.DataDir, "another process"}},
		"a file":                    {hiqlite.Config{DataDir: file}, []string{"is a file", ".dump"}},
		"below a file":              {hiqlite.Config{DataDir: filepath.Join(file, "data")}, []string{"not a directory"}},
		"not ours":                  {hiqlite.Config{DataDir: foreign}, []string{"letter.txt", "name another one"}},
		"of a newer format":         {hiqlite.Config{DataDir: newer}, []string{"newer version", "upgrade"}},
		"of another node":           {hiqlite.Config{DataDir: closed.DataDir, NodeID: 5}, []string{"belongs to node 1"}},
		"of another cluster": {hiqlite.Config{DataDir: closed.DataDir, Nodes: []hiqlite.Member{{ID: 1, RaftAddr: "localhost:1"}, {ID: 2, RaftAddr: "localhost:2"}}},
			[]string{"a cluster of the nodes [1]", "lists [1 2]"}},
	} {
		node, err := hiqlite.Open(testrun.Context(t), test.cfg)
		if err == nil {
			node.Close()
			t.Errorf("%s: Open has succeeded", name)
			continue
		}
		for _, w := range test.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
	}
	s.checkUnharmed("attempts to open folders that cannot be used")
	apart.Ask("ready")
	other.Start(0)
	other.WaitReady(0)
}

// Validate finds these faults of a configuration before Open creates a folder.
func TestInvalidConfigurations(t *testing.T) {
	t.Parallel()
	address := freeAddresses(t, 3)
	for name, test := range map[string]struct {
		cfg   hiqlite.Config
		words []string
	}{
		"an id twice":         {hiqlite.Config{Nodes: []hiqlite.Member{{ID: 1, RaftAddr: address[0]}, {ID: 1, RaftAddr: address[1]}}}, []string{"node id 1 is listed twice"}},
		"an address twice":    {hiqlite.Config{Nodes: []hiqlite.Member{{ID: 1, RaftAddr: address[0]}, {ID: 2, RaftAddr: address[0]}}}, []string{address[0] + " is listed twice"}},
		"not in the list":     {hiqlite.Config{NodeID: 3, Nodes: []hiqlite.Member{{ID: 1, RaftAddr: address[0]}, {ID: 2, RaftAddr: address[1]}}}, []string{"node 3 is not in the list"}},
		"no address":          {hiqlite.Config{Nodes: []hiqlite.Member{{ID: 1, RaftAddr: address[0]}, {ID: 2}}}, []string{"node 2", "not host:port"}},
		"several faults":      {hiqlite.Config{Timeout: -1, Tick: time.Microsecond, MaxReaders: -1, Nodes: []hiqlite.Member{{ID: 0}}}, []string{"Timeout", "Tick", "MaxReaders", "node id 0", "node 1 is not"}},
		"a wrong connection":  {hiqlite.Config{Conn: hiqlite.ConnConfig{TimeFormat: "x", TimeIntegerFormat: "y", BusyTimeout: -1, Consistency: 7, Pragmas: []string{"a;b"}}}, []string{`"x"`, `"y"`, "negative", "consistency 7", "more than one"}},
		"an id beyond 2^32-1": {hiqlite.Config{NodeID: 1 << 32}, []string{"2^32-1"}},
	} {
		test.cfg.DataDir = filepath.Join(t.TempDir(), "data")
		node, err := hiqlite.Open(testrun.Context(t), test.cfg)
		if err == nil {
			node.Close()
			t.Errorf("%s: Open has succeeded", name)
			continue
		}
		for _, w := range test.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
		if _, err := os.Stat(test.cfg.DataDir); err == nil {
			t.Errorf("%s: Open has created the folder", name)
		}
	}
}

// Open returns an error that names the address if the port is in use, and succeeds
// when the port is free again.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	ports := freeAddresses(t, 2)
	l, err := net.Listen("tcp", ports[0])
	if err != nil {
		t.Fatal(err)
	}
	members := []hiqlite.Member{{ID: 1, RaftAddr: ports[0]}, {ID: 2, RaftAddr: ports[1]}}
	cfg := hiqlite.Config{DataDir: filepath.Join(t.TempDir(), "data"), Nodes: members}
	node, err := hiqlite.Open(testrun.Context(t), cfg)
	if err == nil {
		node.Close()
	}
	if err == nil || !strings.Contains(err.Error(), members[0].RaftAddr) {
		t.Errorf("opening with a port in use: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if node, err = hiqlite.Open(testrun.Context(t), cfg); err != nil {
		t.Fatalf("when the port is free again: %v", err)
	}
	if err := node.Close(); err != nil {
		t.Error(err)
	}
}

// An Open that fails does not yet make the folder that of a node: it can be opened
// with another NodeID afterwards.
func TestFailedOpenDoesNotClaimTheFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ports := freeAddresses(t, 3)
	taken, err := net.Listen("tcp", ports[1])
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var members []hiqlite.Member
	for i, address := range ports {
		members = append(members, hiqlite.Member{ID: uint64(i + 1), RaftAddr: address})
	}
	if _, err := hiqlite.Open(testrun.Context(t), hiqlite.Config{DataDir: dir, NodeID: 2, Nodes: members}); err == nil {
		t.Fatal("Open has succeeded with a port in use")
	}
	node, err := hiqlite.Open(testrun.Context(t), hiqlite.Config{DataDir: dir, NodeID: 1, Nodes: members})
	if err != nil {
		t.Fatal(err)
	}
	node.Close()
}

// A Config can be passed to another process as JSON, without its logger, functions
// and migrations.
func TestConfigAsJSON(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(hiqlite.Config{DataDir: t.TempDir(), Logger: slog.Default()})
	if err != nil {
		t.Fatal(err)
	}
	var cfg hiqlite.Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		t.Fatal(err)
	}
	node, err := hiqlite.Open(testrun.Context(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if err := node.Ready(testrun.Context(t)); err != nil {
		t.Error(err)
	}
}

// If a folder is already open, the error of Open says so, names the folder as the
// program does, and says whether this process or another one has opened it. It says
// this although the port is in use, too.
func TestFolderOpenedTwice(t *testing.T) {
	check := func(t *testing.T, cfg hiqlite.Config, by string) {
		t.Helper()
		node, err := hiqlite.Open(testrun.Context(t), cfg)
		if err == nil {
			node.Close()
			t.Fatal("Open has succeeded")
		}
		if text := err.Error(); !containsAll(text, []string{"the data folder " + cfg.DataDir + " is already open in " + by, "close it first"}) || strings.Contains(text, "/raft") {
			t.Errorf("the error is: %v", err)
		}
	}
	t.Run("this process", func(t *testing.T) {
		eachSize(t, func(t *testing.T, c *testCluster) {
			check(t, c.Config(0), "this process")
			mustExec(t, c.DB(0), "CREATE TABLE t(x)") // the open node still works
		})
	})
	t.Run("another process", func(t *testing.T) {
		all := process.NewNodes(t, 1, 1)
		check(t, all[0].Config, "another process")
		all[0].Ask("table")
	})
}

func TestInvalidTimezones(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Mars/Base", "Local"} {
		if err := (hiqlite.Config{DataDir: t.TempDir(), Timezone: name}).Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
