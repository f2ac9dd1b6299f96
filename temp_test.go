package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file use TEMP tables, views and triggers.

// tempSteps are what programs do with TEMP objects, on one connection. Both drivers run
// them and must return the same.
var tempSteps = []step{
	text("CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE, n INTEGER)"), text("CREATE TABLE log(id INTEGER PRIMARY KEY AUTOINCREMENT, what)"), text("INSERT INTO t(v,n) VALUES('a',1),('b',2),('c',3)"),
	text("SELECT * FROM sqlite_temp_schema"), text("DROP TABLE IF EXISTS temp.ids"),

	// A report loads ids into a TEMP table and joins it.
	text("CREATE TEMP TABLE ids(id INTEGER PRIMARY KEY)"), text("INSERT INTO ids VALUES(?),(?)", 1, 3), text("INSERT INTO ids VALUES(?)", 9), text("INSERT INTO ids VALUES(?)", 9),
	text("SELECT t.id, v, n FROM t JOIN temp.ids USING(id) ORDER BY t.id"), text("SELECT count(*), max(id) FROM ids"), text("SELECT type, name, tbl_name, sql FROM sqlite_temp_schema"), text("PRAGMA temp.table_info(ids)"), text("PRAGMA table_info(ids)"),
	text("UPDATE t SET n=n+10 WHERE id IN (SELECT id FROM ids)"), text("SELECT id, n FROM t ORDER BY id"), text("DELETE FROM ids WHERE id NOT IN (SELECT id FROM t) RETURNING id"), text("SELECT changes(), last_insert_rowid()"),

	// Writes to ordinary tables that read TEMP ones, and the other way round.
	text("CREATE TEMP TABLE fresh AS SELECT v||'2' AS v, n FROM t"), text("INSERT INTO t(v,n) SELECT v, n FROM temp.fresh ORDER BY v"), text("SELECT * FROM t ORDER BY id"), text("INSERT INTO t(v,n) SELECT v, n FROM temp.fresh"),
	text("INSERT INTO fresh SELECT v, n*100 FROM t WHERE n>10"), text("SELECT * FROM fresh ORDER BY v, n"), text("INSERT OR IGNORE INTO t(v) SELECT 'x'||n FROM fresh RETURNING v"), text("SELECT changes(), last_insert_rowid()"), text("INSERT INTO log(what) VALUES(last_insert_rowid()||' '||changes())"), text("SELECT * FROM log"),

	// A migration that stops if there are rows that it does not expect.
	text("BEGIN"), text("CREATE TEMP TABLE guard(n INTEGER NOT NULL)"), text("CREATE TEMP TRIGGER guards BEFORE INSERT ON guard WHEN new.n > 0 BEGIN SELECT RAISE(ABORT, 'rows are in the way'); END"),
	text("INSERT INTO guard SELECT count(*) FROM log WHERE what='nobody'"), text("INSERT INTO guard SELECT count(*) FROM log"), text("ALTER TABLE log ADD COLUMN extra DEFAULT 'e'"), text("INSERT INTO log(what) SELECT 'guarded '||count(*) FROM guard"), text("DROP TABLE guard"), text("COMMIT"),
	text("SELECT * FROM log ORDER BY id"), text("SELECT name FROM sqlite_temp_schema ORDER BY name"), text("INSERT INTO guard VALUES(1)"),

	// TEMP triggers on ordinary tables, that write both; views over them.
	text("CREATE TEMP TABLE seen(v, at INTEGER PRIMARY KEY AUTOINCREMENT)"), text("CREATE TRIGGER temp.watch AFTER INSERT ON main.t BEGIN INSERT INTO seen(v) VALUES(new.v); INSERT INTO log(what) VALUES('saw '||new.v); END"),
	text("INSERT INTO t(v,n) VALUES('seen',5),('too',6)"), text("SELECT * FROM seen"), text("SELECT what FROM log ORDER BY id"), text("INSERT INTO t(v,n) VALUES('fails',5),('too',6)"), text("SELECT count(*) FROM seen"), text("SELECT * FROM temp.sqlite_sequence"),
	text("INSERT OR FAIL INTO t(v,n) VALUES('left',5),('too',6)"), text("SELECT v FROM seen ORDER BY at"), text("SELECT count(*) FROM t"),
	text("CREATE TEMP VIEW both AS SELECT v, n FROM main.t WHERE n<6 UNION ALL SELECT v, at FROM seen"), text("SELECT * FROM both ORDER BY v, n"), text("INSERT INTO log(what) SELECT count(*)||' in both' FROM both"),
	text("CREATE TEMP TRIGGER into_both INSTEAD OF INSERT ON both BEGIN INSERT INTO t(v,n) VALUES(new.v, new.n); END"), text("INSERT INTO both VALUES('by view', 77)"), text("SELECT v FROM seen ORDER BY at DESC LIMIT 1"), text("DROP TRIGGER watch"), text("INSERT INTO both VALUES('unseen', 78)"), text("SELECT v FROM seen ORDER BY at DESC LIMIT 1"),

	// A TEMP table hides an ordinary one of the same name.
	text("CREATE TEMP TABLE log(id, what)"), text("INSERT INTO log VALUES(1,'temp')"), text("SELECT * FROM log"), text("SELECT count(*) FROM main.log"), text("INSERT INTO main.log(what) SELECT 'from '||what FROM log"), text("DELETE FROM log"), text("SELECT what FROM main.log ORDER BY id DESC LIMIT 1"), text("DROP TABLE log"), text("SELECT count(*) FROM log"),

	// Transactions that are rolled back, wholly or to a savepoint.
	text("BEGIN"), text("INSERT INTO ids VALUES(50)"), text("CREATE TEMP TABLE gone(a)"), text("INSERT INTO t(v) SELECT 'gone '||id FROM ids"), text("ROLLBACK"), text("SELECT count(*) FROM ids"), text("SELECT * FROM gone"), text("SELECT count(*) FROM t"),
	text("BEGIN"), text("SAVEPOINT s"), text("INSERT INTO ids VALUES(51)"), text("INSERT INTO t(v) SELECT 'undone '||id FROM ids"), text("ROLLBACK TO s"), text("INSERT INTO ids VALUES(52)"), text("RELEASE s"), text("COMMIT"), text("SELECT * FROM ids"), text("SELECT count(*) FROM t"),
	text("BEGIN"), text("INSERT INTO ids VALUES(60)"), text("DELETE FROM ids WHERE id=52"), text("COMMIT"), text("SELECT * FROM ids"),

	// Scripts.
	text("CREATE TEMP TABLE s(a); INSERT INTO s VALUES(1),(2); INSERT INTO t(v) SELECT 's'||a FROM temp.s; DROP TABLE s"), text("SELECT v FROM t WHERE v LIKE 's_' ORDER BY v"), text("SELECT * FROM s"),
	text("INSERT INTO ids VALUES(70); INSERT INTO ids VALUES(71)"), text("SELECT max(id) FROM ids; SELECT min(id) FROM ids"), text("BEGIN; INSERT INTO ids VALUES(80); INSERT INTO t(v) SELECT max(id) FROM ids; COMMIT"), text("SELECT max(v) FROM t WHERE typeof(v)='integer'"),

	// Changes of the tables that TEMP objects refer to, and of TEMP tables.
	text("ALTER TABLE t RENAME COLUMN n TO number"), text("SELECT * FROM both ORDER BY v LIMIT 2"), text("ALTER TABLE t RENAME TO u"), text("SELECT sql FROM sqlite_temp_schema WHERE name='both'"), text("INSERT INTO both VALUES('renamed', 1)"), text("ALTER TABLE ids ADD COLUMN extra DEFAULT 'x'"), text("SELECT * FROM ids ORDER BY id LIMIT 1"), text("ALTER TABLE ids RENAME TO ids2"), text("CREATE UNIQUE INDEX temp.ie ON ids2(id, extra)"), text("PRAGMA index_list(ids2)"), text("REINDEX"),
	text("DROP TABLE u"), text("SELECT * FROM both"), text("SELECT type, name FROM sqlite_temp_schema ORDER BY name"),

	// Foreign keys, and statements that fail.
	text("CREATE TEMP TABLE par(id INTEGER PRIMARY KEY)"), text("CREATE TEMP TABLE kid(p REFERENCES par ON DELETE CASCADE)"), text("INSERT INTO kid VALUES(1)"), text("INSERT INTO par VALUES(1)"), text("INSERT INTO kid VALUES(1)"), text("DELETE FROM par"), text("SELECT count(*) FROM kid"),
	text("CREATE INDEX i ON ids2(id)"), text("CREATE TEMP TABLE ids2(a)"), text("INSERT INTO ids2 VALUES(1,2,3,4)"), text("CREATE TEMP TRIGGER x AFTER INSERT ON nosuch BEGIN SELECT 1; END"), text("EXPLAIN QUERY PLAN SELECT * FROM par WHERE id=1"),
	text("DROP VIEW both"), text("DROP TABLE ids2"), text("DROP TABLE kid"), text("DROP TABLE par"), text("DROP TABLE fresh"), text("DROP TABLE seen"), text("SELECT name FROM sqlite_temp_schema"), text("SELECT what FROM log ORDER BY id"),
}

func TestTempObjects(t *testing.T) { eachWay(t, "", tempSteps) }

// clusterPair returns a pair of a connection to a node of a cluster, and one to the
// reference.
func clusterPair(t *testing.T, c *testCluster, node int) *pair {
	t.Helper()
	return &pair{t: t, conns: [2]*sql.Conn{mustConn(t, c.DB(node)), referenceConn(t)}}
}

// After statements with TEMP objects, all nodes hold the same rows, and no TEMP object
// is left on any of them.
func TestTempObjectsOnAllNodes(t *testing.T) {
	eachSize(t, func(t *testing.T, c *testCluster) {
		p := clusterPair(t, c, c.Len()-1)
		for i, s := range tempSteps {
			p.same(ways[i%len(ways)], s)
			if i%20 == 0 {
				c.WaitEqual()
			}
		}
		for i := range c.Len() { // one after the other; each applies its log again
			c.restart(i)
			mustExec(t, c.DB(i), "INSERT INTO log(what) SELECT 'left '||count(*) FROM sqlite_temp_schema")
		}
		c.WaitEqual()
		var n int
		if err := c.DB(0).QueryRowContext(testrun.Context(t), "SELECT count(*) FROM log WHERE what='left 0'").Scan(&n); err != nil || n != c.Len() {
			t.Errorf("%d, %v", n, err)
		}
	})
}

// TEMP objects belong to one connection, until it is closed.
func TestTempObjectsBelongToTheirConnection(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	db := c.DB(0)
	db.SetMaxOpenConns(1)
	mustExec(t, db, "CREATE TABLE t(a)")
	mustExec(t, db, "CREATE TEMP TABLE x(a)") // on the pool's one connection
	mustExec(t, db, "INSERT INTO x VALUES(1)")
	mustExec(t, db, "INSERT INTO t SELECT a FROM x")
	conn, err := db.Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := conn.QueryRowContext(testrun.Context(t), "SELECT count(*) FROM x").Scan(&n); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
	db.SetMaxOpenConns(2)
	if err := db.QueryRowContext(testrun.Context(t), "SELECT count(*) FROM x").Scan(&n); err == nil {
		t.Error("another connection sees the TEMP table")
	}
	if err := db.QueryRowContext(testrun.Context(t), "SELECT count(*) FROM t").Scan(&n); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
	conn.Close()
}

// Statements that change only TEMP objects do not need the write lease: they work while
// another node holds it, and in a read-only transaction.
func TestTempObjectsNeedNoLease(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
		mustExec(t, c.DB(0), "INSERT INTO t VALUES(1,'one'),(2,'two')")
		other := mustBegin(t, c.DB(0))
		defer other.Rollback()
		last := c.Len() - 1
		c.WaitReady(last)
		conn := mustConn(t, c.DB(last))
		mustExec(t, conn, "PRAGMA busy_timeout=1")
		mustExec(t, conn, "CREATE TEMP TABLE ids(id)")
		mustExec(t, conn, "INSERT INTO ids VALUES(1); INSERT INTO ids VALUES(2)")
		tx, err := conn.BeginTx(testrun.Context(t), &sql.TxOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"INSERT INTO ids SELECT id+1 FROM t", "CREATE TEMP TABLE more AS SELECT * FROM ids", "DELETE FROM ids WHERE id=1; DELETE FROM more WHERE id=1"} {
			if _, err := tx.ExecContext(testrun.Context(t), text); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
		for _, text := range []string{"INSERT INTO t SELECT id+10, 'x' FROM ids", "DELETE FROM ids; DELETE FROM t", "DELETE FROM t"} {
			if _, err := tx.ExecContext(testrun.Context(t), text); err == nil || !strings.Contains(err.Error(), "readonly") {
				t.Errorf("%s: %v", text, err)
			}
		}
		mustCommit(t, tx)
		var got string
		if err := conn.QueryRowContext(testrun.Context(t), "SELECT group_concat(id||v,' ') FROM (SELECT * FROM more JOIN t USING(id) ORDER BY id)").Scan(&got); err != nil || got != "2two 2two" {
			t.Errorf("%q, %v", got, err)
		}
		_, err = conn.ExecContext(testrun.Context(t), "INSERT INTO t(v) SELECT id FROM ids")
		var e *hiqlite.Error
		if !errors.As(err, &e) || e.ExtendedCode != 5 {
			t.Errorf("a write while another node holds the lease: %v", err)
		}
		mustCommit(t, other)
		mustExec(t, conn, "PRAGMA busy_timeout=10000")
		mustExec(t, conn, "INSERT INTO t(v) SELECT id FROM ids")
		mustExec(t, conn, "PRAGMA query_only=1")
		if _, err := conn.ExecContext(testrun.Context(t), "DELETE FROM ids"); err == nil {
			t.Error("a TEMP table was written with query_only=1")
		}
		c.WaitEqual()
	})
}

// A batch may create, use and drop TEMP objects.
func TestTempObjectsInABatch(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE)")
		results, err := hiqlite.Batch(testrun.Context(t), c.DB(0),
			hiqlite.Statement{SQL: "CREATE TEMP TABLE x(a)"}, hiqlite.Statement{SQL: "INSERT INTO x VALUES(?),(?)", Args: []any{"p", "q"}},
			hiqlite.Statement{SQL: "INSERT INTO t(v) SELECT a FROM x"}, hiqlite.Statement{SQL: "DROP TABLE x"})
		if err != nil || len(results) != 4 {
			t.Fatalf("%v, %v", results, err)
		}
		if n, _ := results[2].RowsAffected(); n != 2 {
			t.Errorf("%d rows, want 2", n)
		}
		_, err = hiqlite.Batch(testrun.Context(t), c.DB(0), hiqlite.Statement{SQL: "INSERT INTO t(v) VALUES('r')"}, hiqlite.Statement{SQL: "CREATE TEMP TABLE x(a)"}, hiqlite.Statement{SQL: "INSERT OR FAIL INTO t(v) VALUES('s'),('p')"})
		var e *hiqlite.Error
		if !errors.As(err, &e) || e.Statement != 2 {
			t.Errorf("%v", err)
		}
		var n int
		if err := c.DB(0).QueryRowContext(testrun.Context(t), "SELECT count(*) FROM t").Scan(&n); err != nil || n != 2 {
			t.Errorf("%d rows, want 2, %v", n, err)
		}
		c.WaitEqual()
	})
}

// The TEMP objects of a connection have a bound, which the error names.
func TestTempObjectsAreBounded(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	conn := mustConn(t, c.DB(0))
	exec := func(text string) error {
		_, err := conn.ExecContext(testrun.Context(t), text)
		return err
	}
	for _, text := range []string{"CREATE TABLE t(a)", "CREATE TEMP TABLE x(a)", "INSERT INTO x VALUES(zeroblob(3000000))"} {
		if err := exec(text); err != nil {
			t.Fatal(err)
		}
	}
	for _, begin := range []string{"", "BEGIN"} {
		if begin != "" {
			if err := exec(begin); err != nil {
				t.Fatal(err)
			}
		}
		err := exec("INSERT INTO x VALUES(zeroblob(3000000))")
		var e *hiqlite.Error
		if !errors.As(err, &e) || e.ExtendedCode != 13 || !strings.Contains(e.Error()+e.Hint, "4 MiB of TEMP objects") {
			t.Errorf("%q: %v", begin, err)
		}
		exec("ROLLBACK")
	}
	if err := exec("INSERT INTO t SELECT length(a) FROM x"); err != nil {
		t.Error(err)
	}
	var n int
	if err := conn.QueryRowContext(testrun.Context(t), "SELECT a FROM t").Scan(&n); err != nil || n != 3000000 {
		t.Errorf("%d, %v", n, err)
	}
}

// A prepared statement uses the TEMP table of the name in its text if there is one, and
// the ordinary table otherwise, although TEMP tables are created and dropped after the
// statement was prepared.
func TestPreparedStatementsFollowTempObjects(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	ctx := context.Background()
	conn, err := c.DB(0).Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	mustExec(t, conn, "CREATE TABLE t(a)")
	insert, err := conn.PrepareContext(ctx, "INSERT INTO t VALUES(?)")
	if err != nil {
		t.Fatal(err)
	}
	defer insert.Close()
	count, err := conn.PrepareContext(ctx, "SELECT count(*) FROM t")
	if err != nil {
		t.Fatal(err)
	}
	defer count.Close()
	insertAndCount := func(want int) {
		t.Helper()
		var n int
		if _, err := insert.ExecContext(testrun.Context(t), 1); err != nil {
			t.Fatal(err)
		}
		if err := count.QueryRowContext(testrun.Context(t)).Scan(&n); err != nil || n != want {
			t.Errorf("%d rows, %v, want %d", n, err, want)
		}
	}
	insertAndCount(1)
	mustExec(t, conn, "CREATE TEMP TABLE t(a)")
	insertAndCount(1)
	insertAndCount(2)
	mustExec(t, conn, "BEGIN")
	insertAndCount(3)
	mustExec(t, conn, "DROP TABLE temp.t")
	insertAndCount(2)
	mustExec(t, conn, "ROLLBACK")
	insertAndCount(3)
	mustExec(t, conn, "DROP TABLE temp.t")
	insertAndCount(2)
}

// A statement outside of a transaction that violates a deferred foreign key is undone,
// also if it changes only TEMP tables.
func TestDeferredKeysOfTempTables(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		conn := mustConn(t, c.DB(0))
		run := func(text string) error {
			_, err := conn.ExecContext(testrun.Context(t), text)
			return err
		}
		for _, text := range []string{
			"CREATE TEMP TABLE p(a UNIQUE)", "CREATE TEMP TABLE k(a REFERENCES p(a) DEFERRABLE INITIALLY DEFERRED)",
			"!INSERT INTO k VALUES(1)", "!INSERT INTO k VALUES(2)", "INSERT INTO p VALUES(3)", "INSERT INTO k VALUES(3)", "!DELETE FROM p",
			"SAVEPOINT s", "INSERT INTO k VALUES(4)", "INSERT INTO p VALUES(4)", "RELEASE s",
		} {
			plain, fails := strings.CutPrefix(text, "!")
			err := run(plain)
			if fails {
				wantCode(t, plain, err, 787, "FOREIGN KEY constraint failed")
			} else if err != nil {
				t.Errorf("%s: %v", plain, err)
			}
		}
		var got string
		if err := conn.QueryRowContext(testrun.Context(t), "SELECT (SELECT group_concat(a) FROM p) || ' ' || (SELECT group_concat(a) FROM k)").Scan(&got); err != nil || got != "3,4 3,4" {
			t.Errorf("%s, %v", got, err)
		}
	})
}

// A transaction that has changed only TEMP objects has no write lease. OR ROLLBACK can
// end it; this once made the program panic.
func TestRollbackByATempTableWithoutTheLease(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		conn := mustConn(t, c.DB(0))
		exec := func(text string) error {
			_, err := conn.ExecContext(testrun.Context(t), text)
			return err
		}
		for _, text := range []string{"CREATE TEMP TABLE x(a UNIQUE)", "SAVEPOINT s", "INSERT INTO x VALUES(1)"} {
			if err := exec(text); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
		if err := exec("INSERT OR ROLLBACK INTO x VALUES(1)"); !errors.Is(err, hiqlite.ErrConstraintUnique) {
			t.Errorf("a duplicate: %v", err)
		}
		if err := exec("INSERT INTO x VALUES(2)"); !errors.Is(err, hiqlite.ErrAbortRollback) {
			t.Errorf("a statement after the transaction was rolled back: %v", err)
		}
		for _, text := range []string{"ROLLBACK", "INSERT INTO x VALUES(1)"} {
			if err := exec(text); err != nil {
				t.Errorf("%s: %v", text, err)
			}
		}
	})
}
