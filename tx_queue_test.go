package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

func TestBusyTimeoutBehindATransaction(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(a)")
	for holder := range c.Len() {
		tx := mustBegin(t, c.DB(holder))
		run(t, tx, "INSERT INTO t VALUES(1)")
		for i := range c.Len() {
			conn := mustConn(t, c.DB(i))
			run(t, conn, "PRAGMA busy_timeout = 30")
			named := fmt.Sprintf("node %d", holder+1)
			_, err := conn.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(2)")
			hasCode(t, err, 5, "database is locked (5) (SQLITE_BUSY)", named)
			_, err = conn.QueryContext(testrun.Context(t), "INSERT INTO t VALUES(2) RETURNING a")
			hasCode(t, err, 5, "database is locked (5) (SQLITE_BUSY)", named)
			_, err = conn.BeginTx(testrun.Context(t), nil)
			hasCode(t, err, 5, "database is locked (5) (SQLITE_BUSY)", named)
			_, err = conn.ExecContext(testrun.Context(t), "BEGIN")
			hasCode(t, err, 5, "database is locked (5) (SQLITE_BUSY)", named)
			run(t, conn, "PRAGMA busy_timeout = 0")
			_, err = conn.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(2)")
			hasCode(t, err, 5, "database is locked (5) (SQLITE_BUSY)", named)
			if n := one[int](t, conn, "SELECT count(*) FROM t WHERE a=2"); n != 0 {
				t.Errorf("%d rows of those that were refused", n)
			}
		}
		commit(t, tx)
		for i := range c.Len() {
			conn := mustConn(t, c.DB(i))
			run(t, conn, "PRAGMA busy_timeout = 60000")
			run(t, conn, "INSERT INTO t VALUES(3)")
		}
	}
	c.WaitReady(0)
	if got := one[string](t, c.DB(0), "SELECT group_concat(n) FROM (SELECT count(*) AS n FROM t GROUP BY a)"); got != "3,9" {
		t.Error(got)
	}
	c.WaitEqual()
}

// queued waits until so many operations wait for the write lease.
func queued(t testing.TB, n *hiqlite.Node, count int) {
	t.Helper()
	testrun.WaitFor(t, fmt.Sprintf("a queue of %d", count), func() bool { return n.Queued() == count })
}

// What waits for the write lease has its turn in the order in which it came,
// whichever node it came from and whether it is a transaction or a plain write.
func TestFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, who TEXT)")
	ctx := testrun.Context(t)
	exec := func(db *sql.DB, who string) error {
		_, err := db.ExecContext(ctx, "INSERT INTO t(who) VALUES(?)", who)
		return err
	}
	batch := func(db *sql.DB, who string) error {
		_, err := hiqlite.Batch(ctx, db, hiqlite.Statement{SQL: "INSERT INTO t(who) VALUES(?)", Args: []any{who}})
		return err
	}
	transaction := func(db *sql.DB, who string) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("INSERT INTO t(who) VALUES(?)", who); err != nil {
			return err
		}
		return tx.Commit()
	}
	given := func(db *sql.DB, who string) error { // in vain
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		return tx.Rollback()
	}
	kinds := []struct {
		name string
		run  func(db *sql.DB, who string) error
	}{{"exec", exec}, {"transaction", transaction}, {"transaction", transaction}, {"given up", given}, {"batch", batch}, {"exec", exec}, {"transaction", transaction}}

	holder := mustBegin(t, c.DB(0))
	run(t, holder, "INSERT INTO t(who) VALUES('holder')")
	want := []string{"holder"}
	var work sync.WaitGroup
	const rounds = 21
	errs := make([]error, rounds)
	for i := range rounds {
		kind, node := kinds[i%len(kinds)], []int{1, 2, 0}[i%3]
		who := fmt.Sprintf("%d: %s of node %d", i, kind.name, node+1)
		if kind.name != "given up" {
			want = append(want, who)
		}
		work.Go(func() { errs[i] = kind.run(c.DB(node), who) })
		queued(t, c.Node(0), i+1)
	}
	commit(t, holder)
	work.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	var got []string
	linear := hiqlite.WithConsistency(ctx, hiqlite.Linearizable)
	rows, err := c.DB(0).QueryContext(linear, "SELECT who FROM t ORDER BY id")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var who string
		if err := rows.Scan(&who); err != nil {
			t.Fatal(err)
		}
		got = append(got, who)
	}
	if !slices.Equal(got, want) {
		t.Errorf("came:\n%s\nserved:\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	c.WaitEqual()
}

// Who leaves the queue leaves the others where they are.
func TestQueueThatSomeLeave(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, who INT)")
	holder := mustBegin(t, c.DB(1))
	impatient, leave := context.WithCancel(testrun.Context(t))
	ctx := testrun.Context(t)
	var work sync.WaitGroup
	const rounds = 12
	errs := make([]error, rounds)
	for i := range rounds {
		waits := ctx
		if i%3 != 0 {
			waits = impatient
		}
		work.Go(func() {
			if i%2 == 0 {
				_, errs[i] = c.DB(i%3).ExecContext(waits, "INSERT INTO t(who) VALUES(?)", i)
				return
			}
			tx, err := c.DB(i%3).BeginTx(waits, nil)
			if err == nil {
				_, _ = tx.Exec("INSERT INTO t(who) VALUES(?)", i)
				err = tx.Commit()
			}
			errs[i] = err
		})
		queued(t, c.Node(0), i+1)
	}
	leave()
	queued(t, c.Node(0), rounds/3)
	commit(t, holder)
	work.Wait()
	for i, err := range errs {
		if i%3 == 0 && err != nil || i%3 != 0 && !strings.Contains(fmt.Sprint(err), context.Canceled.Error()) {
			t.Errorf("%d: %v", i, err)
		}
	}
	run(t, c.DB(0), "INSERT INTO t(who) VALUES(100)")
	if got := one[string](t, c.DB(0), "SELECT group_concat(who) FROM (SELECT who FROM t ORDER BY id)"); got != "0,3,6,9,100" {
		t.Error(got)
	}
	c.WaitEqual()
}

// Nobody is turned away who has patience.
func TestCrowdOfTransactions(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE sums(id INTEGER PRIMARY KEY, n INT)")
	run(t, c.DB(0), "INSERT INTO sums VALUES(1, 0), (2, 0)")
	const clients, each = 30, 34 // more than a thousand
	all(t, clients, func(i int) error {
		db := c.DB(i % 3)
		for range each {
			ctx := testrun.Context(t)
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return fmt.Errorf("begin: %w", err)
			}
			var n int // read, and written back: nothing may come between
			if err := tx.QueryRow("SELECT n FROM sums WHERE id = 1").Scan(&n); err != nil {
				return fmt.Errorf("read: %w", err)
			}
			if _, err := tx.Exec("UPDATE sums SET n = ? WHERE id = 1", n+1); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			if err := tx.Commit(); err != nil {
				return fmt.Errorf("commit: %w", err)
			}
			if i%5 == 0 {
				if _, err := db.ExecContext(ctx, "UPDATE sums SET n = n + 1 WHERE id = 2"); err != nil {
					return fmt.Errorf("plain write: %w", err)
				}
			}
		}
		return nil
	})
	for i := range c.Len() {
		c.WaitReady(i)
		if got := one[string](t, c.DB(i), "SELECT group_concat(n) FROM sums"); got != fmt.Sprintf("%d,%d", clients*each, clients/5*each) {
			t.Errorf("node %d: %s", i+1, got)
		}
	}
	c.WaitEqual()
}

// Who waits for the lease is told when his own node is closed.
func TestNodeClosedWhileOthersWait(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(a)")
	tx := mustBegin(t, c.DB(0))
	run(t, tx, "INSERT INTO t VALUES(1)")
	var begun, written error
	var work sync.WaitGroup
	// Nothing but the node's end ends their waiting: neither busy_timeout nor this.
	ctx, cancel := context.WithTimeout(context.Background(), testrun.Patience/8)
	defer cancel()
	work.Go(func() { _, begun = c.DB(1).BeginTx(ctx, nil) })
	work.Go(func() { _, written = c.DB(1).ExecContext(ctx, "INSERT INTO t VALUES(2)") })
	queued(t, c.Node(0), 2)
	c.Stop(1)
	work.Wait()
	if ctx.Err() != nil {
		t.Error("they were not told that the node was closed")
	}
	isClosed(t, "BeginTx", begun, false)
	isClosed(t, "Exec", written, true)
	commit(t, tx)
	run(t, c.DB(2), "INSERT INTO t VALUES(3)")
	next := mustBegin(t, c.DB(0))
	rollBack(t, next)
	if n := one[int](t, c.DB(0), "SELECT count(*) FROM t WHERE a=2"); n > 1 || n == 1 && !errors.Is(written, hiqlite.ErrOutcomeUnknown) {
		t.Errorf("%d rows, and Exec returned %v", n, written)
	}
	c.Start(1)
	c.WaitReady(1)
	c.WaitEqual()
}

// A write that leaves the queue in time was not applied, and says so. (Replicas
// hand out the answer to the release before they settle the place.)
func TestWritesThatLeaveTheQueueKnowIt(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(a)")
	tx := mustBegin(t, c.DB(0))
	all(t, 48, func(int) error {
		conn, err := c.DB(0).Conn(testrun.Context(t))
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.ExecContext(testrun.Context(t), "PRAGMA busy_timeout = 0"); err != nil {
			return err
		}
		for range 100 {
			if _, err := conn.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(1)"); err == nil || errors.Is(err, hiqlite.ErrOutcomeUnknown) {
				return fmt.Errorf("a write behind a transaction: %w", err)
			}
		}
		return nil
	})
	commit(t, tx)
}
