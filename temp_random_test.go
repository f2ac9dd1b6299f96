package hiqlite_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// This file runs the same random steps with TEMP objects with this driver and with
// that of modernc.org/sqlite. It leaves out what differs on purpose, which
// tx_reference_test.go lists. Scripts can fail only in their first statement.

// A tempGenerator generates the steps of one run.
type tempGenerator struct {
	*rand.Rand
	open bool // whether a transaction is open
}

func (g *tempGenerator) pick(options ...string) string { return options[g.IntN(len(options))] }
func (g *tempGenerator) small() string                 { return fmt.Sprint(1 + g.IntN(9)) }
func (g *tempGenerator) table() string {
	return g.pick("t", "u", "x", "y", "z", "main.t", "temp.x", "temp.t")
}

func (g *tempGenerator) source() string {
	return g.pick("SELECT a, b FROM "+g.table()+" WHERE a<5 ORDER BY a, b LIMIT 4", "SELECT a+10, b FROM "+g.table()+" ORDER BY a, b LIMIT 3", "SELECT count(*), sum(a) FROM "+g.table(), "SELECT a, b FROM v ORDER BY a, b LIMIT 3",
		"VALUES("+g.small()+", 'v"+g.small()+"')", "SELECT x.a, u.b FROM x JOIN u ON x.a=u.a ORDER BY 1, 2 LIMIT 3")
}

// write returns a statement that writes TEMP objects, ordinary ones, or both.
func (g *tempGenerator) write() string {
	switch g.IntN(12) {
	case 0, 1, 2, 3:
		return g.pick("INSERT", "INSERT", "INSERT OR IGNORE", "INSERT OR REPLACE", "INSERT OR FAIL") + " INTO " + g.table() + "(a,b) " + g.source() + g.pick("", "", " RETURNING a, b")
	case 4:
		return "UPDATE " + g.table() + " SET b=" + g.pick("'w"+g.small()+"'", "(SELECT max(a) FROM "+g.table()+")", "a") + g.pick("", " WHERE a="+g.small())
	case 5:
		return "DELETE FROM " + g.table() + g.pick(" WHERE a="+g.small(), " WHERE a IN (SELECT a FROM "+g.table()+")", "")
	case 6:
		return "CREATE TEMP TABLE " + g.pick("", "IF NOT EXISTS ") + g.pick("x", "y", "z", "t") + g.pick("(a INTEGER PRIMARY KEY, b)", "(a INTEGER PRIMARY KEY AUTOINCREMENT, b)", "(a PRIMARY KEY, b UNIQUE) WITHOUT ROWID", "(a, b)", " AS SELECT a, b FROM "+g.pick("u", "main.t", "x"))
	case 7:
		return g.pick("DROP TABLE IF EXISTS ", "DROP TABLE ") + g.pick("x", "y", "z", "temp.t", "temp.x")
	case 8:
		return g.pick("CREATE TEMP TRIGGER IF NOT EXISTS g AFTER INSERT ON main.t BEGIN INSERT INTO u(a,b) VALUES(new.a, 'g'); END", "CREATE TRIGGER temp.h AFTER INSERT ON main.u WHEN new.a<100 BEGIN INSERT OR IGNORE INTO x(a,b) VALUES(new.a+100, 'h'); END",
			"CREATE TEMP TRIGGER k BEFORE DELETE ON x WHEN old.a=3 BEGIN SELECT RAISE(ABORT, 'three stays'); END", "DROP TRIGGER IF EXISTS g", "DROP TRIGGER IF EXISTS h", "DROP TRIGGER k")
	case 9:
		return g.pick("CREATE TEMP VIEW IF NOT EXISTS v AS SELECT a, b FROM main.t UNION ALL SELECT a, b FROM main.u", "DROP VIEW IF EXISTS v", "CREATE TEMP VIEW v AS SELECT a, b FROM x", "CREATE INDEX temp.xi ON x(b)", "CREATE INDEX IF NOT EXISTS ti ON t(b)", "DROP INDEX IF EXISTS ti")
	case 10:
		return g.pick("ALTER TABLE x ADD COLUMN c DEFAULT 7", "ALTER TABLE x RENAME TO y", "ALTER TABLE main.u RENAME TO w", "ALTER TABLE main.w RENAME TO u", "CREATE TABLE IF NOT EXISTS u(a INTEGER PRIMARY KEY, b)")
	}
	return "INSERT INTO log(what) SELECT '" + g.small() + "'||count(*)||total(a) FROM " + g.table()
}

func (g *tempGenerator) read() string {
	return g.pick("SELECT * FROM x ORDER BY 1, 2", "SELECT * FROM y ORDER BY 1, 2", "SELECT * FROM t ORDER BY 1, 2", "SELECT * FROM u ORDER BY 1, 2", "SELECT * FROM v ORDER BY 1, 2", "SELECT type, name, tbl_name, sql FROM sqlite_temp_schema ORDER BY 1, 2",
		"SELECT * FROM temp.sqlite_sequence ORDER BY 1", "SELECT what FROM log ORDER BY id", "PRAGMA table_info(x)", "SELECT t.a, x.b FROM main.t JOIN x USING(a) ORDER BY 1, 2", "SELECT name FROM sqlite_schema WHERE name NOT LIKE '%hiqlite%' ORDER BY 1")
}

func (g *tempGenerator) step() string {
	switch n := g.IntN(20); {
	case n < 10:
		return g.write()
	case n < 16:
		return g.read()
	case g.open && n == 16:
		return g.pick("SAVEPOINT s", "ROLLBACK TO s", "RELEASE s")
	case g.open:
		g.open = false
		return g.pick("COMMIT", "COMMIT", "ROLLBACK")
	case n == 19:
		return g.pick("CREATE TEMP TABLE n(a,b); INSERT INTO n VALUES(1,2),(3,4); INSERT INTO log(what) SELECT a+200 FROM n; DROP TABLE n", "INSERT INTO log(what) VALUES(400); INSERT INTO log(what) SELECT count(*) FROM main.t")
	}
	g.open = true
	return "BEGIN"
}

// run generates steps, and runs each of them on both connections of a pair.
func (g *tempGenerator) run(p *pair, steps int) {
	p.t.Helper()
	for _, s := range []string{"CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE)", "CREATE TABLE u(a INTEGER PRIMARY KEY, b)", "CREATE TABLE log(id INTEGER PRIMARY KEY, what)", "INSERT INTO u VALUES(1,'one'),(2,'two'),(3,'three')", "CREATE TEMP TABLE x(a INTEGER PRIMARY KEY, b)"} {
		p.same(ways[1], text(s))
	}
	var past []string
	for range steps {
		s := g.step()
		past = append(past, s)
		p.same(ways[g.IntN(2)*2], text(s)) // with Query, so that rows are compared, too
		if p.t.Failed() {
			p.t.Fatalf("the steps so far:\n%s", strings.Join(past, "\n"))
		}
	}
	if g.open {
		p.same(ways[1], text("COMMIT"))
	}
	for _, s := range []string{"SELECT * FROM main.t ORDER BY 1", "SELECT * FROM log ORDER BY 1", "SELECT name, sql FROM sqlite_temp_schema ORDER BY 1"} {
		p.same(ways[0], text(s))
	}
}

func TestRandomTempObjects(t *testing.T) {
	t.Parallel()
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	const seeds, steps = 10, 100
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			g := &tempGenerator{Rand: rand.New(rand.NewPCG(seed, 1))}
			g.run(newPair(t, ""), steps)
		})
	}
}

func TestRandomTempObjectsOnThreeNodes(t *testing.T) {
	t.Parallel()
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	const seed, steps = 77, 120
	c := newCluster(t, 3)
	g := &tempGenerator{Rand: rand.New(rand.NewPCG(seed, 2))}
	g.run(clusterPair(t, c, 1), steps)
	c.WaitEqual()
}
