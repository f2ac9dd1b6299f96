package hiqlite_test

import "testing"

// LastInsertId is that of a row which the statement itself has inserted, or, as
// an upsert, updated: never another table's.
func TestLastInsertIdIsTheStatementsOwn(t *testing.T) {
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		db.SetMaxOpenConns(1) // last_insert_rowid() is the connection's
		for _, s := range []string{
			"CREATE TABLE other(id INTEGER PRIMARY KEY, v)", "CREATE TABLE t(id INTEGER PRIMARY KEY, k UNIQUE, v)", "CREATE TABLE w(k PRIMARY KEY, v) WITHOUT ROWID",
			"CREATE TABLE traced(id INTEGER PRIMARY KEY, v)", "CREATE TABLE log(id INTEGER PRIMARY KEY, v)", "CREATE VIRTUAL TABLE f USING fts5(v)",
			"CREATE TRIGGER tr AFTER INSERT ON traced BEGIN INSERT INTO log VALUES(new.id+500, 1); INSERT INTO f(rowid, v) VALUES(new.id+900, 'x'); END",
			"CREATE VIEW seen AS SELECT id, v FROM other", "CREATE TRIGGER tv INSTEAD OF INSERT ON seen BEGIN INSERT INTO log(v) VALUES(new.v); INSERT INTO f(v) VALUES('y'); END",
			"CREATE TRIGGER tu AFTER UPDATE ON other BEGIN INSERT INTO log(v) VALUES(2); END",
			"INSERT INTO t VALUES(5,'a',1),(6,'b',1)",
		} {
			run(t, db, s)
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
		look := func(way string, q asker) {
			for _, s := range cases {
				run(t, q, "INSERT INTO other(id) VALUES(NULL)")
				before := one[int64](t, q, "SELECT last_insert_rowid()")
				if id, err := run(t, q, s.text).LastInsertId(); err != nil || id != s.want {
					t.Errorf("%s: %s: %d, %v, want %d", way, s.text, id, err, s.want)
				}
				// The function stays SQLite's.
				if s.want == 0 {
					if after := one[int64](t, q, "SELECT last_insert_rowid()"); after != before {
						t.Errorf("%s: %s made last_insert_rowid() %d of %d", way, s.text, after, before)
					}
				}
			}
		}
		tx := mustBegin(t, db)
		look("in a transaction", tx)
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		look("alone", db)
		run(t, db, "CREATE TEMP TABLE own(id INTEGER PRIMARY KEY, k UNIQUE)")
		if id, err := run(t, db, "INSERT INTO own VALUES(12,'a')").LastInsertId(); err != nil || id != 12 {
			t.Errorf("a TEMP table: %d, %v", id, err)
		}
		if id, err := run(t, db, "INSERT OR IGNORE INTO own(k) VALUES('a')").LastInsertId(); err != nil || id != 0 {
			t.Errorf("nothing in a TEMP table: %d, %v", id, err)
		}
		c.WaitEqual()
	})
}
