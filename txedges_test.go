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
	"testing/fstest"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// SAVEPOINT reads nothing: what others write before the first statement is not
// in the way, as with SQLite.
func TestSavepointReadsNothing(t *testing.T) {
	t.Parallel()
	for _, begin := range []string{"SAVEPOINT a", "BEGIN; SAVEPOINT a", "SAVEPOINT a; SAVEPOINT b; ROLLBACK TO b"} {
		t.Run(begin, func(t *testing.T) {
			p := newPair(t, "_txlock=deferred")
			others := p.open("_txlock=deferred")
			for i, c := range p.conns {
				run(t, c, "CREATE TABLE t(a)")
				run(t, c, begin)
				run(t, others[i], "INSERT INTO t VALUES(1)")
				if _, err := c.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(2)"); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			}
		})
	}
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

// The line about a forgotten transaction names the program, not RunTx.
func TestForgottenRunTx(t *testing.T) {
	t.Parallel()
	var log logged
	c := newCluster(t, 1, unhurried, func(cfg *hiqlite.Config) {
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		cfg.Conn.TxTimeout, cfg.Conn.TxTrace = 100*time.Millisecond, true
	})
	run(t, c.DB(0), "CREATE TABLE t(a)")
	ctx, cancel := context.WithCancel(testrun.Context(t))
	_ = hiqlite.RunTx(ctx, c.DB(0), nil, func(tx *sql.Tx) error {
		testrun.WaitFor(t, "its end", func() bool { return len(log.lines("a transaction was ended")) > 0 })
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

// What a transaction was told about foreign keys is forgotten with it: the next
// one's failed statements leave nothing.
func TestDeferredKeysAreForgotten(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	run(t, c.DB(0), "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE k(q REFERENCES p(id)); CREATE TABLE seen(n)")
	tx := mustBegin(t, c.DB(0))
	run(t, tx, "PRAGMA defer_foreign_keys=ON")
	run(t, tx, "INSERT INTO k VALUES(?)", 1)
	rollBack(t, tx)
	tx = mustBegin(t, c.DB(0))
	if _, err := tx.Exec("INSERT INTO k VALUES(?)", 99); err == nil {
		t.Error("a key that refers to nothing was taken")
	}
	run(t, tx, "INSERT INTO seen SELECT count(*) FROM k")
	if n := one[int](t, tx, "SELECT count(*) FROM k"); n != 0 {
		t.Errorf("the failed statement left %d rows", n)
	}
	commit(t, tx)
	if n := one[int](t, c.DB(0), "SELECT n FROM seen"); n != 0 {
		t.Errorf("the transaction is applied as if it had seen %d rows", n)
	}
}

// ROLLBACK TO makes SQLite load its statistics anew, which replicas do not
// execute: they choose the same plan nevertheless.
func TestPlansAfterRollbackTo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	run(t, c.DB(0), `CREATE TABLE a(x,z); CREATE TABLE b(x,z); CREATE TABLE o(v);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20) INSERT INTO a SELECT i, i FROM n;
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<5000) INSERT INTO b SELECT i, 5001-i FROM n;
		CREATE INDEX i1 ON a(x); CREATE INDEX ib ON b(x); ANALYZE; CREATE INDEX ca ON a(z); CREATE INDEX cb ON b(z)`)
	tx := mustBegin(t, c.DB(0))
	for _, q := range []string{"DROP INDEX i1", "SAVEPOINT s", "INSERT INTO o VALUES('undone')", "ROLLBACK TO s", "RELEASE s",
		"INSERT INTO o SELECT a.x||'-'||b.x FROM a JOIN b ON a.z=b.z LIMIT 5"} {
		run(t, tx, q)
	}
	const all = "SELECT group_concat(v, ' ') FROM o"
	saw := one[string](t, tx, all)
	commit(t, tx)
	for i := range c.Len() {
		c.WaitReady(i)
		if got := one[string](t, c.DB(i), all); got != saw {
			t.Errorf("node %d holds %s, the transaction saw %s", i+1, got, saw)
		}
	}
}

// A connection that is used for a second transaction plans as replicas do, though
// an index was made in between.
func TestPlansOfAConnectionUsedAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	run(t, c.DB(0), `CREATE TABLE a(id INTEGER PRIMARY KEY, x, y); CREATE TABLE o(v); INSERT INTO a VALUES(1,9,0),(2,8,0),(3,7,0),(4,6,0);
		CREATE INDEX i0 ON a(x,y); ANALYZE`)
	for i := range c.Len() {
		c.WaitReady(i)
		tx := mustBegin(t, c.DB(i)) // leaves a connection that has loaded the schema
		run(t, tx, "DELETE FROM o")
		commit(t, tx)
	}
	run(t, c.DB(0), "CREATE INDEX i1 ON a(x,y)")
	for i := range c.Len() {
		tx := mustBegin(t, c.DB(i))
		run(t, tx, "DELETE FROM o")
		run(t, tx, "INSERT INTO o SELECT x FROM a ORDER BY random() LIMIT 2")
		const all = "SELECT group_concat(v, ' ') FROM o"
		saw := one[string](t, tx, all)
		commit(t, tx)
		if got := one[string](t, c.DB(i), all); got != saw {
			t.Errorf("node %d holds %s, the transaction saw %s", i+1, got, saw)
		}
	}
	c.WaitEqual()
}

// A change of the schema makes virtual tables begin anew, which have not written
// everything at that point.
func TestFullTextBesideSchemaChanges(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	run(t, c.DB(0), "CREATE VIRTUAL TABLE f USING fts5(x)")
	for round := range 3 {
		tx := mustBegin(t, c.DB(round))
		for i := range 5 {
			run(t, tx, "INSERT INTO f VALUES(?)", fmt.Sprint("word", i))
			run(t, tx, fmt.Sprintf("CREATE TABLE z%d%d(a)", round, i))
			run(t, tx, "SAVEPOINT s; UPDATE f SET x=x||' more' WHERE f MATCH 'word2'; RELEASE s")
			run(t, tx, "INSERT INTO f(f) VALUES('optimize')")
		}
		commit(t, tx)
	}
	for i := range c.Len() {
		c.WaitReady(i)
		if n := one[int](t, c.DB(i), "SELECT count(*) FROM f WHERE f MATCH 'word3'"); n != 3 {
			t.Errorf("node %d finds %d rows", i+1, n)
		}
	}
	run(t, c.DB(0), "INSERT INTO f(f) VALUES('integrity-check')")
	c.WaitEqual()
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

// A transaction that takes longer than it may is not run again.
func TestSlowTransactionsAreNotRepeated(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) {
		cfg.Logger = slog.New(slog.DiscardHandler)
		cfg.Conn.TxTimeout = 20 * time.Millisecond
	})
	run(t, c.DB(0), "CREATE TABLE t(a)")
	runs := 0
	err := hiqlite.RunTx(testrun.Context(t), c.DB(0), nil, func(tx *sql.Tx) error {
		runs++
		var err error
		testrun.WaitFor(t, "its end", func() bool { _, err = tx.Exec("INSERT INTO t VALUES(1)"); return err != nil })
		return err
	})
	if !errors.Is(err, hiqlite.ErrTxExpired) || runs != 1 {
		t.Errorf("it ran %d times: %v", runs, err)
	}
}

// Migrate waits for transactions as long as its context allows.
func TestMigrateWaitsForTransactions(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *hiqlite.Config) { cfg.Conn.BusyTimeout = time.Millisecond })
	tx := mustBegin(t, c.DB(0))
	done := make(chan error)
	go func() {
		done <- hiqlite.Migrate(testrun.Context(t), c.DB(1), fstest.MapFS{"1_t.sql": {Data: []byte("CREATE TABLE t(a)")}})
	}()
	queued(t, c.Node(0), 1)
	commit(t, tx)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// code fails unless err is an *Error with this code.
func code(t testing.TB, err error, want int) {
	t.Helper()
	var e *hiqlite.Error
	if !errors.As(err, &e) || e.Code() != want {
		t.Errorf("the error is %v, want code %d", err, want)
	}
}

// A script that fails gives back the reader of the rows that it had so far.
func TestFailedScriptsGiveReadersBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) { cfg.MaxReaders = 1 })
	run(t, c.DB(0), "CREATE TABLE t(a); INSERT INTO t VALUES(1),(2)")
	for range 2 {
		if _, err := c.DB(0).QueryContext(testrun.Context(t), "SELECT a FROM t; BEGIN; SELEC 1"); err == nil {
			t.Error("no error")
		}
	}
	if n := one[int](t, c.DB(0), "SELECT count(*) FROM t"); n != 2 {
		t.Errorf("%d rows", n)
	}
}
