package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// What a transaction has seen before it is committed is what all nodes hold
// afterwards: the replicas execute what it recorded as it ran here, with the same
// clock, random numbers and counters, whatever failed or was taken back between.
func TestTransactionsAreAppliedAsSeen(t *testing.T) {
	c := newCluster(t, 3, unhurried)
	for _, text := range txSchema {
		run(t, c.DB(0), text)
	}
	run(t, c.DB(0), "CREATE TABLE chance(id INTEGER PRIMARY KEY, a DEFAULT (random()), b DEFAULT (datetime('now', 'subsec')), c DEFAULT CURRENT_TIMESTAMP, d)")
	run(t, c.DB(0), "CREATE TRIGGER chances AFTER INSERT ON p BEGIN INSERT INTO chance(d) VALUES(hex(randomblob(4))); END")
	run(t, c.DB(0), "CREATE VIRTUAL TABLE words USING fts5(w)")
	committed := 0
	eachSeed(t, 60, func(t *testing.T, seed uint64) {
		h := &history{rand.New(rand.NewPCG(seed, 3))}
		i := h.IntN(3)
		conn := loneConn(t, c.DB(i))
		defer conn.ExecContext(context.Background(), "ROLLBACK") // fails if there is none
		run(t, conn, "BEGIN")
		past := []string{"BEGIN"}
		var open []*sql.Rows
		for range 5 + h.IntN(25) {
			text := h.chance()
			var err error
			switch h.IntN(3) {
			case 0:
				_, err = conn.ExecContext(testrun.Context(t), text)
			case 1:
				seen := seeRows(conn.QueryContext(testrun.Context(t), text))
				if strings.Contains(seen, "error") {
					err = errors.New(seen)
				}
			default: // left open for a while
				rows, failed := conn.QueryContext(testrun.Context(t), text)
				if err = failed; err == nil {
					rows.Next()
					open = append(open, rows)
				}
			}
			past = append(past, fmt.Sprintf("%s -- %v", text, err))
		}
		for _, rows := range open {
			rows.Close()
		}
		run(t, conn, "PRAGMA reverse_unordered_selects = 0") // the others' is
		inside, err := look(testrun.Context(t), conn)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, strings.Join(past, ";\n"))
		}
		_, err = conn.ExecContext(testrun.Context(t), "COMMIT")
		if err != nil {
			if !strings.Contains(err.Error(), "FOREIGN KEY") {
				t.Fatalf("seed %d: COMMIT: %v\n%s", seed, err, strings.Join(past, ";\n"))
			}
			return // deferred
		}
		committed++
		for j := range c.Len() {
			c.WaitReady(j)
			outside, err := look(testrun.Context(t), c.DB(j))
			if err != nil || outside != inside {
				t.Fatalf("seed %d: the transaction of node %d saw\n%s\nnode %d holds\n%s\n%v\n%s", seed, i+1, inside, j+1, outside, err, strings.Join(past, ";\n"))
			}
		}
	})
	if committed < 20 {
		t.Errorf("only %d transactions were committed: they show little", committed)
	}
	c.WaitEqual()
}

// chance is a statement of a transaction, often one whose outcome is random.
func (h *history) chance() string {
	switch h.IntN(10) {
	case 0, 1:
		return "INSERT INTO chance(d) VALUES(" + h.pick("random()", "hex(randomblob(3))", "changes()", "total_changes()", "last_insert_rowid()", "julianday('now')", "strftime('%f', 'now')") + ")" + h.pick("", " RETURNING *")
	case 2:
		return "UPDATE chance SET d = random() WHERE id IN (SELECT id FROM chance ORDER BY random() LIMIT 2)"
	case 3:
		return h.pick("SELECT random(), changes()", "SELECT datetime('now')", "SELECT * FROM chance ORDER BY random()", "INSERT INTO words VALUES('some' || random())", "DELETE FROM words WHERE rowid % 2", "INSERT INTO words(words) VALUES('optimize')",
			"INSERT INTO chance(d) VALUES(random()); UPDATE chance SET a = random(); INSERT INTO nowhere VALUES(1)", "INSERT INTO chance(d) VALUES(random()); UPDATE chance SET a = random()", "ANALYZE", "REINDEX", "PRAGMA defer_foreign_keys = 1", "PRAGMA foreign_keys = 0",
			"PRAGMA foreign_keys = 1", "PRAGMA recursive_triggers = "+h.pick("0", "1"), "PRAGMA reverse_unordered_selects = "+h.pick("0", "1"), "PRAGMA case_sensitive_like = "+h.pick("0", "1"), "PRAGMA ignore_check_constraints = "+h.pick("0", "1"),
			"CREATE INDEX IF NOT EXISTS chance1 ON chance(d, a)", "CREATE INDEX IF NOT EXISTS chance2 ON chance(d, a)", "DROP INDEX IF EXISTS chance1", "DROP INDEX IF EXISTS chance2",
			"INSERT INTO words SELECT d FROM chance ORDER BY random() LIMIT 2", "INSERT INTO words SELECT d FROM chance ORDER BY random() LIMIT 3")
	case 4, 5:
		return h.savepoint()
	case 6:
		return h.read()
	}
	return strings.ReplaceAll(strings.ReplaceAll(h.write(), "OR ROLLBACK", "OR FAIL"), "99", "98")
}

// look returns all rows, or an error.
func look(ctx context.Context, q asker) (string, error) {
	var b strings.Builder
	for _, query := range append(everything, "SELECT * FROM chance", "SELECT rowid, * FROM words", "SELECT * FROM x1", "SELECT * FROM x2", "SELECT * FROM x3") {
		if query == "PRAGMA foreign_keys" {
			continue
		}
		rows, err := q.QueryContext(ctx, query)
		seen := seeRows(rows, err)
		if strings.Contains(seen, "error") && !strings.Contains(seen, "no such table") {
			return "", fmt.Errorf("%s: %s", query, seen)
		}
		b.WriteString(query + ":\n" + seen + "\n")
	}
	return b.String(), nil
}

// What a transaction was told about foreign keys is forgotten with it: the next
// one's failed statements leave nothing.
func TestDeferredKeysAreForgotten(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	run(t, c.DB(0), "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE k(q REFERENCES p(id)); CREATE TABLE seen(n)")
	tx := mustBegin(t, c.DB(0))
	run(t, tx, "PRAGMA defer_foreign_keys=ON")
	run(t, tx, "INSERT INTO k VALUES(?)", 1)
	rollBack(t, tx)
	tx = mustBegin(t, c.DB(0))
	if _, err := tx.Exec("INSERT INTO k VALUES(?)", 99); err == nil {
		t.Error("a key that refers to nothing was taken")
	}
	run(t, tx, "INSERT INTO seen SELECT count(*) FROM k")
	if n := one[int](t, tx, "SELECT count(*) FROM k"); n != 0 {
		t.Errorf("the failed statement left %d rows", n)
	}
	commit(t, tx)
	if n := one[int](t, c.DB(0), "SELECT n FROM seen"); n != 0 {
		t.Errorf("the transaction is applied as if it had seen %d rows", n)
	}
}

// ROLLBACK TO makes SQLite load its statistics anew, which replicas do not
// execute: they choose the same plan nevertheless.
func TestPlansAfterRollbackTo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	run(t, c.DB(0), `CREATE TABLE a(x,z); CREATE TABLE b(x,z); CREATE TABLE o(v);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20) INSERT INTO a SELECT i, i FROM n;
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<5000) INSERT INTO b SELECT i, 5001-i FROM n;
		CREATE INDEX i1 ON a(x); CREATE INDEX ib ON b(x); ANALYZE; CREATE INDEX ca ON a(z); CREATE INDEX cb ON b(z)`)
	tx := mustBegin(t, c.DB(0))
	for _, q := range []string{"DROP INDEX i1", "SAVEPOINT s", "INSERT INTO o VALUES('undone')", "ROLLBACK TO s", "RELEASE s",
		"INSERT INTO o SELECT a.x||'-'||b.x FROM a JOIN b ON a.z=b.z LIMIT 5"} {
		run(t, tx, q)
	}
	const all = "SELECT group_concat(v, ' ') FROM o"
	saw := one[string](t, tx, all)
	commit(t, tx)
	for i := range c.Len() {
		c.WaitReady(i)
		if got := one[string](t, c.DB(i), all); got != saw {
			t.Errorf("node %d holds %s, the transaction saw %s", i+1, got, saw)
		}
	}
}

// A connection that is used for a second transaction plans as replicas do, though
// an index was made in between.
func TestPlansOfAConnectionUsedAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	run(t, c.DB(0), `CREATE TABLE a(id INTEGER PRIMARY KEY, x, y); CREATE TABLE o(v); INSERT INTO a VALUES(1,9,0),(2,8,0),(3,7,0),(4,6,0);
		CREATE INDEX i0 ON a(x,y); ANALYZE`)
	for i := range c.Len() {
		c.WaitReady(i)
		tx := mustBegin(t, c.DB(i)) // leaves a connection that has loaded the schema
		run(t, tx, "DELETE FROM o")
		commit(t, tx)
	}
	run(t, c.DB(0), "CREATE INDEX i1 ON a(x,y)")
	for i := range c.Len() {
		tx := mustBegin(t, c.DB(i))
		run(t, tx, "DELETE FROM o")
		run(t, tx, "INSERT INTO o SELECT x FROM a ORDER BY random() LIMIT 2")
		const all = "SELECT group_concat(v, ' ') FROM o"
		saw := one[string](t, tx, all)
		commit(t, tx)
		if got := one[string](t, c.DB(i), all); got != saw {
			t.Errorf("node %d holds %s, the transaction saw %s", i+1, got, saw)
		}
	}
	c.WaitEqual()
}
