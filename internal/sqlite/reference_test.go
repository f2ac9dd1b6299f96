package sqlite

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"testing"

	reference "modernc.org/sqlite"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// openReference returns a new database that the driver modernc.org/sqlite, the reference,
// has opened.
func openReference(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "ref.db")+"?_pragma=foreign_keys(1)")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db
}

// run executes a text with arguments and returns the first row of the last statement.
func run(c *Conn, text string, args []wire.Argument) (out []any, err error) {
	for text != "" {
		s, tail, err := c.Prepare(text, false)
		if err != nil {
			return nil, err
		}
		text = tail
		if s == nil {
			continue
		}
		out, err = runOne(s, args)
		s.Close()
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func runOne(s *Stmt, args []wire.Argument) (out []any, err error) {
	if err := s.Bind(args, nil); err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		row, err := s.Step()
		if err != nil || !row {
			return out, err
		}
		for i := range s.ColumnCount() {
			if first {
				out = append(out, native(s.Value(i)))
			}
		}
	}
}

// native returns a value as a Go value of its storage class.
func native(v wire.Value) any {
	switch v.Kind {
	case wire.Integer:
		return v.Int()
	case wire.Real:
		return v.Float()
	case wire.Text:
		return string(v.Data)
	case wire.Blob:
		return v.Data
	}
	return nil
}

func toArgument(v any) wire.Argument {
	switch v := v.(type) {
	case sql.NamedArg:
		a := toArgument(v.Value)
		a.Name = v.Name
		return a
	case int64:
		return wire.Argument{Value: wire.IntegerValue(v)}
	case int:
		return wire.Argument{Value: wire.IntegerValue(int64(v))}
	case float64:
		return wire.Argument{Value: wire.RealValue(v)}
	case string:
		return wire.Argument{Value: wire.TextValue(v)}
	case []byte:
		if v == nil {
			return wire.Argument{}
		}
		return wire.Argument{Value: wire.BlobValue(v)}
	}
	return wire.Argument{}
}

// queryReference returns the first row of a query on the reference.
func queryReference(db *sql.DB, text string, args []any) ([]any, error) {
	rows, err := db.Query(text, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil || !rows.Next() {
		return nil, errors.Join(err, rows.Err())
	}
	out := make([]any, len(columns))
	into := make([]any, len(columns))
	for i := range out {
		into[i] = &out[i]
	}
	return out, rows.Scan(into...)
}

// Arguments are bound to the same parameters as with modernc.org/sqlite.
func TestArgumentsAreBoundAsTheReferenceDoes(t *testing.T) {
	db, c := openReference(t), mustOpen(t)
	n := func(name string, v any) any { return sql.Named(name, v) }
	for _, test := range []struct {
		text string
		args []any
	}{
		{"SELECT ?, ?", []any{1, 2}}, {"SELECT ?2, ?1", []any{1, 2}}, {"SELECT ?2, ?", []any{1, 2, 3}}, {"SELECT ?, ?1, ?", []any{1, 2, 3}}, {"SELECT ?3", []any{1, 2, 3}}, {"SELECT ?", nil}, {"SELECT ?2", []any{1}},
		{"SELECT :a, @a, $a", []any{n("a", 1)}}, {"SELECT :a, :b", []any{n("b", 2), n("a", 1)}}, {"SELECT :a", []any{1}}, {"SELECT :a", []any{n("A", 1)}}, {"SELECT :a, :a", []any{n("a", 5)}},
		{"SELECT $1, $2", []any{1, 2}}, {"SELECT $2, $1", []any{1, 2}}, {"SELECT $01", []any{1}}, {"SELECT $0", []any{1}},
		{"SELECT :1", []any{1}}, {"SELECT @1", []any{1}}, {"SELECT ?, :a", []any{1, n("a", 2)}}, {"SELECT :a, ?", []any{n("a", 2), 7}}, {"SELECT :a, ?", []any{7, n("a", 2)}}, {"SELECT ?, ?", []any{n("x", 1), n("y", 2)}}, {"SELECT ?1, ?2", []any{n("x", 1), n("y", 2)}},
		{"SELECT :a", []any{n("a", 1), n("a", 2)}}, {"SELECT $a::b(c)", []any{n("a::b(c)", 4)}}, {"SELECT ?1", []any{n("a", 1), 5}}, {"SELECT $1", []any{n("a", 1), 5}}, {"SELECT ?100", []any{1}},
	} {
		want, wantErr := queryReference(db, test.text, test.args)
		var args []wire.Argument
		for _, a := range test.args {
			args = append(args, toArgument(a))
		}
		got, err := run(c, test.text, args)
		if (err != nil) != (wantErr != nil) || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%s %v: %v, %v; the reference %v, %v", test.text, test.args, got, err, want, wantErr)
		}
		if err != nil && wantErr != nil && err.Error() != wantErr.Error() {
			t.Errorf("%s %v: %q; the reference %q", test.text, test.args, err, wantErr)
		}
	}
}

func mustOpen(t *testing.T) *Conn {
	t.Helper()
	c, err := Open(filepath.Join(t.TempDir(), "data.db"), Apply)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.Begin(&wire.Operation{})
	return c
}

func TestValuesAreReadAsTheyWereBound(t *testing.T) {
	db, c := openReference(t), mustOpen(t)
	const text = "SELECT ?1, typeof(?1), length(?1), hex(?1)"
	for _, v := range []any{
		nil, int64(0), int64(-1), int64(math.MinInt64), int64(math.MaxInt64), 0.0, math.Copysign(0, -1), 1.5, math.MaxFloat64, math.SmallestNonzeroFloat64, math.Inf(1), math.Inf(-1), math.NaN(),
		"", "a", "a\x00b", "\x00", "\xff\xfe", "ü€😀", []byte("a\x00b"), []byte{0}, bytes.Repeat([]byte{7}, 100_000),
	} {
		want, err := queryReference(db, text, []any{v})
		if err != nil {
			t.Fatal(err)
		}
		got, err := run(c, text, []wire.Argument{toArgument(v)})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%.20q: %.60v, %v; the reference %.60v", fmt.Sprint(v), got, err, want)
		}
	}
	// This differs on purpose: with the reference, an empty blob is bound as NULL.
	got, err := run(c, text, []wire.Argument{{Value: wire.BlobValue([]byte{})}})
	if err != nil || !reflect.DeepEqual(got, []any{[]byte{}, "blob", int64(0), ""}) {
		t.Errorf("an empty blob: %#v, %v", got, err)
	}
	if got, err := run(c, "SELECT x''", nil); err != nil || !reflect.DeepEqual(got, []any{[]byte{}}) {
		t.Errorf("x'': %#v, %v", got, err)
	}
}

// Arguments stay valid while their statement runs, even if they are many or large.
func TestBoundArgumentsStayValid(t *testing.T) {
	c := mustOpen(t)
	var args []wire.Argument
	text := "SELECT length(?)"
	for i := range 200 {
		args = append(args, wire.Argument{Value: wire.BlobValue(bytes.Repeat([]byte{byte(i)}, i*317))})
		if i > 0 {
			text += ", substr(?,-1)=x'" + fmt.Sprintf("%02x", i) + "'"
		}
	}
	for range 3 {
		got, err := run(c, text, args)
		if err != nil || got[0] != int64(0) {
			t.Fatal(got, err)
		}
		for i, v := range got[1:] {
			if v != int64(1) {
				t.Errorf("argument %d changed", i+1)
			}
		}
	}
}

// Libraries compare the texts and codes of errors, so these are those of the reference.
func TestErrorsAreThoseOfTheReference(t *testing.T) {
	const schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b NOT NULL DEFAULT 1, c CHECK(c>0), d REFERENCES t(id)); CREATE TABLE s(a INT) STRICT; CREATE TABLE w(a PRIMARY KEY) WITHOUT ROWID; CREATE VIEW v AS SELECT 1 AS x;" +
		"CREATE UNIQUE INDEX both ON t(b, c) WHERE b>5; CREATE TRIGGER tr BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'no deleting'); END; INSERT INTO t(id, a) VALUES(1, 'x'); INSERT INTO w VALUES(1)"
	db, c := openReference(t), mustOpen(t)
	if _, err := db.Exec(schema); err != nil {
		t.Fatal(err)
	}
	if err := c.Exec(schema); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"INSERT INTO t(id) VALUES(1)", "INSERT INTO t(a) VALUES('x')", "INSERT INTO t(b) VALUES(NULL)", "INSERT INTO t(c) VALUES(-1)", "INSERT INTO t(d) VALUES(99)", "INSERT INTO s VALUES('x')", "INSERT INTO w VALUES(1)", "INSERT INTO w VALUES(NULL)",
		"INSERT INTO t(b,c) VALUES(6,1),(6,1)", "DELETE FROM t", "UPDATE t SET id='x'", "INSERT INTO v VALUES(1)", "nonsense", "SELECT", "SELECT 'open", "SELECT * FROM nosuch", "SELECT nosuch FROM t", "INSERT INTO t VALUES(1)", "SELECT nosuch(1)",
		"SELECT abs(-9223372036854775808)", "CREATE TABLE t(a)", "CREATE INDEX both ON t(a)", "DROP TABLE nosuch", "ALTER TABLE t ADD COLUMN x NOT NULL", "ALTER TABLE nosuch RENAME TO x", "SELECT json('{')", "SELECT json_extract('{}', 'x')", "SELECT * FROM t, t",
		"SELECT id FROM t GROUP BY nosuch", "SELECT 1 UNION SELECT 1, 2", "SELECT (SELECT 1, 2)", "INSERT INTO t(nosuch) VALUES(1)", "PRAGMA", "SELECT #1", "SELECT * FROM t WHERE a MATCH 'x'", "SELECT sum(a) FROM t WHERE sum(a)>1", "SELECT 1e", "SELECT \"",
		"CREATE TABLE x(a, a)", "CREATE TABLE sqlite_x(a)", "WITH x AS (SELECT 1, 2) SELECT * FROM x, nosuch", "UPDATE t SET a=1, nosuch=2"} {
		_, refErr := db.Exec(text)
		var want *reference.Error
		if !errors.As(refErr, &want) {
			t.Fatalf("%s: the reference returned %v", text, refErr)
		}
		_, err := run(c, text, nil)
		var got *Error
		if !errors.As(err, &got) || got.Message != want.Error() || got.Code != want.Code() {
			t.Errorf("%s: %v; the reference: %v (code %d)", text, err, want, want.Code())
		}
	}
}

func TestErrorOfALockedDatabaseIsThatOfTheReference(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data.db")
	a, err := Open(path, Plain)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := Open(path, Plain)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := a.Exec("CREATE TABLE t(a); BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(0)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_, want := db.Exec("INSERT INTO t VALUES(1)")
	if err := b.Exec("PRAGMA busy_timeout=0"); err != nil {
		t.Fatal(err)
	}
	if got := b.Exec("INSERT INTO t VALUES(1)"); got == nil || want == nil || got.Error() != want.Error() {
		t.Errorf("%v; the reference: %v", got, want)
	}
}
