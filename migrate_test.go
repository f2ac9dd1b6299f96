package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// migrations returns files. The arguments are name, text, name, text, and so on.
func migrations(namesAndTexts ...string) fstest.MapFS {
	files := fstest.MapFS{}
	for pair := range slices.Chunk(namesAndTexts, 2) {
		files[pair[0]] = &fstest.MapFile{Data: []byte(pair[1])}
	}
	return files
}

// with returns the files with some added or replaced.
func with(files fstest.MapFS, namesAndTexts ...string) fstest.MapFS {
	files = maps.Clone(files)
	maps.Copy(files, migrations(namesAndTexts...))
	return files
}

func without(files fstest.MapFS, name string) fstest.MapFS {
	files = maps.Clone(files)
	delete(files, name)
	return files
}

func mustMigrate(t *testing.T, db *sql.DB, files fstest.MapFS) {
	t.Helper()
	if err := hiqlite.Migrate(testrun.Context(t), db, files); err != nil {
		t.Fatal(err)
	}
}

// wantMigrateError fails the test unless Migrate returns an error with all of the words.
func wantMigrateError(t *testing.T, db *sql.DB, files fstest.MapFS, words ...string) error {
	t.Helper()
	err := hiqlite.Migrate(testrun.Context(t), db, files)
	if err == nil {
		t.Fatalf("no error, want %q", words)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error %q does not contain %q", err, word)
		}
	}
	return err
}

// queryColumn returns the values of a query of one column, separated by spaces.
func queryColumn(t *testing.T, db *sql.DB, query string) string {
	t.Helper()
	var out []string
	eachRow(t, db, query, func(rows *sql.Rows) {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		out = append(out, s)
	})
	return strings.Join(out, " ")
}

func wantRows(t *testing.T, db *sql.DB, query, want string) {
	t.Helper()
	if got := queryColumn(t, db, query); got != want {
		t.Errorf("%s: %q, want %q", query, got, want)
	}
}

const (
	appliedNames = "SELECT name FROM hiqlite_migrations ORDER BY version"
	userTables   = "SELECT name FROM sqlite_schema WHERE type='table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name<>'hiqlite_migrations' ORDER BY name"
)

var people = migrations(
	"0001_people.sql", "CREATE TABLE people(id INTEGER PRIMARY KEY, name TEXT);\nCREATE INDEX people_name ON people(name);\nINSERT INTO people VALUES(1,'ada'),(2,'bob');\n",
	"2_pets.sql", "CREATE TABLE pets(id INTEGER PRIMARY KEY, owner INTEGER REFERENCES people ON DELETE CASCADE, name TEXT); -- comes with its owner\nINSERT INTO pets VALUES(1,1,'cat');",
	"010_age.sql", "ALTER TABLE people ADD COLUMN age INTEGER DEFAULT 7",
	"README.md", "no migration",
	"old/0001_people.sql", "nonsense",
)

func TestMigrate(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		for i := range c.Len() {
			mustMigrate(t, c.DB(i), people)
			// Local reads see the migrations as soon as Migrate has returned.
			wantRows(t, c.DB(i), "SELECT name||age FROM people ORDER BY id", "ada7 bob7")
			wantRows(t, c.DB(i), appliedNames, "0001_people.sql 2_pets.sql 010_age.sql")
		}
		wantRows(t, c.DB(0), "SELECT version FROM hiqlite_migrations ORDER BY 1", "1 2 10")
		wantRows(t, c.DB(0), "SELECT count(*) FROM hiqlite_migrations WHERE length(checksum)=64 AND applied_at=strftime('%Y-%m-%dT%H:%M:%SZ', applied_at)", "3")

		last := c.Len() - 1
		mustMigrate(t, c.DB(last), with(people, "11_more.sql", "UPDATE people SET age=age+1"))
		wantRows(t, c.DB(last), "SELECT age FROM people", "8 8")
		c.WaitEqual()
	})
}

// If all files are applied, Migrate writes nothing, so it needs no right to write.
func TestMigrateWithoutNewFilesWritesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	mustMigrate(t, c.DB(0), people)
	_, before, err := c.Node(0).Hash(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	readOnly, err := c.Node(0).ConnectorWith(hiqlite.ConnConfig{QueryOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(readOnly)
	defer db.Close()
	mustMigrate(t, db, people)
	if _, after, err := c.Node(0).Hash(testrun.Context(t)); err != nil || after != before {
		t.Errorf("the applied index is %d, and was %d (%v)", after, before, err)
	}
	wantMigrateError(t, db, with(people, "11_more.sql", "DELETE FROM pets"), "11_more.sql", "readonly")
}

// Migrate refuses files that do not continue what was applied: changed, renamed, missing
// or late ones.
func TestMigrateRefusesChangedHistory(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustMigrate(t, c.DB(0), people)
		db := c.DB(c.Len() - 1)
		more := func(files fstest.MapFS) fstest.MapFS { return with(files, "12_more.sql", "CREATE TABLE more(a)") }
		wantMigrateError(t, db, more(with(people, "2_pets.sql", "CREATE TABLE pets(id)")), "2_pets.sql", "not what was applied:", "restore", "new file")
		wantMigrateError(t, db, more(with(without(people, "2_pets.sql"), "2_dogs.sql", "CREATE TABLE dogs(id)")), "2_dogs.sql", "applied, as 2_pets.sql")
		wantMigrateError(t, db, more(without(people, "2_pets.sql")), "2_pets.sql", "no file", "restore")
		wantMigrateError(t, db, without(people, "010_age.sql"), "010_age.sql", "older than the database", "2_pets.sql")
		wantMigrateError(t, db, more(with(people, "03_late.sql", "CREATE TABLE late(a)")), "03_late.sql", "010_age.sql", "above 10")
		wantRows(t, c.DB(0), userTables, "people pets")
		wantRows(t, c.DB(0), appliedNames, "0001_people.sql 2_pets.sql 010_age.sql")

		renamed := with(without(people, "2_pets.sql"), "0002_animals.sql", string(people["2_pets.sql"].Data))
		mustMigrate(t, db, more(renamed))
		wantRows(t, db, userTables, "more people pets")
	})
}

func TestMigrateRefusesFiles(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	good := migrations("1_good.sql", "CREATE TABLE good(a)")
	for name, test := range map[string]struct {
		files fstest.MapFS
		words []string
	}{
		"empty":           {migrations("README.md", "x"), []string{"no migrations", "0001_name.sql"}},
		"in a folder":     {migrations("db/migrations/1_a.sql", "", "db/migrations/2_b.SQL", ""), []string{"no migrations", `fs.Sub(..., "db/migrations")`}},
		"in two folders":  {migrations("a/1_a.sql", "", "b/1_a.sql", ""), []string{"no migrations"}},
		"no number":       {with(good, "people.sql", ""), []string{"people.sql", "no number", "0001_name.sql"}},
		"no name":         {with(good, "2.sql", ""), []string{"2.sql", "0001_name.sql"}},
		"upper case":      {with(good, "PEOPLE.SQL", ""), []string{"PEOPLE.SQL"}},
		"zero":            {with(good, "000_zero.sql", ""), []string{"000_zero.sql", "000 is not between 1"}},
		"negative":        {with(good, "-2_minus.sql", ""), []string{"-2_minus.sql", "-2 is not between 1"}},
		"too large a one": {with(good, "9223372036854775808_max.sql", ""), []string{"9223372036854775808_max.sql", "not between"}},
		"the largest one": {with(good, "9223372036854775807_max.sql", ""), []string{"9223372036854775807_max.sql", "not between"}},
		"twice":           {with(good, "01_again.sql", ""), []string{"01_again.sql", "1_good.sql", "same number"}},
		"several faults":  {with(good, "01_again.sql", "", "x.sql", "", "0_y.sql", ""), []string{"01_again.sql", "x.sql", "0_y.sql"}},
		"NUL":             {with(good, "2_nul.sql", "SELECT 1;\r\n\x00"), []string{"2_nul.sql", "NUL in line 2"}},
		"UTF-16":          {with(good, "2_wide.sql", "\xff\xfeS\x00"), []string{"2_wide.sql", "UTF-8"}},
	} {
		t.Run(name, func(t *testing.T) { wantMigrateError(t, c.DB(0), test.files, test.words...) })
	}
	big := "CREATE TABLE big(a); -- " + strings.Repeat("x", 8<<20)
	if err := wantMigrateError(t, c.DB(0), with(good, "2_big.sql", big), "2_big.sql", "split"); !errors.Is(err, hiqlite.ErrTooLarge) {
		t.Errorf("%v is not ErrTooLarge", err)
	}
	wantRows(t, c.DB(0), userTables, "") // not even the valid file was applied
	// The file itself is below the limit; the operation of which it is part is not.
	if err := wantMigrateError(t, c.DB(0), with(good, "2_big.sql", big[:8<<20-10]), "2_big.sql", "smaller"); !errors.Is(err, hiqlite.ErrTooLarge) {
		t.Errorf("%v is not ErrTooLarge", err)
	}
	mustMigrate(t, c.DB(0), with(good, "2_big.sql", big[:8<<20-1000], "9223372036854775806_max.sql", "CREATE TABLE max(a)"))
	wantRows(t, c.DB(0), userTables, "big good max")
}

// A file that fails is undone as a whole. The files before it stay applied.
func TestMigrateUndoesTheFailedFile(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE kept(a UNIQUE); INSERT INTO kept VALUES(1)")
		for text, want := range map[string]struct {
			code  int // 0: any
			words string
		}{
			"CREATE TABLE x(a); INSERT INTO x VALUES(1); INSERT INTO nosuch VALUES(1)": {1, "no such table: nosuch"},
			"CREATE TABLE x(a); nonsense": {1, "syntax error"},
			"nonsense":                    {1, "syntax error"},
			"SELECT a FROM nosuch":        {1, "no such table"},
			"CREATE TABLE x(a); INSERT INTO kept VALUES(2),(1)":                                       {2067, "UNIQUE"},
			"INSERT OR FAIL INTO kept VALUES(3),(1)":                                                  {2067, "UNIQUE"},
			"CREATE TABLE x(a); INSERT OR ROLLBACK INTO kept VALUES(1)":                               {2067, "UNIQUE"},
			"CREATE TABLE x(a NOT NULL); INSERT INTO x VALUES(NULL)":                                  {1299, "NOT NULL"},
			"CREATE TABLE x(a INTEGER PRIMARY KEY); INSERT INTO x VALUES(1); INSERT INTO x VALUES(1)": {1555, "UNIQUE"},
			"INSERT INTO hiqlite_migrations(version, name) VALUES(7, NULL)":                           {1299, "NOT NULL"},
			"PRAGMA foreign_keys=OFF; INSERT INTO kept VALUES(4); DROP TABLE nosuch":                  {1, "no such table"},
			"CREATE TABLE x(a); INSERT INTO x VALUES(?)":                                              {1, "missing argument"},
			"BEGIN; CREATE TABLE x(a); COMMIT;":                                                       {0, "leave BEGIN, COMMIT"},
			"BEGIN; CREATE TABLE x(a)":                                                                {0, "leave BEGIN, COMMIT"},
			"CREATE TABLE x(a); COMMIT":                                                               {0, "leave BEGIN, COMMIT"},
			"PRAGMA foreign_keys=OFF; BEGIN; CREATE TABLE x(a); COMMIT; PRAGMA foreign_keys=ON":       {0, "leave BEGIN, COMMIT"},
			"ROLLBACK":                           {0, "leave BEGIN, COMMIT"},
			"VACUUM":                             {1, "db.Exec"},
			"CREATE TABLE x(a); VACUUM":          {1, "db.Exec"},
			"VACUUM; CREATE TABLE x(a)":          {1, "db.Exec"},
			"CREATE TABLE x(a); ATTACH 'y' AS y": {23, "ATTACH"},
			"CREATE TEMP TABLE x(a); INSERT INTO kept VALUES(2),(1)": {2067, "UNIQUE"},
			"PRAGMA schema_version=9":                                {23, "schema_version"},
			"PRAGMA query_only=ON; CREATE TABLE x(a)":                {8, "readonly"},
		} {
			files := migrations("1_good.sql", "CREATE TABLE good(a)", "2_bad.sql", text, "3_later.sql", "CREATE TABLE later(a)")
			err := wantMigrateError(t, c.DB(c.Len()-1), files, "2_bad.sql", want.words)
			var e *hiqlite.Error
			if !errors.As(err, &e) || want.code != 0 && e.Code() != want.code || e.Statement != 0 {
				t.Errorf("%q: %v (%+v), want code %d", text, err, e, want.code)
			}
			ctx := linearizable(t)
			var got string
			if err := c.DB(0).QueryRowContext(ctx, "SELECT (SELECT group_concat(a) FROM kept)||(SELECT group_concat(name) FROM hiqlite_migrations)").Scan(&got); err != nil || got != "11_good.sql" {
				t.Errorf("%q left %q, %v", text, got, err)
			}
			wantRows(t, c.DB(0), userTables, "good kept")
		}
		mustMigrate(t, c.DB(0), migrations("1_good.sql", "CREATE TABLE good(a)", "2_bad.sql", "CREATE TABLE repaired(a)", "3_later.sql", "CREATE TABLE later(a)"))
		wantRows(t, c.DB(0), userTables, "good kept later repaired")
		c.WaitEqual()
	})
}

// A migration that rebuilds a table keeps the children that refer to its rows, and
// foreign keys are enforced again afterwards.
func TestMigrateRebuildsATable(t *testing.T) {
	t.Parallel()
	rebuild := with(people, "11_rebuild.sql", `PRAGMA foreign_keys=OFF;
CREATE TABLE new_people(id INTEGER PRIMARY KEY, name TEXT NOT NULL, age INTEGER);
INSERT INTO new_people SELECT id, upper(name), age FROM people;
DROP TABLE people;
ALTER TABLE new_people RENAME TO people;
PRAGMA foreign_key_check;
PRAGMA foreign_keys=ON;
`)
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustMigrate(t, c.DB(0), rebuild)
		wantRows(t, c.DB(0), "SELECT pets.name||people.name FROM pets JOIN people ON owner=people.id", "catADA")
		wantRows(t, c.DB(0), "PRAGMA foreign_keys", "1")
		wantMigrateError(t, c.DB(0), with(rebuild, "12_orphan.sql", "INSERT INTO pets VALUES(9,9,'stray')"), "12_orphan.sql", "FOREIGN KEY")
		mustExec(t, c.DB(0), "DELETE FROM people WHERE id=1")
		wantRows(t, c.DB(0), "SELECT count(*) FROM pets", "0")
		c.WaitEqual()
	})
}

// Migrate uses a connection of its own, with the settings of the DSN. Settings of a pooled
// connection do not affect it, and it does not change them, even if the pool has only
// this connection.
func TestMigrateUsesItsOwnConnection(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	mustMigrate(t, c.DB(0), people)
	orphan := with(people, "11_orphan.sql", "INSERT INTO pets VALUES(9,9,'stray')")

	c.DB(0).SetMaxOpenConns(1)
	mustExec(t, c.DB(0), "PRAGMA foreign_keys=OFF; PRAGMA query_only=ON")
	wantRows(t, c.DB(0), "PRAGMA foreign_keys", "0") // the pool has returned the same connection
	wantMigrateError(t, c.DB(0), orphan, "11_orphan.sql", "FOREIGN KEY")
	mustMigrate(t, c.DB(0), with(people, "11_off.sql", "PRAGMA foreign_keys=ON; PRAGMA query_only=OFF; CREATE TABLE off(a)"))
	wantRows(t, c.DB(0), "PRAGMA foreign_keys", "0")
	wantRows(t, c.DB(0), "PRAGMA query_only", "1")

	loose, err := c.Node(0).ConnectorWith(hiqlite.ConnConfig{ForeignKeysOff: true})
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(loose)
	defer db.Close()
	mustMigrate(t, db, with(people, "11_off.sql", "PRAGMA foreign_keys=ON; PRAGMA query_only=OFF; CREATE TABLE off(a)", "12_orphan.sql", "INSERT INTO pets VALUES(9,9,'stray')"))
	wantRows(t, db, "SELECT name FROM pets WHERE id=9", "stray")
}

// Files may have all kinds of statements, line ends and byte order marks. The checksum of
// a file does not depend on line ends and byte order marks.
func TestMigrateFilesOfAllKinds(t *testing.T) {
	t.Parallel()
	const search = `
CREATE VIRTUAL TABLE notes_text USING fts5(body, content='notes', content_rowid='id');
CREATE TRIGGER notes_insert AFTER INSERT ON notes BEGIN
  INSERT INTO notes_text(rowid, body) VALUES(new.id, new.body);
END;
CREATE TRIGGER notes_delete AFTER DELETE ON notes BEGIN
  INSERT INTO notes_text(notes_text, rowid, body) VALUES('delete', old.id, old.body);
END;
INSERT INTO notes(body) VALUES('one; two'), ('BEGIN three');
`
	files := migrations(
		"1_notes.sql", "\ufeffCREATE TABLE notes(id INTEGER PRIMARY KEY, body TEXT);\r\nINSERT INTO notes(body) VALUES('a\r\nb'); -- end\r\n",
		"2_search.sql", search,
		"3_empty.sql", "",
		"4_comment.sql", "-- nothing; BEGIN\n /* nothing */ ;\n",
		"5_mark.sql", "\ufeff",
		"6_read.sql", "SELECT count(*) FROM notes; SELECT 1",
		"7_settings.sql", "PRAGMA journal_mode=WAL;\nPRAGMA busy_timeout=5000;",
		"8_setting.sql", "PRAGMA foreign_keys=OFF",
		"9_version.sql", "PRAGMA user_version=9",
		"10_random.sql", "CREATE TABLE r AS SELECT random() AS r, datetime('now') AS t",
		"11_returning.sql", "INSERT INTO notes(body) VALUES('four') RETURNING id",
		"12_stats.sql", "CREATE INDEX r_r ON r(r); ANALYZE; REINDEX; PRAGMA optimize",
		"13_deferred.sql", "PRAGMA defer_foreign_keys=ON; CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p); INSERT INTO c VALUES(1); INSERT INTO p VALUES(1)",
		"14_view.SQL", "CREATE VIEW last_note AS SELECT body FROM notes ORDER BY id DESC LIMIT 1",
		"15_values.sql", "INSERT INTO notes(body) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<2000) SELECT 'many' FROM n",
	)
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustMigrate(t, c.DB(0), files)
		wantRows(t, c.DB(0), "SELECT count(*) FROM hiqlite_migrations", fmt.Sprint(len(files)))
		wantRows(t, c.DB(0), "SELECT hex(body) FROM notes WHERE id=1", "610A62")
		wantRows(t, c.DB(0), "SELECT rowid FROM notes_text WHERE notes_text MATCH 'two OR three OR four'", "2 3 4")
		mustExec(t, c.DB(0), "DELETE FROM notes WHERE id=3")
		wantRows(t, c.DB(0), "SELECT rowid FROM notes_text WHERE notes_text MATCH 'three'", "")
		wantRows(t, c.DB(0), "PRAGMA user_version", "9")
		wantRows(t, c.DB(0), "PRAGMA foreign_keys", "1")

		// The same files, checked out on another system or saved by another editor.
		other := maps.Clone(files)
		for name, f := range files {
			text := strings.ReplaceAll(strings.TrimPrefix(string(f.Data), "\ufeff"), "\r\n", "\n")
			other[name] = &fstest.MapFile{Data: []byte(text)}
		}
		other["2_search.sql"] = &fstest.MapFile{Data: []byte("\ufeff" + strings.ReplaceAll(search, "\n", "\r\n"))}
		mustMigrate(t, c.DB(c.Len()-1), other)
		c.WaitEqual()
	})
}

// Migrate without a majority, on a closed node, and on a database of another driver.
func TestMigrateWithoutADatabase(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *hiqlite.Config) { cfg.Timeout = 300 * time.Millisecond })
	mustMigrate(t, c.DB(0), people)
	c.Stop(1)
	c.Stop(2)
	if err := hiqlite.Migrate(context.Background(), c.DB(0), people); !errors.Is(err, hiqlite.ErrNoLeader) {
		t.Errorf("without a majority: %v", err)
	}
	own, db := c.DB(0), sql.OpenDB(c.Node(0).Connector())
	defer db.Close()
	c.Stop(0)
	if err := hiqlite.Migrate(testrun.Context(t), db, people); !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("on a closed node: %v", err)
	}
	wantMigrateError(t, own, people, "migrate", "closed")

	theirs, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	wantMigrateError(t, theirs, people, "migrate", "not a database of this driver")
}

// Migrate refuses a database in which hiqlite_migrations is a table of the program.
func TestMigrateWithAForeignMigrationsTable(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	mustExec(t, c.DB(0), "CREATE TABLE Hiqlite_Migrations(id)")
	wantMigrateError(t, c.DB(0), people, "hiqlite_migrations", "version")
	wantRows(t, c.DB(0), "SELECT count(*) FROM sqlite_schema WHERE name='people'", "0")
}

// Three nodes are started with Config.Migrations. A node is ready when the migrations are
// applied, and Ready returns the error if they cannot be.
func TestNodesMigrateAtTheirStart(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{
		"1_accounts.sql": {Data: []byte("CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER)")},
		"2_first.sql":    {Data: []byte("INSERT INTO account(balance) VALUES(7)")},
	}
	c := newCluster(t, 3, func(cfg *hiqlite.Config) { cfg.Migrations = files })
	for i := range c.Len() {
		var n, sum int
		if err := c.DB(i).QueryRow("SELECT count(*), sum(balance) FROM account").Scan(&n, &sum); err != nil || n != 1 || sum != 7 {
			t.Errorf("node %d: %d rows, sum %d, %v", i+1, n, sum, err)
		}
	}
	c.WaitEqual()
	c.Stop(2)
	c.Configure(2, func(cfg *hiqlite.Config) {
		cfg.Migrations = fstest.MapFS{"1_accounts.sql": {Data: []byte("CREATE TABLE other(id)")}, "2_first.sql": files["2_first.sql"]}
	})
	c.Start(2)
	if err := c.Node(2).Ready(testrun.Context(t)); err == nil || !strings.Contains(err.Error(), "1_accounts.sql") {
		t.Errorf("an altered migration: %v", err)
	}
}
