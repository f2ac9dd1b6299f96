package hiqlite_test

import (
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// Each file of a stopped node's Raft folder is removed in turn: the node says
// what is wrong, or starts and holds all that was there.
func TestMissingRaftFiles(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	c := newCluster(t, 1)
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
	c.insert(0, 20)
	if err := c.Node(0).Compact(5); err != nil {
		t.Fatal(err)
	}
	if err := c.Node(0).CompactMemory(5); err != nil {
		t.Fatal(err)
	}
	c.insert(0, 20)
	c.Stop(0)
	whole := c.copyFolders()[0]
	var names []string
	err := filepath.WalkDir(filepath.Join(whole, "raft"), func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(whole, path)
		names = append(names, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	hash, err := hashOf(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
			// A process of its own: Dragonboat leaves goroutines, and the folder
			// locked, where it fails to open it.
			cfg := c.Config(0)
			cfg.Logger = nil // this test's, which another process does not have
			cfg.DataDir = filepath.Join(t.TempDir(), "1")
			if err := os.CopyFS(cfg.DataDir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(cfg.DataDir, name)); err != nil {
				t.Fatal(err)
			}
			p := process.StartNode(t, cfg, t.TempDir(), 0)
			if r, err := p.Try("ready"); err == nil {
				if len(r.Errors) > 0 || p.Ask("hash").Hash != hash {
					t.Errorf("it starts, but holds other rows, or says %v", r.Errors)
				}
				return
			}
			<-p.Ended()
			if log := p.Log(); !strings.Contains(log, "damaged") || strings.Contains(log, "nil pointer") || strings.Contains(log, "panic:") {
				t.Errorf("it says %s", log)
			}
		})
	}
}

// hashOf returns the hash of a stopped node, which it starts for it.
func hashOf(c *testCluster) (string, error) {
	c.Start(0)
	defer c.Stop(0)
	c.WaitReady(0)
	hash, _, err := c.Node(0).Hash(testrun.Context(c.t))
	return hex.EncodeToString(hash[:]), err
}
