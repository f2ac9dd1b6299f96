package sqlite

import (
	"fmt"
	"strings"
	"testing"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
	"pgregory.net/rapid"
)

// The class of a script must not depend on the schema, because it is cached. A statement
// that cannot be prepared yet, because an earlier one creates its table, must not hide a
// COMMIT after it, and must not be mistaken for one.
func TestScriptsThatBeginAndEndTransactions(t *testing.T) {
	const body = "BEGIN INSERT INTO t(b) VALUES('x;y'); UPDATE t SET b=CASE WHEN a THEN 1 ELSE 2 END; END"
	for text, want := range map[string]string{
		"BEGIN; INSERT INTO t(b) VALUES(1); COMMIT":                                                           "BEGIN",
		"begin immediate; DELETE FROM t; end":                                                                 "BEGIN",
		"SAVEPOINT a; DELETE FROM t; RELEASE a":                                                               "SAVEPOINT",
		"SELECT 1; COMMIT":                                                                                    "COMMIT",
		"DELETE FROM t; COMMIT":                                                                               "COMMIT",
		"DELETE FROM t; -- really\n /* yes */ ;; COMMIT":                                                      "COMMIT",
		"DELETE FROM t; END TRANSACTION;":                                                                     "COMMIT",
		"DELETE FROM t; RoLlBaCk TO SAVEPOINT a":                                                              "ROLLBACK TO",
		"DELETE FROM t; RELEASE SAVEPOINT a":                                                                  "RELEASE",
		"CREATE TABLE n(a); INSERT INTO n VALUES(1); COMMIT; BEGIN":                                           "COMMIT",
		"CREATE TABLE n(a); INSERT INTO n VALUES('; not this'); ROLLBACK":                                     "ROLLBACK",
		"CREATE TABLE n(a); SELECT * FROM n; SAVEPOINT x":                                                     "SAVEPOINT",
		"CREATE TABLE n(a); CREATE TRIGGER x AFTER INSERT ON n " + body:                                       "",
		"CREATE TABLE n(a); CREATE TRIGGER x AFTER INSERT ON n " + body + ";":                                 "",
		"CREATE TRIGGER x AFTER INSERT ON t " + body + "; DELETE FROM t":                                      "",
		"DROP TABLE t; CREATE TRIGGER x AFTER INSERT ON t " + body:                                            "",
		"CREATE TABLE n(a); CREATE TEMP TRIGGER x AFTER INSERT ON n " + body:                                  "",
		"DELETE FROM t; CREATE TRIGGER IF NOT EXISTS x INSTEAD OF DELETE ON v " + body + "; DELETE FROM v":    "",
		"CREATE TABLE n(a); CREATE TRIGGER x AFTER INSERT ON n " + body + "; INSERT INTO n VALUES(1); COMMIT": "COMMIT",
		"DROP TABLE t; CREATE TABLE t(begin, rollback, \"commit\", end); INSERT INTO t VALUES(1,2,3)":         "",
		"CREATE TABLE t(a); INSERT INTO t VALUES(1)":                                                          "", // an error, because the table exists, but not one that concerns transactions
		"ALTER TABLE n ADD COLUMN x":                                                                          "error",
		"CREATE TABLE n(a); ALTER TABLE n ADD end; DELETE FROM n":                                             "",
		"DELETE FROM t; EXPLAIN BEGIN; DELETE FROM t":                                                         "",
		"DELETE FROM t; INSERT INTO t(b) VALUES('a''; COMMIT;')":                                              "",
		"DELETE FROM t; INSERT INTO t(b) VALUES(\"b\"), ([;COMMIT;])":                                         "",
		"DELETE FROM t; -- COMMIT;\nDELETE FROM t /* ; COMMIT; */":                                            "",
		"DELETE FROM t; SELECT `; COMMIT` FROM t":                                                             "",
	} {
		for _, schema := range []string{"", "CREATE TABLE n(a, b, begin, end)", "DROP TABLE t"} {
			apply, reader := openPair(t)
			if err := apply.Exec(schema); err != nil {
				t.Fatal(err)
			}
			class, err := reader.Classify(text)
			switch {
			case err != nil:
				continue // errors are not cached
			case want == "" && (class.Kind != Write || !class.Script):
				t.Errorf("%q (%s): kind %d, %q, want a script of writes", text, schema, class.Kind, class.Control)
			case want != "" && want != "error" && (class.Kind != Transaction || !class.Script || class.Control != want):
				t.Errorf("%q (%s): kind %d, %q, want %s", text, schema, class.Kind, class.Control, want)
			}
			apply.Close()
			reader.Close()
		}
	}
}

func TestClassifyTransactionControl(t *testing.T) {
	_, reader := openPair(t)
	for text, want := range map[string]Class{
		"BEGIN":                            {Control: "BEGIN"},
		"begin deferred transaction;":      {Control: "BEGIN"},
		"BEGIN IMMEDIATE":                  {Control: "BEGIN", Immediate: true},
		"/* now */ begin exclusive -- yes": {Control: "BEGIN", Immediate: true},
		"END":                              {Control: "COMMIT"},
		"COMMIT TRANSACTION":               {Control: "COMMIT"},
		"ROLLBACK TRANSACTION":             {Control: "ROLLBACK"},
		"SAVEPOINT a":                      {Control: "SAVEPOINT", Savepoint: "a"},
		`SAVEPOINT "a ""b"" ; c"`:          {Control: "SAVEPOINT", Savepoint: `a "b" ; c`},
		"SAVEPOINT [x y]":                  {Control: "SAVEPOINT", Savepoint: "x y"},
		"SAVEPOINT 'it''s'":                {Control: "SAVEPOINT", Savepoint: "it's"},
		"RELEASE SAVEPOINT `A`":            {Control: "RELEASE", Savepoint: "A"},
		"ROLLBACK TRANSACTION TO \u00e4":   {Control: "ROLLBACK TO", Savepoint: "\u00e4"},
	} {
		want.Kind = Transaction
		got, err := reader.Classify(text)
		if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%q is %+v, %v, want %+v", text, got, err, want)
		}
	}
}

// A long script is classified by all of its statements, in a time that grows linearly with
// its length.
func TestLongScripts(t *testing.T) {
	_, reader := openPair(t)
	insert := "INSERT INTO n VALUES('" + strings.Repeat("some; text ", 20) + "');\n"
	script := "CREATE TABLE n(a);\n" + strings.Repeat(insert, 20_000)
	for end, kind := range map[string]Kind{"": Write, "COMMIT": Transaction} {
		if class, err := reader.Classify(script + end); err != nil || class.Kind != kind {
			t.Errorf("%d bytes that end with %q: kind %d, %v", len(script), end, class.Kind, err)
		}
	}
}

// firstStatement and sqlite3_complete agree on where a statement ends: the statement is
// complete, and no shorter text is.
func TestStatementsEndWhereSQLiteEndsThem(t *testing.T) {
	tls := libc.NewTLS()
	defer tls.Close()
	complete := func(text string) bool {
		p, err := libc.CString(text)
		if err != nil {
			t.Fatal(err)
		}
		defer libc.Xfree(tls, p)
		return lib.Xsqlite3_complete(tls, p) != 0
	}
	parts := []string{";", ";", ";", " ", "\n", "CREATE ", "TEMP ", "temporary ", "TRIGGER ", "END", "end ", "EXPLAIN ", "QUERY PLAN ", "BEGIN ", "SELECT 1", "'a;b'", "'it''s;'", "\"x;\"", "[;]", "`;`",
		"-- END;\n", "/* ; */", "'open;", "[open;", "x", "end1", ".", "(", ")", "\u00e4;", "-", "/", "*"}
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(rapid.SampledFrom(parts), 1, 25).Draw(t, "parts"), "")
		length, _ := firstStatement(text)
		if length < len(text) && !complete(text[:length]) {
			t.Fatalf("the first statement of %q is %q, which is not complete according to SQLite", text, text[:length])
		}
		for i := range length {
			if text[i] == ';' && i+1 < length && complete(text[:i+1]) && !IsBlank(text[:i+1]) {
				t.Fatalf("the first statement of %q is %q, but SQLite ends it after %d bytes", text, text[:length], i+1)
			}
		}
	})
}

func FuzzStatement(f *testing.F) {
	f.Add("CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END; COMMIT")
	f.Fuzz(func(t *testing.T, text string) {
		for rest := text; rest != ""; {
			n, word := firstStatement(rest)
			if n <= 0 || n > len(rest) || len(word) > n {
				t.Fatalf("%q: %d, %q", rest, n, word)
			}
			rest = rest[n:]
		}
	})
}
