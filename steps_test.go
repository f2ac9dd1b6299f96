package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A write for which nobody waits any more does not go on, whatever its bound:
// others, who would wait for it, are served.
func TestARunawayWriteEndsWithItsContext(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	for _, size := range []int{1, 3} {
		c := newCluster(t, size, func(cfg *hiqlite.Config) { cfg.MaxSteps = 1 << 60; cfg.HookFirstSteps(20_000) })
		db := c.DB(size - 1)
		mustExec(t, db, "CREATE TABLE t(n)")
		for name, run := range map[string]func(ctx context.Context) error{
			"a write": func(ctx context.Context) error { _, err := db.ExecContext(ctx, "INSERT INTO t "+endless); return err },
			"a script": func(ctx context.Context) error {
				_, err := db.ExecContext(ctx, "INSERT INTO t VALUES(1); INSERT INTO t "+endless)
				return err
			},
			"a batch": func(ctx context.Context) error {
				_, err := hiqlite.Batch(ctx, db, hiqlite.Statement{SQL: "INSERT INTO t VALUES(2)"}, hiqlite.Statement{SQL: "INSERT INTO t " + silent})
				return err
			},
			"a query": func(ctx context.Context) error {
				return db.QueryRowContext(ctx, "INSERT INTO t "+endless+" RETURNING n").Scan(new(int))
			},
			"a transaction": func(ctx context.Context) error {
				return hiqlite.RunTx(ctx, db, nil, func(tx *sql.Tx) error { _, err := tx.ExecContext(ctx, "INSERT INTO t "+endless); return err })
			},
		} {
			ctx, cancel := context.WithTimeout(testrun.Context(t), 300*time.Millisecond)
			if err := run(ctx); err == nil {
				t.Errorf("%s: it succeeded", name)
			}
			cancel()
			for i := range c.Len() {
				mustExec(t, c.DB(i), "INSERT INTO t VALUES('others')")
			}
			if r := mustExec(t, db, "DELETE FROM t"); affected(t, r) != int64(size) {
				t.Errorf("%s: %d rows were there", name, affected(t, r))
			}
		}
		c.WaitEqual()
	}
}

func affected(t *testing.T, r sql.Result) int64 {
	t.Helper()
	n, err := r.RowsAffected()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A write that takes longer than its first tries is applied, once, as long as
// its caller waits; and one beyond MaxSteps says what to do.
func TestALongWriteIsTriedAgain(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	for _, size := range []int{1, 3} {
		c := newCluster(t, size, func(cfg *hiqlite.Config) { cfg.MaxSteps = 2_000_000; cfg.HookFirstSteps(20_000) })
		db := c.DB(size - 1)
		mustExec(t, db, "CREATE TABLE t(n, r DEFAULT (random()))")
		const rows = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<20000) SELECT n FROM x"
		if n := affected(t, mustExec(t, db, "INSERT INTO t(n) "+rows)); n != 20000 {
			t.Errorf("%d rows", n)
		}
		if n := affected(t, mustExec(t, db, "UPDATE t SET n=n+1")); n != 20000 {
			t.Errorf("%d rows were changed", n)
		}
		results, err := hiqlite.Batch(testrun.Context(t), db, hiqlite.Statement{SQL: "DELETE FROM t WHERE n<=10001"}, hiqlite.Statement{SQL: "INSERT INTO t(n) SELECT n FROM t"})
		if err != nil || affected(t, results[0]) != 10000 || affected(t, results[1]) != 10000 {
			t.Errorf("the batch: %v", err)
		}
		_, err = db.ExecContext(testrun.Context(t), "INSERT INTO t(n) SELECT 1 FROM t a, t b")
		var e *hiqlite.Error
		if !errors.As(err, &e) || e.ExtendedCode != sqlite.CodeInterrupt || !strings.Contains(err.Error()+e.Hint, "max_steps") {
			t.Errorf("beyond the bound: %v", err)
		}
		c.WaitEqual()
	}
}

// A statement under a context that has ended does not start, wherever it is run.
func TestNothingStartsUnderAnEndedContext(t *testing.T) {
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, "CREATE TABLE t(n)")
		conn, err := db.Conn(testrun.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		over, cancel := context.WithCancel(testrun.Context(t))
		cancel()
		prepared := map[string]*sql.Stmt{}
		texts := []string{"INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(1) RETURNING n", "SELECT 1", "PRAGMA user_version=5", "PRAGMA cache_size=17", "PRAGMA foreign_keys=OFF", "PRAGMA integrity_check", "BEGIN", "BEGIN; INSERT INTO t VALUES(1); COMMIT",
			"SAVEPOINT s", "INSERT INTO t VALUES(1); INSERT INTO t VALUES(2)", "SELECT 1; SELECT 2", "CREATE TABLE no(a)", "VACUUM", ""}
		for _, text := range texts[:7] {
			if prepared[text], err = conn.PrepareContext(testrun.Context(t), text); err != nil {
				t.Fatal(err)
			}
		}
		all := func(where string) {
			t.Helper()
			for _, text := range texts {
				if _, err := conn.ExecContext(over, text); !errors.Is(err, context.Canceled) {
					t.Errorf("%s, Exec of %q: %v", where, text, err)
				}
				if rows, err := conn.QueryContext(over, text); !errors.Is(err, context.Canceled) {
					t.Errorf("%s, Query of %q: %v", where, text, err)
					if err == nil {
						rows.Close()
					}
				}
				if _, err := conn.PrepareContext(over, text); !errors.Is(err, context.Canceled) {
					t.Errorf("%s, Prepare of %q: %v", where, text, err)
				}
				if stmt := prepared[text]; stmt != nil {
					if _, err := stmt.ExecContext(over); !errors.Is(err, context.Canceled) {
						t.Errorf("%s, Exec of prepared %q: %v", where, text, err)
					}
					if rows, err := stmt.QueryContext(over); !errors.Is(err, context.Canceled) {
						t.Errorf("%s, Query of prepared %q: %v", where, text, err)
						if err == nil {
							rows.Close()
						}
					}
				}
			}
			if _, err := conn.BeginTx(over, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("%s, BeginTx: %v", where, err)
			}
		}
		all("outside")
		begin := func(text string) {
			t.Helper()
			if _, err := conn.ExecContext(testrun.Context(t), text); err != nil {
				t.Fatal(err)
			}
		}
		for _, text := range []string{"BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT outer"} {
			begin(text)
			begin("INSERT INTO t VALUES('kept')")
			all("after " + text)
			for _, end := range []string{"COMMIT", "RELEASE outer", "ROLLBACK TO outer"} {
				if _, err := conn.ExecContext(over, end); !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", end, err)
				}
			}
			begin("COMMIT")
		}
		begin("BEGIN")
		begin("INSERT INTO t VALUES('rolled back')")
		if _, err := conn.ExecContext(over, "ROLLBACK"); err != nil {
			t.Errorf("ROLLBACK gives back what is held, whoever waits for it: %v", err)
		}
		if _, err := conn.ExecContext(testrun.Context(t), "ROLLBACK"); err == nil {
			t.Error("the transaction is open still")
		}
		if _, err := hiqlite.Batch(over, db, hiqlite.Statement{SQL: "INSERT INTO t VALUES(1)"}); !errors.Is(err, context.Canceled) {
			t.Errorf("Batch: %v", err)
		}
		if err := hiqlite.RunTx(over, db, nil, func(tx *sql.Tx) error { t.Error("it runs"); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("RunTx: %v", err)
		}
		var n, version int
		if err := conn.QueryRowContext(testrun.Context(t), "SELECT count(*), (SELECT user_version FROM pragma_user_version) FROM t WHERE n='kept' OR n IS NOT NULL").Scan(&n, &version); err != nil || n != 3 || version != 0 {
			t.Errorf("%d rows and the version %d, %v", n, version, err)
		}
	})
}
