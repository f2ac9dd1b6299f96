package hiqlite_test

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file check the PRAGMAs of a connection.

// Whether SQLite can prepare a statement depends on PRAGMA foreign_keys. So a
// statement is classified with the setting of its connection.
func TestClassificationUsesForeignKeysOfTheConnection(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		conn := mustConn(t, c.DB(0))
		mustExec(t, conn, "PRAGMA foreign_keys=OFF")
		mustExec(t, conn, "CREATE TABLE c(x REFERENCES nosuch)")
		mustExec(t, conn, "INSERT INTO c VALUES(1)")
		mustExec(t, conn, "PRAGMA foreign_keys=ON")
		if _, err := conn.ExecContext(testrun.Context(t), "INSERT INTO c VALUES(2)"); err == nil || !strings.Contains(err.Error(), "nosuch") {
			t.Errorf("with foreign keys on again: %v, want an error about nosuch", err)
		}
		mustExec(t, conn, "PRAGMA foreign_keys=OFF; INSERT INTO c VALUES(3); PRAGMA foreign_keys=ON")
		mustExec(t, conn, "PRAGMA foreign_keys=OFF")
		mustExec(t, conn, "BEGIN")
		mustExec(t, conn, "INSERT INTO c VALUES(4)")
		mustExec(t, conn, "INSERT INTO c VALUES(5); UPDATE c SET x=x+10 WHERE x=5")
		mustExec(t, conn, "COMMIT")
		if _, err := hiqlite.Batch(testrun.Context(t), c.DB(c.Len()-1), hiqlite.Statement{SQL: "INSERT INTO c VALUES(6)"}); err == nil {
			t.Error("foreign keys are off on another connection")
		}
		if got := queryValue[string](t, c.DB(0), "SELECT group_concat(x) FROM c"); got != "1,3,4,15" {
			t.Errorf("got %q, want %q", got, "1,3,4,15")
		}
		c.WaitEqual()
	})
}

// fillParentAndChild creates a table p, and a table c that refers to it, with rows.
func fillParentAndChild(t *testing.T, db *sql.DB) {
	t.Helper()
	mustExec(t, db, "DROP TABLE IF EXISTS c; DROP TABLE IF EXISTS p")
	mustExec(t, db, "CREATE TABLE p(id INTEGER PRIMARY KEY, v); CREATE TABLE c(p REFERENCES p ON DELETE CASCADE); INSERT INTO p VALUES(1,'a'),(2,'b'); INSERT INTO c VALUES(1),(1),(2)")
}

// A program rebuilds a table and switches foreign keys off inside the transaction.
// Here this works. SQLite ignores the PRAGMA inside a transaction, so that DROP TABLE
// deletes the children.
func TestForeignKeysSwitchedOffInsideATransaction(t *testing.T) {
	t.Parallel()
	const rebuild = `CREATE TABLE new_p(id INTEGER PRIMARY KEY, v, w DEFAULT 7); INSERT INTO new_p(id,v) SELECT id, v FROM p; DROP TABLE p; ALTER TABLE new_p RENAME TO p`
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		check := func(how string, q querier) {
			t.Helper()
			if n := queryValue[int](t, db, "SELECT count(*) FROM c"); n != 3 {
				t.Errorf("%s: %d of 3 children are left", how, n)
			}
			if queryValue[int](t, q, "PRAGMA foreign_keys") != 1 {
				t.Errorf("%s: foreign keys are off after the transaction", how)
			}
			if _, err := q.ExecContext(testrun.Context(t), "INSERT INTO c VALUES(99)"); err == nil {
				t.Errorf("%s: foreign keys are not enforced after the transaction", how)
			}
		}
		conn := mustConn(t, db)
		fillParentAndChild(t, db)
		mustExec(t, conn, "BEGIN; PRAGMA foreign_keys=OFF; "+rebuild+"; COMMIT")
		check("a script", conn)

		fillParentAndChild(t, db)
		for _, text := range strings.Split("BEGIN;PRAGMA foreign_keys=OFF;"+rebuild+";COMMIT", ";") {
			mustExec(t, conn, text)
		}
		check("statements", conn)

		fillParentAndChild(t, db)
		tx, err := conn.BeginTx(testrun.Context(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		mustExec(t, tx, "PRAGMA foreign_keys=OFF; "+rebuild)
		if queryValue[int](t, tx, "PRAGMA foreign_keys") != 0 {
			t.Error("foreign keys are on in the transaction that has switched them off")
		}
		mustCommit(t, tx)
		check("a Tx", conn)
		c.WaitEqual()
	})
}

// A transaction can also switch foreign keys on. It cannot switch them off while a
// deferred foreign key is violated.
func TestForeignKeysSwitchedOnInsideATransaction(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		conn := mustConn(t, db)
		fillParentAndChild(t, db)
		mustExec(t, conn, "PRAGMA foreign_keys=OFF")
		mustExec(t, conn, "BEGIN")
		mustExec(t, conn, "PRAGMA foreign_keys=ON")
		if _, err := conn.ExecContext(testrun.Context(t), "INSERT INTO c VALUES(99)"); err == nil {
			t.Error("foreign keys are off in the transaction that has switched them on")
		}
		mustExec(t, conn, "DELETE FROM p WHERE id=2")
		mustExec(t, conn, "PRAGMA foreign_keys=OFF")
		mustExec(t, conn, "INSERT INTO c VALUES(98)")
		mustExec(t, conn, "COMMIT")
		if queryValue[int](t, conn, "PRAGMA foreign_keys") != 0 {
			t.Error("the setting of the transaction outlives it")
		}
		if got := queryValue[string](t, db, "SELECT group_concat(p) FROM c"); got != "1,1,98" {
			t.Errorf("got %q, want %q", got, "1,1,98")
		}
		mustExec(t, conn, "PRAGMA foreign_keys=ON")

		// The PRAGMA fails while a deferred foreign key is violated: SQLite would forget
		// the violation.
		mustExec(t, conn, "BEGIN")
		mustExec(t, conn, "PRAGMA defer_foreign_keys=ON")
		mustExec(t, conn, "INSERT INTO c VALUES(50)")
		if _, err := conn.ExecContext(testrun.Context(t), "PRAGMA foreign_keys=OFF"); err == nil || !strings.Contains(err.Error(), "deferred foreign keys are violated") {
			t.Error(err)
		}
		mustExec(t, conn, "PRAGMA foreign_keys=ON") // changes nothing, so it succeeds
		mustExec(t, conn, "INSERT INTO p VALUES(50,'')")
		mustExec(t, conn, "PRAGMA foreign_keys=OFF")
		mustExec(t, conn, "ROLLBACK")
		if queryValue[int](t, conn, "PRAGMA foreign_keys") != 1 {
			t.Error("foreign keys are off after the ROLLBACK of the transaction that has switched them off")
		}
		c.WaitEqual()
	})
}

// settingEffects has, for each setting that is part of an operation, a statement
// whose effect depends on it: off and on are the results without and with it.
var settingEffects = []struct {
	set, schema, write, read, off, on string
}{
	{"foreign_keys=0", "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p ON DELETE CASCADE); INSERT INTO p VALUES(1); INSERT INTO c VALUES(1)",
		"DELETE FROM p", "SELECT count(*) FROM c", "0", "1"},
	{"recursive_triggers=1", "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE log(v); CREATE TRIGGER d AFTER DELETE ON t BEGIN INSERT INTO log VALUES(old.v); END; INSERT INTO t VALUES(1,'old')",
		"REPLACE INTO t VALUES(1,'new')", "SELECT count(*) FROM log", "0", "1"},
	{"legacy_alter_table=1", "CREATE TABLE t(a); CREATE VIEW v AS SELECT a FROM t; CREATE TABLE new_t(a, b); INSERT INTO new_t VALUES(1,2)",
		"DROP TABLE t; ALTER TABLE new_t RENAME TO t", "SELECT count(*) FROM sqlite_schema WHERE name='t' AND sql LIKE '%b)'", "error in view v", "1"},
	{"case_sensitive_like=1", "CREATE TABLE t(a); INSERT INTO t VALUES('a'),('A'); CREATE TABLE u(a)",
		"INSERT INTO u SELECT a FROM t WHERE a LIKE 'A'", "SELECT (SELECT count(*) FROM u) || ('a' LIKE 'A')", "21", "10"},
	{"ignore_check_constraints=1", "CREATE TABLE t(a CHECK(a<5))", "INSERT INTO t VALUES(9)", "SELECT count(*) FROM t", "CHECK constraint failed", "1"},
	{"reverse_unordered_selects=1", "CREATE TABLE t(a); INSERT INTO t VALUES(1),(2),(3); CREATE TABLE u(id INTEGER PRIMARY KEY, a)",
		"INSERT INTO u(a) SELECT a FROM t", "SELECT (SELECT a FROM u WHERE id=1) || (SELECT group_concat(a,'') FROM t)", "1123", "3321"},
	{"query_only=1", "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)", "SELECT count(*) FROM t", "1", "readonly"},
}

// The settings of a connection are part of its operations, so they have the same
// effect on all replicas, and none on other connections.
func TestSettingsAreAppliedByReplicas(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		for _, e := range settingEffects {
			for how, setAndWrite := range settingWays {
				name, _, _ := strings.Cut(e.set, "=")
				for on, want := range map[bool]string{false: e.off, true: e.on} {
					t.Run(fmt.Sprintf("%s/%s/%v", name, how, on), func(t *testing.T) {
						db := c.DB(c.Len() - 1)
						dropAll(t, db)
						mustExec(t, db, e.schema)
						conn := disposableConn(t, db)
						set := ""
						if on {
							set = "PRAGMA " + e.set
						}
						err := setAndWrite(t, conn, set, e.write)
						got := ""
						if err != nil {
							got = err.Error()
						} else {
							got = queryValue[string](t, conn, e.read)
						}
						if !strings.Contains(got, want) {
							t.Errorf("%q, want %q", got, want)
						}
						if name != "case_sensitive_like" && queryValue[int](t, db, "PRAGMA "+name) != queryValue[int](t, c.DB(0), "PRAGMA "+name) {
							t.Error("the setting has reached another connection")
						}
						if queryValue[int](t, db, "SELECT 'a' LIKE 'A'") != 1 || queryValue[string](t, db, "SELECT group_concat(x) FROM (SELECT column1 AS x FROM (VALUES(1),(2)))") != "1,2" {
							t.Error("a reader has kept the setting for its next query")
						}
					})
				}
			}
		}
		c.WaitEqual()
	})
}

// settingWays are the ways to run a PRAGMA, unless set is empty, and then to write.
var settingWays = map[string]func(t *testing.T, conn *sql.Conn, set, write string) error{
	"as a statement": func(t *testing.T, conn *sql.Conn, set, write string) error {
		mustExec(t, conn, set)
		_, err := conn.ExecContext(testrun.Context(t), write)
		return err
	},
	"in the script": func(t *testing.T, conn *sql.Conn, set, write string) error {
		_, err := conn.ExecContext(testrun.Context(t), set+"; "+write)
		return err
	},
	"before a transaction": func(t *testing.T, conn *sql.Conn, set, write string) error {
		mustExec(t, conn, set)
		return insideTx(t, conn, "", write)
	},
	"in a transaction": func(t *testing.T, conn *sql.Conn, set, write string) error { return insideTx(t, conn, set, write) },
	"in a script with a transaction": func(t *testing.T, conn *sql.Conn, set, write string) error {
		_, err := conn.ExecContext(testrun.Context(t), set+"; BEGIN; "+write+"; COMMIT")
		return err
	},
}

func insideTx(t *testing.T, conn *sql.Conn, set, write string) error {
	tx, err := conn.BeginTx(testrun.Context(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	mustExec(t, tx, set)
	for _, text := range strings.Split(write, "; ") {
		if _, err := tx.ExecContext(testrun.Context(t), text); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// dropAll drops all tables and views.
func dropAll(t *testing.T, db *sql.DB) {
	t.Helper()
	var drops []string
	eachRow(t, db, `SELECT printf('DROP %s IF EXISTS "%w"', type, name) FROM sqlite_schema WHERE type IN ('view','table') AND name<>'sqlite_hiqlite' AND name NOT LIKE 'sqlite_%' ORDER BY type DESC, rowid`, func(rows *sql.Rows) {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		drops = append(drops, s)
	})
	if len(drops) > 0 {
		mustExec(t, db, "PRAGMA foreign_keys=OFF; "+strings.Join(drops, "; ")+"; PRAGMA foreign_keys=ON")
	}
}

func TestForeignKeysIsASettingOfTheConnection(t *testing.T) {
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

// PRAGMAs that libraries set and read back return what SQLite returns, although most
// of them have no effect here.
func TestPragmasReturnWhatSQLiteReturns(t *testing.T) {
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

// PRAGMA query_only takes effect at once, also inside a transaction.
func TestQueryOnlyInATransaction(t *testing.T) {
	p := newPair(t, "")
	for _, s := range []step{text("CREATE TABLE t(a)"), text("PRAGMA query_only=1"), text("BEGIN"), text("INSERT INTO t VALUES(1)"), text("PRAGMA query_only=0"), text("INSERT INTO t VALUES(2)"),
		text("PRAGMA query_only=1"), text("INSERT INTO t VALUES(3)"), text("COMMIT")} {
		p.same(ways[1], s)
	}
}
