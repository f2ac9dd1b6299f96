package differential

import "testing"

// pinned are scripts that have shown a difference. The report of a failed run can be
// copied here.
var pinned = []struct {
	name  string
	steps script
}{
	{"ALTER TABLE looks whether the rows meet a new constraint", texts(
		"CREATE TABLE t(a)",
		"INSERT INTO t VALUES(1)",
		"ALTER TABLE t ADD COLUMN b CHECK(b IS NULL)",
		"ALTER TABLE t ADD COLUMN c INT GENERATED ALWAYS AS (a + 1) NOT NULL",
		"ALTER TABLE t ADD COLUMN d CHECK(a > 1)",
		"ALTER TABLE t ADD CONSTRAINT k CHECK(a > 0)",
		"ALTER TABLE t ADD CONSTRAINT l CHECK(a > 1)",
		"ALTER TABLE t ALTER COLUMN a SET NOT NULL",
		"BEGIN",
		"ALTER TABLE t ADD COLUMN e CHECK(e IS NULL)",
		"COMMIT",
		"SELECT * FROM t",
	)},
	{"schemas that use LIKE are loaded while it is case-sensitive", texts(
		"CREATE TABLE t(a, b AS (a LIKE 'a%'), CHECK(a NOT LIKE 'bad'))",
		"CREATE INDEX i ON t(a) WHERE a LIKE 'x%'",
		"PRAGMA case_sensitive_like=1",
		"CREATE TABLE t2(a)",
		"INSERT INTO t VALUES('abc')",
		"SELECT 'A' LIKE 'a', * FROM t",
		"DROP TABLE t2",
		"BEGIN",
		"CREATE TABLE t3(a)",
		"INSERT INTO t VALUES('BAD')",
		"COMMIT",
		"PRAGMA case_sensitive_like=0",
		"CREATE TABLE t4(a)",
		"CREATE INDEX i2 ON t(a) WHERE a IS NOT NULL",
		"SELECT 'A' LIKE 'a', a FROM t",
	)},
	{"integrity_check finds what violates a CHECK", texts(
		"CREATE TABLE t(a CHECK(a > 0), b NOT NULL)",
		"PRAGMA ignore_check_constraints=1",
		"INSERT INTO t VALUES(-1, 1)",
		"PRAGMA ignore_check_constraints=0",
		"PRAGMA integrity_check",
		"PRAGMA quick_check",
		"SELECT * FROM pragma_integrity_check",
		"BEGIN",
		"PRAGMA integrity_check(t)",
		"INSERT INTO t VALUES(-2, 1)",
		"COMMIT",
	)},
	{"triggers that call each other too deeply have done nothing", append(deep, append(append(texts("BEGIN", "PRAGMA recursive_triggers=1"), deep[2:]...), texts("COMMIT", "SELECT count(*) FROM t")...)...)},
	{"a row that failed violates no deferred foreign key", texts(
		"CREATE TABLE p(a PRIMARY KEY)",
		"CREATE TABLE c(a REFERENCES p, b REFERENCES p DEFERRABLE INITIALLY DEFERRED, c CHECK(c > 0))",
		"BEGIN",
		"INSERT INTO c VALUES('no', 'no', 1)",
		"INSERT INTO c VALUES(NULL, NULL, 0)",
		"COMMIT",
		"INSERT INTO c VALUES('no', 'no', 1)",
		"INSERT INTO c VALUES(NULL, 'no', 1)",
		"SAVEPOINT s",
		"INSERT INTO c VALUES('no', 'no', 1), (NULL, NULL, 1)",
		"RELEASE s",
		"SELECT * FROM c",
	)},
	{"a VIRTUAL column that cannot be computed", texts(
		"CREATE TABLE t(a, b AS (json_extract(a, '$.x')), c AS (a || 'x') STORED)",
		"INSERT INTO t(a) VALUES('no json')",
		"CREATE TABLE w(a PRIMARY KEY, b AS (json_extract(a, '$.x'))) WITHOUT ROWID",
		"INSERT INTO w(a) VALUES('no json')",
		"SELECT * FROM t",
		"SELECT a, c FROM t",
	)},
	{"a TEMP trigger stays at its table when a TEMP table of that name is created", texts(
		"CREATE TABLE t(a)",
		"CREATE TABLE log(a)",
		"CREATE TEMP TRIGGER g AFTER INSERT ON t BEGIN INSERT INTO log VALUES(new.a); END",
		"CREATE TEMP TABLE t(b UNIQUE)",
		"INSERT INTO t VALUES(1)",
		"INSERT INTO main.t VALUES(2)",
		"CREATE TEMP TRIGGER h AFTER INSERT ON t BEGIN INSERT INTO log VALUES('temp ' || new.b); END",
		"INSERT INTO t VALUES(3)",
		"INSERT INTO main.t VALUES(4)",
		"SELECT * FROM log ORDER BY rowid",
		"SELECT type, name, tbl_name FROM sqlite_temp_schema",
	)},
	{"a write that names a TEMP table only in a part that SQLite leaves out", texts(
		"CREATE TABLE t(a UNIQUE, b)",
		"CREATE TEMP TABLE \"a\"\"b\"(c)",
		"INSERT INTO t VALUES(1, 2)",
		"UPDATE t SET b = EXISTS (SELECT 1 FROM \"A\"\"b\"), b = 3",
		"INSERT INTO t VALUES(1, 2) ON CONFLICT(a) DO UPDATE SET b = (SELECT c FROM [a\"b]), b = 4",
		"SELECT * FROM t",
	)},
	{"rows that violate a deferred foreign key are dropped", texts(
		"PRAGMA foreign_keys=0",
		"CREATE TABLE t(a INTEGER PRIMARY KEY, b, FOREIGN KEY(a) REFERENCES nope(rowid) DEFERRABLE INITIALLY DEFERRED)",
		"CREATE TABLE c(a REFERENCES t(a))",
		"INSERT INTO t VALUES(1, 1), (2, 2), (3, 3)",
		"PRAGMA foreign_keys=1",
		"DROP TABLE t",
		"DELETE FROM t",
		"CREATE TABLE other(a)",
		"BEGIN",
		"DROP TABLE t",
		"INSERT INTO other VALUES(1)",
		"COMMIT",
		"ROLLBACK",
		"SELECT * FROM other",
	)},
	{"a transaction that changes only TEMP objects violates a deferred foreign key of a TEMP table", texts(
		"CREATE TEMP TABLE p(a PRIMARY KEY)",
		"CREATE TEMP TABLE c(a REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
		"INSERT INTO c VALUES(1);\nUPDATE p SET a = 2",
		"INSERT INTO c VALUES(1);\nINSERT INTO p VALUES(1)",
		"INSERT INTO c VALUES(2);\nCREATE TABLE t(a)",
		"SAVEPOINT s",
		"INSERT INTO c VALUES(2)",
		"RELEASE s",
		"INSERT INTO p VALUES(2)",
		"RELEASE s",
		"SAVEPOINT s",
		"DELETE FROM p",
		"RELEASE s",
		"ROLLBACK",
		"BEGIN",
		"DELETE FROM p",
		"COMMIT",
		"DELETE FROM c",
		"COMMIT",
		"SELECT * FROM c, p",
	)},
	{"a transaction after one that OR ROLLBACK has ended while it wrote an R-Tree", texts(
		"CREATE VIRTUAL TABLE r USING rtree(id, a, b)",
		"INSERT INTO r VALUES(1, 0, 1)",
		"BEGIN",
		"INSERT OR ROLLBACK INTO r VALUES(2, 0, 1), (1, 0, 1)",
		"INSERT INTO r VALUES(3, 0, 1)",
		"SAVEPOINT s",
		"SELECT * FROM r",
		"RELEASE s",
		"BEGIN",
		"INSERT OR ROLLBACK INTO r VALUES(4, 0, 1), (5, 1, 0)",
		"INSERT INTO r VALUES(6, 0, 1)",
		"BEGIN",
		"SELECT * FROM r",
		"COMMIT",
	)},
	{"a prepared foreign_key_check of a table that was dropped", script{
		{text: "CREATE TABLE t(a)"},
		{how: keepPrepared, text: "PRAGMA foreign_key_check(t)"},
		{how: exec, text: "DROP TABLE t"},
		{how: runKept, text: "PRAGMA foreign_key_check(t)"},
	}},
	{"a query that asks for hiqlite's own table", texts(
		"SELECT m.name, x.hidden FROM sqlite_schema AS m, pragma_table_xinfo(m.name) AS x WHERE m.name LIKE '%hiqlite%'",
	)},
	{"a foreign key without a unique parent is reported where defer_foreign_keys is on", texts(
		"CREATE TABLE p(b)",
		"CREATE TABLE c(a REFERENCES p(rowid))",
		"BEGIN",
		"INSERT INTO p VALUES(5)",
		"PRAGMA defer_foreign_keys=1",
		"COMMIT",
		"BEGIN",
		"PRAGMA defer_foreign_keys=1",
		"INSERT INTO p VALUES(6)",
		"PRAGMA defer_foreign_keys=0",
		"INSERT INTO p VALUES(7)",
		"COMMIT",
		"SELECT * FROM p",
	)},
	{"a statement that fails after it changed rows has changed none", append(failingLate, append(append(texts("SAVEPOINT s"), failingLate[3:]...), texts("RELEASE s")...)...)},
}

// failingLate are statements that fail at their second row or later, for reasons for
// which SQLite keeps no statement journal.
var failingLate = texts(
	"CREATE TABLE strict(a INT, b TEXT) STRICT",
	"CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
	"CREATE VIRTUAL TABLE f USING fts5(x)",
	"INSERT INTO strict VALUES(1,'x'),('y','z')",
	"INSERT OR FAIL INTO strict VALUES(1,'x'),('y','z')",
	"REPLACE INTO t VALUES(1,'{}'),(2,'{}'),(3,'{')",
	"INSERT INTO t(b) SELECT sum(value) FROM json_each('[1,2,9223372036854775807]') GROUP BY value < 2",
	"INSERT INTO t(b) SELECT 1 UNION ALL SELECT sum(a) FROM (SELECT 9223372036854775807 AS a UNION ALL SELECT 1)",
	"INSERT INTO t(b) SELECT 1 UNION ALL SELECT value FROM json_each('{')",
	"INSERT INTO t(b) SELECT 1 UNION ALL SELECT rowid FROM f WHERE f MATCH '\"'",
	"INSERT OR REPLACE INTO t(b) SELECT 1 UNION ALL SELECT value FROM json_each('{')",
	"UPDATE t SET b = (SELECT count(*) FROM json_each(t.b))",
	"UPDATE OR IGNORE t SET b = (SELECT count(*) FROM json_tree(t.b))",
	"UPDATE t SET b = (SELECT sum(x) FROM (SELECT a + 9223372036854775800 AS x UNION ALL SELECT 6))",
	"DELETE FROM t WHERE (SELECT count(*) FROM json_each(t.b)) >= 0",
	"CREATE TABLE made AS SELECT 1 AS a UNION ALL SELECT value FROM json_each('{')",
	"INSERT INTO t(b) SELECT 1 UNION ALL SELECT value FROM json_each('{') RETURNING *",
	"SELECT * FROM t",
	"SELECT * FROM strict",
	"CREATE TRIGGER g AFTER INSERT ON t BEGIN INSERT INTO strict VALUES(new.b, 'by trigger'); END",
	"INSERT INTO t(b) VALUES(5), ('not a number')",
	"INSERT INTO t(b) VALUES('not a number')",
	"DROP TRIGGER g",
	"CREATE TRIGGER g AFTER DELETE ON t BEGIN UPDATE strict SET a = (SELECT sum(value) FROM json_each(old.b)); END",
	"DELETE FROM t",
	"DROP TRIGGER g",
	"SELECT * FROM t",
	"SELECT * FROM strict",
)

var deep = texts(
	"PRAGMA recursive_triggers=1",
	"CREATE TABLE t(a)",
	"CREATE TRIGGER IF NOT EXISTS g AFTER INSERT ON t BEGIN INSERT OR IGNORE INTO t VALUES(new.a + 1); END",
	"INSERT INTO t VALUES(1)",
	"SELECT count(*) FROM t",
	"CREATE TABLE IF NOT EXISTS tree(a INTEGER PRIMARY KEY, p INTEGER REFERENCES tree ON DELETE CASCADE)",
	"CREATE INDEX IF NOT EXISTS tp ON tree(p)",
	"INSERT OR IGNORE INTO tree WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 1100) SELECT i, nullif(i-1, 0) FROM n",
	"DELETE FROM tree WHERE a = 1",
	"SELECT count(*) FROM tree",
)

// texts returns a script of statements on one connection.
func texts(all ...string) (s script) {
	for _, text := range all {
		s = append(s, step{text: text})
	}
	return s
}

func TestPinned(t *testing.T) {
	r := newRunner(t)
	for _, p := range pinned {
		t.Run(p.name, func(t *testing.T) {
			r.begin()
			for _, s := range append(p.steps, step{how: compareAll}) {
				if found := r.step(s); found != nil {
					t.Fatal(found)
				}
			}
		})
	}
}

// The lengths of columns, which come from the first row, are compared only if both
// databases return the same row first (seed 60044).
func TestLengthsOfColumns(t *testing.T) {
	theirs := outcome{columns: "a", lengths: "0 false", rows: []string{"NULL", "x"}}
	otherOrder := outcome{columns: "a", lengths: "9 true", rows: []string{"x", "NULL"}}
	if kind := differ(step{text: "SELECT a FROM t"}, counted{}, otherOrder, theirs); kind != "" {
		t.Errorf("rows in another order: %s", kind)
	}
	sameOrder := outcome{columns: "a", lengths: "9 true", rows: theirs.rows}
	if kind := differ(step{text: "SELECT a FROM t"}, counted{}, sameOrder, theirs); kind != "other columns" {
		t.Errorf("rows in the same order: got %q, want a difference", kind)
	}
}
