package hiqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// dumps returns the files in testdata/dumps. They were written by .dump of sqlite3
// 3.40.1, except unistr.sql, which has the format of 3.50. The dumped database has
// objects of each kind: full-text tables with and without own content, R-Trees,
// triggers, generated columns, WITHOUT ROWID, STRICT, AUTOINCREMENT, unusual names.
func dumps(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/dumps/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	found := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimSuffix(filepath.Base(file), ".sql")] = string(text)
	}
	return found
}

// statementsOf splits a dump into its statements. In a dump, the end of a statement
// is the end of a line.
func statementsOf(dump string) (texts []string) {
	text := ""
	for _, line := range strings.SplitAfter(dump, "\n") {
		text += line
		end := strings.HasSuffix(line, ";\n") && strings.Count(text, "'")%2 == 0 && strings.Count(text, `"`)%2 == 0
		if strings.HasPrefix(text, "CREATE TRIGGER") {
			end = end && strings.HasSuffix(line, "END;\n")
		}
		if end {
			texts = append(texts, text)
			text = ""
		}
	}
	return append(texts, text)
}

// withoutTransaction returns the statements of a dump without its BEGIN and COMMIT.
func withoutTransaction(dump string) (texts []string) {
	for _, text := range statementsOf(dump) {
		if text != "BEGIN TRANSACTION;\n" && text != "COMMIT;\n" {
			texts = append(texts, text)
		}
	}
	return texts
}

// content returns all that a database holds, as far as SQL shows it.
func content(t *testing.T, q querier) string {
	t.Helper()
	var b strings.Builder
	show := func(query string) {
		b.WriteString(query + "\n")
		eachRow(t, q, query, func(rows *sql.Rows) {
			cells, err := scanRow(rows)
			if err != nil {
				t.Fatal(err)
			}
			for _, cell := range cells {
				if blob, ok := cell.([]byte); ok {
					cell = fmt.Sprintf("x'%x'", blob) // modernc.org/sqlite returns nil for an empty blob
				}
				fmt.Fprintf(&b, "%#v ", cell)
			}
			b.WriteString("\n")
		})
	}
	show("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE tbl_name<>'sqlite_hiqlite' ORDER BY type, name")
	show("PRAGMA user_version")
	var names []string
	eachRow(t, q, "SELECT name FROM sqlite_schema WHERE type IN ('table','view') AND name<>'sqlite_hiqlite' ORDER BY name", func(rows *sql.Rows) {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	})
	for _, name := range names {
		show(`SELECT * FROM "` + strings.ReplaceAll(name, `"`, `""`) + `"`)
	}
	for _, query := range []string{"SELECT rowid, title FROM fplain('run')", "SELECT rowid FROM fext WHERE fext MATCH 'sec*'", "SELECT rowid FROM fless('remains')", `SELECT rowid FROM "odd fts"('words')`, "SELECT * FROM vocab",
		"SELECT id, label FROM boxes WHERE minx<1 ORDER BY id", "SELECT rtreecheck('boxes')", "PRAGMA integrity_check", "PRAGMA foreign_key_check"} {
		if strings.Contains(strings.Join(names, ","), "fplain") || strings.HasPrefix(query, "PRAGMA") {
			show(query)
		}
	}
	return b.String()
}

// difference describes where two contents begin to differ.
func difference(got, want string) string {
	ours, theirs := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(ours), len(theirs)) {
		if ours[i] != theirs[i] {
			return fmt.Sprintf("%s, want %s (line %d)", ours[i], theirs[i], i+1)
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(ours), len(theirs))
}

// plainContent returns the content of a SQLite database into which a dump was loaded.
func plainContent(t *testing.T, dump string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "reference.db")
	for i := range 2 {
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxOpenConns(1)
		if i == 0 {
			mustExec(t, db, dump)
			db.Close() // only a new connection finds the virtual tables
			continue
		}
		return content(t, db)
	}
	return ""
}

// A dump of sqlite3 can be loaded in each of these ways, and all nodes then hold what
// SQLite holds after loading it.
func TestLoadDumps(t *testing.T) {
	t.Parallel()
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	ways := map[string]func(t *testing.T, db *sql.DB, dump string){
		"whole": func(t *testing.T, db *sql.DB, dump string) { mustExec(t, disposableConn(t, db), dump) },
		"statement by statement": func(t *testing.T, db *sql.DB, dump string) {
			conn := disposableConn(t, db)
			for _, text := range statementsOf(dump) {
				mustExec(t, conn, text)
			}
		},
		"without a transaction": func(t *testing.T, db *sql.DB, dump string) {
			conn := disposableConn(t, db)
			for _, text := range withoutTransaction(dump) {
				mustExec(t, conn, text)
			}
		},
		"as one write": func(t *testing.T, db *sql.DB, dump string) {
			mustExec(t, disposableConn(t, db), strings.Join(withoutTransaction(dump), ""))
		},
		"by Tx": func(t *testing.T, db *sql.DB, dump string) {
			tx, err := disposableConn(t, db).BeginTx(testrun.Context(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			for _, text := range withoutTransaction(dump) {
				mustExec(t, tx, text)
			}
			mustCommit(t, tx)
		},
	}
	for name, dump := range dumps(t) {
		want := plainContent(t, dump)
		if strings.Contains(want, "rror") {
			t.Fatalf("%s: SQLite has loaded the dump with an error:\n%s", name, want)
		}
		sizes := []int{1}
		if name == "analyzed" { // this dump has all that the others have
			sizes = []int{1, 3}
		}
		for _, size := range sizes {
			for way, load := range ways {
				t.Run(fmt.Sprintf("%s/%d/%s", name, size, way), func(t *testing.T) {
					c := newCluster(t, size)
					db := c.DB(size - 1)
					load(t, db, dump)
					for i := range c.Len() {
						c.WaitReady(i)
						if got := content(t, c.DB(i)); got != want {
							t.Fatalf("node %d holds %s", i+1, difference(got, want))
						}
					}
					if name != "unistr" { // the loaded tables can be written, and their indexes are right
						mustExec(t, db, "INSERT INTO docs(title, body) VALUES('delta', 'a second running dog')")
						mustExec(t, db, "INSERT INTO fplain VALUES('new', 'running again')")
						mustExec(t, db, "UPDATE boxes SET maxx=maxx+1; INSERT INTO boxes32 VALUES(5,6,7)")
						mustExec(t, db, "INSERT INTO fplain(fplain) VALUES('integrity-check'); INSERT INTO fext(fext) VALUES('integrity-check')")
						if n := queryValue[int](t, db, "SELECT (SELECT count(*) FROM fext('second')) + (SELECT count(*) FROM fplain('running'))"); n != 4 {
							t.Errorf("the full-text indexes find %d rows, want 4", n)
						}
					}
					c.WaitEqual()
				})
			}
		}
	}
}

// A dump that fails leaves no rows, and does not change the settings of the
// connection.
func TestFailedDumpLeavesTheConnectionUnchanged(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		dump := dumps(t)["plain"]
		for name, text := range map[string]string{
			"at the end":                 strings.Replace(dump, "\nCOMMIT;", "\nINSERT INTO nowhere VALUES(1);\nCOMMIT;", 1),
			"after its end":              dump + "nonsense",
			"in the middle":              strings.Replace(dump, "PRAGMA writable_schema=ON;", "PRAGMA writable_schema=ON;\nPRAGMA busy_timeout=7;\nnonsense;", 1),
			"as a write":                 strings.Join(withoutTransaction(dump), "") + "INSERT INTO nowhere VALUES(1);",
			"by a deferred foreign key":  "PRAGMA foreign_keys=ON; BEGIN; PRAGMA recursive_triggers=1; CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p DEFERRABLE INITIALLY DEFERRED); INSERT INTO c VALUES(1); COMMIT",
			"after settings":             "PRAGMA recursive_triggers=1; PRAGMA busy_timeout=7; SELECT nowhere",
			"after settings and a write": "PRAGMA recursive_triggers=1; PRAGMA busy_timeout=7; CREATE TABLE x(a); INSERT INTO nowhere VALUES(1)",
		} {
			conn := mustConn(t, c.DB(0))
			settings := func() string {
				out := ""
				for _, name := range []string{"foreign_keys", "writable_schema", "recursive_triggers", "query_only", "busy_timeout", "defer_foreign_keys"} {
					out += fmt.Sprint(name, "=", queryValue[int](t, conn, "PRAGMA "+name), " ")
				}
				return out
			}
			for _, inside := range []bool{false, true} {
				if inside && strings.Contains(text, "BEGIN") {
					continue
				}
				if inside {
					mustExec(t, conn, "BEGIN")
				}
				before := settings()
				if _, err := conn.ExecContext(testrun.Context(t), text); err == nil {
					t.Errorf("%s has succeeded", name)
				}
				if after := settings(); after != before {
					t.Errorf("%s (in a transaction: %v): the settings were %s, and are %s", name, inside, before, after)
				}
				if inside {
					mustExec(t, conn, "ROLLBACK")
				}
			}
			if name == "after its end" {
				dropAll(t, c.DB(0)) // the failure came after COMMIT
			}
			if n := queryValue[int](t, c.DB(0), "SELECT count(*) FROM sqlite_schema WHERE name NOT IN ('sqlite_hiqlite','sqlite_sequence','sqlite_stat1')"); n != 0 {
				t.Errorf("%s: %d objects are left", name, n)
			}
			if _, err := conn.ExecContext(context.Background(), "INSERT INTO nowhere VALUES(1)"); err == nil {
				t.Errorf("%s: the connection accepts a table that does not exist", name)
			}
		}
		// sqlite3 ends a dump with ROLLBACK if it could not read the whole database.
		conn := mustConn(t, c.DB(0))
		mustExec(t, conn, strings.Replace(dump, "\nCOMMIT;", "\nROLLBACK; -- due to errors", 1))
		if n := queryValue[int](t, c.DB(0), "SELECT count(*) FROM sqlite_schema WHERE name NOT IN ('sqlite_hiqlite','sqlite_sequence','sqlite_stat1')"); n != 0 {
			t.Errorf("%d objects of a dump that was rolled back", n)
		}
		c.WaitEqual()
	})
}

// PRAGMA writable_schema allows what dumps need, which is to insert virtual tables
// into the schema. It allows nothing that could make a database unreadable.
func TestWritableSchemaIsForDumps(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		mustExec(t, db, "CREATE TABLE t(a); CREATE VIRTUAL TABLE ft USING fts5(a); INSERT INTO ft VALUES('word')")
		const row = "INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql)VALUES"
		for _, text := range []string{
			row + "('table','x','x',0,'CREATE TABLE x(a)')",
			row + "('table','x','x',3,'CREATE TABLE x(a)')",
			row + "('table','x','x',0,NULL)",
			row + "('table','x','x',0,'')",
			row + "('table','x','x',0,'nonsense')",
			row + "('table','x','x',2,'CREATE VIRTUAL TABLE x USING fts5(a)')",
			row + "('table','x','y',0,'CREATE VIRTUAL TABLE x USING fts5(a)')",
			row + "('table','x','x',0,'CREATE VIRTUAL TABLE y USING fts5(a)')",
			row + "('index','x','x',0,'CREATE VIRTUAL TABLE x USING fts5(a)')",
			row + "('table','x','x',0,'CREATE VIRTUAL TABLE x USING nosuch(a)')",
			row + "('table','x','x',0,'CREATE VIRTUAL TABLE x USING dbstat')",
			row + "('table','x','x',0,'CREATE VIRTUAL TABLE main.x USING fts5(a)')",
			row + "('table','x','x',0,'CREATE VIRTUAL TABLE temp.x USING fts5(a)')",
			row + "('table','x','x',0,'/* c */ CREATE VIRTUAL TABLE x USING fts5(a)')",
			row + "('table','x','x',0,'CREATE VIRTUAL TABLE x USING fts5(a); DROP TABLE t')",
			row + "('table','x','x',0,x'43524541544520564952545541')",
			row + "('table','x','x',0,'EXPLAIN CREATE VIRTUAL TABLE x USING fts5(a)')",
			row + "('table','t','t',0,'CREATE VIRTUAL TABLE t USING fts5(a)')",
			row + "('table','T','T',0,'CREATE VIRTUAL TABLE IF NOT EXISTS T USING fts5(a)')",
			row + "('table','sqlite_hiqlite','sqlite_hiqlite',0,'CREATE VIRTUAL TABLE sqlite_hiqlite USING fts5(a)')",
			row + "('table','sqlite_x','sqlite_x',0,'CREATE VIRTUAL TABLE sqlite_x USING fts5(a)')",
			row + "('table','x','x',0,'CREATE VIRTUAL TABLE x USING fts5(a)'),('table','X','X',0,'CREATE VIRTUAL TABLE X USING fts5(a)')",
			row + "('trigger','x','t',0,'CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END')",
			"INSERT INTO sqlite_schema DEFAULT VALUES",
			"INSERT OR REPLACE INTO sqlite_schema(rowid,type,name,tbl_name,rootpage,sql)VALUES(1,'table','x','x',0,'CREATE VIRTUAL TABLE x USING fts5(a)')",
			"INSERT OR REPLACE INTO sqlite_schema(rowid,type,name,tbl_name,rootpage,sql)VALUES(2,'table','x','x',0,'CREATE VIRTUAL TABLE x USING fts5(a)'),(99,'table','y','y',0,'CREATE VIRTUAL TABLE y USING fts5(a)')",
			"INSERT INTO sqlite_schema(rowid,type) VALUES(1,'x') ON CONFLICT DO UPDATE SET sql=''",
			"UPDATE sqlite_schema SET sql='nonsense'", "DELETE FROM sqlite_schema", "UPDATE sqlite_master SET rootpage=2",
			"CREATE TRIGGER bad AFTER INSERT ON t BEGIN INSERT INTO sqlite_schema(type) VALUES('x'); END; INSERT INTO t VALUES(1)",
			"DELETE FROM ft_data", "UPDATE ft_content SET c0='other'", "DROP TABLE ft_data", "ALTER TABLE ft_data ADD COLUMN x",
			"CREATE TABLE sqlite_other(a)", "CREATE INDEX sqlite_i ON t(a)", "PRAGMA schema_version=99", "INSERT INTO sqlite_dbpage VALUES(1,x'')", "UPDATE sqlite_dbpage SET data=zeroblob(4096)",
			"DELETE FROM sqlite_hiqlite", "DROP TABLE sqlite_schema", "CREATE INDEX hi ON sqlite_schema(name)",
		} {
			for _, how := range []string{"write", "script", "transaction"} {
				conn := disposableConn(t, db)
				mustExec(t, conn, "PRAGMA writable_schema=ON")
				var err error
				switch how {
				case "write":
					_, err = conn.ExecContext(testrun.Context(t), text)
				case "script":
					_, err = conn.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(5); "+text)
				default:
					mustExec(t, conn, "BEGIN")
					_, err = conn.ExecContext(testrun.Context(t), text)
					if _, other := conn.ExecContext(testrun.Context(t), "ROLLBACK"); other != nil {
						t.Errorf("%s: %v", text, other)
					}
				}
				if err == nil {
					t.Errorf("%s: %s: no error", how, text)
				}
				dispose(conn)
				if n := queryValue[int](t, db, "SELECT count(*) FROM sqlite_schema"); n != 8 {
					t.Fatalf("%s: %s: %d objects", how, text, n)
				}
			}
		}
		if got := queryValue[string](t, db, "PRAGMA integrity_check") + queryValue[string](t, db, "SELECT group_concat(a) FROM ft('word')"); got != "okword" {
			t.Errorf("got %q, want %q", got, "okword")
		}
		// Without the PRAGMA even the statements of a dump are refused.
		for _, text := range []string{row + "('table','x','x',0,'CREATE VIRTUAL TABLE x USING fts5(a)')", "INSERT INTO ft_data VALUES(77,x'')", "CREATE TABLE ft_docsize2(a); CREATE TABLE ft_data(a)"} {
			if _, err := db.ExecContext(testrun.Context(t), text); err == nil {
				t.Errorf("%s has succeeded", text)
			}
		}
		for i := range c.Len() { // after a restart, new connections must be able to read the schema
			c.Stop(i)
			c.Start(i)
		}
		c.WaitEqual()
	})
}

func TestScriptOfADump(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, withoutTimeouts)
	conn := mustConn(t, c.DB(0))
	mustExec(t, conn, `PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE child(id INTEGER PRIMARY KEY, p INT REFERENCES parent(id));
INSERT INTO child VALUES(1,7);
INSERT INTO child VALUES(2,99);
CREATE TABLE parent(id INTEGER PRIMARY KEY, name TEXT);
INSERT INTO parent VALUES(7,'it''s; a name');
CREATE INDEX i ON child(p);
CREATE TRIGGER tr AFTER INSERT ON parent BEGIN INSERT INTO child(p) VALUES(new.id); DELETE FROM child WHERE p=0; END;
COMMIT;
`)
	if got := queryValue[string](t, conn, "SELECT (SELECT count(*) FROM child) || name FROM parent"); got != "2it's; a name" {
		t.Errorf("got %q, want %q", got, "2it's; a name")
	}
	mustExec(t, conn, "INSERT INTO parent(id) VALUES(8)")
	if n := queryValue[int](t, conn, "SELECT count(*) FROM child"); n != 3 {
		t.Errorf("%d rows, want 3", n)
	}
	if n := queryValue[int](t, conn, "PRAGMA foreign_keys"); n != 0 {
		t.Error("the dump's PRAGMA foreign_keys=OFF has had no effect on the connection")
	}
	if n := queryValue[int](t, mustConn(t, c.DB(0)), "PRAGMA foreign_keys"); n != 1 {
		t.Error("the dump's PRAGMA foreign_keys=OFF has changed another connection")
	}
}
