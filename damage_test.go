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

// A node whose disk has flipped bits answers with right rows or an error, also
// linearizably; it stops, and gives nothing of it to the others.
func TestFlippedBitsAreNeverAnswered(t *testing.T) {
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
		c.Stop(bad) // all is in the database file
		flipBits(t, c.Config(bad).DataDir)
		if c.TryStart(bad) == nil {
			node := c.Node(bad)
			for _, consistency := range []hiqlite.Consistency{hiqlite.Local, hiqlite.Linearizable} {
				var got string
				err := node.DB().QueryRowContext(hiqlite.WithConsistency(testrun.Context(t), consistency), rows).Scan(&got)
				if err == nil {
					t.Errorf("it answers in spite of the damage; right: %v", got == want)
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
				t.Errorf("node %d: right: %v, %v", i+1, got == want, err)
			}
		}
	})
}

// flipBits flips a bit in each fourth page of the database of a node that is down.
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

// A snapshot of a shard in memory that cannot be read is found before Raft reads
// it, which would end the program; whatever the folder is called.
func TestADamagedSnapshotOfABucket(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) { cfg.DataDir = filepath.Join(filepath.Dir(cfg.DataDir), "[1] a[b") })
	ctx := testrun.Context(t)
	b := bucketOf(t, c.Node(0), "b")
	for i := range 40 { // several blocks of the file: what is random stays as long as it is
		value := make([]byte, 100_000)
		rand.Read(value)
		if err := b.Put(ctx, fmt.Sprint(i), hex.EncodeToString(value)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Node(0).CompactMemory(0); err != nil {
		t.Fatal(err)
	}
	c.restart(0) // it is read as it is
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
