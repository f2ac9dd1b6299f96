package hiqlite_test

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// The tests of this file damage the files of stopped nodes.

// Open returns ErrDamaged if files of the folder are missing, unreadable, or older than
// the others. Raft must not open such a folder: it would end the process.
func TestDamagedFolders(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		damage func(t *testing.T, dir, old string)
	}{
		{"database lost", func(t *testing.T, dir, _ string) { remove(t, filepath.Join(dir, "sql")) }},
		{"log lost", func(t *testing.T, dir, _ string) { remove(t, filepath.Join(dir, "raft")) }},
		{"database older than the log", func(t *testing.T, dir, old string) { putBack(t, dir, old, "sql") }},
		{"log older than the database", func(t *testing.T, dir, old string) { putBack(t, dir, old, "raft") }},
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
				if err := os.WriteFile(f, []byte("this is not a SQLite database, only some text"), 0o644); err != nil {
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
				c.insert(0, 20)
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
				t.Errorf("Open: %v, want ErrDamaged", err)
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

// putBack replaces a file or a folder in dir by the copy in old.
func putBack(t *testing.T, dir, old, name string) {
	t.Helper()
	remove(t, filepath.Join(dir, name))
	if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(old, name))); err != nil {
		t.Fatal(err)
	}
}

// If bits of its database file are flipped, a node never returns wrong rows: reads fail
// and the node stops. The other nodes are not affected.
func TestFlippedBitsAreNeverReturned(t *testing.T) {
	t.Parallel()
	const rows = "SELECT count(*) || ' ' || sum(id*length(v)) || ' ' || (SELECT group_concat(substr(v, -2), '') FROM (SELECT v FROM t ORDER BY v)) FROM t"
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX tv ON t(v)")
		mustExec(t, c.DB(0), "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<3000) INSERT INTO t(v) SELECT printf('%0*d', 50+n%400, n) FROM c")
		var want string
		if err := c.DB(0).QueryRow(rows).Scan(&want); err != nil {
			t.Fatal(err)
		}
		c.WaitEqual()
		bad := c.Len() - 1
		c.Stop(bad) // which copies all of the write-ahead log into the database file
		flipBits(t, c.Config(bad).DataDir)
		if c.TryStart(bad) == nil {
			node := c.Node(bad)
			for _, consistency := range []hiqlite.Consistency{hiqlite.Local, hiqlite.Linearizable} {
				var got string
				err := node.DB().QueryRowContext(hiqlite.WithConsistency(testrun.Context(t), consistency), rows).Scan(&got)
				if err == nil {
					t.Errorf("a read of the damaged database has succeeded; its rows are right: %v", got == want)
				}
			}
		}
		if c.Len() == 1 {
			return
		}
		for i := range bad {
			mustExec(t, c.DB(i), "UPDATE t SET v=v WHERE id=1")
			var got string
			if err := c.DB(i).QueryRowContext(linearizable(t), rows).Scan(&got); err != nil || got != want {
				t.Errorf("node %d is not damaged: its rows are right: %v, %v", i+1, got == want, err)
			}
		}
	})
}

// flipBits flips a bit in each fourth page of the database file of a stopped node.
func flipBits(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "sql", "generation-*", "data.db"))
	if err != nil || len(files) != 1 {
		t.Fatal(fmt.Sprint(files), err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(b), "\x00") == len(b) || len(b) < 40*4096 {
		t.Fatalf("%s has %d bytes", files[0], len(b))
	}
	for at := 10*4096 + 2222; at < len(b); at += 4 * 4096 {
		b[at] ^= 1
	}
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Open finds a damaged snapshot of an in-memory shard before Raft reads it, which would
// end the program. It finds it also if the name of the folder contains characters that
// have a meaning in patterns of file names.
func TestDamagedSnapshotOfABucket(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) { cfg.DataDir = filepath.Join(filepath.Dir(cfg.DataDir), "[1] a[b") })
	ctx := testrun.Context(t)
	b := bucketOf(t, c.Node(0), "b")
	for i := range 40 { // random values cannot be compressed, so that the file has several blocks
		value := make([]byte, 100_000)
		rand.Read(value)
		if err := b.Put(ctx, fmt.Sprint(i), hex.EncodeToString(value)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Node(0).CompactMemory(0); err != nil {
		t.Fatal(err)
	}
	c.restart(0) // the snapshot can be read before it is damaged
	c.Stop(0)
	damaged := 0
	err := filepath.WalkDir(c.Config(0).DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".gbsnap") || !strings.Contains(path, "snapshot-2-1") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		data[len(data)*3/4] ^= 1
		damaged++
		return os.WriteFile(path, data, 0o600)
	})
	if err != nil || damaged == 0 {
		t.Fatalf("%d snapshots are damaged, %v", damaged, err)
	}
	_, err = hiqlite.Open(ctx, c.Config(0))
	if !errors.Is(err, hiqlite.ErrDamaged) || !strings.Contains(err.Error(), ".gbsnap") {
		t.Errorf("Open: %v", err)
	}
}

// Each file of the Raft folder of a stopped node is removed in turn. The node then says
// that the folder is damaged, or it starts and has all rows.
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
	undamaged := c.copyFolders()[0]
	var names []string
	err := filepath.WalkDir(filepath.Join(undamaged, "raft"), func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(undamaged, path)
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
			// The node runs in another process: when Dragonboat fails to open a
			// folder, it leaves goroutines behind, and the folder locked.
			cfg := c.Config(0)
			cfg.Logger = nil // writes to this test, which the other process cannot do
			cfg.DataDir = filepath.Join(t.TempDir(), "1")
			if err := os.CopyFS(cfg.DataDir, os.DirFS(undamaged)); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(cfg.DataDir, name)); err != nil {
				t.Fatal(err)
			}
			p := process.StartNode(t, cfg, t.TempDir(), 0)
			if r, err := p.Try("ready"); err == nil {
				if len(r.Errors) > 0 || p.Ask("hash").Hash != hash {
					t.Errorf("the node starts, but has other rows, or returns the errors %v", r.Errors)
				}
				return
			}
			<-p.Ended()
			if log := p.Log(); !strings.Contains(log, "damaged") || strings.Contains(log, "nil pointer") || strings.Contains(log, "panic:") {
				t.Errorf("the node ends with the log %s", log)
			}
		})
	}
}

// hashOf starts a stopped node, gets the hash of its database, and stops it again.
func hashOf(c *testCluster) (string, error) {
	c.Start(0)
	defer c.Stop(0)
	c.WaitReady(0)
	hash, _, err := c.Node(0).Hash(testrun.Context(c.t))
	return hex.EncodeToString(hash[:]), err
}
