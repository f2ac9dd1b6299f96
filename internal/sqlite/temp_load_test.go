package sqlite

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// tempConns returns a connection of each mode that can have TEMP objects, by name. They are
// connections to one database with the given schema.
func tempConns(t *testing.T, schema string) map[string]*Conn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.db")
	conns := map[string]*Conn{}
	for _, m := range []struct {
		name string
		mode Mode
	}{{"apply", Apply}, {"speculate", Speculate}, {"temp", Temp}} {
		c, err := Open(path, m.mode)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if m.mode == Apply {
			c.AsOwner(true)
			if err := c.Exec("PRAGMA journal_mode=WAL; PRAGMA temp_store=MEMORY;" + schema); err != nil {
				t.Fatal(err)
			}
			c.AsOwner(false)
		}
		c.AllowTemp(true)
		conns[m.name] = c
	}
	return conns
}

// all returns the rows of a query, with their storage classes.
func all(t *testing.T, c *Conn, sql string) string {
	t.Helper()
	var out []string
	err := c.QueryAsOwner(sql, func(s *Stmt) error {
		var cells []string
		for i := range s.ColumnCount() {
			v := s.Value(i)
			cells = append(cells, fmt.Sprintf("%d:%d:%q", v.Kind, v.Num, v.Data))
		}
		out = append(out, strings.Join(cells, ","))
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return strings.Join(out, " ")
}

var tempObjects = []string{
	"CREATE TEMP TABLE ids(id INTEGER PRIMARY KEY)", "INSERT INTO ids VALUES(5),(3),(-9223372036854775808)",
	"CREATE TEMP TABLE any(a, b, c)", "INSERT INTO any VALUES(1, 1.0, 'x'),(NULL, x'00ff', 1e300),('a' || char(0) || 'b', '', x'')", "DELETE FROM any WHERE a=1",
	"CREATE TEMP TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT, v UNIQUE)", "INSERT INTO auto(v) VALUES('a'),('b'),('c')", "DELETE FROM auto WHERE id=3",
	"CREATE TEMP TABLE wr(k TEXT PRIMARY KEY, v) WITHOUT ROWID", "INSERT INTO wr VALUES('z',1),('a',2)",
	"CREATE TEMP TABLE gen(a INT, b AS (a*2), c AS (a*3) STORED, d DEFAULT 7)", "INSERT INTO gen(a) VALUES(4)", "ALTER TABLE gen ADD COLUMN e DEFAULT 'added'",
	`CREATE TEMP TABLE "odd ""name"(rowid, _rowid_, oid, "a b")`, `INSERT INTO "odd ""name" VALUES(1,2,3,4)`, "CREATE TEMP TABLE half(rowid, x)", "INSERT INTO half VALUES('r', 1)",
	"CREATE TEMP TABLE strict(a INTEGER, b REAL, c ANY) STRICT", "INSERT INTO strict VALUES(1,2,'3')",
	"CREATE TEMP TABLE checked(a CHECK(a<>changes()))", "INSERT INTO checked VALUES(100)",
	"CREATE TEMP TABLE par(id INTEGER PRIMARY KEY)", "CREATE TEMP TABLE child(p REFERENCES par)", "INSERT INTO par VALUES(1)", "INSERT INTO child VALUES(1)",
	"CREATE TEMP TABLE main_copy AS SELECT * FROM main.t", "CREATE TEMP TABLE t(shadow)", "INSERT INTO t VALUES('shadow')",
	"CREATE UNIQUE INDEX temp.\"i x\" ON any(c, a DESC) WHERE a IS NOT NULL", "CREATE INDEX temp.i2 ON wr(v)",
	"CREATE TEMP VIEW seen AS SELECT a FROM main.t UNION ALL SELECT id FROM ids", "CREATE VIEW temp.again(x) AS SELECT * FROM seen",
	"CREATE TEMP TRIGGER first AFTER INSERT ON main.t BEGIN INSERT INTO any VALUES(new.a, 'first', random()); END",
	"CREATE TRIGGER temp.second AFTER INSERT ON main.t BEGIN INSERT INTO any VALUES(new.a, 'second', random()); END",
	"CREATE TEMP TRIGGER ins INSTEAD OF INSERT ON seen BEGIN INSERT INTO ids VALUES(new.a); END",
	"CREATE TEMP TRIGGER orphan AFTER DELETE ON main.gone BEGIN SELECT 1; END",
	"INSERT INTO seen VALUES(77)",
}

const tempQueries = `SELECT type,name,tbl_name,sql FROM sqlite_temp_schema ORDER BY type,name;
	SELECT rowid,* FROM ids; SELECT rowid,* FROM any; SELECT * FROM auto; SELECT * FROM wr; SELECT * FROM gen; SELECT * FROM "odd ""name"; SELECT _rowid_,* FROM half; SELECT * FROM strict;
	SELECT * FROM checked; SELECT * FROM child; SELECT * FROM main_copy; SELECT * FROM t; SELECT * FROM seen; SELECT * FROM again; SELECT * FROM temp.sqlite_sequence`

// LoadTemp creates the TEMP objects that DumpTemp has encoded on another connection exactly
// as they were, and DropTemp removes all of them.
func TestTempObjectsAreCopiedExactly(t *testing.T) {
	conns := tempConns(t, "CREATE TABLE t(a); CREATE TABLE gone(a); INSERT INTO t VALUES(1),(2)")
	from := conns["temp"]
	for _, text := range tempObjects {
		if err := from.Exec(text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	apply := conns["apply"]
	apply.AsOwner(true)
	if err := apply.Exec("DROP TABLE gone"); err != nil {
		t.Fatal(err)
	}
	apply.AsOwner(false)
	contents := func(c *Conn) (out string) {
		for _, q := range strings.Split(tempQueries, ";") {
			out += q + "\n" + all(t, c, q) + "\n"
		}
		return out
	}
	want := contents(from)
	content, err := from.DumpTemp()
	if err != nil {
		t.Fatal(err)
	}
	spec := conns["speculate"]
	if err := spec.Exec("SELECT 1"); err != nil {
		t.Fatal(err)
	}
	for name, c := range conns {
		if c == from {
			continue
		}
		for range 2 { // the second time shows that DropTemp has removed everything
			c.AsOwner(true)
			if err := c.Exec("BEGIN"); err != nil {
				t.Fatal(err)
			}
			if err := c.LoadTemp(content); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := contents(c); got != want {
				t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
			}
			again, err := c.DumpTemp()
			if err != nil {
				t.Fatal(err)
			}
			// LoadTemp may have changed the order of the objects, but not their size.
			if len(again) != len(content) {
				t.Errorf("%s: the objects take %d bytes on the first connection, and %d here", name, len(content), len(again))
			}
			if err := c.Exec("INSERT INTO main.t VALUES(3)"); err != nil {
				t.Errorf("%s: an INSERT that fires the triggers: %v", name, err)
			}
			if got := all(t, c, "SELECT group_concat(b,' ') FROM any WHERE a=3"); !strings.Contains(got, "second first") && !strings.Contains(got, "first second") {
				t.Errorf("%s: the triggers inserted %s", name, got)
			}
			if err := c.DropTemp(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := all(t, c, "SELECT * FROM sqlite_temp_schema"); got != "" {
				t.Errorf("%s: DropTemp left %s", name, got)
			}
			if got := all(t, c, "SELECT * FROM t"); strings.Contains(got, "shadow") {
				t.Errorf("%s: DropTemp left a TEMP table: %s", name, got)
			}
			if err := c.Exec("ROLLBACK"); err != nil {
				t.Fatal(err)
			}
			c.AsOwner(false)
		}
	}
	if !bytes.Contains(content, []byte("orphan")) {
		t.Error("the trigger without a table is missing")
	}
}

// sqlite_sequence, which stays after the table with AUTOINCREMENT has been dropped, is
// copied and removed too.
func TestSequenceOfADroppedTempTableIsCopied(t *testing.T) {
	conns := tempConns(t, "")
	from, apply := conns["temp"], conns["apply"]
	if err := from.Exec("CREATE TEMP TABLE x(a INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO x VALUES(5); DROP TABLE x"); err != nil {
		t.Fatal(err)
	}
	content, err := from.DumpTemp()
	if err != nil {
		t.Fatal(err)
	}
	if err := apply.LoadTemp(content); err != nil {
		t.Fatal(err)
	}
	if got := all(t, apply, "SELECT name, sql FROM sqlite_temp_schema") + all(t, apply, "SELECT * FROM temp.sqlite_sequence"); got != all(t, from, "SELECT name, sql FROM sqlite_temp_schema") {
		t.Errorf("%s", got)
	}
	if err := apply.DropTemp(); err != nil {
		t.Fatal(err)
	}
	if has, err := apply.HasTemp(); has || err != nil {
		t.Errorf("%v, %v", has, err)
	}
}

// Where a statement runs depends on whether it uses or changes TEMP objects.
func TestClassifyTempStatements(t *testing.T) {
	conns := tempConns(t, "CREATE TABLE t(a); CREATE TABLE u(a); CREATE TABLE far(a); CREATE TRIGGER tf AFTER INSERT ON far BEGIN INSERT INTO t VALUES(new.a); END; CREATE TABLE p(id PRIMARY KEY); CREATE TABLE kid(p REFERENCES p ON DELETE CASCADE)")
	c := conns["temp"]
	type class struct{ temp, only bool }
	check := func(when string, want map[string]class) {
		t.Helper()
		for text, want := range want {
			got, err := c.Classify(text)
			if err != nil || got.Kind != Write || got.Temp != want.temp || got.TempOnly != want.only {
				t.Errorf("%s: %s: %+v, %v, want %+v", when, text, got, err, want)
			}
		}
	}
	ordinary, both, only := class{}, class{true, false}, class{true, true}
	check("without TEMP objects", map[string]class{
		"INSERT INTO t VALUES(1)": ordinary, "ALTER TABLE t ADD COLUMN b": ordinary, "DROP TABLE t": ordinary, "CREATE TABLE x(a)": ordinary, "PRAGMA user_version=3": ordinary,
		"CREATE TEMP TABLE x(a)": only, "CREATE TABLE temp.x AS SELECT * FROM t": only, "CREATE TEMP VIEW x AS SELECT 1": only, "CREATE TRIGGER temp.x AFTER INSERT ON main.t BEGIN SELECT 1; END": only,
		"INSERT INTO t VALUES(1); CREATE TEMP TABLE x(a)": both, "SELECT 1; CREATE TABLE [temp] . x(a)": both, "CREATE TABLE x(temp, b); INSERT INTO x VALUES('temp.x', 1.5)": ordinary,
	})
	for _, text := range []string{
		"CREATE TEMP TABLE x(a PRIMARY KEY)", "CREATE TEMP TABLE u(b)", "CREATE TEMP VIEW v AS SELECT * FROM main.t", "CREATE TEMP TRIGGER g AFTER INSERT ON main.t BEGIN INSERT INTO x VALUES(new.a); END",
		"CREATE TEMP TRIGGER k BEFORE DELETE ON main.kid BEGIN SELECT RAISE(ABORT, 'kept'); END",
		"CREATE TEMP TRIGGER w AFTER DELETE ON x BEGIN DELETE FROM t WHERE a=old.a; END",
	} {
		if err := c.Exec(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.LoadTempNames(); err != nil {
		t.Fatal(err)
	}
	check("with TEMP objects", map[string]class{
		"INSERT INTO x VALUES(1)": only, "UPDATE x SET a=2": only, "INSERT INTO x SELECT a FROM t": only, "DELETE FROM x": both, "DROP TABLE x": only, "CREATE INDEX temp.i ON x(a)": only, "DROP VIEW v": only, "DROP TRIGGER g": only, "ALTER TABLE x RENAME TO y": only,
		"INSERT INTO u VALUES(1)": only, "INSERT INTO main.u VALUES(1)": both, "INSERT INTO t VALUES(1)": both, "INSERT INTO far VALUES(1)": both, "DELETE FROM p": both,
		"INSERT INTO p VALUES(1)": ordinary, "INSERT INTO p SELECT * FROM v": both, "INSERT INTO p SELECT count(*) FROM v": both, "UPDATE p SET id=(SELECT 1 FROM x)": both, "INSERT INTO p SELECT name FROM pragma_table_list": both,
		"DROP TABLE t": both, "ALTER TABLE t ADD COLUMN b": both, "CREATE TABLE new(a)": ordinary, "PRAGMA user_version=3": ordinary,
		"DELETE FROM p WHERE EXISTS(SELECT 1 FROM sqlite_temp_schema)": both,
	})
	for _, text := range []string{"ANALYZE temp", "ANALYZE x", "CREATE VIRTUAL TABLE temp.f USING fts5(a)"} {
		if _, err := c.Classify(text); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}

// The TEMP objects of a connection cannot take more than MaxTemp.
func TestTempObjectsAreBounded(t *testing.T) {
	c := tempConns(t, "CREATE TABLE t(a)")["temp"]
	if err := c.Exec("CREATE TEMP TABLE x(a); INSERT INTO x VALUES(randomblob(2000000))"); err != nil {
		t.Fatal(err)
	}
	if err := c.LoadTempNames(); err != nil {
		t.Fatal(err)
	}
	s, _, err := c.Prepare("INSERT INTO x VALUES(randomblob(3000000))", false)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run()
	e, ok := err.(*Error)
	if !ok || e.Code != CodeFull {
		t.Fatalf("%v", err)
	}
	if s.ExplainTempFull(e); !strings.Contains(e.Hint, "4 MiB") {
		t.Errorf("got the hint %q", e.Hint)
	}
	s.Close()
	if got := all(t, c, "SELECT count(*) FROM x"); !strings.HasPrefix(got, "1:1:") {
		t.Errorf("%s", got)
	}
	// The encoding of these rows is larger than their pages.
	if err := c.Exec("DROP TABLE x; CREATE TEMP TABLE x(a,b,c,d,e,f,g,h,i,j,k,l,m,n,o); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<150000) INSERT INTO x SELECT 0,0,0,0,0,0,0,0,0,0,0,0,0,0,0 FROM n"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.DumpTemp(); err == nil || !strings.Contains(err.Error(), "TEMP objects of this connection take") {
		t.Errorf("%v", err)
	}
}
