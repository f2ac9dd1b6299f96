package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	reference "modernc.org/sqlite"

	_ "github.com/hiqlite/hiqlite/driver"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// This file has the harness of the tests that run the same statements with this
// driver ("ours") and with that of modernc.org/sqlite ("theirs", the reference), and
// the first of these tests.

// A pair is a connection of this driver and one of modernc.org/sqlite.
type pair struct {
	t      testing.TB
	folder string
	conns  [2]*sql.Conn
}

// newPair opens a node and a file, and a connection to each with these options.
func newPair(t testing.TB, options string) *pair {
	t.Helper()
	p := &pair{t: t, folder: t.TempDir()}
	p.conns = p.open(options)
	return p
}

// open opens another connection to each of the two databases.
func (p *pair) open(options string) (conns [2]*sql.Conn) {
	p.t.Helper()
	for i, source := range []struct{ driver, dsn string }{
		{"hiqlite", filepath.Join(p.folder, "node") + "?" + timesAsTheirs(options)},
		{"sqlite", filepath.Join(p.folder, "file.db") + "?_pragma=journal_mode(WAL)&" + options},
	} {
		if i == 1 && !strings.Contains(options, "foreign_keys") && !strings.Contains(options, "_fk") {
			source.dsn += "&_fk=1"
		}
		db, err := sql.Open(source.driver, source.dsn)
		if err != nil {
			p.t.Fatalf("%s: %v", source.dsn, err)
		}
		p.t.Cleanup(func() { db.Close() })
		if conns[i], err = db.Conn(testrun.Context(p.t)); err != nil {
			p.t.Fatalf("%s: %v", source.dsn, err)
		}
		p.t.Cleanup(func() { conns[i].Close() })
	}
	return conns
}

// timesAsTheirs adds the option with which this driver writes times as
// modernc.org/sqlite does by default.
func timesAsTheirs(options string) string {
	switch {
	case strings.Contains(options, "_time_format=&"):
		return strings.Replace(options, "_time_format=&", "_time_format=string&", 1)
	case strings.Contains(options, "_time_format="):
		return options
	}
	return options + "&_time_format=string"
}

// A step is a statement, or a script, and its arguments.
type step struct {
	text string
	args []any
}

func text(sql string, args ...any) step { return step{sql, args} }

// A way is one of the ways to run a step. run describes what a program can observe.
type way struct {
	name string
	run  func(ctx context.Context, c *sql.Conn, s step) string
}

var ways = []way{{"query", describeQuery}, {"exec", describeExec}, {"prepared query", describePreparedQuery}, {"prepared exec", describePreparedExec}}

// same runs a step on both connections, and fails the test unless a program observes
// the same.
func (p *pair) same(w way, s step) {
	p.t.Helper()
	ours, theirs := w.run(testrun.Context(p.t), p.conns[0], s), w.run(testrun.Context(p.t), p.conns[1], s)
	if !alike(s.text, ours, theirs) {
		p.t.Errorf("%s %q %v:\n--- modernc.org/sqlite\n%s\n--- hiqlite\n%s", w.name, s.text, s.args, theirs, ours)
	}
}

// eachWay runs the steps, in order, in each way.
func eachWay(t *testing.T, options string, steps []step) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			p := newPair(t, options)
			for _, s := range steps {
				p.same(w, s)
			}
		})
	}
}

func describeQuery(ctx context.Context, c *sql.Conn, s step) string {
	rows, err := c.QueryContext(ctx, s.text, s.args...)
	return describeRows(rows, err)
}

func describePreparedQuery(ctx context.Context, c *sql.Conn, s step) string {
	stmt, err := c.PrepareContext(ctx, s.text)
	if err != nil {
		return describeError(err)
	}
	defer stmt.Close()
	rows, err := stmt.QueryContext(ctx, s.args...)
	return describeRows(rows, err)
}

func describeExec(ctx context.Context, c *sql.Conn, s step) string {
	r, err := c.ExecContext(ctx, s.text, s.args...)
	return describeResult(s.text, r, err)
}

func describePreparedExec(ctx context.Context, c *sql.Conn, s step) string {
	stmt, err := c.PrepareContext(ctx, s.text)
	if err != nil {
		return describeError(err)
	}
	defer stmt.Close()
	r, err := stmt.ExecContext(ctx, s.args...)
	return describeResult(s.text, r, err)
}

// changesRows reports whether a statement has a sql.Result of its own. For the others,
// modernc.org/sqlite repeats the result of an earlier statement.
func changesRows(text string) bool {
	for _, verb := range []string{"INSERT", "REPLACE", "UPDATE", "DELETE", "WITH"} {
		if strings.HasPrefix(text, verb) {
			return true
		}
	}
	return false
}

func describeResult(text string, r sql.Result, err error) string {
	if err != nil {
		return describeError(err)
	}
	if !changesRows(text) {
		return "ok"
	}
	id, err1 := r.LastInsertId()
	n, err2 := r.RowsAffected()
	if text := strings.ToUpper(strings.TrimSpace(text)); n == 0 || strings.Contains(text, "CONFLICT") || strings.Contains(text, "OR IGNORE") || strings.Contains(text, "INTO W ") /* a view */ ||
		!strings.HasPrefix(text, "INSERT") && !strings.HasPrefix(text, "REPLACE") && !strings.HasPrefix(text, "WITH_RESULT") {
		return fmt.Sprintf("rows %d, %v", n, err2) // theirs repeats the id of an earlier statement, see TestLastInsertIdIsOfTheStatement
	}
	return fmt.Sprintf("id %d, %v; rows %d, %v", id, err1, n, err2)
}

// describeError returns the text of an error and its SQLite code.
func describeError(err error) string {
	code := "none"
	var coded interface{ Code() int }
	var theirs *reference.Error
	switch {
	case errors.As(err, &theirs):
		code = fmt.Sprint(theirs.Code())
	case errors.As(err, &coded) && !strings.HasPrefix(err.Error(), "missing "): // theirs has no code for these
		code = fmt.Sprint(coded.Code())
	}
	return fmt.Sprintf("error %q, code %s", err, code)
}

func describeRows(rows *sql.Rows, err error) string {
	if err != nil {
		return describeError(err)
	}
	defer rows.Close()
	seen := []string{describeSet(rows)}
	for rows.NextResultSet() {
		seen = append(seen, describeSet(rows))
	}
	if err := rows.Err(); err != nil {
		return strings.Join(seen, nextSet) + describeError(err)
	}
	return strings.Join(seen, nextSet)
}

// nextSet is what describeRows returns between result sets.
const nextSet = "--- next result set\n"

// alike compares two descriptions. This driver returns all result sets of a script.
// The reference returns only the last one that has rows, or that of the last
// statement, even if it has no columns.
func alike(text, ours, theirs string) bool {
	sets := strings.Split(ours, nextSet)
	last := sets[len(sets)-1]
	withRows := sets[0] // what theirs returns if no set has rows, and something follows the last semicolon
	for _, s := range sets {
		if strings.Count(s, "\n") > 1 {
			withRows = s
		}
	}
	script := strings.Contains(strings.TrimRight(text, "; \n\t"), ";")
	if script && strings.HasPrefix(theirs, "error") { // theirs returns the error of a later statement at once
		return strings.HasSuffix(ours, theirs)
	}
	return theirs == last || theirs == withRows || script && theirs == "\n" && !strings.Contains(ours, "error")
}

func describeSet(rows *sql.Rows) string {
	var b strings.Builder
	describeColumns(&b, rows)
	for rows.Next() {
		cells, err := scanRow(rows)
		if err != nil {
			fmt.Fprintf(&b, "scan: %v\n", err)
			continue
		}
		for _, cell := range cells {
			b.WriteString(describeValue(cell) + " | ")
		}
		b.WriteString("\n")
		describeColumns(&b, rows)
	}
	return b.String()
}

func describeColumns(b *strings.Builder, rows *sql.Rows) {
	types, err := rows.ColumnTypes()
	if err != nil {
		fmt.Fprintf(b, "columns: %v\n", err)
	}
	for _, c := range types {
		length, hasLength := c.Length()
		if nullable, known := c.Nullable(); !nullable {
			fmt.Fprintf(b, "nullable %v, known %v", nullable, known) // known differs on purpose
		}
		precision, scale, decimal := c.DecimalSize()
		fmt.Fprintf(b, "%q %q %v %d,%v %d,%d,%v; ", c.Name(), c.DatabaseTypeName(), describeScanType(c), length, hasLength, precision, scale, decimal)
	}
	b.WriteString("\n")
}

// describeScanType returns the scan type of a column, without two known differences:
// theirs has no type for NULL, and says time.Time for integers that it returns as
// integers.
func describeScanType(c *sql.ColumnType) string {
	name := fmt.Sprint(c.ScanType())
	switch length, has := c.Length(); {
	case name == "<nil>", name == "interface {}", strings.HasPrefix(name, "sql.Null"), name == "[]uint8" && !has && length == 0:
		return "of NULL"
	case name == "time.Time" && !has:
		return "int64"
	}
	return name
}

func describeValue(v any) string {
	switch v := v.(type) {
	case time.Time:
		if _, offset := v.Zone(); offset == 0 && v.Location() == time.Local {
			v = v.UTC() // theirs calls UTC Local if it is the zone of the process
		}
		return "time " + v.Format(time.RFC3339Nano) + " " + v.Location().String()
	case float64:
		return fmt.Sprintf("float64 %x %v", math.Float64bits(v), v)
	}
	return fmt.Sprintf("%T %#v", v, v)
}

func TestReferenceTables(t *testing.T) {
	eachWay(t, "", []step{
		text("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c REAL, d BLOB, e, f VARCHAR(10), g DECIMAL(10,2), h BOOLEAN, i DATE, j DATETIME, k TIMESTAMP, l TIME, m NUMERIC)"),
		text("SELECT * FROM t"),
		text("INSERT INTO t(b) VALUES('x')"),
		text("INSERT INTO t VALUES(NULL,'x',1.5,x'0102',NULL,'long text that is longer',12.25,1,'2024-02-03','2024-02-03 04:05:06','2024-02-03T04:05:06Z','04:05','7')"),
		text("INSERT INTO t(a,i,j,k,l,h) VALUES(9,17,1700000000,1700000000000,5,'yes'),(10,'no date','2024-02-03 04:05:06.789+02:00',2.5,x'00',x'')"),
		text("SELECT * FROM t WHERE a<10"),
		text("SELECT a AS x, a+1, b||'y', max(i), count(*) AS \"n m\" FROM t GROUP BY a"),
		text("SELECT i, j, k, l, h FROM t WHERE a=9"),
		text("UPDATE t SET b='z' WHERE a<3"),
		text("UPDATE t SET b='z' WHERE a<3 RETURNING *"),
		text("UPDATE t SET b='z' WHERE a>1000 RETURNING a, b"),
		text("DELETE FROM t WHERE a=9 RETURNING i, j, k, a*2 AS twice"),
		text("INSERT INTO t(b) VALUES('p'),('q') RETURNING a, b, c"),
		text("INSERT INTO t(a,b) VALUES(1,'again') ON CONFLICT(a) DO UPDATE SET b=excluded.b"),
		text("INSERT OR IGNORE INTO t(a,b) VALUES(1,'again')"),
		text("INSERT OR IGNORE INTO t(a,b) VALUES(1,'again') RETURNING a"),
		text("REPLACE INTO t(a,b) VALUES(1,'again')"),
		text("WITH x(n) AS (VALUES(100),(101)) INSERT INTO t(a) SELECT n FROM x"),
		text("WITH x AS (SELECT 1 AS one) SELECT * FROM x"),
		text("UPDATE t SET b=b WHERE 0"),
		text("DELETE FROM t"),
		text("SELECT count(*) FROM t"),
		text("SELECT sum(a), total(a), avg(a), group_concat(b) FROM t"),
		text("VALUES(1,'a'),(2,NULL)"),
		text("EXPLAIN QUERY PLAN SELECT * FROM t"),
		text("SELECT typeof(1), typeof('x'), typeof(1.0), typeof(x'00'), typeof(NULL)"),
		text("SELECT 9223372036854775807, -9223372036854775808, 9223372036854775808, 1e999, -1e999, -0.0, 0.1"),
		text("SELECT 'ü', char(0), 'a'||char(0)||'b', x'ff', CAST(x'ff' AS TEXT)"),
		text(""), text(";"), text("-- nothing"), text("/* nothing */ ;"), text("SELECT 1 -- one"), text("SELECT 1;"), text(" SELECT 1 ; ; "),
		text("DROP TABLE t"), text("DROP TABLE IF EXISTS t"),
	})
}

func TestReferenceFeatures(t *testing.T) {
	eachWay(t, "", []step{
		text("CREATE TABLE s(a INTEGER PRIMARY KEY, b TEXT NOT NULL, c ANY) STRICT"),
		text("INSERT INTO s VALUES(1,'x',2)"), text("INSERT INTO s VALUES('x','x',2)"), text("INSERT INTO s VALUES(2,x'00',2)"),
		text("INSERT INTO s VALUES(3,4,'t') RETURNING *"),
		text("CREATE TABLE w(a TEXT, b INT, PRIMARY KEY(a,b)) WITHOUT ROWID"),
		text("INSERT INTO w VALUES('x',1)"), text("INSERT INTO w VALUES('x',1)"), text("INSERT INTO w VALUES(NULL,1)"),
		text("SELECT * FROM w"), text("SELECT rowid FROM w"),
		text("CREATE TABLE g(a INT, b INT GENERATED ALWAYS AS (a*2) STORED, c TEXT AS ('v'||a) VIRTUAL)"),
		text("INSERT INTO g(a) VALUES(4)"), text("INSERT INTO g(a,b) VALUES(4,5)"), text("SELECT * FROM g"), text("PRAGMA table_xinfo(g)"),
		text("CREATE VIRTUAL TABLE f USING fts5(title, body)"),
		text("INSERT INTO f VALUES('a title','some body text')"),
		text("SELECT rowid, * FROM f WHERE f MATCH 'body'"), text("SELECT snippet(f,1,'<','>','...',3), bm25(f) FROM f WHERE f MATCH 'text'"),
		text("SELECT * FROM f WHERE f MATCH '\"'"), text("INSERT INTO f(f) VALUES('optimize')"), text("INSERT INTO f(f) VALUES('nonsense')"),
		text("CREATE VIRTUAL TABLE r USING rtree(id, minx, maxx)"),
		text("INSERT INTO r VALUES(1,0,10),(2,5,6)"), text("SELECT * FROM r WHERE minx>1"), text("INSERT INTO r VALUES(1,10,0)"),
		text("SELECT json('{\"a\": [1,2,{\"b\":null}]}'), json_extract('{\"a\":1.5}','$.a'), '{\"a\":1}'->>'a', json_type('[1]')"),
		text("SELECT value, type FROM json_each('[1,\"two\",null,3.5,true]')"), text("SELECT json('{bad')"),
		text("SELECT jsonb('[1]')"), text("SELECT json_group_array(a) FROM s"),
		text("CREATE VIEW v AS SELECT a, b||'!' AS bb FROM s"), text("SELECT * FROM v"), text("INSERT INTO v VALUES(1,2)"), text("PRAGMA table_info(v)"),
		text("CREATE TABLE log(m TEXT)"),
		text("CREATE TRIGGER tr AFTER INSERT ON s BEGIN INSERT INTO log VALUES('new '||new.a); END"),
		text("INSERT INTO s VALUES(50,'x',1)"), text("SELECT * FROM log"), text("INSERT INTO s VALUES(51,'x',1) RETURNING (SELECT count(*) FROM log)"),
		text("CREATE TRIGGER stop BEFORE DELETE ON s BEGIN SELECT RAISE(ABORT,'not this one'); END"), text("DELETE FROM s"),
		text("CREATE TRIGGER fail BEFORE UPDATE ON s BEGIN SELECT RAISE(FAIL,'failed here'); END"), text("UPDATE s SET c=1"),
		text("CREATE TABLE auto(a INTEGER PRIMARY KEY AUTOINCREMENT, b)"), text("INSERT INTO auto(b) VALUES(1)"), text("DELETE FROM auto"),
		text("INSERT INTO auto(b) VALUES(2) RETURNING a"), text("SELECT * FROM sqlite_sequence"),
		text("CREATE INDEX ix ON auto(b) WHERE b>1"), text("CREATE INDEX ix ON auto(b)"), text("DROP INDEX ix"), text("DROP INDEX ix"),
		text("ALTER TABLE auto ADD COLUMN c DEFAULT 7"), text("SELECT * FROM auto"), text("ALTER TABLE auto RENAME COLUMN c TO cc"), text("ALTER TABLE auto RENAME TO auto2"),
		text("SELECT * FROM auto"), text("SELECT * FROM auto2"), text("ALTER TABLE auto2 DROP COLUMN cc"),
		text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<4) SELECT i, sum(i) OVER (ORDER BY i) AS s FROM n"),
		text("SELECT date('2024-01-31','+1 month'), strftime('%Y','2024-01-01'), unixepoch('2024-01-01'), timediff('2024-01-02','2024-01-01')"),
		text("SELECT printf('%5.2f|%s|%d', 3.14159, 'x', 7), hex(x'0aff'), quote('it''s'), iif(1,2,3), round(2.567,2), upper('ä'), abs(-9223372036854775807)"),
		text("SELECT sqrt(2), pow(2,10), pi(), log(100), abs(-9223372036854775808)"),
		text("SELECT * FROM generate_series(1,3)"), text("SELECT nosuchfunction(1)"),
		text("REINDEX"), text("ANALYZE"), text("SELECT tbl, idx FROM sqlite_stat1 ORDER BY 1"), text("VACUUM"), text("SELECT 1 WHERE 0"),
	})
}

func TestReferenceErrors(t *testing.T) {
	eachWay(t, "", []step{
		text("CREATE TABLE p(id INTEGER PRIMARY KEY, u TEXT UNIQUE, n TEXT NOT NULL DEFAULT 'd', c INT CHECK(c>0), d INT CONSTRAINT small CHECK(d<10))"),
		text("CREATE TABLE k(a INT, b INT, p INT REFERENCES p(id), UNIQUE(a,b))"),
		text("CREATE TABLE q(p INT REFERENCES p(id) DEFERRABLE INITIALLY DEFERRED)"),
		text("CREATE TABLE t2(a TEXT PRIMARY KEY)"),
		text("CREATE UNIQUE INDEX expr ON k(a+b) WHERE a>100"),
		text("INSERT INTO p(id,u) VALUES(1,'x')"), text("INSERT INTO p(id,u) VALUES(1,'y')"), text("INSERT INTO p(id,u) VALUES(2,'x')"),
		text("INSERT INTO p(id,n) VALUES(3,NULL)"), text("INSERT INTO p(id,c) VALUES(3,0)"), text("INSERT INTO p(id,d) VALUES(3,11)"),
		text("INSERT INTO p(id) VALUES('text')"), text("INSERT INTO t2 VALUES('a')"), text("INSERT INTO t2 VALUES('a')"),
		text("INSERT INTO k VALUES(1,1,NULL)"), text("INSERT INTO k VALUES(1,1,NULL)"), text("INSERT INTO k VALUES(2,2,77)"), text("INSERT INTO k VALUES(2,2,77) RETURNING a"),
		text("INSERT INTO k VALUES(200,2,1)"), text("INSERT INTO k VALUES(201,1,1)"), text("DELETE FROM p WHERE id=1"), text("UPDATE p SET id=5 WHERE id=1"),
		text("INSERT INTO q VALUES(77)"), text("INSERT OR ABORT INTO p(id,u) VALUES(1,'y')"), text("INSERT OR FAIL INTO p(id,u) VALUES(7,'seven'),(1,'y')"),
		text("SELECT id FROM p ORDER BY 1"), text("INSERT OR REPLACE INTO t2 VALUES('a')"), text("UPDATE OR IGNORE p SET u='x' WHERE id=7"),
		text("SELEC 1"), text("SELECT"), text("SELECT * FROM"), text("SELECT 1 2"), text("SELECT 'open"), text("SELECT (1"), text("INSERT INTO"), text("@"), text("SELECT #"),
		text("SELECT * FROM nope"), text("SELECT nope FROM p"), text("SELECT nope.id FROM p"), text("INSERT INTO nope VALUES(1)"), text("INSERT INTO p(nope) VALUES(1)"),
		text("INSERT INTO t2 VALUES(1,2)"), text("UPDATE nope SET a=1"), text("UPDATE p SET nope=1"), text("DELETE FROM nope"), text("DROP TABLE nope"), text("DROP VIEW p"), text("DROP TABLE sqlite_schema"),
		text("CREATE TABLE p(a)"), text("CREATE TABLE t3(a,a)"), text("CREATE TABLE sqlite_x(a)"), text("CREATE INDEX i ON nope(a)"), text("CREATE INDEX i ON p(nope)"), text("CREATE TRIGGER t AFTER INSERT ON nope BEGIN SELECT 1; END"),
		text("CREATE VIRTUAL TABLE v USING nope(a)"), text("ALTER TABLE nope ADD COLUMN a"), text("ALTER TABLE p ADD COLUMN x NOT NULL"), text("ALTER TABLE p ADD COLUMN id"), text("ALTER TABLE p DROP COLUMN id"),
		text("SELECT count(*), id FROM p GROUP BY nope"), text("SELECT 1 UNION SELECT 1,2"), text("SELECT * FROM p ORDER BY 99"), text("SELECT sum(count(*)) FROM p"), text("SELECT id FROM p WHERE count(*)>1"),
		text("SELECT p.id, id FROM p, p AS p2"), text("SELECT abs(1,2)"), text("SELECT randomblob(2000000000)"), text("SELECT zeroblob(2000000000)"), text("SELECT CAST('x' AS INT) / 0, 1 % 0"),
		text("SELECT json_extract('x','$')"), text("SELECT sum(9223372036854775807) FROM (VALUES(1),(2)) AS x, p"), text("SELECT \"not a column\", 'x' LIKE 'X'"),
		text("REINDEX nope"), text("PRAGMA table_info(nope)"), text("PRAGMA nope"), text("PRAGMA foreign_key_check"),
		text("SELECT 1; SELEC 2"), text("SELECT * FROM nope; SELECT 1"), text("EXPLAIN SELEC"), text("SELECT * FROM p WHERE id IN (SELECT id, u FROM p)"),
	})
}

// referenceConn returns a connection of the driver of modernc.org/sqlite, to a new file.
func referenceConn(t testing.TB) *sql.Conn {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(t.TempDir(), "file.db")+"?_fk=1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return mustConn(t, db)
}
