package hiqlite_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// copyFolders copies the folders of all nodes.
func (c *testCluster) copyFolders() (copies []string) {
	c.t.Helper()
	dir := c.t.TempDir()
	for i := range c.Len() {
		to := filepath.Join(dir, fmt.Sprint(i+1))
		if err := os.CopyFS(to, os.DirFS(c.Config(i).DataDir)); err != nil {
			c.t.Fatal(err)
		}
		copies = append(copies, to)
	}
	return copies
}

func (c *testCluster) putBack(i int, copied string) {
	c.t.Helper()
	dir := c.Config(i).DataDir
	if err := os.RemoveAll(dir); err != nil {
		c.t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(copied)); err != nil {
		c.t.Fatal(err)
	}
}

// tryStart starts a node, which may refuse because it is damaged.
func (c *testCluster) tryStart(i int) (started bool) {
	c.t.Helper()
	err := c.TryStart(i)
	if err == nil {
		return true
	}
	if !errors.Is(err, hiqlite.ErrDamaged) {
		c.t.Fatalf("node %d: %v, want ErrDamaged", i+1, err)
	}
	c.t.Logf("node %d refuses to start: %v", i+1, err)
	return false
}

// damaged reports whether a node has stopped because it is damaged.
func (c *testCluster) damaged(i int) bool {
	c.t.Helper()
	_, err := c.Node(i).Status(context.Background())
	if err != nil && !errors.Is(err, hiqlite.ErrDamaged) {
		c.t.Fatalf("node %d: %v", i+1, err)
	}
	return err != nil
}

// sameOrRefused waits until the nodes that run hold the same, with at least so
// many rows, or say that they are damaged. It returns how many run and are not.
// Until the leader has told what it has applied, a difference may be unnoticed:
// so somebody has to write.
func (c *testCluster) sameOrRefused(rows int) (whole int) {
	c.t.Helper()
	testrun.WaitFor(c.t, "the nodes to hold the same, or to refuse", func() bool {
		whole = 0
		counts := map[int]bool{}
		hashes := map[[32]byte]bool{}
		for i, n := range c.Nodes() {
			if !c.Running(i) || c.damaged(i) {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			hash, _, err := n.Hash(ctx)
			count := 0
			if err == nil {
				err = n.DB().QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&count)
			}
			cancel()
			if err != nil {
				return false
			}
			whole++
			hashes[hash], counts[count] = true, true
		}
		if whole > c.Len()/2 { // the others can do nothing without them
			for count := range counts {
				if count < rows {
					return false
				}
			}
		}
		return len(hashes) <= 1
	})
	return whole
}

// The old folders of all nodes are put back, but on one the database is newer.
// That one refuses to start; the others lose nothing that is written then.
func TestDatabaseAheadOfItsLog(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) {
			c := newCluster(t, size)
			last := size - 1
			mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
			c.insert(0, 10)
			c.stopAll()
			old := c.copyFolders()
			c.startAll()
			c.insert(0, 40)
			c.WaitEqual()
			c.stopAll()
			newer := c.copyFolders()
			for i := range c.Len() {
				c.putBack(i, old[i])
			}
			putBack(t, c.Config(last).DataDir, newer[last], "sql")
			for i := range last {
				c.Start(i)
			}
			if c.tryStart(last) {
				t.Error("the node with the newer database starts")
			}
			if size == 1 {
				return
			}
			c.WaitReady(0)
			c.insert(0, 300)
			if whole := c.sameOrRefused(310); whole != 2 {
				t.Errorf("%d nodes are whole, want 2", whole)
			}
			// Its own log does not reach that far: it refuses still.
			if c.tryStart(last) {
				t.Error("the node with the newer database starts, once others are ahead of it")
			}
		})
	}
}

// The newer database's last entry has an index that the log has too, but of
// another term.
func TestDatabaseOfAnotherHistory(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
	c.insert(0, 10)
	c.stopAll()
	old := c.copyFolders()
	c.startAll()
	c.insert(0, 40)
	c.WaitEqual()
	c.stopAll()
	newer := c.copyFolders()
	for i := range c.Len() {
		c.putBack(i, old[i])
	}
	for range 3 { // an election each
		c.startAll()
		c.WaitReady(0)
		c.insert(0, 40)
		c.WaitEqual()
		c.stopAll()
	}
	putBack(t, c.Config(2).DataDir, newer[2], "sql")
	if c.tryStart(2) {
		t.Error("a node starts with the database of another history")
	}
}

// Older folders are put back on a majority, or on one node alone. Whoever starts
// first, what is acknowledged afterwards is not lost, and no two nodes that run
// differ.
func TestOlderFoldersPutBack(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		old   []int // nodes
		order []int
	}{
		{"majority first", []int{0, 1}, []int{0, 1, 2}},
		{"newer one first", []int{0, 1}, []int{2, 0, 1}},
		{"one of three first", []int{0}, []int{0, 1, 2}},
		{"one of three last", []int{0}, []int{1, 2, 0}},
		{"two of three, one old", []int{0}, []int{0, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, 3)
			mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
			c.insert(0, 10)
			c.stopAll()
			old := c.copyFolders()
			c.startAll()
			c.WaitReady()
			c.insert(0, 40)
			c.WaitEqual()
			c.stopAll()
			for _, i := range test.old {
				c.putBack(i, old[i])
			}
			rows := 0
			for k, i := range test.order {
				if !c.tryStart(i) || k == 0 {
					continue
				}
				rows = max(rows, c.insertSome())
			}
			whole := c.sameOrRefused(rows)
			t.Logf("%d nodes are whole; %d rows were acknowledged, or there before", whole, rows)
		})
	}
}

// insertSome writes through any node that takes it, and returns how many rows
// there must be: those that were there, and those acknowledged. It gives up when
// no majority takes part any more.
func (c *testCluster) insertSome() (rows int) {
	c.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		running := 0
		for i, n := range c.Nodes() {
			if !c.Running(i) || c.damaged(i) {
				continue
			}
			running++
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			acknowledged := 0
			for range 100 {
				if _, err := n.DB().ExecContext(ctx, "INSERT INTO t DEFAULT VALUES"); err != nil {
					break
				}
				acknowledged++
			}
			if acknowledged > 0 {
				if err := n.DB().QueryRowContext(testrun.Context(c.t), "SELECT count(*) FROM t").Scan(&rows); err != nil && !c.damaged(i) {
					c.t.Fatal(err)
				}
			}
			cancel()
			if acknowledged == 100 {
				return rows
			}
		}
		if running < 2 {
			return rows
		}
	}
	return rows
}
