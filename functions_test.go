package hiqlite_test

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file use functions and collations that are written in Go.

// testFunctions returns functions and collations of each kind.
func testFunctions(version uint64) ([]hiqlite.Function, []hiqlite.Collation) {
	functions := []hiqlite.Function{
		{Name: "Reversed", NArgs: 1, Version: version, Deterministic: true, Scalar: func(args []driver.Value) (driver.Value, error) {
			text, ok := args[0].(string)
			if !ok {
				return nil, fmt.Errorf("reversed() takes a text, not %T", args[0])
			}
			b := []byte(text)
			for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
				b[i], b[j] = b[j], b[i]
			}
			return string(b), nil
		}},
		{Name: "echo", NArgs: -1, Deterministic: true, Scalar: func(args []driver.Value) (driver.Value, error) {
			if len(args) == 0 {
				return nil, nil
			}
			return args[len(args)-1], nil
		}},
		{Name: "panics", Deterministic: true, Scalar: func([]driver.Value) (driver.Value, error) { panic("at once") }},
		{Name: "epoch", Deterministic: true, Scalar: func([]driver.Value) (driver.Value, error) { return time.Unix(0, 0), nil }},
		{Name: "ticks", Scalar: func([]driver.Value) (driver.Value, error) { return time.Now().UnixNano(), nil }},
		{Name: "product", NArgs: 1, Deterministic: true, Window: true, Aggregate: func() hiqlite.Aggregate { return &product{value: 1} }},
		{Name: "longest", NArgs: 1, Deterministic: true, Aggregate: func() hiqlite.Aggregate { return new(longest) }},
	}
	collations := []hiqlite.Collation{{Name: "by_length", Version: version, Compare: func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	}}}
	return functions, collations
}

type product struct{ value int64 }

func (p *product) Step(args []driver.Value) error    { p.value *= args[0].(int64); return nil }
func (p *product) Inverse(args []driver.Value) error { p.value /= args[0].(int64); return nil }
func (p *product) Value() (driver.Value, error)      { return p.value, nil }
func (p *product) Final() (driver.Value, error)      { return p.value, nil }

type longest struct{ text string }

func (l *longest) Step(args []driver.Value) error {
	if text, ok := args[0].(string); ok && len(text) > len(l.text) {
		l.text = text
	}
	return nil
}
func (l *longest) Final() (driver.Value, error) { return l.text, nil }

func withFunctions(c *hiqlite.Config) { c.Functions, c.Collations = testFunctions(1) }

// Reads and writes can use the functions and collations of the program, and all nodes
// come to the same rows.
func TestFunctionsOfTheProgram(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		ctx := testrun.Context(t)
		db := c.Node(0).DB()
		mustExec(t, db, `CREATE TABLE word(id INTEGER PRIMARY KEY, text TEXT COLLATE by_length CHECK(reversed(text) <> 'drow'), back TEXT AS (reversed(text)) STORED)`)
		mustExec(t, db, `CREATE INDEX word_back ON word(REVERSED(text))`)
		mustExec(t, db, `CREATE VIEW backwards AS SELECT id, reversed(text) AS text FROM word`)
		mustExec(t, db, `CREATE TABLE log(text)`)
		mustExec(t, db, `CREATE TRIGGER logged AFTER INSERT ON word BEGIN INSERT INTO log SELECT echo(1, reversed(new.text)); END`)
		mustExec(t, db, `INSERT INTO word(text) VALUES('one'), ('three'), ('to'), (reversed('ruof'))`)
		if _, err := db.ExecContext(ctx, `INSERT INTO word(text) VALUES('word')`); err == nil || !strings.Contains(err.Error(), "CHECK constraint failed") {
			t.Errorf("a violated CHECK: %v", err)
		}
		if _, err := db.ExecContext(ctx, `INSERT INTO word(text) VALUES(reversed(1))`); err == nil || !strings.Contains(err.Error(), "reversed() takes a text, not int64") {
			t.Errorf("an error of the function: %v", err)
		}
		if _, err := db.ExecContext(ctx, `INSERT INTO log VALUES(panics())`); err == nil || !strings.Contains(err.Error(), "the function panics panicked: at once") {
			t.Errorf("a panic of the function: %v", err)
		}
		if _, err := db.ExecContext(ctx, `INSERT INTO log VALUES(ticks())`); err == nil || !strings.Contains(err.Error(), "not Deterministic") {
			t.Errorf("a write with a function that is not deterministic: %v", err)
		}
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(`UPDATE word SET text = reversed(text) WHERE text = 'to'`); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(`INSERT INTO log VALUES(ticks())`); err == nil || !strings.Contains(err.Error(), "not Deterministic") {
			t.Errorf("a write in a transaction with a function that is not deterministic: %v", err)
		}
		var n int64
		if err := tx.QueryRow(`SELECT ticks() > 0`).Scan(&n); err != nil || n != 1 {
			t.Errorf("a read in a transaction: %d, %v", n, err)
		}
		mustCommit(t, tx)
		for _, q := range []struct{ text, want string }{
			{`SELECT group_concat(text, ' ') FROM (SELECT text FROM word ORDER BY text)`, "ot one four three"},
			{`SELECT group_concat(text, ' ') FROM (SELECT text FROM backwards ORDER BY id)`, "eno eerht to ruof"},
			{`SELECT group_concat(text, ' ') FROM (SELECT text FROM log ORDER BY rowid)`, "eno eerht ot ruof"},
			{`SELECT id FROM word WHERE reversed(text) = 'ruof'`, "4"},
			{`SELECT longest(text) FROM word`, "three"},
			{`SELECT longest(text) FROM word WHERE 0`, ""},
			{`SELECT product(id) FROM word`, "24"},
			{`SELECT group_concat(p, ' ') FROM (SELECT product(id) OVER (ORDER BY id ROWS 1 PRECEDING) AS p FROM word)`, "1 2 6 12"},
			{`SELECT typeof(epoch()) || ' ' || date(epoch())`, "text 1970-01-01"},
			{`SELECT typeof(echo()) || typeof(echo(x'01')) || typeof(echo(1.5)) || echo('é')`, "nullblobrealé"},
			{`SELECT ('abc' REGEXP '^a.c$') || ('abc' REGEXP 'd') || (NULL REGEXP 'x' IS NULL)`, "101"},
		} {
			var got string
			if err := db.QueryRowContext(hiqlite.WithConsistency(ctx, hiqlite.Linearizable), q.text).Scan(&got); err != nil || got != q.want {
				t.Errorf("%s: %q, %v; want %q", q.text, got, err, q.want)
			}
		}
		if _, err := db.QueryContext(ctx, `SELECT 'a' REGEXP '('`); err == nil || !strings.Contains(err.Error(), "REGEXP: error parsing regexp") {
			t.Errorf("an invalid pattern: %v", err)
		}
		c.WaitEqual()
		c.restartAll() // a start needs the functions that the schema uses
		db = c.Node(0).DB()
		mustExec(t, db, `INSERT INTO word(text) VALUES('again')`)
		c.WaitEqual()
	}, withFunctions)
}

// A node whose program lacks a function stops before it executes an operation that uses
// it, and goes on when it is started with the function.
func TestMissingFunctions(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, withFunctions)
	ctx := testrun.Context(t)
	c.Stop(2)
	withNone := func(cfg *hiqlite.Config) { cfg.Functions, cfg.Collations = nil, nil }
	c.Configure(2, withNone)
	c.Start(2)
	c.WaitReady(2) // nothing uses the functions yet
	db := c.Node(0).DB()
	for _, text := range []string{
		`CREATE TABLE t(text)`,
		`INSERT INTO t VALUES(reversed('abc'))`,
	} {
		if _, err := db.ExecContext(ctx, text); err != nil {
			t.Fatal(err)
		}
	}
	missing := func(err error) bool {
		return errors.Is(err, hiqlite.ErrFunctionMissing) && strings.Contains(err.Error(), "function reversed, version 1")
	}
	testrun.WaitFor(t, "the node without the function to stop", func() bool {
		_, err := c.Node(2).Status(ctx)
		return missing(err)
	})
	if _, err := c.Node(2).DB().ExecContext(ctx, `INSERT INTO t VALUES(1)`); !missing(err) {
		t.Errorf("a write at the stopped node: %v", err)
	}
	if _, err := db.ExecContext(ctx, `INSERT INTO t VALUES('after')`); err != nil {
		t.Error(err)
	}
	c.Stop(2)
	c.Configure(2, withFunctions)
	c.Start(2)
	c.WaitReady(2)
	c.WaitEqual()

	// A node cannot start without the functions that the schema uses.
	if _, err := db.ExecContext(ctx, `CREATE INDEX i ON t(reversed(text) COLLATE by_length)`); err != nil {
		t.Fatal(err)
	}
	if err := c.Node(2).Ready(ctx); err != nil {
		t.Fatal(err)
	}
	c.Stop(2)
	newer := c.Config(2)
	newer.Functions, newer.Collations = testFunctions(2)
	if _, err := hiqlite.Open(ctx, newer); !errors.Is(err, hiqlite.ErrFunctionMissing) || !strings.Contains(err.Error(), "version 1") {
		t.Errorf("a start with another version: %v", err)
	}
	if _, err := db.ExecContext(ctx, `DROP INDEX i`); err != nil {
		t.Fatal(err)
	}
	c.Start(2)
	c.WaitReady(2)
	c.Stop(2)
	c.Configure(2, withNone) // the schema does not use the functions any more
	c.Start(2)
	c.WaitReady(2)
	c.WaitEqual()
}

// Open reports all faults of the functions and collations at once.
func TestInvalidFunctions(t *testing.T) {
	t.Parallel()
	scalar := func([]driver.Value) (driver.Value, error) { return nil, nil }
	cfg := hiqlite.Config{DataDir: t.TempDir(),
		Functions: []hiqlite.Function{
			{Name: "", Scalar: scalar}, {Name: "Lower", Scalar: scalar}, {Name: "regexp", NArgs: 2, Scalar: scalar}, {Name: "none"}, {Name: "many", NArgs: 128, Scalar: scalar},
			{Name: "twice", Version: 1, Scalar: scalar}, {Name: "TWICE", Version: 2, NArgs: 1, Scalar: scalar},
		},
		Collations: []hiqlite.Collation{{Name: "NoCase", Compare: strings.Compare}, {Name: "empty"}},
	}
	_, err := hiqlite.Open(t.Context(), cfg)
	if err == nil {
		t.Fatal("Open has succeeded")
	}
	for _, want := range []string{`the function name ""`, "Lower is one of SQLite's", "regexp is one of SQLite's", "none must be either", "many takes 128", "TWICE is given twice", "NoCase is given twice", "empty has no Compare"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

// A function that returns a value which SQLite does not have, or an aggregate without
// the methods of a window function, makes its statement fail.
func TestFunctionsWithInvalidResults(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) {
		cfg.Functions = []hiqlite.Function{
			{Name: "odd", Scalar: func([]driver.Value) (driver.Value, error) { return struct{}{}, nil }},
			{Name: "not_a_number", Scalar: func([]driver.Value) (driver.Value, error) { return math.NaN(), nil }},
			{Name: "wrong_window", NArgs: 1, Window: true, Aggregate: func() hiqlite.Aggregate { return new(longest) }},
		}
	})
	db := c.Node(0).DB()
	var got sql.NullString
	if err := db.QueryRow(`SELECT odd()`).Scan(&got); err == nil || !strings.Contains(err.Error(), "returned a struct {}") {
		t.Errorf("a result of another type: %v", err)
	}
	if err := db.QueryRow(`SELECT not_a_number()`).Scan(&got); err != nil || got.Valid {
		t.Errorf("NaN is %v, %v; SQLite makes it NULL", got, err)
	}
	if err := db.QueryRow(`SELECT wrong_window(1)`).Scan(&got); err == nil || !strings.Contains(err.Error(), "is not a hiqlite.WindowAggregate") {
		t.Errorf("a window function without its methods: %v", err)
	}
}
