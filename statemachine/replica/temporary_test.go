package replica

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A tempConn is a Temporary under test.
type tempConn struct {
	*Temporary
	t *testing.T
}

func newTempConn(t *testing.T, m *machine) tempConn {
	t.Helper()
	held, err := m.Temporary(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(held.Close)
	return tempConn{held, t}
}

func (h tempConn) exec(text string) error {
	_, err := h.Exec(context.Background(), text, nil, wire.ConnState{}, 0)
	return err
}

func (h tempConn) must(texts ...string) {
	h.t.Helper()
	for _, text := range texts {
		if err := h.exec(text); err != nil {
			h.t.Fatalf("%s: %v", text, err)
		}
	}
}

func (h tempConn) rows(text string) string {
	h.t.Helper()
	c, err := h.Query(context.Background(), text, nil, wire.ConnState{}, 0)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	out, err := rest(c)
	if err != nil {
		return err.Error()
	}
	return out
}

// rest returns the remaining rows of a cursor.
func rest(c *TempCursor) (string, error) {
	var out []string
	for {
		more, err := c.Next(func(s *sqlite.Stmt) {
			var cells []string
			for i := range s.ColumnCount() {
				cells = append(cells, string(s.Bytes(i)))
			}
			out = append(out, strings.Join(cells, "|"))
		})
		if err != nil || !more {
			return strings.Join(out, " "), err
		}
	}
}

// sees fails the test unless a query returns want.
func (h tempConn) sees(text, want string) {
	h.t.Helper()
	if got := h.rows(text); got != want {
		h.t.Errorf("%s: %q, want %q", text, got, want)
	}
}

// The connection of TEMP objects sees what was applied, and changes of the schema, at once.
func TestTemporarySeesTheDatabase(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)", "INSERT INTO t VALUES(1),(2)")
	h := newTempConn(t, m)
	h.must("CREATE TEMP TABLE x(a)", "INSERT INTO x SELECT a*10 FROM t", "CREATE TEMP VIEW v AS SELECT a FROM main.t UNION ALL SELECT a FROM x", "CREATE TEMP TRIGGER g AFTER INSERT ON main.t BEGIN SELECT 1; END")
	h.sees("SELECT * FROM v", "1 2 10 20")
	m.must("INSERT INTO t VALUES(3)", "ALTER TABLE t ADD COLUMN b DEFAULT 'b'")
	h.sees("SELECT * FROM v WHERE a<10", "1 2 3")
	h.sees("SELECT * FROM t WHERE a=3", "3|b")
	m.must("DROP TABLE t")
	h.sees("SELECT a FROM x", "10 20")
	h.sees("SELECT * FROM t", "SQL logic error: no such table: t (1)")
	m.must("CREATE TABLE t(c)", "INSERT INTO t VALUES('new')")
	h.sees("SELECT * FROM t", "new")
	h.sees("SELECT count(*) FROM sqlite_temp_schema", "3")
}

// A statement that fails changes nothing, in whichever way it fails.
func TestTemporaryUndoesFailedStatements(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	h := newTempConn(t, m)
	h.must("CREATE TEMP TABLE x(a INTEGER PRIMARY KEY, b UNIQUE)", "INSERT INTO x VALUES(1,'one')", "CREATE TEMP TABLE y(a REFERENCES x)")
	for text, part := range map[string]string{
		"INSERT INTO x VALUES(2,'two'),(3,'one')":                 "UNIQUE",
		"INSERT OR ROLLBACK INTO x VALUES(2,'two'),(3,'one')":     "UNIQUE",
		"INSERT INTO x VALUES(9223372036854775807,'max')":         "largest rowid",
		"INSERT INTO y VALUES(7)":                                 "FOREIGN KEY",
		"INSERT INTO x SELECT 100,zeroblob(6000000)":              "full",
		"CREATE TEMP TABLE x(a)":                                  "already exists",
		"CREATE TEMP VIEW IF NOT EXISTS IF AS SELECT null":        "malformed",
		"INSERT INTO t VALUES(1)":                                 "readonly",
		"CREATE TEMP TABLE z AS SELECT abs(-9223372036854775808)": "overflow",
		"CREATE TEMP TABLE many AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<9000) SELECT i, hex(zeroblob(400)) AS h FROM n": "full",
	} {
		if err := h.exec(text); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v, want an error about %q", text, err, part)
		}
		h.sees("SELECT a, b FROM x", "1|one")
		h.sees("SELECT name FROM sqlite_temp_schema WHERE sql NOT NULL", "x y")
	}
	if err := h.exec("INSERT OR FAIL INTO x VALUES(2,'two'),(3,'one')"); err == nil {
		t.Error("no error")
	}
	h.sees("SELECT a, b FROM x", "1|one 2|two")
	h.must("DROP TABLE y", "DROP TABLE x")
	if !h.Unused() {
		t.Error("the connection counts as used")
	}
}

func TestTemporaryReturnsTheCountersOfItsConnection(t *testing.T) {
	m := newMachine(t)
	h := newTempConn(t, m)
	h.must("CREATE TEMP TABLE x(a INTEGER PRIMARY KEY, b)")
	r, err := h.Exec(context.Background(), "INSERT INTO x(b) SELECT changes()||' '||last_insert_rowid() RETURNING b", nil, wire.ConnState{Changes: 7, TotalChanges: 70, LastInsertID: 700}, 0)
	if err != nil || r.RowsAffected != 1 || r.LastInsertID != 1 || r.TotalChanges != 1 || string(r.Rows.Cells[0].Data) != "7 700" {
		t.Errorf("%+v, %v", r, err)
	}
}

// Several queries may be open, with writes between their rows. If a query is ended from
// outside, its error says why.
func TestQueriesOfATemporary(t *testing.T) {
	m := newMachine(t)
	h := newTempConn(t, m)
	h.must("CREATE TEMP TABLE x(a)", "INSERT INTO x VALUES(1),(2),(3)")
	open := func() *TempCursor {
		c, err := h.Query(context.Background(), "SELECT a FROM x ORDER BY +a", nil, wire.ConnState{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := open(), open()
	a.Next(nil)
	h.must("INSERT INTO x VALUES(4)")
	if got, err := rest(b); got != "1 2 3 4" || err != nil {
		t.Errorf("a query that began before the insert returns %s, %v", got, err)
	}
	b.Close()
	if got, err := rest(a); got != "2 3" || err != nil {
		t.Errorf("a query that had returned a row before the insert returns %s, %v", got, err)
	}
	a.Close()
	why := errors.New("why")
	c := open()
	c.Next(nil)
	h.endQueries(why)
	if _, err := c.Next(nil); !errors.Is(err, why) {
		t.Errorf("the error of an ended query is %v", err)
	}
	c.Close()
	h.sees("SELECT count(*) FROM x", "4")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := h.Exec(ctx, "INSERT INTO x VALUES(5)", nil, wire.ConnState{}, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("the error of a statement with an ended context is %v", err)
	}
	c = open()
	m.Close()
	if _, err := c.Next(nil); !errors.Is(err, ErrReplicaClosed) {
		t.Errorf("the error of a query after Close is %v", err)
	}
	if err := h.exec("INSERT INTO x VALUES(5)"); !errors.Is(err, ErrReplicaClosed) {
		t.Errorf("the error of a statement after Close is %v", err)
	}
	if _, err := m.Temporary(nil); !errors.Is(err, ErrReplicaClosed) {
		t.Errorf("the error of Temporary after Close is %v", err)
	}
	m.start()
}

// A received snapshot replaces the database, but not the TEMP objects.
func TestTemporarySurvivesASnapshot(t *testing.T) {
	m, other := newMachine(t), newMachine(t)
	other.must("CREATE TABLE t(a)", "INSERT INTO t VALUES('other')")
	h := newTempConn(t, m)
	h.must("CREATE TEMP TABLE x(a INTEGER PRIMARY KEY AUTOINCREMENT, b)", "INSERT INTO x(b) VALUES('kept')", "DELETE FROM x", "INSERT INTO x(b) VALUES('kept')")
	c, err := h.Query(context.Background(), "SELECT b FROM x", nil, wire.ConnState{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	other.snapshotTo(m)
	h.must("INSERT INTO x(b) VALUES('later')")
	if got, err := rest(c); got != "kept later" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	c.Close()
	h.sees("SELECT x.a, x.b, t.a FROM x, t", "2|kept|other 3|later|other")
	h.must("INSERT INTO x(b) SELECT a FROM t")
	h.sees("SELECT max(a) FROM x", "4")
	content, err := h.Content()
	if err != nil || !strings.Contains(string(content), "later") {
		t.Errorf("%q, %v", content, err)
	}
}
