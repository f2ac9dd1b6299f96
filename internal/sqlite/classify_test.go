package sqlite

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// openPair returns an Apply and a ReadOnly connection to a database with a few tables.
func openPair(t *testing.T) (apply, reader *Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data.db")
	apply, err := Open(path, Apply)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { apply.Close() })
	apply.AsOwner(true)
	if err := apply.Exec("PRAGMA journal_mode=WAL"); err != nil {
		t.Fatal(err)
	}
	if err := apply.MakeMetaTable(); err != nil {
		t.Fatal(err)
	}
	apply.AsOwner(false)
	if err := apply.Exec("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); CREATE VIRTUAL TABLE ft USING fts5(x); CREATE VIEW v AS SELECT a FROM t"); err != nil {
		t.Fatal(err)
	}
	reader, err = Open(path, ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	return apply, reader
}

func TestClassify(t *testing.T) {
	_, reader := openPair(t)
	for _, test := range []struct {
		kind Kind
		text string
	}{
		{Empty, ""}, {Empty, ";"}, {Empty, "-- comment"}, {Empty, "/* open"}, {Empty, " ;; "},
		{Read, "SELECT a FROM t"}, {Read, "-- c\n/* x */ select 1"}, {Read, "VALUES(1)"}, {Read, "SELECT random()"},
		{Read, "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<5) SELECT * FROM x"},
		{Read, "EXPLAIN INSERT INTO t VALUES(1,2)"}, {Read, "EXPLAIN QUERY PLAN DELETE FROM t"},
		{Read, "SELECT * FROM ft WHERE ft MATCH 'x'"}, {Read, "SELECT 1; SELECT 2"}, {Read, "SELECT * FROM pragma_table_info('t')"},
		{Read, "PRAGMA table_info(t)"}, {Read, "PRAGMA user_version"}, {Read, "PRAGMA foreign_keys"}, {Read, "PRAGMA journal_mode"},
		{Read, "PRAGMA integrity_check"}, {Read, "PRAGMA foreign_key_check(t)"}, {Read, "SELECT * FROM sqlite_hiqlite"},
		{Write, "WITH x AS (SELECT 1) INSERT INTO t(b) SELECT * FROM x"}, {Write, "INSERT INTO t(b) VALUES(?) RETURNING a"},
		{Write, "UPDATE t SET b=1"}, {Write, "DELETE FROM t"}, {Write, "REPLACE INTO t VALUES(1,2)"},
		{Write, "CREATE TABLE n(a)"}, {Write, "CREATE TABLE IF NOT EXISTS t(a)"}, {Write, "DROP TABLE IF EXISTS nope"},
		{Write, "ALTER TABLE t RENAME TO t2"}, {Write, "CREATE INDEX i ON t(b)"}, {Write, "REINDEX"}, {Write, "ANALYZE"},
		{Write, "CREATE VIRTUAL TABLE f2 USING fts5(y)"}, {Write, "INSERT INTO ft(ft) VALUES('optimize')"},
		{Write, "PRAGMA user_version=3"}, {Write, "PRAGMA main.application_id(4)"},
		{Write, "SELECT 1; DELETE FROM t"}, {Write, "CREATE TABLE q(a); INSERT INTO q VALUES(1)"},
		{Write, "PRAGMA foreign_keys=OFF; DROP TABLE t"}, {Write, "CREATE TABLE q(a); nonsense"},
		{ConnPragma, "PRAGMA foreign_keys=OFF"}, {ConnPragma, "PRAGMA busy_timeout=5"}, {ConnPragma, "PRAGMA journal_mode=WAL"},
		{ConnPragma, "PRAGMA optimize"}, {ConnPragma, "PRAGMA wal_checkpoint(TRUNCATE)"}, {ConnPragma, "PRAGMA wal_checkpoint"},
		{ConnPragma, "PRAGMA nosuchpragma=3"}, {ConnPragma, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=5000"},
		{ConnPragma, "PRAGMA recursive_triggers=0"}, {ConnPragma, "PRAGMA recursive_triggers=1"}, {ConnPragma, "PRAGMA main.writable_schema(1)"}, {Read, "PRAGMA case_sensitive_like"}, {Read, "PRAGMA nosuchpragma"}, {ConnPragma, "PRAGMA encoding='UTF-8'"}, {ConnPragma, "PRAGMA query_only=1"},
		{Transaction, "BEGIN"}, {Transaction, "BEGIN IMMEDIATE"}, {Transaction, "COMMIT"}, {Transaction, "END"},
		{Transaction, "ROLLBACK"}, {Transaction, "SAVEPOINT x"}, {Transaction, "RELEASE x"}, {Transaction, "ROLLBACK TO x"},
		{Transaction, "; BEGIN IMMEDIATE"}, {Transaction, "-- c\n;/* x */ BEGIN"}, {Vacuum, "; VACUUM"}, {Vacuum, "VACUUM"}, {Vacuum, " vacuum; -- now"},
	} {
		class, err := reader.Classify(test.text)
		if err != nil || class.Kind != test.kind {
			t.Errorf("%q: kind %d, %v, want %d", test.text, class.Kind, err, test.kind)
		}
	}
}

// A ReadOnly connection classifies PRAGMAs without executing them.
func TestClassifyingSettersSetsNothing(t *testing.T) {
	_, reader := openPair(t)
	for _, text := range []string{"PRAGMA foreign_keys=OFF", "PRAGMA busy_timeout=7", "PRAGMA case_sensitive_like=1", "PRAGMA cache_size=3", "PRAGMA foreign_keys=OFF; PRAGMA case_sensitive_like=1; SELECT 1", "PRAGMA writable_schema=1; PRAGMA short_column_names=0; nonsense"} {
		if _, err := reader.Classify(text); (err != nil) != strings.Contains(text, "nonsense") {
			t.Errorf("%q: %v", text, err)
		}
	}
	for text, want := range map[string]int64{"PRAGMA foreign_keys": 1, "PRAGMA busy_timeout": busyTimeout, "SELECT 'a' LIKE 'A'": 1, "PRAGMA writable_schema": 0, "PRAGMA short_column_names": 1, "PRAGMA cache_size": -2000} {
		s, _, err := reader.Prepare(text, false)
		if err != nil {
			t.Fatal(err)
		}
		if row, err := s.Step(); !row || err != nil || s.Int(0) != want {
			t.Errorf("%s is %d, %v: preparing its setter took effect", text, s.Int(0), err)
		}
		s.Close()
	}
}

// SQLite itself refuses these statements, because it reserves names that begin with
// sqlite_.
func TestSQLiteProtectsTheMetaTable(t *testing.T) {
	apply, reader := openPair(t)
	for text, part := range map[string]string{
		"CREATE TEMP TABLE sqlite_hiqlite(a)": "reserved", "CREATE TABLE temp.sqlite_hiqlite(a)": "reserved", "CREATE VIEW sqlite_hiqlite AS SELECT 1": "reserved", "CREATE TRIGGER temp.q AFTER INSERT ON main.sqlite_hiqlite BEGIN SELECT 1; END": "system table",
		"CREATE TRIGGER ht AFTER INSERT ON sqlite_hiqlite BEGIN SELECT 1; END": "system table", "ALTER TABLE sqlite_hiqlite ADD COLUMN x": "may not be altered", "ALTER TABLE sqlite_hiqlite RENAME TO x": "may not be altered",
		"ALTER TABLE t RENAME TO sqlite_hiqlite": "already another table", "CREATE INDEX hi ON sqlite_hiqlite(state)": "may not be indexed", "CREATE TABLE sqlite_other(a)": "reserved",
	} {
		_, err := reader.Classify(text)
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %v, want an error about %q", text, err, part)
		}
		if apply.Exec(text) == nil {
			t.Errorf("%q: the apply connection executed it", text)
		}
	}
}

func TestRefusedStatements(t *testing.T) {
	apply, reader := openPair(t)
	for text, part := range map[string]string{
		"ATTACH 'x' AS y": "ATTACH", "DETACH y": "DETACH", "CREATE VIRTUAL TABLE temp.q USING fts5(a)": "TEMP",
		"SELECT load_extension('x')": "load_extension",
		"PRAGMA schema_version=1":    "schema_version", "PRAGMA count_changes=1": "count_changes", "PRAGMA encoding='UTF-16'": "encoding",
		"PRAGMA temp_store_directory='/'": "temp_store_directory", "PRAGMA data_store_directory='/'": "data_store_directory", "PRAGMA default_cache_size=9": "default_cache_size",
		"DELETE FROM sqlite_hiqlite": "sqlite_hiqlite", "UPDATE sqlite_hiqlite SET state=1": "sqlite_hiqlite",
		"VACUUM INTO 'x.db'": "VACUUM INTO", "VACUUM; SELECT 1": "alone", "SELECT 1\x00; DROP TABLE t": "NUL",
	} {
		_, err := reader.Classify(text)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(e.Message, part) || e.Hint == "" {
			t.Errorf("%q: %v, want an error about %q with a hint", text, err, part)
		}
		if !strings.HasPrefix(text, "VACUUM") && apply.Exec(text) == nil {
			t.Errorf("%q: the apply connection executed it", text)
		}
	}
	for _, text := range []string{"BEGIN", "COMMIT", "SAVEPOINT x", "INSERT INTO t VALUES(1,1); COMMIT"} {
		if err := apply.Exec(text); err == nil {
			t.Errorf("%q: a script began or ended a transaction on the apply connection", text)
		}
	}
}

// Tools that empty a database drop every table that they find. For the meta table this must
// neither fail nor have an effect.
func TestDroppingTheMetaTableDoesNothing(t *testing.T) {
	apply, reader := openPair(t)
	if class, err := reader.Classify("DROP TABLE sqlite_hiqlite"); err != nil || class.Kind != Write {
		t.Errorf("kind %d, %v", class.Kind, err)
	}
	for _, text := range []string{"DROP TABLE sqlite_hiqlite", "DROP TABLE IF EXISTS main.\"SQLITE_HIQLITE\"", "INSERT INTO t VALUES(1,1); DROP TABLE sqlite_hiqlite; DROP TABLE t"} {
		if err := apply.Exec(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := reader.Exec("SELECT id, state FROM sqlite_hiqlite"); err != nil {
		t.Error(err)
	}
}
