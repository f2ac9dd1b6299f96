package hiqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file change the schema, and check that all readers, prepared statements
// and caches notice it.

// schemaReads are reads whose preparation depends on the schema. With none of them
// does SQLite notice by itself that its connection has an older schema in memory.
var schemaReads = []string{
	"PRAGMA index_list(t)", "PRAGMA index_info(i)", "PRAGMA index_xinfo(i)", "PRAGMA foreign_key_list(t)", "PRAGMA table_info(t)", "PRAGMA table_xinfo(t)", "PRAGMA table_list(t)", "PRAGMA foreign_key_check(t)",
	"SELECT * FROM pragma_index_list('t')", "SELECT * FROM pragma_index_info('i')", "SELECT * FROM pragma_table_xinfo('t')", "SELECT * FROM pragma_foreign_key_list('t')", "SELECT name FROM pragma_table_list('t')",
	"SELECT * FROM t UNION ALL SELECT 1, 2", "SELECT * FROM t UNION ALL SELECT 1, 2, 3", "SELECT 1, 2, 3, 4 EXCEPT SELECT * FROM t", "VALUES(1,2,3) UNION SELECT * FROM t",
	"SELECT * FROM t JOIN u USING(b)", "SELECT * FROM t JOIN u USING(c)", "SELECT * FROM t NATURAL JOIN u", "SELECT * FROM u LEFT JOIN t USING(a)",
	"SELECT * FROM t ORDER BY 3", "SELECT * FROM t ORDER BY 4", "SELECT * FROM t GROUP BY 3",
	"SELECT 1 IN (SELECT * FROM t)", "SELECT (1,2) IN (SELECT * FROM t)", "SELECT (SELECT * FROM t)", "SELECT (1,2,3) = (SELECT * FROM t)", "SELECT 1 IN t", "SELECT 5 IN u",
	"WITH w(x,y) AS (SELECT * FROM t) SELECT * FROM w", "WITH w(x,y,z) AS (SELECT * FROM t) SELECT * FROM w",
	"SELECT * FROM v", "SELECT * FROM v UNION ALL SELECT 1, 2, 3", "PRAGMA table_info(v)", "SELECT * FROM v ORDER BY 3",
	"SELECT * FROM t", "SELECT b FROM t", "SELECT c FROM t", "SELECT \"c\" FROM t", "SELECT t.rowid FROM t", "SELECT * FROM t INDEXED BY i WHERE b=1", "SELECT count(*) FROM t", "SELECT max(b), min(c) FROM t", "SELECT a+0, a FROM t",
	"EXPLAIN QUERY PLAN SELECT * FROM t WHERE b=1", "EXPLAIN QUERY PLAN SELECT * FROM t JOIN u USING(b)", "SELECT name, type, sql FROM sqlite_schema WHERE name IN ('t','u','v','i')",
}

// schemaChanges are changes of the schema. Each of them changes the result of some
// of schemaReads.
var schemaChanges = []string{
	"CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)", "CREATE TABLE u(b, c REAL)", "INSERT INTO t VALUES(1,'one'),(2,'two'); INSERT INTO u VALUES('one',1),('three',3)",
	"CREATE INDEX i ON t(b)", "CREATE VIEW v AS SELECT * FROM t", "ALTER TABLE t ADD COLUMN c REAL DEFAULT 1.5", "DROP INDEX i", "CREATE UNIQUE INDEX i ON t(c, b) WHERE a < 2", "ALTER TABLE t DROP COLUMN b",
	"DROP INDEX i; ALTER TABLE t DROP COLUMN c", "DROP VIEW v", "ALTER TABLE t ADD COLUMN b VARCHAR(7)", "CREATE VIEW v AS SELECT a, b, 1 AS c FROM t", "CREATE INDEX i ON t(b COLLATE NOCASE DESC)", "ALTER TABLE t RENAME COLUMN b TO c",
	"DROP VIEW v; DROP TABLE t", "CREATE TABLE t(a, b DATE, c, d GENERATED ALWAYS AS (a+1)) STRICT", "CREATE TABLE t(a INT, b TEXT REFERENCES u(b), c ANY, d GENERATED ALWAYS AS (a+1)) STRICT", "DROP TABLE t; CREATE VIEW t AS SELECT 7 AS a, 'view' AS b, 2.5 AS c", "DROP VIEW t; CREATE VIRTUAL TABLE t USING fts5(a, b, c)",
	"INSERT INTO t VALUES('x','y','z')", "DROP TABLE t; ALTER TABLE u RENAME TO t", "CREATE TABLE u AS SELECT b AS a, c AS b FROM t", "DROP TABLE t", "DROP TABLE u", "CREATE TABLE u(a PRIMARY KEY) WITHOUT ROWID; CREATE TABLE t(c, a REFERENCES u, b REFERENCES t(c))",
}

// occupy keeps n readers of a node busy, so that the next read gets another reader.
func occupy(t testing.TB, db *sql.DB, n int) (free func()) {
	t.Helper()
	var open []*sql.Rows
	for range n {
		rows, err := db.QueryContext(testrun.Context(t), "SELECT 1 UNION ALL SELECT 2")
		if err != nil || !rows.Next() {
			t.Fatal(err)
		}
		open = append(open, rows)
	}
	return func() {
		for _, rows := range open {
			rows.Close()
		}
	}
}

// A read is prepared with the schema of the rows that it reads, on every reader, and
// whichever node has changed the schema.
func TestReadsUseThePresentSchema(t *testing.T) {
	t.Parallel()
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	for _, size := range []int{1, 3} {
		for _, kind := range []string{"alone", "in a read-only transaction", "in a transaction", "in a deferred transaction"} {
			t.Run(fmt.Sprintf("nodes=%d/%s", size, kind), func(t *testing.T) {
				c := newCluster(t, size)
				theirs := referenceConn(t)
				for i, change := range schemaChanges {
					_, err := c.DB(i%size).ExecContext(testrun.Context(t), change)
					if _, wrong := theirs.ExecContext(testrun.Context(t), change); (err == nil) != (wrong == nil) {
						t.Fatalf("%s: %v, theirs %v", change, err, wrong)
					}
					for n := range size {
						free := occupy(t, c.DB(n), i%3)
						compareReads(t, c, n, kind, change, theirs)
						free()
					}
				}
				c.WaitEqual()
			})
		}
	}
}

// compareReads compares the results of schemaReads on a node with those of the
// reference.
func compareReads(t *testing.T, c *testCluster, n int, kind, change string, theirs *sql.Conn) {
	ctx := linearizable(t)
	ours, err := c.DB(n).Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	switch kind {
	case "in a read-only transaction":
		tx, err := ours.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
	case "in a transaction", "in a deferred transaction":
		begin := "BEGIN IMMEDIATE"
		if kind == "in a deferred transaction" {
			begin = "BEGIN DEFERRED"
		}
		mustExec(t, ours, begin)
		defer ours.ExecContext(ctx, "ROLLBACK")
	}
	for _, read := range schemaReads {
		for _, way := range []way{ways[0], ways[2]} {
			ours, theirs := way.run(ctx, ours, text(read)), way.run(ctx, theirs, text(read))
			if ours != theirs {
				t.Errorf("node %d, after %q, %s %q:\n--- theirs\n%s\n--- ours\n%s", n+1, change, way.name, read, theirs, ours)
			}
		}
	}
}

// Reads in a transaction are prepared with the changes of the schema that the
// transaction has made, and without those that it has undone.
func TestReadsOfATransactionUseItsSchema(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		theirs := referenceConn(t)
		ours := mustConn(t, c.DB((c.Leader()+1)%c.Len()))
		both := func(change string) {
			_, err := ours.ExecContext(testrun.Context(t), change)
			if _, wrong := theirs.ExecContext(testrun.Context(t), change); (err == nil) != (wrong == nil) {
				t.Fatalf("%s: %v, theirs %v", change, err, wrong)
			}
			for _, read := range schemaReads {
				for _, way := range []way{ways[0], ways[2]} {
					ours, theirs := way.run(testrun.Context(t), ours, text(read)), way.run(testrun.Context(t), theirs, text(read))
					if ours != theirs {
						t.Errorf("after %q, %s %q:\n--- theirs\n%s\n--- ours\n%s", change, way.name, read, theirs, ours)
					}
				}
			}
		}
		for i, change := range schemaChanges {
			switch i % 5 {
			case 0:
				both("BEGIN")
			case 4:
				both("COMMIT")
			case 2:
				both("SAVEPOINT s")
				both("DROP TABLE IF EXISTS u; CREATE TABLE u(one, two, three); DROP VIEW IF EXISTS v; CREATE INDEX extra ON u(two)")
				both("ROLLBACK TO s")
			}
			both(change)
		}
		both("COMMIT")
		c.WaitEqual()
	})
}

// Prepared statements that a program keeps use the present schema. In SQLite, those
// with EXPLAIN do not, so they are left out.
func TestPreparedStatementsUseThePresentSchema(t *testing.T) {
	eachSize(t, func(t *testing.T, c *testCluster) {
		theirs := referenceConn(t)
		ctx := linearizable(t)
		held := map[string][2]*sql.Stmt{}
		for i, change := range schemaChanges {
			_, err := c.DB(i%c.Len()).ExecContext(ctx, change)
			if _, wrong := theirs.ExecContext(ctx, change); (err == nil) != (wrong == nil) {
				t.Fatalf("%s: %v, theirs %v", change, err, wrong)
			}
			for _, read := range schemaReads {
				if strings.HasPrefix(read, "EXPLAIN") {
					continue
				}
				stmts, ok := held[read]
				if !ok {
					a, err := c.DB((i+1)%c.Len()).PrepareContext(ctx, read)
					b, wrong := theirs.PrepareContext(ctx, read)
					if (err == nil) != (wrong == nil) {
						t.Errorf("after %q, prepare %q: %v, theirs %v", change, read, err, wrong)
					}
					if err != nil || wrong != nil {
						continue
					}
					t.Cleanup(func() { a.Close(); b.Close() })
					stmts = [2]*sql.Stmt{a, b}
					held[read] = stmts
				}
				ours, theirs := describeRows(stmts[0].QueryContext(ctx)), describeRows(stmts[1].QueryContext(ctx))
				if ours != theirs {
					t.Errorf("after %q, held %q:\n--- theirs\n%s\n--- ours\n%s", change, read, theirs, ours)
				}
			}
		}
	})
}

// Whether a statement uses changes() or last_insert_rowid() can depend on the schema,
// for example through a view. Classes are cached by the text of a statement, and a
// change of the schema must make them void.
func TestClassesUseThePresentSchema(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		theirs := referenceConn(t)
		ctx := linearizable(t)
		ours, err := c.DB((c.Leader() + 1) % c.Len()).Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		mustExec(t, ours, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE log(a)")
		mustExec(t, theirs, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE log(a)")
		for i, change := range []string{
			"CREATE VIEW v AS SELECT 7 AS x", "DROP VIEW v; CREATE VIEW v AS SELECT last_insert_rowid() AS x", "DROP VIEW v; CREATE VIEW v AS SELECT changes() AS x", "DROP VIEW v; CREATE VIEW v AS SELECT total_changes() AS x",
			"DROP VIEW v; CREATE TABLE v(x); INSERT INTO v VALUES(1)", "DROP TABLE v; CREATE VIEW w AS SELECT last_insert_rowid() + changes() AS x; CREATE VIEW v AS SELECT * FROM w",
			"DROP VIEW v; CREATE TABLE v(x); CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO log VALUES(last_insert_rowid()), (changes()); END", "DROP TRIGGER tr; DROP VIEW w; CREATE VIEW w AS SELECT 8 AS x",
			"DROP TABLE v; CREATE VIRTUAL TABLE v USING fts5(x); INSERT INTO v VALUES('text')", "DROP TABLE v; CREATE VIEW v AS SELECT x, (SELECT max(a) FROM t) FROM w", "DROP VIEW w; CREATE VIEW w AS SELECT last_insert_rowid() AS x",
		} {
			mustExec(t, c.DB(i%c.Len()), change)
			_, err := theirs.ExecContext(ctx, change)
			if err != nil {
				t.Fatal(err)
			}
			for _, begin := range []string{"", "BEGIN", "BEGIN DEFERRED"} {
				for _, s := range []string{
					begin, "INSERT INTO t(b) VALUES('one'), ('two'), ('three')", "SELECT x FROM v", "SELECT * FROM v JOIN w", "UPDATE t SET b='b' WHERE a%2=0", "SELECT x FROM v", "SELECT * FROM log", "SELECT (SELECT x FROM v) + 0", "DELETE FROM t WHERE a=2",
					"SELECT x FROM v", "INSERT INTO log SELECT x FROM v", "SELECT a FROM log ORDER BY rowid", "PRAGMA table_info(v)", "SELECT 1; SELECT x FROM v", strings.Replace(begin, "BEGIN", "COMMIT", 1),
				} {
					s = strings.TrimSuffix(s, " DEFERRED")
					if strings.Contains(change, "total_changes") && (strings.HasPrefix(s, "SELECT") || strings.HasPrefix(s, "INSERT INTO log")) {
						continue // the reference has counted the changes of the schema on the same connection
					}
					for _, way := range []way{ways[0], ways[2]} {
						if way.name == ways[2].name && !strings.HasPrefix(s, "SELECT") {
							continue
						}
						ours, theirs := way.run(ctx, ours, text(s)), way.run(ctx, theirs, text(s))
						if !alike(s, ours, theirs) {
							t.Errorf("after %q, %s %q:\n--- theirs\n%s\n--- ours\n%s", change, way.name, s, theirs, ours)
						}
					}
				}
			}
		}
		c.WaitEqual()
	})
}

// The result of a statement such as CREATE TABLE IF NOT EXISTS does not depend on
// whether the table existed.
func TestResultsOfSchemaChanges(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		conn := mustConn(t, c.DB(c.Len()-1))
		mustExec(t, conn, "CREATE TABLE t(a INTEGER PRIMARY KEY)")
		for range 2 {
			for _, text := range []string{
				"INSERT INTO t VALUES(NULL)", "CREATE TABLE IF NOT EXISTS u(a)", "CREATE TABLE IF NOT EXISTS u(a)", "  /* c */ create index IF NOT EXISTS i ON u(a)", "-- c\n;CREATE INDEX IF NOT EXISTS i ON u(a)", "CREATE VIEW IF NOT EXISTS v AS SELECT 1", "CREATE VIEW IF NOT EXISTS v AS SELECT 1",
				"DROP VIEW IF EXISTS v", "DROP VIEW IF EXISTS v", "DROP INDEX IF EXISTS i", "DROP INDEX IF EXISTS i", "DROP TABLE IF EXISTS u", "DROP TABLE IF EXISTS u",
			} {
				r := mustExec(t, conn, text)
				id, rows := must(r.LastInsertId()), must(r.RowsAffected())
				if insert := strings.HasPrefix(text, "INSERT"); insert != (id != 0) || insert != (rows != 0) {
					t.Errorf("%s: id %d, %d rows", text, id, rows)
				}
				if n := queryValue[int](t, conn, "SELECT changes()"); n != 1 {
					t.Errorf("%s: changes() is %d", text, n)
				}
			}
		}
	})
}

func TestPreparedStatementsSurviveSchemaChanges(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		last := c.Len() - 1
		mustExec(t, c.DB(0), "CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
		ctx := linearizable(t)
		var inserts, all, counts []*sql.Stmt
		for i := range c.Len() {
			c.WaitReady(i)
			inserts = append(inserts, prepare(t, c.DB(i), "INSERT INTO t(b) VALUES(?) RETURNING *"))
			all = append(all, prepare(t, c.DB(i), "SELECT * FROM t ORDER BY a DESC LIMIT 1"))
			counts = append(counts, prepare(t, c.DB(i), "SELECT count(*) FROM t"))
		}
		check := func(what string, columns string, count int) {
			t.Helper()
			for i := range c.Len() {
				if got := columnsOf(t, ctx, inserts[i], i); got != columns {
					t.Errorf("after %s, node %d inserts into the columns %s", what, i+1, got)
				}
				if got := columnsOf(t, ctx, all[i]); got != columns {
					t.Errorf("after %s, node %d reads the columns %s", what, i+1, got)
				}
				count++
				var n int
				if err := counts[i].QueryRowContext(ctx).Scan(&n); err != nil || n != count {
					t.Errorf("after %s, node %d counts %d, %v, want %d", what, i+1, n, err, count)
				}
			}
		}
		check("nothing", "a b", 0)
		mustExec(t, c.DB(last), "ALTER TABLE t ADD COLUMN c DEFAULT 5")
		check("ADD COLUMN", "a b c", c.Len())
		mustExec(t, c.DB(0), "ALTER TABLE t DROP COLUMN c")
		check("DROP COLUMN", "a b", 2*c.Len())
		mustExec(t, c.DB(last), "DROP TABLE t")
		for i := range c.Len() {
			if _, err := inserts[i].QueryContext(ctx, 1); err == nil || !strings.Contains(err.Error(), "no such table: t") {
				t.Errorf("node %d inserts into a dropped table: %v", i+1, err)
			}
			if _, err := all[i].QueryContext(ctx); err == nil || !strings.Contains(err.Error(), "no such table: t") {
				t.Errorf("node %d reads a dropped table: %v", i+1, err)
			}
		}
		mustExec(t, c.DB(0), "CREATE TABLE t(x, a INTEGER PRIMARY KEY, b)")
		check("CREATE", "x a b", 0)
		mustExec(t, c.DB(last), "DROP TABLE t; CREATE VIEW t AS SELECT 1 AS a, 2 AS b")
		for i := range c.Len() {
			if got := columnsOf(t, ctx, all[i]); got != "a b" {
				t.Errorf("node %d reads the columns %s of a view", i+1, got)
			}
		}
		c.WaitEqual()
	})
}

// Changes of the schema through different nodes, each of which needs the one before.
// A node that has the older schema in memory must load the present one.
func TestSchemaChangesOnDifferentNodes(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		last := c.Len() - 1
		for i, text := range []string{
			"CREATE TABLE t(a, b)", "ALTER TABLE t ADD COLUMN c", "ALTER TABLE t DROP COLUMN c", "ALTER TABLE t ADD COLUMN c", "ALTER TABLE t RENAME COLUMN c TO d", "ALTER TABLE t DROP COLUMN d",
			"CREATE INDEX i ON t(a)", "DROP INDEX i", "CREATE INDEX i ON t(b)", "ALTER TABLE t RENAME TO u", "CREATE TABLE t(a)", "DROP TABLE t", "CREATE VIEW t AS SELECT * FROM u", "DROP VIEW t", "ALTER TABLE u RENAME TO t",
			"CREATE TRIGGER tr AFTER INSERT ON t BEGIN SELECT 1; END", "DROP TRIGGER tr", "CREATE TRIGGER tr AFTER DELETE ON t BEGIN SELECT 1; END", "DROP TABLE t", "CREATE VIRTUAL TABLE t USING fts5(a)", "DROP TABLE t", "CREATE TABLE t(x)",
		} {
			mustExec(t, c.DB(i%2*last), text)
		}
		c.WaitEqual()
	})
}

func prepare(t testing.TB, db *sql.DB, query string) *sql.Stmt {
	t.Helper()
	s, err := db.PrepareContext(testrun.Context(t), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// columnsOf runs a query to its end and returns the names of its columns.
func columnsOf(t testing.TB, ctx context.Context, s *sql.Stmt, args ...any) string {
	t.Helper()
	rows, err := s.QueryContext(ctx, args...)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer rows.Close()
	columns := must(rows.Columns())
	for rows.Next() {
		if _, err := scanRow(rows); err != nil {
			t.Error(err)
		}
	}
	if err := rows.Err(); err != nil {
		t.Error(err)
	}
	return strings.Join(columns, " ")
}

// A table is rebuilt as SQLite's documentation advises, and as goose, ent and gorm do
// it. The children of the table must survive.
func TestTableRebuild(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), `CREATE TABLE parent(id INTEGER PRIMARY KEY, v); CREATE TABLE child(p REFERENCES parent(id) ON DELETE CASCADE);
			INSERT INTO parent VALUES(1,'a'),(2,'b'); INSERT INTO child VALUES(1),(2)`)
		const rebuild = `CREATE TABLE parent_new(id INTEGER PRIMARY KEY, v, w DEFAULT 'new'); INSERT INTO parent_new(id,v) SELECT id, v FROM parent;
			DROP TABLE parent; ALTER TABLE parent_new RENAME TO parent`
		conn := mustConn(t, c.DB(c.Len()-1))
		for _, s := range []string{"PRAGMA foreign_keys=OFF", rebuild, "PRAGMA foreign_keys=ON"} {
			if _, err := conn.ExecContext(testrun.Context(t), s); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
		ctx := linearizable(t)
		for i := range c.Len() {
			var children, violations int
			if err := c.DB(i).QueryRowContext(ctx, "SELECT (SELECT count(*) FROM child), (SELECT count(*) FROM pragma_foreign_key_check)").Scan(&children, &violations); err != nil {
				t.Fatal(err)
			}
			if children != 2 || violations != 0 {
				t.Errorf("node %d has %d children and %d violations after the rebuild", i+1, children, violations)
			}
		}
		if _, err := conn.ExecContext(testrun.Context(t), "INSERT INTO child VALUES(3)"); err == nil {
			t.Error("foreign keys stayed off on the connection")
		}
		if _, err := c.DB(0).ExecContext(testrun.Context(t), "DELETE FROM parent WHERE id=1"); err != nil {
			t.Error(err)
		}
		var children int
		if err := c.DB(0).QueryRowContext(ctx, "SELECT count(*) FROM child").Scan(&children); err != nil || children != 1 {
			t.Errorf("deleting a parent leaves %d children, %v: foreign keys are off on other connections", children, err)
		}
		c.WaitEqual()
	})
}
