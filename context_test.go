package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

func TestContextsThatHaveEnded(t *testing.T) {
	t.Parallel()
	s := newCheckedCluster(t, 1)
	over, cancel := context.WithCancel(testrun.Context(t))
	cancel()
	if _, err := s.DB(0).ExecContext(over, "DELETE FROM kept"); !errors.Is(err, context.Canceled) {
		t.Errorf("exec: %v", err)
	}
	if err := s.DB(0).QueryRowContext(over, "SELECT 1").Scan(new(int)); !errors.Is(err, context.Canceled) {
		t.Errorf("query: %v", err)
	}
	if _, err := hiqlite.Batch(over, s.DB(0), hiqlite.Statement{SQL: "DELETE FROM kept"}); !errors.Is(err, context.Canceled) {
		t.Errorf("batch: %v", err)
	}
	if err := s.DB(0).PingContext(over); !errors.Is(err, context.Canceled) {
		t.Errorf("ping: %v", err)
	}
	if node, err := hiqlite.Open(over, hiqlite.Config{DataDir: t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v", err)
		if err == nil {
			node.Close()
		}
	}
	conn, err := s.DB(0).Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(over, "DELETE FROM kept"); !errors.Is(err, context.Canceled) {
		t.Errorf("exec on a connection: %v", err)
	}
	mustExec(t, s.DB(0), "UPDATE kept SET v=v")
	s.checkUnharmed("contexts that have ended")
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
