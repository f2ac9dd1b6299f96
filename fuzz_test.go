package hiqlite_test

import (
	"database/sql"
	"regexp"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The fuzz target of this file compares random SQL with the reference, see
// reference_test.go.

// A grammar makes SQL from bytes. Most of it is valid.
type grammar struct {
	choices []byte
	param   string // the parameter that the statement uses
}

func (g *grammar) next(n int) int {
	if len(g.choices) == 0 {
		return 0
	}
	c := g.choices[0]
	g.choices = g.choices[1:]
	return int(c) % n
}

func (g *grammar) pick(options ...string) string { return options[g.next(len(options))] }

func (g *grammar) value() string {
	return g.pick("1", "-7", "NULL", "'text'", "1.5", "x'0102'", g.param, g.param, "4611686018427387904", "''", "'2024-02-03 04:05:06'", "'12'", "1e300", "zeroblob(3)", "abs(-3)", "'a'||1", "(SELECT max(a) FROM t)", "json('[1,2]')", "CAST('7' AS INT)", "length('xyz')")
}

func (g *grammar) column() string { return g.pick("a", "b", "c", "d", "e", "rowid", "nope") }

func (g *grammar) where() string {
	switch g.next(5) {
	case 0:
		return ""
	case 1:
		return " WHERE " + g.column() + g.pick("=", "<", ">", " IS ", " LIKE ") + g.value()
	case 2:
		return " WHERE a IN (" + g.value() + "," + g.value() + ")"
	case 3:
		return " WHERE " + g.column() + " IS NOT NULL"
	}
	return " WHERE 0"
}

func (g *grammar) returning() string {
	return g.pick("", " RETURNING *", " RETURNING a, d, b||'x' AS bx", " RETURNING "+g.column())
}

func (g *grammar) statement() string {
	g.param = g.pick("?1", ":a")
	switch g.next(12) {
	case 0, 1, 2:
		return "SELECT " + g.pick("*", g.column(), "count(*)", g.value(), g.column()+", "+g.value()+" AS v", "max(d), min(b)", "typeof("+g.value()+")") + g.pick(" FROM t", " FROM u", " FROM t LEFT JOIN u ON t.a=u.a", "", " FROM nope") + g.where() + g.pick("", " ORDER BY 1", " ORDER BY a DESC LIMIT 2", " GROUP BY b")
	case 3, 4, 5:
		return g.pick("INSERT", "INSERT OR IGNORE", "REPLACE", "INSERT OR FAIL") + " INTO " + g.pick("t(a,b)", "t(b,d)", "u(a,c)", "nope(a,b)") + " VALUES(" + g.value() + "," + g.value() + ")" + g.pick("", ",("+g.value()+","+g.value()+")") + g.pick("", " ON CONFLICT DO NOTHING") + g.returning()
	case 6, 7:
		return "UPDATE " + g.pick("", "OR IGNORE ") + g.pick("t", "t", "u") + " SET " + g.pick("b=", "d=", "e=", "a=") + g.value() + g.where() + g.returning()
	case 8:
		return "DELETE FROM " + g.pick("t", "u") + g.where() + g.returning()
	case 9:
		return g.pick("CREATE TABLE IF NOT EXISTS ", "CREATE TABLE ") + g.pick("x", "u", "t") + "(a INTEGER PRIMARY KEY, c DATE)"
	case 10:
		return g.pick("DROP TABLE x", "DROP TABLE IF EXISTS x", "ALTER TABLE u ADD COLUMN z", "ALTER TABLE u DROP COLUMN z", "CREATE INDEX IF NOT EXISTS i ON t(b)", "DROP INDEX i")
	}
	return g.pick("PRAGMA table_info(t)", "PRAGMA user_version", "PRAGMA user_version=3", "PRAGMA foreign_keys", "PRAGMA foreign_keys=0", "PRAGMA foreign_keys=1", "PRAGMA synchronous", "EXPLAIN QUERY PLAN SELECT * FROM t", "VALUES(1,2)", "SELECT * FROM (SELECT a FROM t)")
}

// FuzzSQL runs statements with this driver and with that of modernc.org/sqlite. choices
// select statements of the grammar. raw, if it is not empty, is run after them.
func FuzzSQL(f *testing.F) {
	for seed := range 30 {
		choices := make([]byte, 120)
		for i := range choices {
			choices[i] = byte((seed*7919 + i*i*31 + i*seed) % 251)
		}
		f.Add(choices, "")
	}
	for _, raw := range []string{
		"SELECT", ";;", "SELECT 1;;", "/*", "--", "SELECT 'a", "SELECT \"a\"", "SELECT `a` FROM t", "SELECT [a] FROM t", "SELECT ?", "SELECT 1 AS 'x y'", "select\t1\r\n;", "\ufeffSELECT 1", "SELECT 1 /* c */ , 2 -- d",
		"INSERT INTO t DEFAULT VALUES RETURNING *", "INSERT INTO t SELECT * FROM t", "UPDATE t SET a=a+1", "SELECT * FROM t, u", "SELECT t.*, u.a FROM t JOIN u USING(a)", "EXPLAIN SELECT 1", "PRAGMA table_list", "SELECT a a FROM t", "VALUES(?1),(?1)",
		"SELECT 1; SELECT 2", "SELECT 1; SELECT 2 WHERE 0", "SELECT 1 WHERE 0; SELECT 2 WHERE 0; ", "SELECT 1; SELECT 2 WHERE 0 ; -- c", "INSERT INTO t(b) VALUES(1) RETURNING a; SELECT 3", "INSERT INTO t(b) VALUES(1); SELECT a FROM t WHERE 0", "INSERT INTO t(b) VALUES(1) RETURNING a; DELETE FROM t; ", "SELECT a FROM t; DELETE FROM t", "CREATE TABLE y(a); INSERT INTO y VALUES(1); SELECT * FROM y",
		"CREATE TABLE y(a DATE DEFAULT '2024-01-01', b BOOLEAN DEFAULT 1); INSERT INTO y DEFAULT VALUES RETURNING *", "CREATE TABLE \"we\"\"ird\"(\"a b\" \"odd type\"(3,4)); INSERT INTO \"we\"\"ird\" VALUES(1) RETURNING *, \"a b\"",
	} {
		f.Add([]byte(nil), raw)
	}
	shared := newPair(f, "")
	f.Fuzz(func(t *testing.T, choices []byte, raw string) {
		p := &pair{t: t, conns: shared.conns}
		p.reset()
		g := &grammar{choices: choices}
		for len(g.choices) > 0 {
			if !p.sameButDeviations(ways[g.next(len(ways))], g.statement()) {
				return
			}
		}
		if raw != "" && comparable(raw) && !p.sameButDeviations(ways[0], raw) {
			return
		}
		p.same(ways[0], text("SELECT * FROM t ORDER BY a"))
		p.same(ways[0], text("SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE '%hiqlite%' ORDER BY 1"))
	})
}

// reset drops everything in both databases and creates the same tables in both.
func (p *pair) reset() {
	p.t.Helper()
	for _, c := range p.conns {
		for _, what := range []string{"VIEW", "TABLE"} {
			rows, err := c.QueryContext(testrun.Context(p.t), "SELECT 'DROP "+what+" \"'||replace(name,'\"','\"\"')||'\"' FROM sqlite_schema WHERE type=lower(?) AND name NOT LIKE '%hiqlite%' AND name NOT LIKE 'sqlite_%'", what)
			if err != nil {
				p.t.Fatal(err)
			}
			drops := []string{"PRAGMA foreign_keys=0", "PRAGMA user_version=0"}
			for rows.Next() {
				var drop string
				if err := rows.Scan(&drop); err != nil {
					p.t.Fatal(err)
				}
				drops = append(drops, drop)
			}
			if err := rows.Err(); err != nil {
				p.t.Fatal(err)
			}
			for _, drop := range drops {
				_, _ = c.ExecContext(testrun.Context(p.t), drop) // fails if an earlier one has dropped it, too
			}
		}
	}
	for _, s := range []string{
		"PRAGMA foreign_keys=1",
		"CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT UNIQUE, c DATE, d, e REAL CHECK(e<100))", "CREATE TABLE u(a INT REFERENCES t(a), c DATETIME)",
		"INSERT INTO t VALUES(1,'one','2024-02-03',NULL,1.5),(2,'two',NULL,x'00',2),(3,NULL,'never','text',NULL)", "INSERT INTO u VALUES(1,'2024-02-03 04:05:06'),(NULL,5)",
	} {
		p.same(ways[1], text(s))
	}
}

// sameButDeviations is same, but accepts some differences that are on purpose: the number
// of arguments, scripts that fail, empty blobs, and last_insert_rowid() after a failed
// statement. It returns false if the two databases may differ from now on.
func (p *pair) sameButDeviations(w way, query string) bool {
	p.t.Helper()
	var args []any
	if strings.Contains(query, "?") {
		args = append(args, "argument")
	}
	if strings.Contains(query, ":a") {
		args = append(args, sql.Named("a", 8))
	}
	p.t.Logf("%s %q", w.name, query)
	var seen [2]string
	for i, c := range p.conns {
		seen[i] = regexp.MustCompile("^id -?[0-9]+").ReplaceAllString(w.run(testrun.Context(p.t), c, step{query, args}), "")
		seen[i] = strings.ReplaceAll(seen[i], "[]byte(nil)", "[]byte{}")
	}
	failed := strings.Contains(seen[0], "error")
	if failed && strings.Contains(seen[0], "argument") {
		return false
	}
	if !alike(query, seen[0], seen[1]) {
		p.t.Errorf("%s %q:\n--- modernc.org/sqlite\n%s\n--- hiqlite\n%s", w.name, query, seen[1], seen[0])
		return false
	}
	return !failed || !strings.Contains(query, ";") // scripts are atomic here
}

// comparable reports whether a text may be compared. It excludes what differs on purpose,
// and what differs between any two databases.
func comparable(raw string) bool {
	if strings.ContainsRune(raw, 0) {
		return false
	}
	lower := strings.ToLower(raw)
	for _, word := range []string{
		"attach", "detach", "temp", "vacuum", "begin", "commit", "end", "rollback", "savepoint", "release", "pragma", "explain", "random", "now", "current_", "hiqlite", "schema", "sqlite_", "dbstat",
		"load_extension", "recursive", "changes", "date", "time", "julianday", "analyze", "trigger", "zeroblob", "source_id", "9223372036854775807", "0x7fff", "localtime", "unixepoch", "generate", "printf", "format", "_rowid", "subtype",
	} {
		if strings.Contains(lower, word) {
			return false
		}
	}
	return sqlite.IsBlank(raw) || len(raw) < 2000
}
