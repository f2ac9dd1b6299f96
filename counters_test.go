package hiqlite_test

import (
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file compare what a connection counts with SQLite: LastInsertId,
// changes(), total_changes() and last_insert_rowid().

// LastInsertId returns the rowid that the statement itself has inserted, or has updated
// as an upsert; never one of another statement or of a trigger.
func TestLastInsertIdIsOfTheStatement(t *testing.T) {
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		db.SetMaxOpenConns(1) // last_insert_rowid() belongs to the connection
		for _, s := range []string{
			"CREATE TABLE other(id INTEGER PRIMARY KEY, v)", "CREATE TABLE t(id INTEGER PRIMARY KEY, k UNIQUE, v)", "CREATE TABLE w(k PRIMARY KEY, v) WITHOUT ROWID",
			"CREATE TABLE traced(id INTEGER PRIMARY KEY, v)", "CREATE TABLE log(id INTEGER PRIMARY KEY, v)", "CREATE VIRTUAL TABLE f USING fts5(v)",
			"CREATE TRIGGER tr AFTER INSERT ON traced BEGIN INSERT INTO log VALUES(new.id+500, 1); INSERT INTO f(rowid, v) VALUES(new.id+900, 'x'); END",
			"CREATE VIEW seen AS SELECT id, v FROM other", "CREATE TRIGGER tv INSTEAD OF INSERT ON seen BEGIN INSERT INTO log(v) VALUES(new.v); INSERT INTO f(v) VALUES('y'); END",
			"CREATE TRIGGER tu AFTER UPDATE ON other BEGIN INSERT INTO log(v) VALUES(2); END",
			"INSERT INTO t VALUES(5,'a',1),(6,'b',1)",
		} {
			mustExec(t, db, s)
		}
		cases := []struct {
			text string
			want int64
		}{
			{"INSERT INTO t(id,k) VALUES(40,'n')", 40},
			{"INSERT INTO t(k,v) VALUES('a',2) ON CONFLICT(k) DO UPDATE SET v=v+1", 5},
			{"INSERT INTO t(k,v) VALUES('a',2) ON CONFLICT(k) DO UPDATE SET v=v+1 WHERE 0", 0},
			{"INSERT INTO t(k,v) VALUES('a',2) ON CONFLICT DO NOTHING", 0},
			{"INSERT OR IGNORE INTO t(k) VALUES('b')", 0},
			{"REPLACE INTO t VALUES(6,'b',9)", 6},
			{"INSERT INTO t SELECT id+100, k||'x', v FROM t WHERE id=5", 105},
			{"INSERT INTO w VALUES('k', 1)", 0},
			{"INSERT INTO traced VALUES(3, 'v')", 3},
			{"INSERT INTO seen VALUES(1, 'v')", 0},
			{"INSERT INTO f(rowid, v) VALUES(77, 'z')", 77},
			{"UPDATE other SET v=1", 0},
			{"UPDATE t SET v=1 WHERE id=5", 0},
			{"DELETE FROM t WHERE id=105", 0},
			{"INSERT INTO t(id,k) VALUES(41,'m'); UPDATE t SET v=3", 41},
			{"INSERT INTO t SELECT * FROM t WHERE 0", 0},
		}
		check := func(way string, q querier) {
			for _, s := range cases {
				mustExec(t, q, "INSERT INTO other(id) VALUES(NULL)")
				before := queryValue[int64](t, q, "SELECT last_insert_rowid()")
				if id, err := mustExec(t, q, s.text).LastInsertId(); err != nil || id != s.want {
					t.Errorf("%s: %s: %d, %v, want %d", way, s.text, id, err, s.want)
				}
				// last_insert_rowid() behaves as in SQLite.
				if s.want == 0 {
					if after := queryValue[int64](t, q, "SELECT last_insert_rowid()"); after != before {
						t.Errorf("%s: %s has changed last_insert_rowid() from %d to %d", way, s.text, before, after)
					}
				}
			}
		}
		tx := mustBegin(t, db)
		check("in a transaction", tx)
		mustRollback(t, tx)
		check("outside of a transaction", db)
		mustExec(t, db, "CREATE TEMP TABLE own(id INTEGER PRIMARY KEY, k UNIQUE)")
		if id, err := mustExec(t, db, "INSERT INTO own VALUES(12,'a')").LastInsertId(); err != nil || id != 12 {
			t.Errorf("an insert into a TEMP table: %d, %v", id, err)
		}
		if id, err := mustExec(t, db, "INSERT OR IGNORE INTO own(k) VALUES('a')").LastInsertId(); err != nil || id != 0 {
			t.Errorf("an ignored insert into a TEMP table: %d, %v", id, err)
		}
		c.WaitEqual()
	})
}

// changes() and last_insert_rowid() return what SQLite returns after each statement.
func TestCountersOfAConnection(t *testing.T) {
	p := newPair(t, "")
	state := text("SELECT changes(), last_insert_rowid()")
	for _, s := range []step{
		text("SELECT 1"), text("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"), text("INSERT INTO t(b) VALUES(1),(2),(3)"), text("SELECT * FROM t"),
		text("UPDATE t SET b=9 WHERE a>1"), text("DELETE FROM t WHERE a=2"), text("DELETE FROM t WHERE a=2"), text("PRAGMA table_info(t)"), text("PRAGMA busy_timeout=100"),
		text("CREATE INDEX i ON t(b)"), text("INSERT INTO t VALUES(77,1) RETURNING a"), text("INSERT OR IGNORE INTO t VALUES(77,1)"), text("REPLACE INTO t VALUES(77,2)"),
		text("CREATE TABLE log(x)"), text("CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO log VALUES(1),(2); END"), text("INSERT INTO t(b) VALUES(5)"), text("DELETE FROM t"),
		text("INSERT INTO log VALUES(5); UPDATE log SET x=0; SELECT 1"), text("INSERT INTO t(b) SELECT x FROM log"), text("INSERT INTO log VALUES(changes()), (last_insert_rowid())"), text("SELECT x FROM log"),
		text("PRAGMA user_version=4"), text("DROP TABLE log"), text("ALTER TABLE t RENAME TO t2"), text("ANALYZE"), text("EXPLAIN DELETE FROM t2"),
		text("CREATE TABLE w(a PRIMARY KEY) WITHOUT ROWID"), text("INSERT INTO w VALUES(500)"), text("CREATE TABLE ins AS SELECT * FROM w"), text("REINDEX"),
	} {
		p.same(ways[0], s)
		p.same(way{"after " + s.text, describeQuery}, state)
	}
}

// total_changes() counts all rows that the writes of a connection have changed, also by
// triggers and in scripts. It does not count changes of the schema.
func TestTotalChanges(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	conn := mustConn(t, c.DB(0))
	for _, step := range []struct {
		text string
		want int
	}{
		{"CREATE TABLE t(a); CREATE TABLE l(a); CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO l VALUES(1); END", 0},
		{"INSERT INTO t VALUES(1),(2)", 4},
		{"DROP TABLE IF EXISTS nope", 4},
		{"REINDEX", 4},
		{"UPDATE t SET a=3; UPDATE t SET a=4 WHERE a=0; DELETE FROM l", 8},
	} {
		if _, err := conn.ExecContext(testrun.Context(t), step.text); err != nil {
			t.Fatal(err)
		}
		var got int
		if err := conn.QueryRowContext(testrun.Context(t), "SELECT total_changes()").Scan(&got); err != nil || got != step.want {
			t.Errorf("after %q: %d, %v, want %d", step.text, got, err, step.want)
		}
	}
}

// After a transaction has changed the schema, or if it has TEMP objects, its statements
// are classified on its view. That must not reset changes().
func TestCountersSurviveClassification(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		conn := mustConn(t, c.DB(0))
		for _, text := range []string{
			"CREATE TABLE t(a)", "CREATE TEMP TABLE x(a)", "BEGIN", "CREATE TABLE u(a)", "INSERT INTO u VALUES(1),(2),(3)", "UPDATE u SET a = changes()",
			"INSERT INTO t VALUES(0),(0)", "UPDATE t SET a = changes() WHERE a = 0", "UPDATE t SET a = a * 100 + changes() * 10 + last_insert_rowid()", "COMMIT",
		} {
			if _, err := conn.ExecContext(testrun.Context(t), text); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
		if got := queryValue[string](t, c.DB(0), "SELECT (SELECT group_concat(a) FROM u) || ' ' || (SELECT group_concat(a) FROM t)"); got != "3,3,3 222,222" {
			t.Errorf("got %q, want %q", got, "3,3,3 222,222")
		}
	})
}
