package hiqlite_test

import (
	"bytes"
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

// logged takes what nodes log.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// lines returns those that hold the words.
func (l *logged) lines(words string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, words) {
			found = append(found, line)
		}
	}
	return found
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
				if strings.Contains(line, "txend_test.go") != trace {
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

// isClosed fails unless an error says that the node was closed, or, if it may,
// that the outcome is not known.
func isClosed(t testing.TB, what string, err error, mayBeUnknown bool) {
	t.Helper()
	if !errors.Is(err, hiqlite.ErrClosed) && !(mayBeUnknown && errors.Is(err, hiqlite.ErrOutcomeUnknown)) {
		t.Errorf("%s: %v", what, err)
	}
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

func TestVacuumInATransaction(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(a)")
	tx := mustBegin(t, c.DB(0))
	run(t, tx, "INSERT INTO t VALUES(1)")
	for _, text := range []string{"VACUUM", "INSERT INTO t VALUES(2); VACUUM"} {
		if _, err := tx.Exec(text); err == nil {
			t.Errorf("%s: no error", text)
		} else {
			hasCode(t, err, 1, "VACUUM")
		}
		if _, err := tx.Query(text); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
	commit(t, tx)
	if n := one[int](t, c.DB(0), "SELECT count(*) FROM t"); n != 1 {
		t.Errorf("%d rows", n)
	}
	run(t, c.DB(0), "VACUUM")
}

func TestScriptsThatBeginTransactions(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		conn := mustConn(t, c.DB(c.Len()-1))
		values := func(want string) {
			t.Helper()
			if got := one[string](t, conn, "SELECT coalesce(group_concat(a), '') FROM t"); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		open := func(want bool) {
			t.Helper()
			_, err := conn.ExecContext(testrun.Context(t), "COMMIT")
			if open := err == nil; open != want {
				t.Errorf("a transaction is open: %v, want %v: %v", open, want, err)
			}
		}
		run(t, conn, "CREATE TABLE t(a UNIQUE)")
		run(t, conn, "BEGIN; INSERT INTO t VALUES(1); INSERT INTO t VALUES(2); COMMIT")
		values("1,2")
		open(false)
		for _, script := range []string{"BEGIN; INSERT INTO t VALUES(3); INSERT INTO t VALUES(1); COMMIT", "BEGIN; INSERT INTO t VALUES(3); SELEC; COMMIT", "BEGIN; INSERT INTO t VALUES(3); INSERT INTO nowhere VALUES(1); COMMIT;"} {
			if _, err := conn.ExecContext(testrun.Context(t), script); err == nil {
				t.Errorf("%s: no error", script)
			}
			open(false)
			values("1,2")
		}
		run(t, conn, "INSERT INTO t VALUES(3); BEGIN; INSERT INTO t VALUES(4)") // is left open
		values("1,2,3,4")
		run(t, conn, "INSERT INTO t VALUES(5)")
		open(true)
		values("1,2,3,4,5")
		run(t, conn, "BEGIN; DELETE FROM t; ROLLBACK")
		values("1,2,3,4,5")
		run(t, conn, "SAVEPOINT a; INSERT INTO t VALUES(6); SAVEPOINT b; INSERT INTO t VALUES(7); ROLLBACK TO b; RELEASE a")
		values("1,2,3,4,5,6")
		open(false)

		run(t, conn, "SAVEPOINT a")
		run(t, conn, "INSERT INTO t VALUES(7)")
		run(t, conn, "SAVEPOINT a")
		run(t, conn, "INSERT INTO t VALUES(8)")
		run(t, conn, "RELEASE a") // the inner one
		var n int
		if err := c.DB(0).QueryRowContext(hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable), "SELECT count(*) FROM t").Scan(&n); err != nil || n != 6 {
			t.Errorf("others see %d rows, %v", n, err)
		}
		run(t, conn, "RELEASE a") // commits
		values("1,2,3,4,5,6,7,8")
		open(false)
		c.WaitEqual()
	})
}

func TestScriptOfADump(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, unhurried)
	conn := mustConn(t, c.DB(0))
	run(t, conn, `PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE child(id INTEGER PRIMARY KEY, p INT REFERENCES parent(id));
INSERT INTO child VALUES(1,7);
INSERT INTO child VALUES(2,99);
CREATE TABLE parent(id INTEGER PRIMARY KEY, name TEXT);
INSERT INTO parent VALUES(7,'it''s; a name');
CREATE INDEX i ON child(p);
CREATE TRIGGER tr AFTER INSERT ON parent BEGIN INSERT INTO child(p) VALUES(new.id); DELETE FROM child WHERE p=0; END;
COMMIT;
`)
	if got := one[string](t, conn, "SELECT (SELECT count(*) FROM child) || name FROM parent"); got != "2it's; a name" {
		t.Error(got)
	}
	run(t, conn, "INSERT INTO parent(id) VALUES(8)")
	if n := one[int](t, conn, "SELECT count(*) FROM child"); n != 3 {
		t.Errorf("%d rows", n)
	}
	if n := one[int](t, conn, "PRAGMA foreign_keys"); n != 0 {
		t.Error("the script's setting is gone")
	}
	if n := one[int](t, mustConn(t, c.DB(0)), "PRAGMA foreign_keys"); n != 1 {
		t.Error("the script's setting is that of other connections too")
	}
}

// The END of a trigger whose table the script makes is not a COMMIT: the script
// is one write, and atomic.
func TestScriptWithATriggerOnATableOfItsOwn(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, unhurried)
	db := c.DB(0)
	const make = "CREATE TABLE k(id INTEGER PRIMARY KEY); CREATE TABLE log(m); CREATE TRIGGER noted AFTER INSERT ON k BEGIN INSERT INTO log VALUES('k'); END"
	if _, err := db.Exec(make + "; INSERT INTO nowhere VALUES(1)"); err == nil {
		t.Error("no error")
	}
	if n := one[int](t, db, "SELECT count(*) FROM sqlite_schema WHERE name IN ('k', 'log', 'noted')"); n != 0 {
		t.Errorf("%d of the script's makings are there", n)
	}
	run(t, db, make+"; INSERT INTO k VALUES(1)")
	if n := one[int](t, db, "SELECT count(*) FROM log"); n != 1 {
		t.Error(n)
	}
}
