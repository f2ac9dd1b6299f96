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
)

// SAVEPOINT reads nothing: what others write before the first statement is not
// in the way, as with SQLite.
func TestSavepointReadsNothing(t *testing.T) {
	for _, begin := range []string{"SAVEPOINT a", "BEGIN; SAVEPOINT a", "SAVEPOINT a; SAVEPOINT b; ROLLBACK TO b"} {
		t.Run(begin, func(t *testing.T) {
			p := newPair(t, "_txlock=deferred")
			others := p.open("_txlock=deferred")
			for i, c := range p.conns {
				run(t, c, "CREATE TABLE t(a)")
				run(t, c, begin)
				run(t, others[i], "INSERT INTO t VALUES(1)")
				if _, err := c.ExecContext(patient(t), "INSERT INTO t VALUES(2)"); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			}
		})
	}
}

// Who waits for the lease is told when his own node is closed.
func TestNodeClosedWhileOthersWait(t *testing.T) {
	c := newCluster(t, 3, unhurried)
	run(t, c.db(0), "CREATE TABLE t(a)")
	tx := mustBegin(t, c.db(0))
	run(t, tx, "INSERT INTO t VALUES(1)")
	var begun, written error
	var work sync.WaitGroup
	// Nothing but the node's end ends their waiting: neither busy_timeout nor this.
	ctx, cancel := context.WithTimeout(context.Background(), patience/4)
	defer cancel()
	work.Go(func() { _, begun = c.db(1).BeginTx(ctx, nil) })
	work.Go(func() { _, written = c.db(1).ExecContext(ctx, "INSERT INTO t VALUES(2)") })
	queued(t, c.nodes[0], 2)
	c.stop(1)
	work.Wait()
	if ctx.Err() != nil {
		t.Error("they were not told that the node was closed")
	}
	isClosed(t, "BeginTx", begun, false)
	isClosed(t, "Exec", written, true)
	commit(t, tx)
	run(t, c.db(2), "INSERT INTO t VALUES(3)")
	next := mustBegin(t, c.db(0))
	rollBack(t, next)
	if n := one[int](t, c.db(0), "SELECT count(*) FROM t WHERE a=2"); n > 1 || n == 1 && !errors.Is(written, hiqlite.ErrOutcomeUnknown) {
		t.Errorf("%d rows, and Exec returned %v", n, written)
	}
	c.start(1)
	c.ready(1)
	c.equal()
}

// The line about a forgotten transaction names the program, not RunTx.
func TestForgottenRunTx(t *testing.T) {
	var log logged
	c := newCluster(t, 1, unhurried, func(cfg *hiqlite.Config) {
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		cfg.Conn.TxTimeout, cfg.Conn.TxTrace = 100*time.Millisecond, true
	})
	run(t, c.db(0), "CREATE TABLE t(a)")
	ctx, cancel := context.WithCancel(patient(t))
	_ = hiqlite.RunTx(ctx, c.db(0), nil, func(tx *sql.Tx) error {
		waitFor(t, "its end", func() bool { return len(log.lines("a transaction was ended")) > 0 })
		cancel()
		return errors.New("enough")
	})
	for _, line := range log.lines("a transaction was ended") {
		if !strings.Contains(line, "_test.go") {
			t.Error(line)
		}
	}
}

// PRAGMA query_only is no matter of when the transaction began.
func TestQueryOnlyIsSwitchedInATransaction(t *testing.T) {
	p := newPair(t, "")
	for _, s := range []step{text("CREATE TABLE t(a)"), text("PRAGMA query_only=1"), text("BEGIN"), text("INSERT INTO t VALUES(1)"), text("PRAGMA query_only=0"), text("INSERT INTO t VALUES(2)"),
		text("PRAGMA query_only=1"), text("INSERT INTO t VALUES(3)"), text("COMMIT")} {
		p.same(ways[1], s)
	}
}

// A write that leaves the queue in time was not applied, and says so. (Replicas
// hand out the answer to the release before they settle the place.)
func TestWritesThatLeaveTheQueueKnowIt(t *testing.T) {
	c := newCluster(t, 1, unhurried)
	run(t, c.db(0), "CREATE TABLE t(a)")
	tx := mustBegin(t, c.db(0))
	all(t, 48, func(int) error {
		conn, err := c.db(0).Conn(patient(t))
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.ExecContext(patient(t), "PRAGMA busy_timeout = 0"); err != nil {
			return err
		}
		for range 100 {
			if _, err := conn.ExecContext(patient(t), "INSERT INTO t VALUES(1)"); err == nil || errors.Is(err, hiqlite.ErrOutcomeUnknown) {
				return fmt.Errorf("a write behind a transaction: %w", err)
			}
		}
		return nil
	})
	commit(t, tx)
}

// Commit says why it was too late, even if it was on its way already.
func TestCommitBesideTheTimeout(t *testing.T) {
	const limit = 5 * time.Millisecond
	c := newCluster(t, 1, unhurried, func(cfg *hiqlite.Config) {
		cfg.Logger = slog.New(slog.DiscardHandler)
		cfg.Conn.TxTimeout = limit
	})
	run(t, c.db(0), "CREATE TABLE t(a)")
	for i := range 300 {
		tx := mustBegin(t, c.db(0))
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

// A script in a transaction answers as one outside does.
func TestScriptsInATransactionAnswer(t *testing.T) {
	for _, begin := range []string{"SELECT 1", "BEGIN"} {
		p := newPair(t, "")
		for _, s := range []step{
			text("CREATE TABLE t(a)"), text(begin), text("INSERT INTO t VALUES(1); SELECT count(*) FROM t"),
			text("INSERT INTO t VALUES(1); SELECT a FROM t WHERE a=7; SELECT count(*) FROM t; "),
			text("INSERT INTO t VALUES(2) RETURNING a; SELECT count(*) FROM t WHERE 0"), text("SELECT 1; INSERT INTO t VALUES(3)"),
			text("INSERT INTO t VALUES(4) RETURNING a; SELECT count(*) FROM t"), text("INSERT INTO t VALUES(4); DELETE FROM t RETURNING a; -- end"),
		} {
			p.same(ways[0], s)
		}
	}
}
