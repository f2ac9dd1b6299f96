package hiqlite_test

import (
	"fmt"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file check full-text tables, which keep state in memory.

// A reader that has queried a full-text table has the structure of its index in memory.
// A later integrity check on this reader must not take an older structure for damage.
func TestIntegrityChecksOfFullTextTables(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		mustExec(t, db, "CREATE TABLE src(id INTEGER PRIMARY KEY, x); CREATE VIRTUAL TABLE f USING fts5(x, content='src', content_rowid='id'); CREATE VIRTUAL TABLE g USING fts5(x); CREATE VIRTUAL TABLE r USING rtree(id,a,b); INSERT INTO g(g, rank) VALUES('pgsz', 64)")
		checks := []string{"PRAGMA integrity_check", "PRAGMA quick_check", "PRAGMA integrity_check(g)", "PRAGMA main.integrity_check(5)", "SELECT * FROM pragma_integrity_check", "SELECT integrity_check FROM pragma_integrity_check('f')", "SELECT count(*)||quick_check FROM pragma_quick_check"}
		for i := range 12 {
			conn, err := db.Conn(testrun.Context(t))
			if err != nil {
				t.Fatal(err)
			}
			for n, check := range checks {
				var result string
				if err := conn.QueryRowContext(testrun.Context(t), check).Scan(&result); err != nil || result != "ok" && result != "1ok" {
					t.Errorf("%s: %q, %v", check, result, err)
				}
				word := fmt.Sprintf("word%d_%d and others", i, n)
				mustExec(t, db, "INSERT INTO src(x) VALUES(?); INSERT INTO f(rowid, x) SELECT id, x FROM src WHERE id=last_insert_rowid(); INSERT INTO g SELECT ?1||id FROM src; INSERT INTO r VALUES(NULL,1,2)", word)
				if err := conn.QueryRowContext(testrun.Context(t), "SELECT count(*)||'' FROM g, f WHERE g MATCH 'others' AND f MATCH 'word'").Scan(&result); err != nil {
					t.Error(err)
				}
				mustExec(t, db, "DELETE FROM g WHERE rowid%7=?; INSERT INTO g(g) VALUES('optimize')", n)
			}
			conn.Close()
		}
		// The same in a transaction, which has written, and has an open query.
		tx := mustBegin(t, db)
		defer tx.Rollback()
		mustExec(t, tx, "INSERT INTO g VALUES('others'),('others'),('others')")
		rows, err := tx.QueryContext(testrun.Context(t), "SELECT rowid FROM g WHERE g MATCH 'others'")
		if err != nil || !rows.Next() {
			t.Fatal(err)
		}
		for range 3 {
			for _, check := range checks {
				var result string
				if _, err := tx.ExecContext(testrun.Context(t), "INSERT INTO g VALUES('more and others')"); err != nil {
					t.Error(err)
				}
				if err := tx.QueryRowContext(testrun.Context(t), check).Scan(&result); err != nil || result != "ok" && result != "1ok" {
					t.Errorf("%s in a transaction: %q, %v", check, result, err)
				}
			}
		}
		if !rows.Next() || rows.Close() != nil {
			t.Errorf("the query that was open during the checks: %v", rows.Err())
		}
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
		c.WaitEqual()
	})
}

// When the schema changes, SQLite opens virtual tables again. At that point, a full-text
// table may have changes in memory, which must not get lost.
func TestFullTextTablesSurviveSchemaChanges(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE VIRTUAL TABLE f USING fts5(x)")
	for round := range 3 {
		tx := mustBegin(t, c.DB(round))
		for i := range 5 {
			mustExec(t, tx, "INSERT INTO f VALUES(?)", fmt.Sprint("word", i))
			mustExec(t, tx, fmt.Sprintf("CREATE TABLE z%d%d(a)", round, i))
			mustExec(t, tx, "SAVEPOINT s; UPDATE f SET x=x||' more' WHERE f MATCH 'word2'; RELEASE s")
			mustExec(t, tx, "INSERT INTO f(f) VALUES('optimize')")
		}
		mustCommit(t, tx)
	}
	for i := range c.Len() {
		c.WaitReady(i)
		if n := queryValue[int](t, c.DB(i), "SELECT count(*) FROM f WHERE f MATCH 'word3'"); n != 3 {
			t.Errorf("node %d finds %d rows", i+1, n)
		}
	}
	mustExec(t, c.DB(0), "INSERT INTO f(f) VALUES('integrity-check')")
	c.WaitEqual()
}
