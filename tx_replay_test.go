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

// The tests of this file check that replicas execute a transaction exactly as it ran on its
// view.

// The rows that a transaction sees before it commits are the rows that all nodes hold
// afterwards: the replicas execute the recording with the same time, random numbers
// and counters as the view had, even if statements failed or were rolled back.
func TestTransactionsAreAppliedAsSeen(t *testing.T) {
	c := newCluster(t, 3, withoutTimeouts)
	for _, text := range txSchema {
		mustExec(t, c.DB(0), text)
	}
	mustExec(t, c.DB(0), "CREATE TABLE chance(id INTEGER PRIMARY KEY, a DEFAULT (random()), b DEFAULT (datetime('now', 'subsec')), c DEFAULT CURRENT_TIMESTAMP, d)")
	mustExec(t, c.DB(0), "CREATE TRIGGER chances AFTER INSERT ON p BEGIN INSERT INTO chance(d) VALUES(hex(randomblob(4))); END")
	mustExec(t, c.DB(0), "CREATE VIRTUAL TABLE words USING fts5(w)")
	committed := 0
	eachSeed(t, 60, func(t *testing.T, seed uint64) {
		g := &txGenerator{rand.New(rand.NewPCG(seed, 3))}
		i := g.IntN(3)
		conn := disposableConn(t, c.DB(i))
		defer conn.ExecContext(context.Background(), "ROLLBACK") // fails if there is none
		mustExec(t, conn, "BEGIN")
		past := []string{"BEGIN"}
		var open []*sql.Rows
		for range 5 + g.IntN(25) {
			text := g.chance()
			var err error
			switch g.IntN(3) {
			case 0:
				_, err = conn.ExecContext(testrun.Context(t), text)
			case 1:
				seen := describeRows(conn.QueryContext(testrun.Context(t), text))
				if strings.Contains(seen, "error") {
					err = errors.New(seen)
				}
			default: // leaves the rows open until the end
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
		mustExec(t, conn, "PRAGMA reverse_unordered_selects = 0") // as on the connections that read afterwards
		inside, err := readAll(testrun.Context(t), conn)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, strings.Join(past, ";\n"))
		}
		_, err = conn.ExecContext(testrun.Context(t), "COMMIT")
		if err != nil {
			if !strings.Contains(err.Error(), "FOREIGN KEY") {
				t.Fatalf("seed %d: COMMIT: %v\n%s", seed, err, strings.Join(past, ";\n"))
			}
			return // a deferred foreign key is violated
		}
		committed++
		for j := range c.Len() {
			c.WaitReady(j)
			outside, err := readAll(testrun.Context(t), c.DB(j))
			if err != nil || outside != inside {
				t.Fatalf("seed %d: the transaction of node %d saw\n%s\nnode %d holds\n%s\n%v\n%s", seed, i+1, inside, j+1, outside, err, strings.Join(past, ";\n"))
			}
		}
	})
	if committed < 20 {
		t.Errorf("only %d of 61 transactions were committed, want 20 or more", committed)
	}
	c.WaitEqual()
}

// chance returns a statement of a transaction, often one with random results.
func (g *txGenerator) chance() string {
	switch g.IntN(10) {
	case 0, 1:
		return "INSERT INTO chance(d) VALUES(" + g.pick("random()", "hex(randomblob(3))", "changes()", "total_changes()", "last_insert_rowid()", "julianday('now')", "strftime('%f', 'now')") + ")" + g.pick("", " RETURNING *")
	case 2:
		return "UPDATE chance SET d = random() WHERE id IN (SELECT id FROM chance ORDER BY random() LIMIT 2)"
	case 3:
		return g.pick("SELECT random(), changes()", "SELECT datetime('now')", "SELECT * FROM chance ORDER BY random()", "INSERT INTO words VALUES('some' || random())", "DELETE FROM words WHERE rowid % 2", "INSERT INTO words(words) VALUES('optimize')",
			"INSERT INTO chance(d) VALUES(random()); UPDATE chance SET a = random(); INSERT INTO nowhere VALUES(1)", "INSERT INTO chance(d) VALUES(random()); UPDATE chance SET a = random()", "ANALYZE", "REINDEX", "PRAGMA defer_foreign_keys = 1", "PRAGMA foreign_keys = 0",
			"PRAGMA foreign_keys = 1", "PRAGMA recursive_triggers = "+g.pick("0", "1"), "PRAGMA reverse_unordered_selects = "+g.pick("0", "1"), "PRAGMA case_sensitive_like = "+g.pick("0", "1"), "PRAGMA ignore_check_constraints = "+g.pick("0", "1"),
			"CREATE INDEX IF NOT EXISTS chance1 ON chance(d, a)", "CREATE INDEX IF NOT EXISTS chance2 ON chance(d, a)", "DROP INDEX IF EXISTS chance1", "DROP INDEX IF EXISTS chance2",
			"INSERT INTO words SELECT d FROM chance ORDER BY random() LIMIT 2", "INSERT INTO words SELECT d FROM chance ORDER BY random() LIMIT 3")
	case 4, 5:
		return g.savepoint()
	case 6:
		return g.read()
	}
	return strings.ReplaceAll(strings.ReplaceAll(g.write(), "OR ROLLBACK", "OR FAIL"), "99", "98")
}

// readAll returns all rows of all tables, or an error.
func readAll(ctx context.Context, q querier) (string, error) {
	var b strings.Builder
	for _, query := range append(allRows, "SELECT * FROM chance", "SELECT rowid, * FROM words", "SELECT * FROM x1", "SELECT * FROM x2", "SELECT * FROM x3") {
		if query == "PRAGMA foreign_keys" {
			continue
		}
		rows, err := q.QueryContext(ctx, query)
		seen := describeRows(rows, err)
		if strings.Contains(seen, "error") && !strings.Contains(seen, "no such table") {
			return "", fmt.Errorf("%s: %s", query, seen)
		}
		b.WriteString(query + ":\n" + seen + "\n")
	}
	return b.String(), nil
}

// PRAGMA defer_foreign_keys holds until the end of its transaction. In the next one,
// a statement that violates a foreign key fails and leaves no rows.
func TestDeferForeignKeysEndsWithItsTransaction(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	mustExec(t, c.DB(0), "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE k(q REFERENCES p(id)); CREATE TABLE seen(n)")
	tx := mustBegin(t, c.DB(0))
	mustExec(t, tx, "PRAGMA defer_foreign_keys=ON")
	mustExec(t, tx, "INSERT INTO k VALUES(?)", 1)
	mustRollback(t, tx)
	tx = mustBegin(t, c.DB(0))
	if _, err := tx.Exec("INSERT INTO k VALUES(?)", 99); err == nil {
		t.Error("a key that refers to nothing was taken")
	}
	mustExec(t, tx, "INSERT INTO seen SELECT count(*) FROM k")
	if n := queryValue[int](t, tx, "SELECT count(*) FROM k"); n != 0 {
		t.Errorf("the failed statement left %d rows", n)
	}
	mustCommit(t, tx)
	if n := queryValue[int](t, c.DB(0), "SELECT n FROM seen"); n != 0 {
		t.Errorf("the transaction is applied as if it had seen %d rows", n)
	}
}

// ROLLBACK TO makes SQLite load its statistics again. Replicas do not execute the
// ROLLBACK TO, and must choose the same query plan nevertheless.
func TestPlansAfterRollbackTo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), `CREATE TABLE a(x,z); CREATE TABLE b(x,z); CREATE TABLE o(v);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20) INSERT INTO a SELECT i, i FROM n;
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<5000) INSERT INTO b SELECT i, 5001-i FROM n;
		CREATE INDEX i1 ON a(x); CREATE INDEX ib ON b(x); ANALYZE; CREATE INDEX ca ON a(z); CREATE INDEX cb ON b(z)`)
	tx := mustBegin(t, c.DB(0))
	for _, q := range []string{"DROP INDEX i1", "SAVEPOINT s", "INSERT INTO o VALUES('undone')", "ROLLBACK TO s", "RELEASE s",
		"INSERT INTO o SELECT a.x||'-'||b.x FROM a JOIN b ON a.z=b.z LIMIT 5"} {
		mustExec(t, tx, q)
	}
	const all = "SELECT group_concat(v, ' ') FROM o"
	saw := queryValue[string](t, tx, all)
	mustCommit(t, tx)
	for i := range c.Len() {
		c.WaitReady(i)
		if got := queryValue[string](t, c.DB(i), all); got != saw {
			t.Errorf("node %d holds %s, the transaction saw %s", i+1, got, saw)
		}
	}
}

// A connection that is used for a second transaction chooses the same query plans as
// the replicas, even if an index was created in between.
func TestPlansOfAConnectionUsedAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), `CREATE TABLE a(id INTEGER PRIMARY KEY, x, y); CREATE TABLE o(v); INSERT INTO a VALUES(1,9,0),(2,8,0),(3,7,0),(4,6,0);
		CREATE INDEX i0 ON a(x,y); ANALYZE`)
	for i := range c.Len() {
		c.WaitReady(i)
		tx := mustBegin(t, c.DB(i)) // makes a connection load the schema
		mustExec(t, tx, "DELETE FROM o")
		mustCommit(t, tx)
	}
	mustExec(t, c.DB(0), "CREATE INDEX i1 ON a(x,y)")
	for i := range c.Len() {
		tx := mustBegin(t, c.DB(i))
		mustExec(t, tx, "DELETE FROM o")
		mustExec(t, tx, "INSERT INTO o SELECT x FROM a ORDER BY random() LIMIT 2")
		const all = "SELECT group_concat(v, ' ') FROM o"
		saw := queryValue[string](t, tx, all)
		mustCommit(t, tx)
		if got := queryValue[string](t, c.DB(i), all); got != saw {
			t.Errorf("node %d holds %s, the transaction saw %s", i+1, got, saw)
		}
	}
	c.WaitEqual()
}
