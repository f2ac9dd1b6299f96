package replica

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

const family = "CREATE TABLE p(id INTEGER PRIMARY KEY, v); CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE); CREATE TABLE d(p REFERENCES p DEFERRABLE INITIALLY DEFERRED); INSERT INTO p VALUES(1,'one'); INSERT INTO c VALUES(1,1)"

// off returns an operation of a connection on which foreign keys are off.
func off(texts ...string) *wire.Operation {
	o := op(texts...)
	o.Settings = wire.ForeignKeysOff
	return o
}

func TestForeignKeys(t *testing.T) {
	const violated = sqlite.CodeForeignKey
	for _, test := range []struct {
		name  string
		ops   []*wire.Operation
		codes []int // 0: it succeeds
		want  string
	}{
		{"immediate", []*wire.Operation{op("INSERT INTO c VALUES(2,9)"), op("INSERT INTO p VALUES(2,2)")}, []int{violated, 0}, "1 2|1|"},
		{"cascade", []*wire.Operation{op("DELETE FROM p")}, []int{0}, "||"},
		{"deferred, violated at the end", []*wire.Operation{op("INSERT INTO d VALUES(9)"), op("INSERT INTO p VALUES(2,2)")}, []int{violated, 0}, "1 2|1|"},
		{"deferred, satisfied later", []*wire.Operation{op("INSERT INTO d VALUES(9)", "INSERT INTO p VALUES(9,9)")}, []int{0}, "1 9|1|9"},
		{"deferred, satisfied later in a script", []*wire.Operation{op("INSERT INTO d VALUES(9); INSERT INTO p VALUES(9,9)")}, []int{0}, "1 9|1|9"},
		{"deferred, satisfied only by the next operation", []*wire.Operation{op("INSERT INTO d VALUES(9)"), op("INSERT INTO p VALUES(9,9)")}, []int{violated, 0}, "1 9|1|"},
		{"deferred by PRAGMA", []*wire.Operation{op("PRAGMA defer_foreign_keys=ON; INSERT INTO c VALUES(2,9); INSERT INTO p VALUES(9,9)")}, []int{0}, "1 9|1 2|"},
		{"deferred by PRAGMA, violated", []*wire.Operation{op("PRAGMA defer_foreign_keys=ON; INSERT INTO c VALUES(2,9)")}, []int{violated}, "1|1|"},
		{"the PRAGMA ends with its operation", []*wire.Operation{op("PRAGMA defer_foreign_keys=ON"), op("INSERT INTO c VALUES(2,9)", "INSERT INTO p VALUES(9,9)")}, []int{0, violated}, "1|1|"},
		{"the PRAGMA ends with an operation that fails", []*wire.Operation{op("PRAGMA defer_foreign_keys=ON; INSERT INTO c VALUES(2,9); nonsense"), op("INSERT INTO c VALUES(2,9)", "INSERT INTO p VALUES(9,9)")}, []int{1, violated}, "1|1|"},
		{"the PRAGMA ends with an operation that rolls back", []*wire.Operation{op("PRAGMA defer_foreign_keys=ON; INSERT OR ROLLBACK INTO p VALUES(1,1)"), op("INSERT INTO c VALUES(2,9)", "INSERT INTO p VALUES(9,9)")}, []int{1555, violated}, "1|1|"},
		{"off for one operation", []*wire.Operation{off("INSERT INTO c VALUES(2,9)"), op("INSERT INTO c VALUES(3,9)")}, []int{0, violated}, "1|1 2|"},
		{"off for one that fails", []*wire.Operation{off("INSERT INTO c VALUES(1,9)"), op("INSERT INTO c VALUES(3,9)")}, []int{1555, violated}, "1|1|"},
		{"off for one that rolls back", []*wire.Operation{off("INSERT OR ROLLBACK INTO c VALUES(1,9)"), op("INSERT INTO c VALUES(3,9)")}, []int{1555, violated}, "1|1|"},
		{"off means no cascade", []*wire.Operation{off("DELETE FROM p")}, []int{0}, "|1|"},
		{"off in a script", []*wire.Operation{op("PRAGMA foreign_keys=OFF; INSERT INTO c VALUES(2,9)"), op("INSERT INTO c VALUES(3,9)")}, []int{0, violated}, "1|1 2|"},
		{"off in a script that fails", []*wire.Operation{op("PRAGMA foreign_keys=OFF; INSERT INTO c VALUES(2,9); nonsense"), op("INSERT INTO c VALUES(3,9)")}, []int{1, violated}, "1|1|"},
		{"on again in a script", []*wire.Operation{op("PRAGMA foreign_keys=OFF; INSERT INTO c VALUES(2,9); PRAGMA foreign_keys=ON; INSERT INTO c VALUES(3,9)")}, []int{violated}, "1|1|"},
		{"on in a script of a connection that has them off", []*wire.Operation{off("INSERT INTO c VALUES(2,9); PRAGMA foreign_keys=ON; INSERT INTO c VALUES(3,9)")}, []int{violated}, "1|1|"},
		{"switched while a key is violated", []*wire.Operation{op("INSERT INTO d VALUES(9); PRAGMA foreign_keys=OFF")}, []int{violated}, "1|1|"},
		{"a table rebuilt", []*wire.Operation{op(`PRAGMA foreign_keys=OFF; CREATE TABLE new_p(id INTEGER PRIMARY KEY, v, w DEFAULT 7); INSERT INTO new_p(id,v) SELECT * FROM p;
			DROP TABLE p; ALTER TABLE new_p RENAME TO p; PRAGMA foreign_key_check; PRAGMA foreign_keys=ON`), op("INSERT INTO c VALUES(3,9)"), op("DELETE FROM p WHERE id=1 AND w=7")}, []int{0, violated, 0}, "||"},
		{"a table rebuilt by a connection that has them off", []*wire.Operation{off("CREATE TABLE new_p(id INTEGER PRIMARY KEY, v, w DEFAULT 7)", "INSERT INTO new_p(id,v) SELECT * FROM p",
			"DROP TABLE p", "ALTER TABLE new_p RENAME TO p"), op("INSERT INTO c VALUES(3,9)")}, []int{0, violated}, "1|1|"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHistory()
			h.sql(family)
			h.do(test.ops...)
			for _, o := range test.ops {
				h.do(o)
			}
			q := "SELECT (SELECT coalesce(group_concat(id,' '),'') FROM (SELECT id FROM p ORDER BY 1)), (SELECT coalesce(group_concat(id,' '),'') FROM (SELECT id FROM c ORDER BY 1)), (SELECT coalesce(group_concat(p,' '),'') FROM d)"
			m := agree(t, h, q)
			once := emptyMachine(t)
			once.apply(h.entries[:3]...)
			if got := once.rows(q); got != test.want {
				t.Errorf("the rows are %q, want %q", got, test.want)
			}
			for i, r := range m.got[[2]uint64{1, 2}] {
				if code := codeOf(r); code != test.codes[i] {
					t.Errorf("the error of operation %d is %v, want code %d", i, r.Err, test.codes[i])
				}
			}
		})
	}
}

func codeOf(r wire.Result) int {
	if r.Err == nil {
		return 0
	}
	return r.Err.Code
}

func TestResultsHaveTheSettingsThatAScriptChanged(t *testing.T) {
	m := newMachine(t)
	m.must(family)
	for text, want := range map[string]wire.Settings{
		"PRAGMA foreign_keys=OFF":                                               wire.ForeignKeysOff,
		"PRAGMA foreign_keys=OFF; INSERT INTO c VALUES(8,8)":                    wire.ForeignKeysOff,
		"PRAGMA foreign_keys=0; PRAGMA foreign_keys=yes":                        0,
		"PRAGMA foreign_keys; SELECT 1":                                         0,
		"PRAGMA foreign_keys=OFF; nonsense":                                     0,
		"PRAGMA recursive_triggers=ON; PRAGMA trusted_schema=0; SELECT 1":       wire.RecursiveTriggers | wire.UntrustedSchema,
		"PRAGMA case_sensitive_like=1; PRAGMA writable_schema=RESET; SELECT 1":  wire.CaseSensitiveLike,
		"PRAGMA query_only=1; SELECT 1":                                         wire.QueryOnly,
		"PRAGMA query_only=1; PRAGMA query_only=0; INSERT INTO p VALUES(77,'')": 0,
	} {
		if r := m.do(op(text))[0]; r.ChangedSettings != want {
			t.Errorf("%q: %b, want %b (%v)", text, r.ChangedSettings, want, r.Err)
		}
	}
	switched := off("PRAGMA foreign_keys=ON; PRAGMA legacy_alter_table=ON; INSERT INTO p VALUES(78,'')")
	if r := m.do(switched)[0]; r.ChangedSettings != wire.ForeignKeysOff|wire.LegacyAlterTable {
		t.Errorf("%b (%v)", r.ChangedSettings, r.Err)
	}
	if r := m.do(op("PRAGMA query_only=1; INSERT INTO p VALUES(79,'')"))[0]; codeOf(r) != sqlite.CodeReadOnly || r.ChangedSettings != 0 {
		t.Errorf("%v", r.Err)
	}
}

func TestChangesAndLastInsertRowidBelongToTheConnection(t *testing.T) {
	h := newHistory()
	h.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", "CREATE TABLE l(c, t, r)", "INSERT INTO t(v) VALUES(1),(2),(3)")
	ask := op("INSERT INTO l VALUES(changes(), total_changes(), last_insert_rowid()) RETURNING *")
	carried := op(ask.Statements[0].SQL)
	carried.Changes, carried.LastInsertID = 5, 77
	inside := op("UPDATE t SET v=v+1", ask.Statements[0].SQL)
	h.do(ask, carried, inside)
	h.do(op("DELETE FROM t"), ask)
	m := agree(t, h, "SELECT * FROM l")
	if got := m.rows("SELECT * FROM l"); got != "0|0|0\n5|0|77\n3|3|0\n0|0|0" {
		t.Errorf("the operation read %q", got)
	}
	r := m.got[[2]uint64{1, 4}]
	if s := r[1].Statements[0]; s.RowsAffected != 1 || s.LastInsertID != 2 {
		t.Errorf("the result is %+v", s)
	}
}

func TestScripts(t *testing.T) {
	for _, test := range []struct {
		name, text string
		args       []wire.Argument
		code       int
		affected   int64
		rows       int // -1: none
		want       string
	}{
		{"later statements use what earlier ones made", "CREATE TABLE x(a); INSERT INTO x VALUES(1),(2); CREATE INDEX xa ON x(a); INSERT INTO t SELECT a FROM x", nil, 0, 2, -1, "1 2"},
		{"all or nothing", "INSERT INTO t VALUES(1); INSERT INTO t VALUES(2); INSERT INTO nosuch VALUES(3)", nil, 1, 0, -1, ""},
		{"a syntax error at the end", "INSERT INTO t VALUES(1); INSERT INTO t VALUES(2); nonsense", nil, 1, 0, -1, ""},
		{"every statement binds from the first argument", "INSERT INTO t VALUES(?); INSERT INTO t VALUES(?+10)", args(1), 0, 1, -1, "1 11"},
		{"an argument that none uses", "INSERT INTO t VALUES(?); INSERT INTO t VALUES(?)", args(1, 2), 1, 0, -1, ""},
		{"a missing argument", "INSERT INTO t VALUES(1); INSERT INTO t VALUES(?, ?)", args(1), 1, 0, -1, ""},
		{"rows of each statement that has columns", "INSERT INTO t VALUES(1) RETURNING a; SELECT a FROM t UNION SELECT 5; INSERT INTO t VALUES(2);", nil, 0, 1, 1, "1 2"},
		{"rows of the only one", "INSERT INTO t VALUES(1); SELECT 5 UNION SELECT 6", nil, 0, 1, 2, "1"},
		{"white space and comments after it", "INSERT INTO t VALUES(1); SELECT 5 UNION SELECT 6; -- end\n ;", nil, 0, 1, 2, "1"},
		{"rows before a write", "SELECT 5; INSERT INTO t VALUES(1); /* end */ ", nil, 0, 1, 1, "1"},
		{"only a comment", "-- nothing", nil, 0, 0, -1, ""},
		{"nothing", "", nil, 0, 0, -1, ""},
		{"a harmless PRAGMA", "PRAGMA journal_mode=DELETE; PRAGMA synchronous=OFF; INSERT INTO t VALUES(1)", nil, 0, 1, -1, "1"},
		{"a PRAGMA that is refused", "PRAGMA schema_version=3; INSERT INTO t VALUES(1)", nil, sqlite.CodeAuth, 0, -1, ""},
		{"a PRAGMA that changes the meaning of the script", "PRAGMA ignore_check_constraints=ON; CREATE TABLE k(a CHECK(a<1)); INSERT INTO k VALUES(7); INSERT INTO t SELECT a FROM k", nil, 0, 1, -1, "7"},
		{"ATTACH", "INSERT INTO t VALUES(1); ATTACH 'x.db' AS x", nil, sqlite.CodeAuth, 0, -1, ""},
		{"TEMP", "CREATE TEMP TABLE x(a); INSERT INTO t VALUES(1)", nil, sqlite.CodeAuth, 0, -1, ""},
		{"VACUUM inside", "INSERT INTO t VALUES(1); VACUUM", nil, 1, 0, -1, ""},
		{"a NUL", "INSERT INTO t VALUES(1)\x00; nonsense", nil, 1, 0, -1, ""},
		{"an empty statement first", "; ; INSERT INTO t VALUES(1); INSERT INTO t VALUES(2)", nil, 0, 1, -1, "1 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHistory()
			h.sql("CREATE TABLE t(a)")
			h.do(&wire.Operation{Statements: []wire.Statement{{SQL: test.text, Args: test.args}}})
			m := agree(t, h)
			r := m.got[[2]uint64{1, 2}][0]
			if codeOf(r) != test.code {
				t.Fatalf("the error is %v, want code %d", r.Err, test.code)
			}
			if test.code == 0 {
				s := r.Statements[0]
				if s.RowsAffected != test.affected || (s.Rows != nil) != (test.rows >= 0) || s.Rows != nil && s.Rows.Len() != test.rows {
					t.Errorf("the result is %+v (%d rows)", s, s.Rows.Len())
				}
			}
			if got := m.rows("SELECT group_concat(a,' ') FROM (SELECT a FROM t ORDER BY a)"); got != test.want {
				t.Errorf("the rows are %q", got)
			}
		})
	}
}

func args(values ...int64) (out []wire.Argument) {
	for _, v := range values {
		out = append(out, wire.Argument{Value: wire.IntegerValue(v)})
	}
	return out
}

func TestTheRowsOfAWriteAreBounded(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	r := m.do(op("INSERT INTO t WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<70) SELECT zeroblob(1000000) FROM x RETURNING a"), op("INSERT INTO t VALUES(1)"))
	if codeOf(r[0]) != sqlite.CodeTooBig || codeOf(r[1]) != 0 {
		t.Errorf("the errors are %v, %v", r[0].Err, r[1].Err)
	}
	if got := m.rows("SELECT count(*) FROM t"); got != "1" {
		t.Errorf("there are %s rows", got)
	}
}

// A script is copied to the engine's memory once, not once for each statement. Otherwise
// a script of megabytes, as dumps are, would take minutes.
func TestLongScripts(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE n(a)")
	const rows = 10_000
	m.must(strings.Repeat("INSERT INTO n VALUES('"+strings.Repeat("some; text ", 20)+"');\n", rows))
	if got := m.rows("SELECT count(*) FROM n"); got != fmt.Sprint(rows) {
		t.Errorf("there are %s rows", got)
	}
	// A script with a transaction of its own is split into its statements.
	script := "BEGIN;\n" + strings.Repeat("INSERT INTO n VALUES('"+strings.Repeat("some; text ", 20)+"');\n", rows) + "COMMIT;\n"
	n := 0
	for rest := script; rest != ""; n++ {
		part, tail, err := m.First(rest, 0)
		if err != nil {
			t.Fatal(err)
		}
		if want := rest[:len(rest)-len(tail)]; part.SQL != want {
			t.Fatalf("the part %q is not the beginning of the script", part.SQL)
		}
		rest = tail
	}
	if n != rows+3 { // the last one, after the last semicolon, is empty
		t.Errorf("there are %d statements, want %d", n, rows+3)
	}
}
