package hiqlite_test

import (
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file run scripts: texts of several statements.

// Each statement of a script binds the arguments from the first one on. An argument that
// no statement uses is an error.
func TestArgumentsOfScripts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	var got int
	if err := c.DB(0).QueryRow("PRAGMA cache_size=100; SELECT ?", 5).Scan(&got); err != nil || got != 5 {
		t.Errorf("got %d, %v", got, err)
	}
	if err := c.DB(0).QueryRow("SELECT ? + ?; SELECT 1", 5, 6).Scan(&got); err != nil || got != 11 {
		t.Errorf("got %d, %v", got, err)
	}
	if err := c.DB(0).QueryRow("SELECT 1; SELECT ?", 5, 6, 7).Scan(&got); err == nil {
		t.Error("arguments that no statement uses were accepted")
	}
	if err := c.DB(0).QueryRow("SELECT 1; SELECT ? + ?", 5).Scan(&got); err == nil {
		t.Error("a script with a missing argument has succeeded")
	}
}

// A script in a transaction returns the same rows as outside of one.
func TestResultsOfScriptsInATransaction(t *testing.T) {
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

// A script that fails gives back the reader that its first statements have used.
func TestFailedScriptsGiveReadersBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) { cfg.MaxReaders = 1 })
	mustExec(t, c.DB(0), "CREATE TABLE t(a); INSERT INTO t VALUES(1),(2)")
	for range 2 {
		if _, err := c.DB(0).QueryContext(testrun.Context(t), "SELECT a FROM t; BEGIN; SELEC 1"); err == nil {
			t.Error("the statement has succeeded")
		}
	}
	if n := queryValue[int](t, c.DB(0), "SELECT count(*) FROM t"); n != 2 {
		t.Errorf("%d rows, want 2", n)
	}
}

// A script can begin and end transactions. If it fails, the transaction that it has
// begun is rolled back.
func TestScriptsThatBeginTransactions(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		conn := mustConn(t, c.DB(c.Len()-1))
		wantValues := func(want string) {
			t.Helper()
			if got := queryValue[string](t, conn, "SELECT coalesce(group_concat(a), '') FROM t"); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		commitIfOpen := func(want bool) { // fails the test unless want says whether a transaction is open
			t.Helper()
			_, err := conn.ExecContext(testrun.Context(t), "COMMIT")
			if open := err == nil; open != want {
				t.Errorf("a transaction is open: %v, want %v: %v", open, want, err)
			}
		}
		mustExec(t, conn, "CREATE TABLE t(a UNIQUE)")
		mustExec(t, conn, "BEGIN; INSERT INTO t VALUES(1); INSERT INTO t VALUES(2); COMMIT")
		wantValues("1,2")
		commitIfOpen(false)
		for _, script := range []string{"BEGIN; INSERT INTO t VALUES(3); INSERT INTO t VALUES(1); COMMIT", "BEGIN; INSERT INTO t VALUES(3); SELEC; COMMIT", "BEGIN; INSERT INTO t VALUES(3); INSERT INTO nowhere VALUES(1); COMMIT;"} {
			if _, err := conn.ExecContext(testrun.Context(t), script); err == nil {
				t.Errorf("%s has succeeded", script)
			}
			commitIfOpen(false)
			wantValues("1,2")
		}
		mustExec(t, conn, "INSERT INTO t VALUES(3); BEGIN; INSERT INTO t VALUES(4)") // leaves the transaction open
		wantValues("1,2,3,4")
		mustExec(t, conn, "INSERT INTO t VALUES(5)")
		commitIfOpen(true)
		wantValues("1,2,3,4,5")
		mustExec(t, conn, "BEGIN; DELETE FROM t; ROLLBACK")
		wantValues("1,2,3,4,5")
		mustExec(t, conn, "SAVEPOINT a; INSERT INTO t VALUES(6); SAVEPOINT b; INSERT INTO t VALUES(7); ROLLBACK TO b; RELEASE a")
		wantValues("1,2,3,4,5,6")
		commitIfOpen(false)

		mustExec(t, conn, "SAVEPOINT a")
		mustExec(t, conn, "INSERT INTO t VALUES(7)")
		mustExec(t, conn, "SAVEPOINT a")
		mustExec(t, conn, "INSERT INTO t VALUES(8)")
		mustExec(t, conn, "RELEASE a") // the inner one
		var n int
		if err := c.DB(0).QueryRowContext(linearizable(t), "SELECT count(*) FROM t").Scan(&n); err != nil || n != 6 {
			t.Errorf("other connections see %d rows, want 6, %v", n, err)
		}
		mustExec(t, conn, "RELEASE a") // commits
		wantValues("1,2,3,4,5,6,7,8")
		commitIfOpen(false)
		c.WaitEqual()
	})
}

// A script creates a table and a trigger on it. The END of the trigger must not be taken
// for a COMMIT: the script is one operation, and applied wholly or not at all.
func TestScriptWithATriggerOnItsOwnTable(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, withoutTimeouts)
	db := c.DB(0)
	const create = "CREATE TABLE k(id INTEGER PRIMARY KEY); CREATE TABLE log(m); CREATE TRIGGER noted AFTER INSERT ON k BEGIN INSERT INTO log VALUES('k'); END"
	if _, err := db.Exec(create + "; INSERT INTO nowhere VALUES(1)"); err == nil {
		t.Error("the statement has succeeded")
	}
	if n := queryValue[int](t, db, "SELECT count(*) FROM sqlite_schema WHERE name IN ('k', 'log', 'noted')"); n != 0 {
		t.Errorf("the failed script has created %d objects", n)
	}
	mustExec(t, db, create+"; INSERT INTO k VALUES(1)")
	if n := queryValue[int](t, db, "SELECT count(*) FROM log"); n != 1 {
		t.Errorf("got %d, want 1", n)
	}
}
