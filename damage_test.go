package hiqlite_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// Files that are gone, or older than they were, are an error before Raft, which
// would end the process, sees them.
func TestDamagedFolders(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		damage func(t *testing.T, dir, old string)
	}{
		{"database lost", func(t *testing.T, dir, _ string) { remove(t, filepath.Join(dir, "sql")) }},
		{"log lost", func(t *testing.T, dir, _ string) { remove(t, filepath.Join(dir, "raft")) }},
		{"database of the past", func(t *testing.T, dir, old string) { putBack(t, dir, old, "sql") }},
		{"log of the past", func(t *testing.T, dir, old string) { putBack(t, dir, old, "raft") }},
		{"identity unreadable", func(t *testing.T, dir, _ string) {
			if err := os.WriteFile(filepath.Join(dir, "hiqlite.json"), []byte("{"), 0o644); err != nil {
				t.Fatal(err)
			}
		}},
		{"database unreadable", func(t *testing.T, dir, _ string) {
			files, err := filepath.Glob(filepath.Join(dir, "sql", "generation-*", "data.db*"))
			if err != nil || len(files) == 0 {
				t.Fatal(files, err)
			}
			for _, f := range files {
				if err := os.WriteFile(f, []byte("this is no database, however long one looks at it"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, 1)
			dir, old := c.Config(0).DataDir, t.TempDir()
			mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
			fill := func() {
				for range 20 {
					mustExec(t, c.DB(0), "INSERT INTO t DEFAULT VALUES")
				}
				if err := c.Node(0).Compact(5); err != nil {
					t.Fatal(err)
				}
				c.Stop(0)
			}
			fill()
			if err := os.CopyFS(old, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			c.Start(0)
			fill()
			test.damage(t, dir, old)
			node, err := hiqlite.Open(testrun.Context(t), c.Config(0))
			if err == nil {
				node.Close()
			}
			if !errors.Is(err, hiqlite.ErrDamaged) {
				t.Errorf("opening it: %v, want ErrDamaged", err)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func putBack(t *testing.T, dir, old, name string) {
	t.Helper()
	remove(t, filepath.Join(dir, name))
	if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(old, name))); err != nil {
		t.Fatal(err)
	}
}
