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
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file check the queue for the write lease.

// While another connection holds the write lease, writes and transactions wait for
// busy_timeout and then fail with SQLITE_BUSY. The error names the holder's node.
func TestBusyTimeoutWhileTheLeaseIsHeld(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, withoutTimeouts)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	for holder := range c.Len() {
		tx := mustBegin(t, c.DB(holder))
		mustExec(t, tx, "INSERT INTO t VALUES(1)")
		for i := range c.Len() {
			conn := mustConn(t, c.DB(i))
			mustExec(t, conn, "PRAGMA busy_timeout = 30")
			wantBusy := func(what string, err error) {
				t.Helper()
				wantCode(t, what, err, 5, "database is locked (5) (SQLITE_BUSY)", fmt.Sprintf("node %d", holder+1))
			}
			_, err := conn.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(2)")
			wantBusy("Exec", err)
			_, err = conn.QueryContext(testrun.Context(t), "INSERT INTO t VALUES(2) RETURNING a")
			wantBusy("Query", err)
			_, err = conn.BeginTx(testrun.Context(t), nil)
			wantBusy("BeginTx", err)
			_, err = conn.ExecContext(testrun.Context(t), "BEGIN")
			wantBusy("BEGIN", err)
			mustExec(t, conn, "PRAGMA busy_timeout = 0")
			_, err = conn.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(2)")
			wantBusy("Exec with busy_timeout = 0", err)
			if n := queryValue[int](t, conn, "SELECT count(*) FROM t WHERE a=2"); n != 0 {
				t.Errorf("%d rows of the writes that failed", n)
			}
		}
		mustCommit(t, tx)
		for i := range c.Len() {
			conn := mustConn(t, c.DB(i))
			mustExec(t, conn, "PRAGMA busy_timeout = 60000")
			mustExec(t, conn, "INSERT INTO t VALUES(3)")
		}
	}
	c.WaitReady(0)
	if got := queryValue[string](t, c.DB(0), "SELECT group_concat(n) FROM (SELECT count(*) AS n FROM t GROUP BY a)"); got != "3,9" {
		t.Errorf("got %q, want %q", got, "3,9")
	}
	c.WaitEqual()
}

// Transactions and plain writes get the write lease in the order in which they
// asked for it, on whichever node.
func TestFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, withoutTimeouts)
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, who TEXT)")
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
	rolledBack := func(db *sql.DB, who string) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		return tx.Rollback()
	}
	kinds := []struct {
		name string
		run  func(db *sql.DB, who string) error
	}{{"exec", exec}, {"transaction", transaction}, {"transaction", transaction}, {"rolled back", rolledBack}, {"batch", batch}, {"exec", exec}, {"transaction", transaction}}

	holder := mustBegin(t, c.DB(0))
	mustExec(t, holder, "INSERT INTO t(who) VALUES('holder')")
	want := []string{"holder"}
	var work sync.WaitGroup
	const rounds = 21
	errs := make([]error, rounds)
	for i := range rounds {
		kind, node := kinds[i%len(kinds)], []int{1, 2, 0}[i%3]
		who := fmt.Sprintf("%d: %s of node %d", i, kind.name, node+1)
		if kind.name != "rolled back" {
			want = append(want, who)
		}
		work.Go(func() { errs[i] = kind.run(c.DB(node), who) })
		waitQueue(t, c.Node(0), i+1)
	}
	mustCommit(t, holder)
	work.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	var got []string
	c.WaitReady(0)
	eachRow(t, c.DB(0), "SELECT who FROM t ORDER BY id", func(rows *sql.Rows) {
		var who string
		if err := rows.Scan(&who); err != nil {
			t.Fatal(err)
		}
		got = append(got, who)
	})
	if !slices.Equal(got, want) {
		t.Errorf("in the order of their requests:\n%s\nin the order of their rows:\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	c.WaitEqual()
}

// When some waiters leave the lease queue, because their contexts end, the others
// keep their order. They leave it in the end, even if that takes so long that the outcome
// of a write is unknown.
func TestWaitersThatLeaveTheQueue(t *testing.T) {
	for name, wait := range map[string]time.Duration{"soon": 0, "late": time.Nanosecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testLeavingWaiters(t, wait)
		})
	}
}

func testLeavingWaiters(t *testing.T, wait time.Duration) {
	c := newCluster(t, 3, withoutTimeouts, func(cfg *hiqlite.Config) { cfg.HookLeaveWait(wait) })
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, who INT)")
	holder := mustBegin(t, c.DB(1))
	canceled, cancel := context.WithCancel(testrun.Context(t))
	var work sync.WaitGroup
	const rounds = 12
	errs := make([]error, rounds)
	for i := range rounds {
		ctx := testrun.Context(t)
		if i%3 != 0 {
			ctx = canceled
		}
		work.Go(func() {
			if i%2 == 0 {
				_, errs[i] = c.DB(i%3).ExecContext(ctx, "INSERT INTO t(who) VALUES(?)", i)
				return
			}
			tx, err := c.DB(i%3).BeginTx(ctx, nil)
			if err == nil {
				_, _ = tx.Exec("INSERT INTO t(who) VALUES(?)", i)
				err = tx.Commit()
			}
			errs[i] = err
		})
		waitQueue(t, c.Node(0), i+1)
	}
	cancel()
	waitQueue(t, c.Node(0), rounds/3)
	mustCommit(t, holder)
	work.Wait()
	for i, err := range errs {
		if i%3 == 0 && err != nil || i%3 != 0 && !strings.Contains(fmt.Sprint(err), context.Canceled.Error()) {
			t.Errorf("%d: %v", i, err)
		}
	}
	mustExec(t, c.DB(0), "INSERT INTO t(who) VALUES(100)")
	if got := queryValue[string](t, c.DB(0), "SELECT group_concat(who) FROM (SELECT who FROM t ORDER BY id)"); got != "0,3,6,9,100" {
		t.Errorf("got %q, want %q", got, "0,3,6,9,100")
	}
	c.WaitEqual()
}

// Many transactions at once wait for each other. With a long busy_timeout, none of
// them fails.
func TestManyTransactionsAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, withoutTimeouts)
	mustExec(t, c.DB(0), "CREATE TABLE sums(id INTEGER PRIMARY KEY, n INT)")
	mustExec(t, c.DB(0), "INSERT INTO sums VALUES(1, 0), (2, 0)")
	const clients, each = 30, 34 // more than a thousand
	inParallel(t, clients, func(i int) error {
		db := c.DB(i % 3)
		for range each {
			ctx := testrun.Context(t)
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return fmt.Errorf("begin: %w", err)
			}
			var n int // is read, and written back: no other write may come between
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
		if got := queryValue[string](t, c.DB(i), "SELECT group_concat(n) FROM sums"); got != fmt.Sprintf("%d,%d", clients*each, clients/5*each) {
			t.Errorf("node %d: %s", i+1, got)
		}
	}
	c.WaitEqual()
}

// When a node closes, the callers that wait for the write lease on it get an error.
func TestNodeClosedWhileItsCallersWaitForTheLease(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, withoutTimeouts)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	tx := mustBegin(t, c.DB(0))
	mustExec(t, tx, "INSERT INTO t VALUES(1)")
	var begun, written error
	var work sync.WaitGroup
	// They must return because the node closes, before busy_timeout or this context.
	ctx, cancel := context.WithTimeout(context.Background(), testrun.Patience/8)
	defer cancel()
	work.Go(func() { _, begun = c.DB(1).BeginTx(ctx, nil) })
	work.Go(func() { _, written = c.DB(1).ExecContext(ctx, "INSERT INTO t VALUES(2)") })
	waitQueue(t, c.Node(0), 2)
	c.Stop(1)
	work.Wait()
	if ctx.Err() != nil {
		t.Error("they waited for the end of their context, although the node was closed")
	}
	wantClosed(t, "BeginTx", begun, false)
	wantClosed(t, "Exec", written, true)
	mustCommit(t, tx)
	mustExec(t, c.DB(2), "INSERT INTO t VALUES(3)")
	next := mustBegin(t, c.DB(0))
	mustRollback(t, next)
	if n := queryValue[int](t, c.DB(0), "SELECT count(*) FROM t WHERE a=2"); n > 1 || n == 1 && !errors.Is(written, hiqlite.ErrOutcomeUnknown) {
		t.Errorf("%d rows, and Exec returned %v", n, written)
	}
	c.Start(1)
	c.WaitReady(1)
	c.WaitEqual()
}

// A write whose busy_timeout passes leaves the lease queue, and its error says that
// it was not applied. A replica must not report the result of the release to the
// caller before it has reported that the write left the queue: the caller would
// then have to return ErrOutcomeUnknown.
func TestWritesThatLeaveTheQueueAreNotUnknown(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, withoutTimeouts)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	tx := mustBegin(t, c.DB(0))
	inParallel(t, 48, func(int) error {
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
				return fmt.Errorf("a write during a transaction, want SQLITE_BUSY: %w", err)
			}
		}
		return nil
	})
	mustCommit(t, tx)
}
