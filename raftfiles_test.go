package hiqlite_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
)

// Each file of a stopped node's Raft folder is removed in turn: the node says
// what is wrong, or starts and holds all that was there.
func TestMissingRaftFiles(t *testing.T) {
	c := newCluster(t, 1)
	mustExec(t, c.db(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
	c.insert(0, 20)
	if err := c.nodes[0].Compact(5); err != nil {
		t.Fatal(err)
	}
	if err := c.nodes[0].CompactMemory(5); err != nil {
		t.Fatal(err)
	}
	c.insert(0, 20)
	c.stop(0)
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
	for _, name := range names {
		t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
			c.t = t
			// A folder of its own: Dragonboat leaves a folder locked that it failed to open.
			dir := filepath.Join(t.TempDir(), "1")
			c.configs[0].DataDir = dir
			c.putBack(0, whole)
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			node, err := hiqlite.Open(patient(t), c.configs[0])
			if err == nil {
				c.nodes[0] = node
				defer c.stop(0)
				c.ready(0)
				c.insert(0, 1)
				n := 0
				if err := c.db(0).QueryRowContext(patient(t), "SELECT count(*) FROM t").Scan(&n); err != nil || n != 41 {
					t.Errorf("%d rows, %v", n, err)
				}
				return
			}
			t.Log(err)
			if !errors.Is(err, hiqlite.ErrDamaged) || strings.Contains(err.Error(), "nil pointer") {
				t.Errorf("it says %v", err)
			}
		})
	}
}
