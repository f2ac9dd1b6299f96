package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file end transactions: by timeouts, contexts, failed statements, and the
// end of their node.

// A node also closes without delay when it keeps the write lease for a next
// transaction, or when a transaction is open.
func TestCloseAfterTransactions(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	for range 5 {
		for i := range 3 { // the later ones begin with the lease that the node has kept
			tx := mustBegin(t, c.DB(0))
			mustExec(t, tx, "CREATE TABLE IF NOT EXISTS t(a)")
			if i < 2 {
				mustCommit(t, tx)
			}
		}
		c.restart(0)
	}
}

// A Commit that is proposed at the moment when TxTimeout passes succeeds, or returns
// ErrTxExpired.
func TestCommitAtTheTimeout(t *testing.T) {
	t.Parallel()
	const limit = 5 * time.Millisecond
	c := newCluster(t, 1, withoutTimeouts, func(cfg *hiqlite.Config) {
		cfg.Logger = slog.New(slog.DiscardHandler)
		cfg.Conn.TxTimeout = limit
	})
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	for i := range 300 {
		tx := mustBegin(t, c.DB(0))
		began := time.Now()
		_, err := tx.Exec("INSERT INTO t VALUES(1)")
		for time.Since(began) < limit-time.Duration(i)*2*time.Microsecond {
		}
		if err == nil {
			err = tx.Commit()
		}
		_ = tx.Rollback()
		if err != nil && !errors.Is(err, hiqlite.ErrTxExpired) {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}

// After a statement has rolled a transaction back, the next calls of the transaction
// fail with the cause, and other writers do not wait for it.
func TestRolledBackByAStatement(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, withoutTimeouts)
	mustExec(t, c.DB(0), "CREATE TABLE t(a UNIQUE)")
	tx := mustBegin(t, c.DB(0))
	mustExec(t, tx, "INSERT INTO t VALUES(1)")
	_, err := tx.Exec("INSERT OR ROLLBACK INTO t VALUES(1)")
	wantCode(t, "INSERT OR ROLLBACK", err, 2067)
	mustExec(t, c.DB(1), "INSERT INTO t VALUES(2)") // does not wait for Rollback
	_, err = tx.Exec("INSERT INTO t VALUES(3)")
	wantCode(t, "a write after the rollback", err, 516)
	wantCode(t, "Commit after the rollback", tx.Commit(), 516, "UNIQUE") // the cause
	if n := queryValue[int](t, c.DB(1), "SELECT count(*) FROM t"); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

// When the context of BeginTx ends, a running statement of the transaction ends too,
// although it was called with another context.
func TestContextOfBeginTxEndsARunningStatement(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, withoutTimeouts)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	ctx, cancel := context.WithCancel(testrun.Context(t))
	tx, err := c.DB(0).BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := tx.Exec("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) INSERT INTO t SELECT i FROM n WHERE i<0")
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) && !errors.Is(err, sql.ErrTxDone) {
		t.Errorf("the statement returned %v", err)
	}
	mustExec(t, c.DB(1), "INSERT INTO t VALUES(1)")
}

// A transaction that lasts longer than TxTimeout is ended, so that other writers go
// on. The log has a line about it, with TxTrace also the line of the program that
// began the transaction.
func TestForgottenTransactions(t *testing.T) {
	t.Parallel()
	for _, trace := range []bool{false, true} {
		t.Run(fmt.Sprintf("trace=%v", trace), func(t *testing.T) {
			var log logBuffer
			c := newCluster(t, 3, withoutTimeouts, func(cfg *hiqlite.Config) {
				cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
				if cfg.NodeID == 1 {
					cfg.Conn.TxTimeout = 100 * time.Millisecond
					cfg.Conn.TxTrace = trace
				}
			})
			mustExec(t, c.DB(1), "CREATE TABLE t(a)")
			forgotten := 0
			forget := func(use func(tx *sql.Tx) error) {
				t.Helper()
				tx := must(c.DB(0).BeginTx(testrun.Context(t), nil)) // the line that the log names
				mustExec(t, tx, "INSERT INTO t VALUES(1)")
				forgotten++
				mustExec(t, c.DB(1), "INSERT INTO t VALUES(2)") // waits until the transaction is ended
				if err := use(tx); !errors.Is(err, hiqlite.ErrTxExpired) {
					t.Errorf("using it after its end: %v, want ErrTxExpired", err)
				}
				_ = tx.Rollback()
				testrun.WaitFor(t, "a line in the log for each", func() bool { return len(log.lines("a transaction was ended")) >= forgotten })
			}
			forget(func(tx *sql.Tx) error { return tx.Commit() })
			forget(func(tx *sql.Tx) error {
				if err := errorOf(tx.Exec("INSERT INTO t VALUES(3)")); !errors.Is(err, hiqlite.ErrTxExpired) {
					t.Errorf("Exec: %v", err)
				}
				if err := errorOf(tx.Query("SELECT * FROM t")); !errors.Is(err, hiqlite.ErrTxExpired) {
					t.Errorf("Query: %v", err)
				}
				return tx.Commit()
			})
			forget(func(tx *sql.Tx) error { return errorOf(tx.Query("INSERT INTO t VALUES(3) RETURNING a")) })
			forget(func(tx *sql.Tx) error { return errorOf(tx.Exec("SAVEPOINT a")) })
			lines := log.lines("a transaction was ended")
			if len(lines) != forgotten {
				t.Errorf("%d lines in the log:\n%s", len(lines), strings.Join(lines, ""))
			}
			for _, line := range lines {
				if strings.Contains(line, "tx_end_test.go") != trace {
					t.Errorf("with trace=%v the log says %s", trace, line)
				}
			}
			if got := queryValue[string](t, c.DB(1), "SELECT group_concat(a) FROM t"); got != "2,2,2,2" {
				t.Errorf("got %q, want %q", got, "2,2,2,2")
			}
			mustExec(t, c.DB(0), "INSERT INTO t VALUES(4)")
			c.WaitEqual()
		})
	}
}

// After the context of BeginTx has ended, Commit fails and releases the lease. A
// COMMIT whose own context has ended does nothing: the transaction goes on.
func TestCommitAfterTheContext(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, withoutTimeouts)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	ctx, cancel := context.WithCancel(testrun.Context(t))
	tx, err := c.DB(0).BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, tx, "INSERT INTO t VALUES(1)")
	cancel()
	if err := tx.Commit(); !errors.Is(err, context.Canceled) && !errors.Is(err, sql.ErrTxDone) {
		t.Error(err)
	}
	mustExec(t, c.DB(1), "INSERT INTO t VALUES(2)") // would wait if the lease were still held

	conn := mustConn(t, c.DB(0))
	mustExec(t, conn, "BEGIN")
	mustExec(t, conn, "INSERT INTO t VALUES(3)")
	if _, err := conn.ExecContext(ctx, "COMMIT"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	mustExec(t, conn, "INSERT INTO t VALUES(4)") // COMMIT has proposed nothing, so the transaction is still open
	mustExec(t, conn, "COMMIT")
	mustExec(t, c.DB(1), "INSERT INTO t VALUES(5)")
	if got := queryValue[string](t, c.DB(1), "SELECT group_concat(a) FROM t"); got != "2,3,4,5" {
		t.Errorf("got %q, want %q", got, "2,3,4,5")
	}
	c.WaitEqual()
}

// When a node closes, its open transactions end, and release the write lease.
func TestNodeClosedDuringATransaction(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		for i := range c.Len() {
			c.Configure(i, withoutTimeouts)
			c.Stop(i)
		}
		c.startAll()
		c.WaitReady(0)
		mustExec(t, c.DB(0), "CREATE TABLE t(a)")
		tx := mustBegin(t, c.DB(0))
		mustExec(t, tx, "INSERT INTO t VALUES(1)")
		reader := must(c.DB(0).BeginTx(testrun.Context(t), &sql.TxOptions{ReadOnly: true}))
		rows := must(reader.Query("SELECT 1"))
		rows.Close()
		c.Stop(0)
		wantClosed(t, "Exec", errorOf(tx.Exec("INSERT INTO t VALUES(2)")), false)
		wantClosed(t, "Query", errorOf(tx.Query("SELECT * FROM t")), false)
		wantClosed(t, "Query of a reader", errorOf(reader.Query("SELECT * FROM t")), false)
		wantClosed(t, "Commit", tx.Commit(), false)
		_ = reader.Rollback()
		if c.Len() > 1 {
			mustExec(t, c.DB(1), "INSERT INTO t VALUES(3)") // would wait if the lease were still held
		}
		c.Start(0)
		c.WaitReady(0)
		mustExec(t, c.DB(0), "INSERT INTO t VALUES(4)")
		if n := queryValue[int](t, c.DB(0), "SELECT count(*) FROM t WHERE a < 3"); n != 0 {
			t.Errorf("%d rows of the transaction", n)
		}
		c.WaitEqual()
	})
}

// A Commit during which the node closes reports success, failure, or that the
// outcome is unknown, and the rows agree with the first two.
func TestNodeClosedDuringCommit(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, withoutTimeouts)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	for round := range 6 {
		i := round % 3
		tx := mustBegin(t, c.DB(i))
		mustExec(t, tx, "INSERT INTO t VALUES(?)", round)
		var committed error
		var work sync.WaitGroup
		work.Go(func() { committed = tx.Commit() })
		c.Stop(i)
		work.Wait()
		other := c.DB((i + 1) % 3)
		mustExec(t, other, "INSERT INTO t VALUES(-1)")
		n := queryValue[int](t, other, "SELECT count(*) FROM t WHERE a = ?", round)
		switch {
		case committed == nil && n != 1, errors.Is(committed, hiqlite.ErrClosed) && !errors.Is(committed, hiqlite.ErrOutcomeUnknown) && n != 0:
			t.Errorf("round %d: %d rows, and Commit returned %v", round, n, committed)
		case committed != nil:
			wantClosed(t, "Commit", committed, true)
		}
		c.Start(i)
		c.WaitReady(i)
	}
	c.WaitEqual()
}
