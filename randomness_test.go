package hiqlite_test

import (
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// SQLite draws some numbers from a generator of the process's own. Nothing of
// that may get into rows or the schema: several nodes share it, or each has one.
func TestRandomnessThatIsNotTheOperations(t *testing.T) {
	t.Parallel()
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, "CREATE TABLE t(id INTEGER PRIMARY KEY, a); CREATE TABLE six(a,b,c,d,e,f); CREATE TABLE log(what); CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO auto VALUES(5); INSERT INTO t(a) VALUES('x'),('y'); ANALYZE")
		mustExec(t, db, "CREATE VIEW wide AS SELECT a, a, a, a, a, a FROM t; CREATE VIEW broken AS SELECT * FROM nosuch")
		mustExec(t, db, `CREATE VIRTUAL TABLE r USING rtree(id, lo, hi); CREATE VIRTUAL TABLE f USING fts5(x); CREATE VIRTUAL TABLE ext USING fts5(a, content='t', content_rowid='id'); CREATE VIRTUAL TABLE less USING fts5(x, content='');
			CREATE VIRTUAL TABLE loc USING fts5(x, locale=1); CREATE VIRTUAL TABLE g USING geopoly(n)`)
		refused := func(says string, texts ...string) {
			t.Helper()
			for _, text := range texts {
				if _, err := db.ExecContext(testrun.Context(t), text); err == nil || !strings.Contains(err.Error(), says) {
					t.Errorf("%s: %v", text, err)
				}
				if _, err := db.ExecContext(testrun.Context(t), "INSERT INTO log VALUES('before'); "+text); err == nil || !strings.Contains(err.Error(), says) {
					t.Errorf("%s in a script: %v", text, err)
				}
				tx, err := db.BeginTx(testrun.Context(t), nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.ExecContext(testrun.Context(t), text); err == nil || !strings.Contains(err.Error(), says) {
					t.Errorf("%s in a transaction: %v", text, err)
				}
				tx.Rollback()
			}
		}
		refused("named at random",
			"CREATE TABLE u AS SELECT a, a, a, a, a, a FROM t",
			"CREATE TABLE u AS SELECT * FROM t a, t b, t c, t d, t e, t f",
			"CREATE TABLE u AS SELECT a, A, a, A, a, A, a, A FROM t",
			`CREATE TABLE u AS SELECT 1 AS "x:12", 2 AS "x:12", 3 AS "x:12", 4 AS "x:12", 5 AS "x:12", 6 AS "x:12"`,
			"CREATE TABLE u AS SELECT * FROM wide", "CREATE TABLE u AS SELECT * FROM (SELECT a, a, a, a, a, a FROM t)", "CREATE TABLE u AS WITH c AS (SELECT a, a, a, a, a, a FROM t) SELECT * FROM c",
			"CREATE TABLE u AS SELECT t.*, wide.* FROM t NATURAL JOIN wide",
			"INSERT INTO log SELECT name FROM pragma_table_info('wide')", "INSERT INTO log SELECT x.name FROM sqlite_schema s, pragma_table_xinfo(s.name) x WHERE s.name<>'broken'",
			"UPDATE log SET what=(SELECT group_concat(name) FROM pragma_table_info('wide'))")
		for _, text := range []string{
			"CREATE TABLE five AS SELECT a, a, a, a, a FROM t", "CREATE TABLE named AS SELECT a AS b, a, a, a, a, a FROM t", "INSERT INTO six SELECT * FROM wide", "INSERT INTO six SELECT * FROM (SELECT a, a, a, a, a, a FROM t)",
			`CREATE TABLE numbers AS SELECT 1 AS "x:1", 2 AS "x:2", 3 AS "x:3", 4 AS "y:4", 5 AS "x:99", 6 AS ":5", 7 AS "x:4"`, `CREATE TABLE given("x:1", "x:2", "x:3", "x:4", "x:5")`,
			"INSERT INTO log VALUES(fts5_locale('en_US', 'localized'))", "INSERT INTO loc VALUES(fts5_locale('de', 'worte'))", "INSERT INTO loc SELECT what FROM log",
		} {
			mustExec(t, db, text)
		}
		var n int
		if err := db.QueryRowContext(testrun.Context(t), "SELECT count(*) FROM wide").Scan(&n); err != nil || n != 2 {
			t.Errorf("the view has %d rows, %v", n, err)
		}
		refused("largest rowid", "INSERT INTO t(id) VALUES(9223372036854775807)", "UPDATE t SET id=9223372036854775807 WHERE id=1", "INSERT INTO six(rowid,a) VALUES(9223372036854775807,1)", "REPLACE INTO t(id) SELECT 9223372036854775807",
			"INSERT INTO r VALUES(9223372036854775807,1,2)", "INSERT INTO f(rowid,x) VALUES(9223372036854775807,'w')", "INSERT INTO ext(rowid,a) VALUES(9223372036854775807,'w')", "INSERT INTO less(rowid,x) VALUES(9223372036854775807,'w')",
			"INSERT INTO g(rowid,_shape) VALUES(9223372036854775807,'[[0,0],[1,0],[1,1],[0,0]]')", "INSERT INTO sqlite_sequence(rowid,name,seq) VALUES(9223372036854775807,'x',1)", "INSERT INTO sqlite_stat1(rowid,tbl) VALUES(9223372036854775807,'x')")
		mustExec(t, db, "INSERT INTO t(a) VALUES('next'); INSERT INTO r VALUES(NULL,1,2); INSERT INTO f VALUES('next'); INSERT INTO less VALUES('next'); INSERT INTO sqlite_sequence(name,seq) VALUES('y',1); ANALYZE")
		// Nodes of another history, whose generator is elsewhere.
		for i := range c.Len() {
			if err := c.DB(i).QueryRowContext(testrun.Context(t), "SELECT count(*), max(id) FROM t").Scan(&n, new(int)); err != nil {
				t.Error(err)
			}
			mustExec(t, c.DB(i), "INSERT INTO log VALUES(fts5_locale('en_US', 'again'))")
		}
		c.WaitEqual()
	})
}
