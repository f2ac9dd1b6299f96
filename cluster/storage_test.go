package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lni/dragonboat/v4/raftpb"
)

// The names of folders stay the same over restarts. A name is remembered when it has to
// be, and then no other one is accepted.
func TestStorageRemembersFolders(t *testing.T) {
	dir := t.TempDir()
	s, err := openStorage(dir)
	if err != nil {
		t.Fatal(err)
	}
	check := func(s *storage, name string, remember, want bool) {
		t.Helper()
		if same, err := s.same(2, name, remember); err != nil || same != want {
			t.Errorf("the folder %s is the same: %v, %v, want %v", name, same, err, want)
		}
	}
	check(s, "a", false, true)
	check(s, "b", true, true)
	check(s, "a", false, false)
	check(s, "a", true, false)
	again, err := openStorage(dir)
	if err != nil || again.file.Name != s.file.Name {
		t.Fatalf("the folder is %+v, and was %+v: %v", again, s, err)
	}
	check(again, "b", false, true)
	check(again, "a", false, false)
	if other, err := openStorage(t.TempDir()); err != nil || other.file.Name == s.file.Name {
		t.Errorf("two folders have the same name, %v", err)
	}
}

// A log without the name of its folder has lost a file.
func TestStorageIsMissing(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "half": `{"Name":"x"`, "without a name": `{"Nodes":{}}`, "none": "-"} {
		nodes := newNodes(t, 1)
		nodes[1].start()
		nodes[1].stop()
		path := filepath.Join(nodes[1].cfg.Dir, storageFileName)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if text != "-" {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if h, err := Open(nodes[1].cfg); !errors.Is(err, ErrUnreadable) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				h.Close()
			}
		}
	}
}

// A node takes part from its first election on.
func TestTookPart(t *testing.T) {
	l := &raftLog{}
	if l.tookPart() || (*raftLog)(nil).tookPart() {
		t.Error("a node without a log took part")
	}
	l.ends.loaded(1, 1, 0, raftpb.State{Term: 1})
	if l.tookPart() {
		t.Error("a node that has only started took part")
	}
	l.ends.saved([]raftpb.Update{{ShardID: 1, ReplicaID: 1, State: raftpb.State{Term: 2, Vote: 3}}})
	if !l.tookPart() {
		t.Error("a node that has voted took no part")
	}
}
