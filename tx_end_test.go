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

// A node closes at once, too, when it has just kept a lease for a next
// transaction, or has one to give back.
func TestCloseAfterTransactions(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	for range 5 {
		for i := range 3 { // the later ones find a lease that was kept
			tx := mustBegin(t, c.DB(0))
			if _, err := tx.Exec("CREATE TABLE IF NOT EXISTS t(a)"); err != nil {
				t.Fatal(err)
			}
			if i < 2 {
				if err := tx.Commit(); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.Stop(0)
		c.Start(0)
		c.WaitReady(0)
	}
}

// Commit says why it was too late, even if it was on its way already.
func TestCommitBesideTheTimeout(t *testing.T) {
	t.Parallel()
	const limit = 5 * time.Millisecond
	c := newCluster(t, 1, unhurried, func(cfg *hiqlite.Config) {
		cfg.Logger = slog.New(slog.DiscardHandler)
		cfg.Conn.TxTimeout = limit
	})
	run(t, c.DB(0), "CREATE TABLE t(a)")
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

// A transaction that a statement has rolled back says so, and is in nobody's way.
func TestRolledBackByAStatement(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(a UNIQUE)")
	tx := mustBegin(t, c.DB(0))
	run(t, tx, "INSERT INTO t VALUES(1)")
	_, err := tx.Exec("INSERT OR ROLLBACK INTO t VALUES(1)")
	code(t, err, 2067)
	run(t, c.DB(1), "INSERT INTO t VALUES(2)") // the transaction is still to be rolled back
	_, err = tx.Exec("INSERT INTO t VALUES(3)")
	code(t, err, 516)
	err = tx.Commit()
	code(t, err, 516)
	if !strings.Contains(err.Error(), "UNIQUE") {
		t.Errorf("it does not say what was the matter: %v", err)
	}
	if n := one[int](t, c.DB(1), "SELECT count(*) FROM t"); n != 1 {
		t.Errorf("%d rows", n)
	}
}

// The end of BeginTx's context ends a statement that runs without it.
func TestContextEndsARunningStatement(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(a)")
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
	run(t, c.DB(1), "INSERT INTO t VALUES(1)")
}

func TestForgottenTransactions(t *testing.T) {
	t.Parallel()
	for _, trace := range []bool{false, true} {
		t.Run(fmt.Sprintf("trace=%v", trace), func(t *testing.T) {
			var log logged
			c := newCluster(t, 3, unhurried, func(cfg *hiqlite.Config) {
				cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
				if cfg.NodeID == 1 {
					cfg.Conn.TxTimeout = 100 * time.Millisecond
					cfg.Conn.TxTrace = trace
				}
			})
			run(t, c.DB(1), "CREATE TABLE t(a)")
			forgotten := 0
			forget := func(use func(tx *sql.Tx) error) {
				t.Helper()
				tx := must(c.DB(0).BeginTx(testrun.Context(t), nil)) // here, as the log is to say
				run(t, tx, "INSERT INTO t VALUES(1)")
				forgotten++
				run(t, c.DB(1), "INSERT INTO t VALUES(2)") // waits for nothing but its end
				if err := use(tx); !errors.Is(err, hiqlite.ErrTxExpired) {
					t.Errorf("its use: %v", err)
				}
				_ = tx.Rollback()
				testrun.WaitFor(t, "a line in the log for each", func() bool { return len(log.lines("a transaction was ended")) >= forgotten })
			}
			forget(func(tx *sql.Tx) error { return tx.Commit() })
			forget(func(tx *sql.Tx) error {
				if err := second(tx.Exec("INSERT INTO t VALUES(3)")); !errors.Is(err, hiqlite.ErrTxExpired) {
					t.Errorf("Exec: %v", err)
				}
				if err := second(tx.Query("SELECT * FROM t")); !errors.Is(err, hiqlite.ErrTxExpired) {
					t.Errorf("Query: %v", err)
				}
				return tx.Commit()
			})
			forget(func(tx *sql.Tx) error { return second(tx.Query("INSERT INTO t VALUES(3) RETURNING a")) })
			forget(func(tx *sql.Tx) error { return second(tx.Exec("SAVEPOINT a")) })
			lines := log.lines("a transaction was ended")
			if len(lines) != forgotten {
				t.Errorf("%d lines in the log:\n%s", len(lines), strings.Join(lines, ""))
			}
			for _, line := range lines {
				if strings.Contains(line, "tx_end_test.go") != trace {
					t.Errorf("with trace=%v the log says %s", trace, line)
				}
			}
			if got := one[string](t, c.DB(1), "SELECT group_concat(a) FROM t"); got != "2,2,2,2" {
				t.Error(got)
			}
			run(t, c.DB(0), "INSERT INTO t VALUES(4)")
			c.WaitEqual()
		})
	}
}

func TestCommitAfterTheContext(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(a)")
	ctx, cancel := context.WithCancel(testrun.Context(t))
	tx, err := c.DB(0).BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	run(t, tx, "INSERT INTO t VALUES(1)")
	cancel()
	if err := tx.Commit(); !errors.Is(err, context.Canceled) && !errors.Is(err, sql.ErrTxDone) {
		t.Error(err)
	}
	run(t, c.DB(1), "INSERT INTO t VALUES(2)") // nothing ends a lease by itself here

	conn := mustConn(t, c.DB(0))
	run(t, conn, "BEGIN")
	run(t, conn, "INSERT INTO t VALUES(3)")
	if _, err := conn.ExecContext(ctx, "COMMIT"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	run(t, conn, "INSERT INTO t VALUES(4)") // nothing was proposed: it goes on
	run(t, conn, "COMMIT")
	run(t, c.DB(1), "INSERT INTO t VALUES(5)")
	if got := one[string](t, c.DB(1), "SELECT group_concat(a) FROM t"); got != "2,3,4,5" {
		t.Error(got)
	}
	c.WaitEqual()
}

func TestNodeClosedUnderATransaction(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		for i := range c.Len() {
			c.Configure(i, unhurried)
			c.Stop(i)
		}
		for i := range c.Len() {
			c.Start(i)
		}
		c.WaitReady(0)
		run(t, c.DB(0), "CREATE TABLE t(a)")
		tx := mustBegin(t, c.DB(0))
		run(t, tx, "INSERT INTO t VALUES(1)")
		reader := must(c.DB(0).BeginTx(testrun.Context(t), &sql.TxOptions{ReadOnly: true}))
		rows := must(reader.Query("SELECT 1"))
		rows.Close()
		c.Stop(0)
		isClosed(t, "Exec", second(tx.Exec("INSERT INTO t VALUES(2)")), false)
		isClosed(t, "Query", second(tx.Query("SELECT * FROM t")), false)
		isClosed(t, "Query of a reader", second(reader.Query("SELECT * FROM t")), false)
		isClosed(t, "Commit", tx.Commit(), false)
		_ = reader.Rollback()
		if c.Len() > 1 {
			run(t, c.DB(1), "INSERT INTO t VALUES(3)") // nothing ends a lease by itself here
		}
		c.Start(0)
		c.WaitReady(0)
		run(t, c.DB(0), "INSERT INTO t VALUES(4)")
		if n := one[int](t, c.DB(0), "SELECT count(*) FROM t WHERE a < 3"); n != 0 {
			t.Errorf("%d rows of the transaction", n)
		}
		c.WaitEqual()
	})
}

func TestNodeClosedDuringCommit(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(a)")
	for round := range 6 {
		i := round % 3
		tx := mustBegin(t, c.DB(i))
		run(t, tx, "INSERT INTO t VALUES(?)", round)
		var committed error
		var work sync.WaitGroup
		work.Go(func() { committed = tx.Commit() })
		c.Stop(i)
		work.Wait()
		other := c.DB((i + 1) % 3)
		run(t, other, "INSERT INTO t VALUES(-1)")
		n := one[int](t, other, "SELECT count(*) FROM t WHERE a = ?", round)
		switch {
		case committed == nil && n != 1, errors.Is(committed, hiqlite.ErrClosed) && !errors.Is(committed, hiqlite.ErrOutcomeUnknown) && n != 0:
			t.Errorf("round %d: %d rows, and Commit returned %v", round, n, committed)
		case committed != nil:
			isClosed(t, "Commit", committed, true)
		}
		c.Start(i)
		c.WaitReady(i)
	}
	c.WaitEqual()
}
