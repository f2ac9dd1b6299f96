package hiqlite_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file check what reads see, and that rows and readers are given back.

// A node reads what was written through it, and with linearizable reads what was
// written through any node.
func TestWriteThenRead(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
		for i := range c.Len() {
			r := mustExec(t, c.DB(i), "INSERT INTO t(v) VALUES(?)", fmt.Sprint("node ", i))
			id, _ := r.LastInsertId()
			var got string
			if err := c.DB(i).QueryRowContext(testrun.Context(t), "SELECT v FROM t WHERE id=?", id).Scan(&got); err != nil || got != fmt.Sprint("node ", i) {
				t.Errorf("node %d reads %q of the row that was written through it, %v", i+1, got, err)
			}
		}
		ctx := linearizable(t)
		for i := range c.Len() {
			var n int
			if err := c.DB(i).QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&n); err != nil || n != c.Len() {
				t.Errorf("node %d counts %d rows, %v", i+1, n, err)
			}
		}
		c.WaitEqual()
	})
}

// A linearizable read on any node sees every write acknowledged on any other.
func TestLinearizableReadsSeeAcknowledgedWrites(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n INTEGER)")
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(0)")
	ctx := linearizable(t)
	for n := 1; n <= 150; n++ {
		mustExec(t, c.DB(n%3), "UPDATE t SET n=?", n)
		var got int
		if err := c.DB((n+1)%3).QueryRowContext(ctx, "SELECT n FROM t").Scan(&got); err != nil || got != n {
			t.Fatalf("after %d was acknowledged by node %d, node %d read %d, %v", n, n%3+1, (n+1)%3+1, got, err)
		}
	}
}

// Local reads see what was written through the same node, on any connection.
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

// Statements that only read do not go through the log.
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
		t.Errorf("reads have moved the applied index from %d to %d, %v", before.Applied, after.Applied, err)
	}
}

// While as many rows are open as the node has readers, a further read waits for a
// reader, and writes go on.
func TestReadersAreBounded(t *testing.T) {
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
	fifth := make(chan error)
	go func() {
		_, err := c.DB(0).ExecContext(ctx, "SELECT 1")
		fifth <- err
	}()
	cancel()
	if err := <-fifth; err == nil {
		t.Errorf("a fifth read has succeeded, while %d of 4 readers are in use", open)
	}
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(4)") // writes need no reader
}

// A statement finds a table that another node has just created: before a node returns
// "no such table", it applies what the leader has committed.
func TestTablesOfOtherNodesAreFound(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for n := range 20 {
		mustExec(t, c.DB(n%3), fmt.Sprintf("CREATE TABLE t%d(a)", n))
		mustExec(t, c.DB((n+1)%3), fmt.Sprintf("INSERT INTO t%d VALUES(1)", n))
		var got int
		if err := c.DB((n+2)%3).QueryRowContext(linearizable(t),
			fmt.Sprintf("SELECT a FROM t%d", n)).Scan(&got); err != nil || got != 1 {
			t.Errorf("table %d: %d, %v", n, got, err)
		}
	}
}

// A read that runs while its node closes returns an error, or all its rows.
func TestReadsWhileClosing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	mustExec(t, c.DB(0), "CREATE TABLE t AS WITH RECURSIVE s(value) AS (SELECT 1 UNION ALL SELECT value+1 FROM s WHERE value < 20000) SELECT value FROM s")
	rows, err := c.DB(0).QueryContext(context.Background(), "SELECT value FROM t")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	rows.Next()
	c.Stop(0)
	n := 1
	for rows.Next() {
		n++
	}
	if rows.Err() == nil && n != 20000 {
		t.Errorf("%d of 20000 rows and no error", n)
	}
}

// numbers returns the numbers from 1 to a bound.
const numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<%d) SELECT i FROM n"

// Open rows are those of the moment when their query began; other queries see later
// writes.
func TestReadsDuringOpenRows(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	db := c.DB(0)
	mustExec(t, db, "CREATE TABLE t(a)")
	mustExec(t, db, "INSERT INTO t "+fmt.Sprintf(numbers, 1000))
	rows, err := db.QueryContext(testrun.Context(t), "SELECT a FROM t ORDER BY a")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for seen := 1; rows.Next(); seen++ {
		var a, n int
		if err := rows.Scan(&a); err != nil || a != seen {
			t.Fatalf("row %d is %d, %v", seen, a, err)
		}
		if seen%100 != 0 {
			continue
		}

		mustExec(t, db, "INSERT INTO t VALUES(0)")
		if err := db.QueryRowContext(testrun.Context(t), "SELECT count(*) FROM t").Scan(&n); err != nil || n != 1000+seen/100 {
			t.Fatalf("another query counts %d rows, want %d, %v", n, 1000+seen/100, err)
		}
	}
	if err := rows.Err(); err != nil {
		t.Error(err)
	}
}

func TestManyReadersAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) { cfg.MaxReaders = 4 })
	db := c.DB(0)
	mustExec(t, db, "CREATE TABLE t(a)")
	mustExec(t, db, "INSERT INTO t "+fmt.Sprintf(numbers, 500))
	var work sync.WaitGroup
	for range 16 {
		work.Go(func() {
			for range 5 {
				rows, err := db.QueryContext(testrun.Context(t), "SELECT a FROM t")
				if err != nil {
					t.Error(err)
					return
				}
				n := 0
				for rows.Next() {
					n++
				}
				if err := rows.Err(); err != nil || n != 500 {
					t.Errorf("read %d rows, %v", n, err)
				}
			}
		})
	}
	work.Wait()
}

// Rows that a program never closes do not block writes, and end with the node.
func TestRowsLeftOpen(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	db := c.DB(0)
	mustExec(t, db, "CREATE TABLE t(a); INSERT INTO t VALUES(1),(2)")
	for _, query := range []string{"SELECT a FROM t", endless, "VACUUM", "PRAGMA busy_timeout", "UPDATE t SET a=a RETURNING a"} {
		rows, err := db.QueryContext(testrun.Context(t), query)
		if err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		rows.Next() // the rows stay open
	}
	mustExec(t, db, "INSERT INTO t VALUES(3)")
	var n int
	if err := db.QueryRowContext(testrun.Context(t), "SELECT count(*) FROM t").Scan(&n); err != nil || n != 3 {
		t.Errorf("counted %d, %v", n, err)
	}
	c.Stop(0) // returns, although rows are open
}

// QueryRow reads one row of a query without end, and gives the reader back.
func TestQueryRowOfAnEndlessQuery(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) { cfg.MaxReaders = 1 })
	for range 20 {
		var i int
		if err := c.DB(0).QueryRowContext(testrun.Context(t), endless).Scan(&i); err != nil || i != 1 {
			t.Fatalf("read %d, %v", i, err)
		}
	}
}

func TestCancelledIteration(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) { cfg.MaxReaders = 1 })
	for i := range 10 {
		ctx, cancel := context.WithCancel(testrun.Context(t))
		rows, err := c.DB(0).QueryContext(ctx, endless)
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; rows.Next(); n++ {
			if n == i*10 {
				cancel()
			}
		}
		if err := rows.Err(); !errors.Is(err, context.Canceled) {
			t.Errorf("the rows ended with %v", err)
		}
		rows.Close()
		checkReads(t, c)
		cancel()
	}
}

func TestCancelledQuery(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) { cfg.MaxReaders = 1 })
	for _, query := range []string{endlessWithoutRows, "SELECT 1; " + endlessWithoutRows, "SELECT 1; " + endlessWithoutRows + "; SELECT 2"} {
		for _, run := range []func(context.Context) error{
			func(ctx context.Context) error { return c.DB(0).QueryRowContext(ctx, query).Scan(new(int)) },
			func(ctx context.Context) error { _, err := c.DB(0).ExecContext(ctx, query); return err },
			func(ctx context.Context) error {
				s, err := c.DB(0).PrepareContext(ctx, query)
				if err != nil {
					return err
				}
				defer s.Close()
				return s.QueryRowContext(ctx).Scan(new(int))
			},
		} {
			ctx, cancel := context.WithCancel(testrun.Context(t))
			done := make(chan error)
			go func() { done <- run(ctx) }()
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("%s: the canceled query has returned %v", query, err)
			}
			checkReads(t, c)
		}
	}
}

// Exec of an endless query ends with its context, too.
func TestCancelledExecOfARead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) { cfg.MaxReaders = 1 })
	ctx, cancel := context.WithCancel(testrun.Context(t))
	done := make(chan error)
	go func() { _, err := c.DB(0).ExecContext(ctx, endless); done <- err }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Exec has returned %v", err)
	}
	checkReads(t, c)
}

func TestWaitingForAReaderEndsWithTheContext(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) { cfg.MaxReaders = 1 })
	rows, err := c.DB(0).QueryContext(testrun.Context(t), endless)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testrun.Context(t))
	done := make(chan error)
	go func() { done <- c.DB(0).QueryRowContext(ctx, "SELECT 1").Scan(new(int)) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for a reader ended with %v", err)
	}
	mustExec(t, c.DB(0), "CREATE TABLE t(a)") // writes need no reader
	rows.Close()
	checkReads(t, c)
}

// checkReads fails the test unless all nodes answer a read.
func checkReads(t testing.TB, c *testCluster) {
	t.Helper()
	for i, n := range c.Nodes() {
		if n == nil {
			continue
		}
		var one int
		if err := n.DB().QueryRowContext(testrun.Context(t), "SELECT 1").Scan(&one); err != nil || one != 1 {
			t.Errorf("node %d answers SELECT 1 with %d, %v", i+1, one, err)
		}
	}
}
