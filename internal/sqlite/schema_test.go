package sqlite

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// SQLite executes PRAGMAs while it prepares them. Classifying a text prepares it, and must
// not execute anything.
func TestClassifyingExecutesNothing(t *testing.T) {
	_, reader := openPair(t)
	setters := []string{
		"analysis_limit=7", "application_id=7", "auto_vacuum=2", "automatic_index=0", "busy_timeout=7", "cache_size=7", "cache_spill=0", "case_sensitive_like=1", "cell_size_check=1",
		"checkpoint_fullfsync=1", "defer_foreign_keys=1", "foreign_keys=0", "fullfsync=1", "ignore_check_constraints=1", "journal_mode=DELETE", "journal_size_limit=7", "legacy_alter_table=1",
		"locking_mode=EXCLUSIVE", "max_page_count=77777", "mmap_size=1048576", "page_size=512", "query_only=1", "read_uncommitted=1", "recursive_triggers=1", "reverse_unordered_selects=1",
		"secure_delete=1", "soft_heap_limit=77777777", "hard_heap_limit=777777777", "synchronous=0", "temp_store=2", "threads=3", "trusted_schema=0", "user_version=7", "wal_autocheckpoint=7", "writable_schema=1", "schema_version=99",
	}
	read := func() string {
		defer reader.AsOwner(true)()
		var out []string
		for _, setter := range setters {
			name, _, _ := strings.Cut(setter, "=")
			if name == "case_sensitive_like" {
				out = append(out, "like "+query(t, reader, "SELECT 'a' LIKE 'A'"))
				continue
			}
			out = append(out, name+" "+query(t, reader, "PRAGMA "+name))
		}
		return strings.Join(out, "\n")
	}
	before := read()
	for _, setter := range setters {
		name, value, _ := strings.Cut(setter, "=")
		for _, text := range []string{"PRAGMA " + setter, "PRAGMA main." + setter, "PRAGMA " + name + "(" + value + ")", "/**/ pragma " + strings.ToUpper(name) + " = '" + value + "'; SELECT 1", "EXPLAIN PRAGMA " + setter} {
			reader.Classify(text)
			if after := read(); after != before {
				t.Fatalf("%s took effect:\n%s\n\nbefore:\n%s", text, after, before)
			}
		}
	}
	for _, text := range []string{"BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT x", "COMMIT", "INSERT INTO t VALUES(1,1)", "DROP TABLE t", "VACUUM", "DETACH x", "CREATE TABLE y(a)", "REINDEX", "ANALYZE", "SELECT 1; DELETE FROM t"} {
		reader.Classify(text)
		if !reader.Autocommit() {
			t.Fatalf("%s began a transaction", text)
		}
	}
	if got := query(t, reader, "SELECT count(*) FROM sqlite_schema WHERE name IN ('t','y')"); got != "1" {
		t.Errorf("the schema changed: %s", got)
	}
}

// SQLite and its extensions prepare statements of their own in order to execute those of
// programs. The authorizer must allow them.
func TestSchemaChangesWorkUnderTheAuthorizer(t *testing.T) {
	c := mustOpen(t)
	for _, step := range []struct{ text, query, want string }{
		{"CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c); INSERT INTO t VALUES(1,'x',2)", "SELECT * FROM t", "1|x|2"},
		{"ALTER TABLE t RENAME TO u", "SELECT * FROM u", "1|x|2"},
		{"ALTER TABLE u RENAME COLUMN b TO bb", "SELECT bb FROM u", "x"},
		{"ALTER TABLE u ADD COLUMN d DEFAULT 5", "SELECT d FROM u", "5"},
		{"ALTER TABLE u DROP COLUMN c", "SELECT * FROM u", "1|x|5"},
		{"CREATE INDEX i ON u(bb); CREATE UNIQUE INDEX j ON u(d) WHERE d>3; REINDEX u; DROP INDEX i", "SELECT count(*) FROM pragma_index_list('u')", "1"},
		{"CREATE VIEW v AS SELECT bb FROM u; ALTER TABLE u RENAME COLUMN bb TO b", "SELECT * FROM v", "x"},
		{"CREATE TRIGGER tr AFTER INSERT ON u BEGIN UPDATE u SET b=new.b||'!' WHERE a=new.a; END; INSERT INTO u VALUES(2,'y',6); DROP TRIGGER tr", "SELECT b FROM u WHERE a=2", "y!"},
		{"CREATE TABLE g(a, b AS (a+1) STORED, CHECK(a>0)) STRICT", "", "error"},
		{"CREATE TABLE g(a INT, b INT AS (a+1) STORED, c INT AS (a*2), CHECK(a>0)) STRICT; INSERT INTO g(a) VALUES(4)", "SELECT b, c FROM g", "5|8"},
		{"CREATE TABLE s AS SELECT b, d FROM u", "SELECT count(*) FROM s", "2"},
		{"CREATE TABLE au(a INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO au DEFAULT VALUES; DELETE FROM au; INSERT INTO au DEFAULT VALUES; DROP VIEW v; DROP TABLE u", "SELECT a FROM au", "2"},
		{"CREATE VIRTUAL TABLE ft USING fts5(x, y, tokenize='porter unicode61', prefix='2'); INSERT INTO ft VALUES('running dogs','a'),('cats','b')", "SELECT y FROM ft WHERE ft MATCH 'run'", "a"},
		{"UPDATE ft SET x='sleeping' WHERE y='a'; INSERT INTO ft(ft) VALUES('rebuild'); INSERT INTO ft(ft) VALUES('optimize'); INSERT INTO ft(ft) VALUES('integrity-check')", "SELECT highlight(ft,0,'<','>') FROM ft('sleep')", "<sleeping>"},
		{"CREATE VIRTUAL TABLE voc USING fts5vocab(ft, 'row')", "SELECT count(*) FROM voc", "4"},
		{"ALTER TABLE ft RENAME TO ft2", "SELECT count(*) FROM ft2", "2"},
		{"DROP TABLE voc; DROP TABLE ft2", "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'ft%'", "0"},
		{"CREATE VIRTUAL TABLE rt USING rtree(id, x0, x1, +note); INSERT INTO rt VALUES(1,0,10,'in'),(2,20,30,'out'); UPDATE rt SET x1=12 WHERE id=1; DELETE FROM rt WHERE id=2", "SELECT note FROM rt WHERE x0<5", "in"},
		{"ALTER TABLE rt RENAME TO rt2; DROP TABLE rt2", "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'rt%'", "0"},
		{"CREATE VIRTUAL TABLE gp USING geopoly(name); INSERT INTO gp(name, _shape) VALUES('sq','[[0,0],[1,0],[1,1],[0,1],[0,0]]')", "SELECT name FROM gp WHERE geopoly_contains_point(_shape, 0.5, 0.5)", "sq"},
		{"PRAGMA user_version=5; PRAGMA application_id=6", "SELECT (SELECT user_version FROM pragma_user_version)||(SELECT application_id FROM pragma_application_id)", "56"},
		{"ANALYZE", "SELECT count(*)>0 FROM sqlite_stat1", "1"},
		{"PRAGMA foreign_key_check; PRAGMA integrity_check; PRAGMA table_list", "SELECT count(*) FROM json_each('[1,2]')", "2"},
		{"DROP TABLE s; DROP TABLE g", "SELECT count(*) FROM sqlite_schema WHERE name IN ('s','g')", "0"},
	} {
		c.Begin(&wire.Operation{})
		err := c.Exec(step.text)
		if step.want == "error" {
			if err == nil {
				t.Errorf("%s succeeded", step.text)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", step.text, err)
			continue
		}
		if got := query(t, c, step.query); got != step.want {
			t.Errorf("after %s: %s is %q, not %q", step.text, step.query, got, step.want)
		}
	}
}

// Only the steps of an operation count towards its bound, and not those of preparing it or
// of hiqlite's own statements.
func TestOnlyStepsOfTheOperationCount(t *testing.T) {
	c := mustOpen(t)
	if err := c.Exec("CREATE TABLE t(a)"); err != nil {
		t.Fatal(err)
	}
	c.Begin(&wire.Operation{MaxSteps: 1})
	c.AsOwner(true)
	if err := c.Exec("INSERT INTO t WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<5000) SELECT n FROM x"); err != nil {
		t.Error("a statement of hiqlite itself reached the bound:", err)
	}
	c.AsOwner(false)
	if err := c.Exec("DELETE FROM t WHERE a>(SELECT avg(a) FROM t)"); err == nil {
		t.Error("a statement of the operation did not reach the bound")
	}
}

// A checkpoint copies the log even if its connection has never read from the database.
func TestCheckpoint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data.db")
	apply, err := Open(path, Apply)
	if err != nil {
		t.Fatal(err)
	}
	defer apply.Close()
	apply.AsOwner(true)
	if err := apply.Exec("PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES(1)"); err != nil {
		t.Fatal(err)
	}
	frames := apply.WALFrames()
	if frames == 0 {
		t.Error("WALFrames is 0")
	}
	other, err := Open(path, Plain)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Checkpoint(false); err != nil {
		t.Fatal(err)
	}
	if err := apply.Exec("INSERT INTO t VALUES(2)"); err != nil {
		t.Fatal(err)
	}
	if got := apply.WALFrames(); got >= frames {
		t.Errorf("the log had %d frames before the checkpoint and has %d after it", frames, got)
	}
}

func TestCopyCanBeStopped(t *testing.T) {
	apply, _ := openPair(t)
	if err := apply.Exec("INSERT INTO t(b) SELECT zeroblob(30000000)"); err != nil {
		t.Fatal(err)
	}
	calls := 0
	err := apply.CopyTo(filepath.Join(t.TempDir(), "copy.db"), func() bool { calls++; return calls == 2 })
	if err == nil || calls != 2 {
		t.Errorf("%v after %d calls of stopped", err, calls)
	}
}
