package hiqlite_test

import (
	"context"
	"database/sql"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

func TestStateOfAConnection(t *testing.T) {
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
		p.same(way{"after " + s.text, seeQuery}, state)
	}
}

func TestPreparedStatementsSurviveSchemaChanges(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		last := c.Len() - 1
		mustExec(t, c.DB(0), "CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
		ctx := hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable)
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

// A node may still remember a schema without what the statement before made.
func TestSchemaChangesSeeEachOther(t *testing.T) {
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

// columnsOf runs a statement to its end.
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
		cells := make([]any, len(columns))
		for i := range cells {
			cells[i] = new(any)
		}
		if err := rows.Scan(cells...); err != nil {
			t.Error(err)
		}
	}
	if err := rows.Err(); err != nil {
		t.Error(err)
	}
	return strings.Join(columns, " ")
}

// A transaction's worth of schema change, as SQLite's documentation advises it
// and as goose, ent and gorm do it.
func TestTableRebuild(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), `CREATE TABLE parent(id INTEGER PRIMARY KEY, v); CREATE TABLE child(p REFERENCES parent(id) ON DELETE CASCADE);
			INSERT INTO parent VALUES(1,'a'),(2,'b'); INSERT INTO child VALUES(1),(2)`)
		const rebuild = `CREATE TABLE parent_new(id INTEGER PRIMARY KEY, v, w DEFAULT 'new'); INSERT INTO parent_new(id,v) SELECT id, v FROM parent;
			DROP TABLE parent; ALTER TABLE parent_new RENAME TO parent`
		conn, err := c.DB(c.Len() - 1).Conn(testrun.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, s := range []string{"PRAGMA foreign_keys=OFF", rebuild, "PRAGMA foreign_keys=ON"} {
			if _, err := conn.ExecContext(testrun.Context(t), s); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
		ctx := hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable)
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

func TestForeignKeysAreAFlagOfTheConnection(t *testing.T) {
	p := newPair(t, "_fk=1")
	read := text("PRAGMA foreign_keys")
	for _, s := range []step{
		text("CREATE TABLE p(a PRIMARY KEY); CREATE TABLE c(a REFERENCES p)"), read, text("INSERT INTO c VALUES(1)"),
		text("PRAGMA foreign_keys=0"), read, text("INSERT INTO c VALUES(1)"), text("PRAGMA foreign_keys=on"), read, text("INSERT INTO c VALUES(1)"),
		text("PRAGMA foreign_keys = 'no'"), read, text("PRAGMA main.foreign_keys(true)"), read, text("PRAGMA foreign_keys=7"), read, text("PRAGMA foreign_keys=nonsense"), read, text("PRAGMA FOREIGN_KEYS=YES"), read,
		text("PRAGMA foreign_keys=OFF; INSERT INTO c VALUES(2); PRAGMA foreign_keys"), read, text("INSERT INTO c VALUES(3); PRAGMA foreign_keys=ON"), read, text("INSERT INTO c VALUES(4)"),
		text("PRAGMA foreign_key_check"), text("SELECT a FROM c"), text("PRAGMA foreign_key_list(c)"), text("PRAGMA defer_foreign_keys=1"), text("PRAGMA defer_foreign_keys"), text("INSERT INTO c VALUES(5)"),
	} {
		p.same(ways[0], s)
	}
	for i, options := range []string{"_fk=0", "_foreign_keys=off", "_pragma=foreign_keys(0)", "_fk=on&_pragma=foreign_keys(0)", "_pragma=foreign_keys(0)&_pragma=foreign_keys(1)"} {
		p.conns = p.open(options)
		p.same(ways[0], read)
		p.same(ways[1], text("INSERT INTO c VALUES(?)", 100+i))
	}
}

func TestHarmlessPragmasAnswerLikeSQLite(t *testing.T) {
	for _, w := range ways {
		p := newPair(t, "_busy_timeout=5000&_pragma=synchronous(1)")
		for _, s := range []string{
			"PRAGMA busy_timeout", "PRAGMA busy_timeout=7", "PRAGMA busy_timeout", "PRAGMA busy_timeout=-3", "PRAGMA busy_timeout", "PRAGMA busy_timeout=x", "PRAGMA busy_timeout",
			"PRAGMA journal_mode", "PRAGMA journal_mode=WAL", "PRAGMA journal_mode=wal", "PRAGMA main.journal_mode", "PRAGMA synchronous", "PRAGMA synchronous=NORMAL", "PRAGMA synchronous", "PRAGMA synchronous=OFF", "PRAGMA synchronous", "PRAGMA synchronous=2", "PRAGMA synchronous", "PRAGMA synchronous=extra", "PRAGMA synchronous", "PRAGMA synchronous=on", "PRAGMA synchronous",
			"PRAGMA cache_size", "PRAGMA cache_size=-64000", "PRAGMA cache_size", "PRAGMA cache_size(100)", "PRAGMA cache_size", "PRAGMA temp_store", "PRAGMA temp_store=MEMORY", "PRAGMA temp_store", "PRAGMA temp_store=2", "PRAGMA temp_store", "PRAGMA temp_store=file", "PRAGMA temp_store",
			"PRAGMA mmap_size", "PRAGMA mmap_size=0", "PRAGMA mmap_size=268435456", "PRAGMA mmap_size", "PRAGMA max_page_count", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA wal_checkpoint=TRUNCATE", "PRAGMA locking_mode", "PRAGMA locking_mode=NORMAL", "PRAGMA wal_autocheckpoint=500", "PRAGMA wal_autocheckpoint", "PRAGMA journal_size_limit=1000", "PRAGMA journal_size_limit",
			"PRAGMA optimize", "PRAGMA optimize(0x10002)", "PRAGMA shrink_memory", "PRAGMA incremental_vacuum", "PRAGMA incremental_vacuum(5)", "PRAGMA auto_vacuum", "PRAGMA auto_vacuum=0", "PRAGMA page_size", "PRAGMA encoding", "PRAGMA encoding='UTF-8'",
			"PRAGMA query_only", "PRAGMA query_only=1", "PRAGMA query_only", "CREATE TABLE q(a)", "PRAGMA query_only=0", "PRAGMA query_only", "CREATE TABLE q(a)", "INSERT INTO q VALUES(1)", "PRAGMA query_only=on", "INSERT INTO q VALUES(1)", "SELECT * FROM q", "PRAGMA query_only=off",
			"PRAGMA recursive_triggers", "PRAGMA recursive_triggers=0", "PRAGMA read_uncommitted=1", "PRAGMA read_uncommitted", "PRAGMA cell_size_check=1", "PRAGMA cell_size_check", "PRAGMA automatic_index", "PRAGMA automatic_index=0", "PRAGMA automatic_index", "PRAGMA secure_delete", "PRAGMA secure_delete=1", "PRAGMA secure_delete=FAST", "PRAGMA secure_delete",
			"PRAGMA user_version", "PRAGMA user_version=5", "PRAGMA user_version", "PRAGMA user_version=-1", "PRAGMA user_version", "PRAGMA user_version='7'", "PRAGMA user_version", "PRAGMA application_id(0x10)", "PRAGMA application_id",
			"PRAGMA table_info(q)", "PRAGMA table_info('q')", "PRAGMA table_xinfo(q)", "PRAGMA index_list(q)", "PRAGMA integrity_check", "PRAGMA quick_check(1)", "PRAGMA foreign_key_check", "PRAGMA collation_list", "PRAGMA nosuch", "PRAGMA nosuch=1", "PRAGMA freelist_count", "SELECT * FROM pragma_table_info('q')",
			"PRAGMA threads", "PRAGMA threads=2", "PRAGMA soft_heap_limit", "PRAGMA analysis_limit=100", "PRAGMA analysis_limit", "PRAGMA fullfsync=1", "PRAGMA fullfsync", "PRAGMA case_sensitive_like=0", "PRAGMA trusted_schema", "PRAGMA trusted_schema=1", "PRAGMA writable_schema=0", "PRAGMA legacy_alter_table=0", "PRAGMA ignore_check_constraints=off",
			"PRAGMA busy_timeout=1; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout", "PRAGMA busy_timeout=1; SELECT 3", "SELECT 3; PRAGMA busy_timeout", "PRAGMA foreign_keys; SELECT 1", "PRAGMA optimize; PRAGMA shrink_memory",
		} {
			p.same(w, text(s))
		}
	}
}

// total_changes() of a connection counts what its writes touched, by triggers
// and in scripts too, and nothing for what touched no row.
func TestTotalChanges(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	conn, err := c.DB(0).Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
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

// Each statement of a script binds from the first argument, settings beside
// reads too; an argument that none uses is an error.
func TestScriptsOfReadsTakeArguments(t *testing.T) {
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
		t.Error("arguments that nothing uses were taken")
	}
	if err := c.DB(0).QueryRow("SELECT 1; SELECT ? + ?", 5).Scan(&got); err == nil {
		t.Error("a missing argument was not noticed")
	}
}
