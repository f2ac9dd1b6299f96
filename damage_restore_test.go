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

// The tests of this file put older copies of data folders back.

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

// tryStart starts a node, and reports whether it has started. It fails the test if the
// node refuses for another reason than ErrDamaged.
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

// waitEqualOrDamaged waits until all running nodes that do not report ErrDamaged hold
// the same rows; and, if they are a majority, at least as many as given. It returns how
// many nodes these are. The caller must have written before: a node notices that it has
// lost entries only when it gets new ones.
func (c *testCluster) waitEqualOrDamaged(rows int) (undamaged int) {
	c.t.Helper()
	testrun.WaitFor(c.t, "the nodes to hold the same rows, or to report that they are damaged", func() bool {
		undamaged = 0
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
			undamaged++
			hashes[hash], counts[count] = true, true
		}
		if undamaged > c.Len()/2 { // a minority may not have got the newest entries
			for count := range counts {
				if count < rows {
					return false
				}
			}
		}
		return len(hashes) <= 1
	})
	return undamaged
}

// Older copies of the folders of all nodes are put back, but one node keeps its newer
// database. This node refuses to start. The others lose nothing that is written
// afterwards.
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
			if n := c.waitEqualOrDamaged(310); n != 2 {
				t.Errorf("%d nodes are not damaged, want 2", n)
			}
			// Its own log still ends before the applied index of its database.
			if c.tryStart(last) {
				t.Error("the node with the newer database starts after the others have written more entries")
			}
		})
	}
}

// The last entry of the newer database has an index that the older log also has, but
// there the entry is of another term.
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
	for range 3 { // each start has an election, and so a new term
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

// Older folders are put back on a majority of the nodes, or on one. Whichever node
// starts first: writes that are acknowledged afterwards are not lost, and no two
// running nodes hold different rows.
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
			n := c.waitEqualOrDamaged(rows)
			t.Logf("%d nodes are not damaged; they must have at least %d rows", n, rows)
		})
	}
}

// insertSome inserts rows through any node that accepts them. It returns how many rows
// there must be at least: those that were there before, and those acknowledged. It
// stops when no majority of the nodes is running and undamaged.
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
