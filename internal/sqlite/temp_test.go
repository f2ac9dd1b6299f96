package sqlite

import (
	"errors"
	"path/filepath"
	"testing"
)

const tempBody = " BEGIN DELETE FROM t WHERE a<new.a; END"

// makesTemp are statements that make a TEMP object, in all spellings.
var makesTemp = []string{
	"CREATE TEMP TABLE x(a)", "CREATE TEMPORARY TABLE x(a)", "CREATE TABLE temp.x(a)", `CREATE TABLE "TEMP".x(a)`, "CREATE TABLE temp.x AS SELECT * FROM t",
	"CREATE TEMP TABLE x(a INTEGER PRIMARY KEY AUTOINCREMENT)", "CREATE TABLE IF NOT EXISTS temp.t(a)",
	"CREATE TEMP VIEW x AS SELECT 1", "CREATE VIEW temp.x AS SELECT * FROM main.t", "CREATE VIEW IF NOT EXISTS [temp].x AS SELECT 1",
	"CREATE TEMP TRIGGER x AFTER INSERT ON t" + tempBody, "CREATE TRIGGER temp.x AFTER INSERT ON t" + tempBody,
	"CREATE TRIGGER temp.x AFTER INSERT ON main.t" + tempBody, "CREATE TRIGGER IF NOT EXISTS `temp`.x BEFORE DELETE ON main.t BEGIN SELECT 1; END",
	"CREATE TRIGGER temp.x INSTEAD OF INSERT ON main.v BEGIN SELECT 1; END", "CREATE TEMP TRIGGER x AFTER UPDATE OF a ON main.t BEGIN SELECT RAISE(ABORT, 'no'); END",
	"CREATE VIRTUAL TABLE temp.x USING fts5(a)", "CREATE VIRTUAL TABLE temp.x USING rtree(id, a, b)",
	"ANALYZE temp", "PRAGMA temp.user_version=3", "PRAGMA temp.application_id=3",
}

// An operation must not make TEMP objects on the connection that applies it. They would
// stay there until the replica restarts.
func TestOperationsCannotMakeTempObjects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	for _, mode := range []Mode{Apply, Speculate} { // the Apply connection creates the database
		name := map[Mode]string{Apply: "apply", Speculate: "speculate"}[mode]
		c, err := Open(path, mode)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.AsOwner(true)
		if err := c.Exec("PRAGMA journal_mode=WAL; PRAGMA temp_store=MEMORY; CREATE TABLE IF NOT EXISTS t(a); CREATE VIEW IF NOT EXISTS v AS SELECT * FROM t"); mode == Apply && err != nil {
			t.Fatal(err)
		}
		c.AsOwner(false)
		for _, text := range makesTemp {
			var e *Error
			if err := c.Exec(text); !errors.As(err, &e) || e.Code != CodeAuth {
				t.Errorf("%s: %s: %v, want a refusal", name, text, err)
			}
			s, _, err := c.Prepare("SELECT count(*) FROM sqlite_temp_schema", false)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Step(); err != nil || s.Int(0) != 0 {
				t.Fatalf("%s: %s: %d TEMP objects, %v", name, text, s.Int(0), err)
			}
			s.Close()
		}
		// Statements about objects of main may read the temp schema, which is empty.
		if mode != Apply {
			continue
		}
		for _, text := range []string{
			"CREATE TABLE r(a)", "ALTER TABLE r RENAME TO s", "ALTER TABLE s RENAME COLUMN a TO b", "ALTER TABLE s ADD COLUMN c", "ALTER TABLE s DROP COLUMN c", "DROP TABLE s",
			"ANALYZE", "REINDEX", "DROP TABLE IF EXISTS temp.x", "DROP TRIGGER IF EXISTS temp.x", "INSERT INTO t SELECT count(*) FROM sqlite_temp_schema",
			"CREATE VIRTUAL TABLE f USING fts5(a)", "INSERT INTO f VALUES('a')", "DROP TABLE f", "PRAGMA main.user_version=3", "CREATE TABLE temporary_one(temp)",
		} {
			if err := c.Exec(text); err != nil {
				t.Errorf("%s: %v", text, err)
			}
		}
	}
}
