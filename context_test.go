package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file call statements with contexts that have ended.

// With a context that has ended, the calls of sql.DB, Batch and Open return the error
// of the context and do nothing.
func TestContextsThatHaveEnded(t *testing.T) {
	t.Parallel()
	s := newCheckedCluster(t, 1)
	ended, cancel := context.WithCancel(testrun.Context(t))
	cancel()
	if _, err := s.DB(0).ExecContext(ended, "DELETE FROM kept"); !errors.Is(err, context.Canceled) {
		t.Errorf("exec: %v", err)
	}
	if err := s.DB(0).QueryRowContext(ended, "SELECT 1").Scan(new(int)); !errors.Is(err, context.Canceled) {
		t.Errorf("query: %v", err)
	}
	if _, err := hiqlite.Batch(ended, s.DB(0), hiqlite.Statement{SQL: "DELETE FROM kept"}); !errors.Is(err, context.Canceled) {
		t.Errorf("batch: %v", err)
	}
	if err := s.DB(0).PingContext(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("ping: %v", err)
	}
	if node, err := hiqlite.Open(ended, hiqlite.Config{DataDir: t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v", err)
		if err == nil {
			node.Close()
		}
	}
	conn := mustConn(t, s.DB(0))
	if _, err := conn.ExecContext(ended, "DELETE FROM kept"); !errors.Is(err, context.Canceled) {
		t.Errorf("exec on a connection: %v", err)
	}
	mustExec(t, s.DB(0), "UPDATE kept SET v=v")
	s.checkUnharmed("contexts that have ended")
}

// With a context that has ended, no statement of any kind is executed, neither
// outside of a transaction nor in one.
func TestNoStatementStartsWithAnEndedContext(t *testing.T) {
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, "CREATE TABLE t(n)")
		conn := mustConn(t, db)
		ended, cancel := context.WithCancel(testrun.Context(t))
		cancel()
		prepared := map[string]*sql.Stmt{}
		texts := []string{"INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(1) RETURNING n", "SELECT 1", "PRAGMA user_version=5", "PRAGMA cache_size=17", "PRAGMA foreign_keys=OFF", "PRAGMA integrity_check", "BEGIN", "BEGIN; INSERT INTO t VALUES(1); COMMIT",
			"SAVEPOINT s", "INSERT INTO t VALUES(1); INSERT INTO t VALUES(2)", "SELECT 1; SELECT 2", "CREATE TABLE no(a)", "VACUUM", ""}
		for _, text := range texts[:7] {
			prepared[text] = must(conn.PrepareContext(testrun.Context(t), text))
		}
		checkAll := func(where string) {
			t.Helper()
			for _, text := range texts {
				if _, err := conn.ExecContext(ended, text); !errors.Is(err, context.Canceled) {
					t.Errorf("%s, Exec of %q: %v", where, text, err)
				}
				if rows, err := conn.QueryContext(ended, text); !errors.Is(err, context.Canceled) {
					t.Errorf("%s, Query of %q: %v", where, text, err)
					if err == nil {
						rows.Close()
					}
				}
				if _, err := conn.PrepareContext(ended, text); !errors.Is(err, context.Canceled) {
					t.Errorf("%s, Prepare of %q: %v", where, text, err)
				}
				if stmt := prepared[text]; stmt != nil {
					if _, err := stmt.ExecContext(ended); !errors.Is(err, context.Canceled) {
						t.Errorf("%s, Exec of prepared %q: %v", where, text, err)
					}
					if rows, err := stmt.QueryContext(ended); !errors.Is(err, context.Canceled) {
						t.Errorf("%s, Query of prepared %q: %v", where, text, err)
						if err == nil {
							rows.Close()
						}
					}
				}
			}
			if _, err := conn.BeginTx(ended, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("%s, BeginTx: %v", where, err)
			}
		}
		checkAll("outside of a transaction")
		for _, text := range []string{"BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT outer"} {
			mustExec(t, conn, text)
			mustExec(t, conn, "INSERT INTO t VALUES('kept')")
			checkAll("after " + text)
			for _, end := range []string{"COMMIT", "RELEASE outer", "ROLLBACK TO outer"} {
				if _, err := conn.ExecContext(ended, end); !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", end, err)
				}
			}
			mustExec(t, conn, "COMMIT")
		}
		mustExec(t, conn, "BEGIN")
		mustExec(t, conn, "INSERT INTO t VALUES('rolled back')")
		if _, err := conn.ExecContext(ended, "ROLLBACK"); err != nil {
			t.Errorf("ROLLBACK has to end the transaction, even if its context has ended: %v", err)
		}
		if _, err := conn.ExecContext(testrun.Context(t), "ROLLBACK"); err == nil {
			t.Error("the transaction is still open after ROLLBACK")
		}
		if _, err := hiqlite.Batch(ended, db, hiqlite.Statement{SQL: "INSERT INTO t VALUES(1)"}); !errors.Is(err, context.Canceled) {
			t.Errorf("Batch: %v", err)
		}
		if err := hiqlite.RunTx(ended, db, nil, func(tx *sql.Tx) error { t.Error("RunTx has called the function"); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("RunTx: %v", err)
		}
		var n, version int
		if err := conn.QueryRowContext(testrun.Context(t), "SELECT count(*), (SELECT user_version FROM pragma_user_version) FROM t WHERE n='kept' OR n IS NOT NULL").Scan(&n, &version); err != nil || n != 3 || version != 0 {
			t.Errorf("%d rows and the user_version %d, want 3 and 0, %v", n, version, err)
		}
	})
}
