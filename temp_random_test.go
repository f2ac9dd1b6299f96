package hiqlite_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// Random steps with TEMP objects against modernc.org/sqlite, alike for both. Left
// out is what differs on purpose: see tx_reference_test.go. Scripts here fail
// nowhere but in their first statement.

type tempHistory struct {
	*rand.Rand
	open bool // a transaction is
}

func (h *tempHistory) pick(options ...string) string { return options[h.IntN(len(options))] }
func (h *tempHistory) small() string                 { return fmt.Sprint(1 + h.IntN(9)) }
func (h *tempHistory) table() string {
	return h.pick("t", "u", "x", "y", "z", "main.t", "temp.x", "temp.t")
}

func (h *tempHistory) source() string {
	return h.pick("SELECT a, b FROM "+h.table()+" WHERE a<5 ORDER BY a, b LIMIT 4", "SELECT a+10, b FROM "+h.table()+" ORDER BY a, b LIMIT 3", "SELECT count(*), sum(a) FROM "+h.table(), "SELECT a, b FROM v ORDER BY a, b LIMIT 3",
		"VALUES("+h.small()+", 'v"+h.small()+"')", "SELECT x.a, u.b FROM x JOIN u ON x.a=u.a ORDER BY 1, 2 LIMIT 3")
}

// write is a statement that writes one or the other, or both.
func (h *tempHistory) write() string {
	switch h.IntN(12) {
	case 0, 1, 2, 3:
		return h.pick("INSERT", "INSERT", "INSERT OR IGNORE", "INSERT OR REPLACE", "INSERT OR FAIL") + " INTO " + h.table() + "(a,b) " + h.source() + h.pick("", "", " RETURNING a, b")
	case 4:
		return "UPDATE " + h.table() + " SET b=" + h.pick("'w"+h.small()+"'", "(SELECT max(a) FROM "+h.table()+")", "a") + h.pick("", " WHERE a="+h.small())
	case 5:
		return "DELETE FROM " + h.table() + h.pick(" WHERE a="+h.small(), " WHERE a IN (SELECT a FROM "+h.table()+")", "")
	case 6:
		return "CREATE TEMP TABLE " + h.pick("", "IF NOT EXISTS ") + h.pick("x", "y", "z", "t") + h.pick("(a INTEGER PRIMARY KEY, b)", "(a INTEGER PRIMARY KEY AUTOINCREMENT, b)", "(a PRIMARY KEY, b UNIQUE) WITHOUT ROWID", "(a, b)", " AS SELECT a, b FROM "+h.pick("u", "main.t", "x"))
	case 7:
		return h.pick("DROP TABLE IF EXISTS ", "DROP TABLE ") + h.pick("x", "y", "z", "temp.t", "temp.x")
	case 8:
		return h.pick("CREATE TEMP TRIGGER IF NOT EXISTS g AFTER INSERT ON main.t BEGIN INSERT INTO u(a,b) VALUES(new.a, 'g'); END", "CREATE TRIGGER temp.h AFTER INSERT ON main.u WHEN new.a<100 BEGIN INSERT OR IGNORE INTO x(a,b) VALUES(new.a+100, 'h'); END",
			"CREATE TEMP TRIGGER k BEFORE DELETE ON x WHEN old.a=3 BEGIN SELECT RAISE(ABORT, 'three stays'); END", "DROP TRIGGER IF EXISTS g", "DROP TRIGGER IF EXISTS h", "DROP TRIGGER k")
	case 9:
		return h.pick("CREATE TEMP VIEW IF NOT EXISTS v AS SELECT a, b FROM main.t UNION ALL SELECT a, b FROM main.u", "DROP VIEW IF EXISTS v", "CREATE TEMP VIEW v AS SELECT a, b FROM x", "CREATE INDEX temp.xi ON x(b)", "CREATE INDEX IF NOT EXISTS ti ON t(b)", "DROP INDEX IF EXISTS ti")
	case 10:
		return h.pick("ALTER TABLE x ADD COLUMN c DEFAULT 7", "ALTER TABLE x RENAME TO y", "ALTER TABLE main.u RENAME TO w", "ALTER TABLE main.w RENAME TO u", "CREATE TABLE IF NOT EXISTS u(a INTEGER PRIMARY KEY, b)")
	}
	return "INSERT INTO log(what) SELECT '" + h.small() + "'||count(*)||total(a) FROM " + h.table()
}

func (h *tempHistory) read() string {
	return h.pick("SELECT * FROM x ORDER BY 1, 2", "SELECT * FROM y ORDER BY 1, 2", "SELECT * FROM t ORDER BY 1, 2", "SELECT * FROM u ORDER BY 1, 2", "SELECT * FROM v ORDER BY 1, 2", "SELECT type, name, tbl_name, sql FROM sqlite_temp_schema ORDER BY 1, 2",
		"SELECT * FROM temp.sqlite_sequence ORDER BY 1", "SELECT what FROM log ORDER BY id", "PRAGMA table_info(x)", "SELECT t.a, x.b FROM main.t JOIN x USING(a) ORDER BY 1, 2", "SELECT name FROM sqlite_schema WHERE name NOT LIKE '%hiqlite%' ORDER BY 1")
}

func (h *tempHistory) step() string {
	switch n := h.IntN(20); {
	case n < 10:
		return h.write()
	case n < 16:
		return h.read()
	case h.open && n == 16:
		return h.pick("SAVEPOINT s", "ROLLBACK TO s", "RELEASE s")
	case h.open:
		h.open = false
		return h.pick("COMMIT", "COMMIT", "ROLLBACK")
	case n == 19:
		return h.pick("CREATE TEMP TABLE n(a,b); INSERT INTO n VALUES(1,2),(3,4); INSERT INTO log(what) SELECT a+200 FROM n; DROP TABLE n", "INSERT INTO log(what) VALUES(400); INSERT INTO log(what) SELECT count(*) FROM main.t")
	}
	h.open = true
	return "BEGIN"
}

// run tells both the steps of one history.
func (h *tempHistory) run(p *pair, steps int) {
	p.t.Helper()
	for _, s := range []string{"CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE)", "CREATE TABLE u(a INTEGER PRIMARY KEY, b)", "CREATE TABLE log(id INTEGER PRIMARY KEY, what)", "INSERT INTO u VALUES(1,'one'),(2,'two'),(3,'three')", "CREATE TEMP TABLE x(a INTEGER PRIMARY KEY, b)"} {
		p.same(ways[1], text(s))
	}
	told := []string{}
	for range steps {
		s := h.step()
		told = append(told, s)
		p.same(ways[h.IntN(2)*2], text(s)) // as queries: with their rows, if any
		if p.t.Failed() {
			p.t.Fatalf("told:\n%s", strings.Join(told, "\n"))
		}
	}
	if h.open {
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
			h := &tempHistory{Rand: rand.New(rand.NewPCG(seed, 1))}
			h.run(newPair(t, ""), steps)
		})
	}
}

func TestRandomTempObjectsOnThreeNodes(t *testing.T) {
	t.Parallel()
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	const seed, steps = 77, 120
	c := newCluster(t, 3)
	h := &tempHistory{Rand: rand.New(rand.NewPCG(seed, 2))}
	h.run(clusterPair(t, c, 1, ""), steps)
	c.WaitEqual()
}
