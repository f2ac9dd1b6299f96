package hiqlite_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A linearizable read on any node sees every write acknowledged on any other.
func TestLinearizableReadsSeeAcknowledgedWrites(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n INTEGER)")
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(0)")
	ctx := hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable)
	for n := 1; n <= 150; n++ {
		mustExec(t, c.DB(n%3), "UPDATE t SET n=?", n)
		var got int
		if err := c.DB((n+1)%3).QueryRowContext(ctx, "SELECT n FROM t").Scan(&got); err != nil || got != n {
			t.Fatalf("after %d was acknowledged by node %d, node %d read %d, %v", n, n%3+1, (n+1)%3+1, got, err)
		}
	}
}

// Local reads see what was written through their own node, from any connection.
func TestReadsSeeOwnWrites(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(client INTEGER, n INTEGER)")
	var wait sync.WaitGroup
	for client := range 9 {
		db := c.DB(client % 3)
		wait.Go(func() {
			for n := range 40 {
				if _, err := db.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(?,?)", client, n); err != nil {
					t.Error(err)
					return
				}
				var got int
				if err := db.QueryRowContext(testrun.Context(t), "SELECT count(*) FROM t WHERE client=?", client).Scan(&got); err != nil || got != n+1 {
					t.Errorf("client %d wrote %d rows and reads %d, %v", client, n+1, got, err)
					return
				}
			}
		})
	}
	wait.Wait()
}

// What only reads does not go through the log.
func TestReadsStayLocal(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	mustExec(t, c.DB(0), "CREATE TABLE t(n INTEGER)")
	before, err := c.Node(0).Status(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"SELECT * FROM t", "SELECT random()", "WITH x AS (SELECT 1) SELECT * FROM x", "PRAGMA table_info(t)",
		"PRAGMA foreign_keys=OFF", "PRAGMA busy_timeout=3", "EXPLAIN DELETE FROM t", "PRAGMA optimize", "SELECT 1; SELECT 2", ""} {
		if _, err := c.DB(0).ExecContext(testrun.Context(t), text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	after, err := c.Node(0).Status(testrun.Context(t))
	if err != nil || after.Applied != before.Applied {
		t.Errorf("reads moved the log from %d to %d, %v", before.Applied, after.Applied, err)
	}
}

// Reads run beside each other and beside writes: more open result sets than the
// node has readers only make the next wait.
func TestReadersAreBoundedAndReturn(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) { cfg.MaxReaders = 4 })
	mustExec(t, c.DB(0), "CREATE TABLE t(n INTEGER)")
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(1),(2),(3)")
	open := 0
	for range 4 {
		rows, err := c.DB(0).QueryContext(testrun.Context(t), "SELECT n FROM t")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		open++
	}
	ctx, cancel := context.WithCancel(context.Background())
	waits := make(chan error)
	go func() {
		_, err := c.DB(0).ExecContext(ctx, "SELECT 1")
		waits <- err
	}()
	cancel()
	if err := <-waits; err == nil {
		t.Errorf("a fifth reader beside %d open ones was let in", open)
	}
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(4)") // writes need no reader
}

// A text's first error is not trusted while this node may be behind.
func TestTablesOfOtherNodesAreFound(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for n := range 20 {
		mustExec(t, c.DB(n%3), fmt.Sprintf("CREATE TABLE t%d(a)", n))
		mustExec(t, c.DB((n+1)%3), fmt.Sprintf("INSERT INTO t%d VALUES(1)", n))
		var got int
		if err := c.DB((n+2)%3).QueryRowContext(hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable),
			fmt.Sprintf("SELECT a FROM t%d", n)).Scan(&got); err != nil || got != 1 {
			t.Errorf("table %d: %d, %v", n, got, err)
		}
	}
}
