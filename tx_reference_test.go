package hiqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// This file runs the same random transactions with this driver and with the driver
// of modernc.org/sqlite, the reference: as statements (BEGIN, COMMIT) and through
// sql.Tx. Results, errors and rows must be the same, with these exceptions:
//
//   - A script is atomic here. A savepoint makes it atomic in the reference, too.
//     Scripts that begin with the end of a transaction, while none is open, have no
//     effect here. They are not tried.
//   - A statement that rolls back, such as INSERT OR ROLLBACK, ends the transaction.
//     Here all statements then fail until the program has ended the transaction; the
//     reference goes on without a transaction.
//   - A statement with RETURNING that fails returns no rows before its error.
//   - PRAGMA defer_foreign_keys = OFF makes the reference forget the violations that
//     it has counted; here Commit refuses them. The PRAGMA is not tried.
//   - PRAGMA foreign_keys takes effect inside a transaction, until its end; the
//     reference ignores it there. It is not tried, see
//     TestForeignKeysSwitchedOffInsideATransaction.
//   - After a statement has failed, changes() and last_insert_rowid() are compared
//     only from the next successful write on.

// A txGenerator generates the steps of one run.
type txGenerator struct{ *rand.Rand }

func (g *txGenerator) pick(options ...string) string { return options[g.IntN(len(options))] }

func (g *txGenerator) small() string { return fmt.Sprint(1 + g.IntN(8)) }

func (g *txGenerator) verb() string {
	return g.pick("INSERT", "INSERT", "INSERT", "INSERT OR ABORT", "INSERT OR FAIL", "INSERT OR IGNORE", "INSERT OR REPLACE", "REPLACE", "INSERT OR ROLLBACK")
}

func (g *txGenerator) row() string {
	return "(" + g.pick(g.small(), "NULL") + ", 'u" + g.small() + "', " + g.pick("1", "2", "3", "4", "5", "NULL") + ", " + g.pick("1", "2", "3", "4", "5", "0") + ")"
}

func (g *txGenerator) where() string {
	return g.pick("", " WHERE id = "+g.small(), " WHERE id > "+g.small(), " WHERE id % 3 = 0", " WHERE 0")
}

// write returns a statement that writes, but may fail.
func (g *txGenerator) write() string {
	returning := g.pick("", "", "", " RETURNING *", " RETURNING id AS x, id+1")
	switch g.IntN(16) {
	case 0, 1, 2, 3:
		return g.verb() + " INTO p(id, u, n, c) VALUES" + g.row() + g.pick("", ", "+g.row(), ", "+g.row()+", "+g.row()) + returning
	case 4, 5:
		return g.verb() + " INTO k(p, v) VALUES(" + g.small() + ", " + g.pick("'v'", "x'00ff'", "NULL", "1.5", "total_changes()*0") + ")" + returning
	case 6:
		return g.verb() + " INTO r(id, p) VALUES(" + g.small() + ", " + g.pick(g.small(), g.small(), "97", "98", "99", "NULL") + ")" + g.pick("", ", ("+g.small()+", 98)") + returning
	case 7:
		return "UPDATE " + g.pick("", "OR IGNORE ", "OR REPLACE ", "OR FAIL ", "OR ROLLBACK ") + "p SET " + g.pick("u = 'u"+g.small()+"'", "n = n + 1", "n = NULL", "c = c - 1", "id = id + 1") + g.where() + returning
	case 8:
		return "UPDATE k SET p = " + g.small() + g.where() + returning
	case 9, 10:
		return "DELETE FROM " + g.pick("p", "k", "r") + g.where() + returning
	case 11:
		return "INSERT INTO p(id, u, n, c) VALUES" + g.row() + " ON CONFLICT(" + g.pick("id", "u") + ") DO " + g.pick("NOTHING", "UPDATE SET n = n + 10") + returning
	case 12:
		return "INSERT INTO " + g.table() + "(a) " + g.pick("VALUES(1)", "SELECT id FROM p", "VALUES(changes()), (last_insert_rowid())")
	case 13:
		return g.pick("CREATE TABLE ", "CREATE TABLE IF NOT EXISTS ") + g.table() + "(a" + g.pick("", " UNIQUE", " DEFAULT 7, b DEFAULT 'x'") + ")"
	case 14:
		return g.pick("DROP TABLE "+g.table(), "DROP TABLE IF EXISTS "+g.table(), "ALTER TABLE "+g.table()+" ADD COLUMN extra DEFAULT 1", "ALTER TABLE "+g.table()+" RENAME TO "+g.table())
	}
	return g.pick("CREATE INDEX i1 ON p(n)", "DROP INDEX i1", "CREATE UNIQUE INDEX i2 ON k(p)", "DROP INDEX IF EXISTS i2", "CREATE VIEW w AS SELECT id, n FROM p", "DROP VIEW IF EXISTS w",
		"DELETE FROM nope", "INSERT INTO p(nope) VALUES(1)", "INSERT INTO k VALUE", "WITH x(n) AS (VALUES(21),(22)) INSERT INTO p(id,n) SELECT n, n FROM x", "PRAGMA user_version = "+g.small())
}

func (g *txGenerator) table() string { return "x" + g.pick("1", "2", "3") }

func (g *txGenerator) read() string {
	return g.pick("SELECT * FROM p ORDER BY id", "SELECT * FROM k ORDER BY id", "SELECT * FROM r ORDER BY id", "SELECT * FROM log", "SELECT count(*), sum(n), group_concat(u) FROM p",
		"SELECT * FROM "+g.table(), "SELECT * FROM w ORDER BY id", "SELECT name, sql FROM sqlite_schema WHERE name LIKE 'x%' ORDER BY name", "SELECT * FROM sqlite_sequence", "PRAGMA foreign_key_check",
		"PRAGMA table_info(x1)", "PRAGMA user_version", "SELECT nope", "SELECT 1 WHERE 0", "SELECT p.id, k.id FROM p LEFT JOIN k ON k.p = p.id ORDER BY 1, 2", "PRAGMA foreign_keys", "PRAGMA defer_foreign_keys")
}

func (g *txGenerator) savepoint() string {
	return g.pick("SAVEPOINT a", "SAVEPOINT b", "SAVEPOINT 'A'", "RELEASE a", "RELEASE SAVEPOINT b", "ROLLBACK TO a", "ROLLBACK TRANSACTION TO SAVEPOINT b")
}

// transaction returns a statement that begins or ends a transaction.
func (g *txGenerator) transaction() string {
	return g.pick("BEGIN", "BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE TRANSACTION", "COMMIT", "COMMIT", "END", "END TRANSACTION", "ROLLBACK")
}

// An action is a statement, or a script of several.
type action struct {
	parts    []string
	controls bool // the script begins or ends transactions
}

func (m action) text() string { return strings.Join(m.parts, "; ") }

// begins reports whether a script begins a transaction before it ends one.
func (m action) begins() bool {
	for _, part := range m.parts {
		switch strings.Fields(part)[0] {
		case "BEGIN", "SAVEPOINT":
			return true
		case "COMMIT", "END", "ROLLBACK", "RELEASE":
			return false
		}
	}
	return false
}

func (g *txGenerator) action() action {
	one := func(text string) action { return action{parts: []string{text}} }
	switch n := g.IntN(100); {
	case n < 40:
		return one(g.write())
	case n < 58:
		return one(g.read())
	case n < 72:
		return one(g.transaction())
	case n < 84:
		return one(g.savepoint())
	case n < 88:
		return one(g.pick("PRAGMA foreign_keys = 0", "PRAGMA foreign_keys = 1", "PRAGMA foreign_keys(on)", "PRAGMA defer_foreign_keys = 1", "PRAGMA defer_foreign_keys = ON"))
	case n < 94:
		m := action{}
		for range 2 + g.IntN(3) {
			m.parts = append(m.parts, g.write())
		}
		return m
	}
	m := action{controls: true}
	for range 2 + g.IntN(5) {
		m.parts = append(m.parts, g.pick(g.write(), g.write(), g.savepoint(), g.transaction(), g.transaction()))
	}
	m.parts[g.IntN(len(m.parts))] = g.transaction()
	return m
}

var txSchema = []string{
	`CREATE TABLE p(id INTEGER PRIMARY KEY, u TEXT UNIQUE, n INT NOT NULL, c INT CHECK(c > 0))`,
	`CREATE TABLE k(id INTEGER PRIMARY KEY AUTOINCREMENT, p INT REFERENCES p(id) DEFERRABLE INITIALLY DEFERRED, v)`,
	`CREATE TABLE r(id INTEGER PRIMARY KEY, p INT REFERENCES p(id))`,
	`CREATE TABLE log(m)`,
	`CREATE TRIGGER noted AFTER INSERT ON k BEGIN INSERT INTO log VALUES('k ' || new.id); END`,
	`CREATE TRIGGER stops BEFORE INSERT ON r WHEN new.p > 96 BEGIN
		SELECT CASE new.p WHEN 97 THEN RAISE(ABORT, 'aborted') WHEN 98 THEN RAISE(FAIL, 'failed') ELSE RAISE(ROLLBACK, 'rolled back') END; END`,
	`INSERT INTO p(id, u, n, c) VALUES(1, 'u1', 1, 1), (2, 'u2', 2, 2), (5, 'u5', 5, 5)`,
}

const (
	ours   = 0
	theirs = 1
)

// A txComparison runs the steps of one generator on both connections of a pair.
type txComparison struct {
	t    testing.TB
	pair *pair
	seed uint64
	past []string // the steps so far

	// changesDiffer and idDiffers say that changes() and last_insert_rowid() may
	// differ, because a statement has failed.
	changesDiffer, idDiffers bool

	begun int // how many transactions execAtomically has seen the reference begin
}

func newTxComparison(t testing.TB, seed uint64) *txComparison {
	d := &txComparison{t: t, pair: newPair(t, ""), seed: seed}
	for _, c := range d.pair.conns {
		for _, text := range txSchema {
			mustExec(t, c, text)
		}
	}
	return d
}

func (d *txComparison) fatal(what, ours, theirs string) {
	d.t.Helper()
	const most = 40
	past := d.past[max(0, len(d.past)-most):]
	d.t.Fatalf("seed %d, step %d, %s:\n--- modernc.org/sqlite\n%s\n--- hiqlite\n%s\n--- steps before\n%s", d.seed, len(d.past), what, theirs, ours, strings.Join(past, ";\n"))
}

func (d *txComparison) exec(who int, text string) error {
	_, err := d.pair.conns[who].ExecContext(testrun.Context(d.t), text)
	return err
}

// inTransaction reports whether the reference is in a transaction.
func (d *txComparison) inTransaction() bool {
	if d.exec(theirs, "BEGIN") != nil {
		return true
	}
	if err := d.exec(theirs, "ROLLBACK"); err != nil {
		d.t.Fatal(err)
	}
	return false
}

// execAtomically runs a script on the reference in the way that this driver
// promises: all or nothing. It reports whether the script has rolled back a
// transaction that was open before.
func (d *txComparison) execAtomically(m action) (rolledBack bool, err error) {
	open := d.inTransaction()
	if !m.controls {
		if err := d.exec(theirs, "SAVEPOINT atomic"); err != nil {
			return false, err
		}
		err := d.exec(theirs, m.text())
		if err == nil {
			err = d.exec(theirs, "RELEASE atomic")
		}
		if err != nil {
			_ = d.exec(theirs, "ROLLBACK TO atomic; RELEASE atomic") // fails after OR ROLLBACK, which removes the savepoint
		}
		return err != nil && open && !d.inTransaction(), err
	}
	at := d.begun
	for _, part := range m.parts {
		err := d.exec(theirs, part)
		now := d.inTransaction()
		if now && !open {
			d.begun++
		}
		if err != nil {
			if now && d.begun != at {
				_ = d.exec(theirs, "ROLLBACK")
			}
			return open && !now && d.begun == at, err
		}
		open = now
	}
	return false, nil
}

// wantAlike fails the test unless both connections have returned the same.
func (d *txComparison) wantAlike(what string, got [2]string) {
	d.t.Helper()
	for i := range got {
		got[i] = withoutRows(got[i])
		if d.idDiffers {
			got[i] = withoutID(got[i])
		}
	}
	if !alike(what, got[ours], got[theirs]) {
		d.fatal(what, got[ours], got[theirs])
	}
}

// cannotCompare reports whether an action must give different results, or is
// spoiled by inTransaction, which begins and rolls back a transaction.
func (d *txComparison) cannotCompare(m action, open bool) bool {
	return strings.Contains(m.text(), "changes()") && (d.changesDiffer || d.idDiffers) ||
		strings.HasPrefix(m.text(), "PRAGMA defer_foreign_keys") && !open ||
		strings.HasPrefix(m.text(), "PRAGMA foreign_keys") && m.text() != "PRAGMA foreign_keys" && open
}

func (d *txComparison) step(ctx context.Context, g *txGenerator, m action) {
	d.t.Helper()
	before := d.inTransaction()
	if d.cannotCompare(m, before) {
		return
	}
	if m.controls && !before && !m.begins() {
		m.parts = append([]string{g.pick("BEGIN", "SAVEPOINT a")}, m.parts...)
	}
	var got [2]string
	rolledBack := false
	w := ways[g.IntN(len(ways))]
	if len(m.parts) > 1 {
		w.name = "exec"
		var err error
		rolledBack, err = d.execAtomically(m)
		got = [2]string{"ok", "ok"}
		if err != nil {
			got[theirs] = describeError(err)
		}
		if err := d.exec(ours, m.text()); err != nil {
			got[ours] = describeError(err)
		}
	} else {
		got[theirs] = w.run(ctx, d.pair.conns[theirs], text(m.text()))
		got[ours] = w.run(ctx, d.pair.conns[ours], text(m.text()))
	}
	failed := strings.Contains(got[theirs], "error")
	d.past = append(d.past, fmt.Sprintf("%s -- %s", m.text(), map[bool]string{true: "failed"}[failed]))
	d.wantAlike(w.name+" "+m.text(), got)
	if rolledBack || before && !m.controls && failed && !d.inTransaction() {
		d.afterRollback(g)
	}
	switch {
	case failed || m.controls: // one of the script's statements may have failed
		d.changesDiffer, d.idDiffers = true, true
	case len(m.parts) == 1 && changesRows(m.text()):
		d.changesDiffer = false
	}
	d.compareCounters(m.text())
}

// withoutID removes LastInsertId from what describeResult has returned.
func withoutID(seen string) string {
	if _, rest, ok := strings.Cut(seen, "; rows "); ok && strings.HasPrefix(seen, "id ") {
		return rest
	}
	return seen
}

// afterRollback checks what statements do here after one of them has rolled the
// transaction back, and ends the transaction.
func (d *txComparison) afterRollback(g *txGenerator) {
	d.t.Helper()
	for _, text := range []string{"SELECT 1", "INSERT INTO log VALUES('lost')", "SAVEPOINT lost"} {
		if err := d.exec(ours, text); err == nil {
			d.fatal(text+" after the transaction was rolled back", "no error", "")
		}
	}
	switch g.IntN(4) {
	case 0, 1:
		if err := d.exec(ours, "ROLLBACK"); err != nil {
			d.fatal("ROLLBACK after the transaction was rolled back", err.Error(), "")
		}
	case 2:
		if err := d.exec(ours, "COMMIT"); err == nil {
			d.fatal("COMMIT after the transaction was rolled back", "no error", "")
		}
	default: // BEGIN ends the transaction, and begins another one
		for _, text := range []string{"BEGIN", "INSERT INTO log VALUES('lost')", "ROLLBACK"} {
			if err := d.exec(ours, text); err != nil {
				d.fatal(text+" after the transaction was rolled back", err.Error(), "")
			}
		}
		d.changesDiffer, d.idDiffers = true, true
	}
	d.past = append(d.past, "-- the transaction was rolled back")
}

// withoutRows removes the rows that were returned before an error.
func withoutRows(seen string) string {
	if i := strings.Index(seen, "error \""); i > 0 {
		return seen[i:]
	}
	return seen
}

func (d *txComparison) compareCounters(after string) {
	d.t.Helper()
	same := func(query string, mayDiffer bool) bool {
		a, b := describeQuery(testrun.Context(d.t), d.pair.conns[ours], text(query)), describeQuery(testrun.Context(d.t), d.pair.conns[theirs], text(query))
		if a != b && !mayDiffer {
			d.fatal(query+" after "+after, a, b)
		}
		return a == b
	}
	same("SELECT changes()", d.changesDiffer)
	if same("SELECT last_insert_rowid()", d.idDiffers) && strings.HasPrefix(after, "INSERT") && !d.changesDiffer {
		d.idDiffers = false
	}
}

// allRows are queries for everything that a transaction of a txGenerator can change.
var allRows = []string{"SELECT * FROM p ORDER BY id", "SELECT * FROM k ORDER BY id", "SELECT * FROM r ORDER BY id", "SELECT rowid, * FROM log",
	"SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name <> 'sqlite_hiqlite' ORDER BY name", "SELECT * FROM sqlite_sequence", "PRAGMA user_version", "PRAGMA foreign_keys", "PRAGMA foreign_key_check"}

func (d *txComparison) compareRows(when string) {
	d.t.Helper()
	for _, query := range allRows {
		a, b := describeQuery(testrun.Context(d.t), d.pair.conns[ours], text(query)), describeQuery(testrun.Context(d.t), d.pair.conns[theirs], text(query))
		if a != b {
			d.fatal(when+": "+query, a, b)
		}
	}
}

// eachSeed calls run with the seeds below runs, and with one that is new each time.
func eachSeed(t *testing.T, runs uint64, run func(t *testing.T, seed uint64)) {
	fresh := uint64(time.Now().UnixNano())
	for seed := range runs + 1 {
		name := fmt.Sprint(seed)
		if seed == runs {
			seed, name = fresh, "fresh"
		}
		t.Run(name, func(t *testing.T) {
			t.Logf("seed %d", seed)
			run(t, seed)
		})
	}
}

func TestTransactionsByStatements(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	eachSeed(t, 30, func(t *testing.T, seed uint64) {
		d, g := newTxComparison(t, seed), &txGenerator{rand.New(rand.NewPCG(seed, 1))}
		for i := range 150 {
			d.step(testrun.Context(t), g, g.action())
			if i%10 == 0 {
				d.compareRows("in between")
			}
		}
		if d.inTransaction() {
			d.step(testrun.Context(t), g, action{parts: []string{"ROLLBACK"}})
		}
		d.compareRows("at the end")
	})
}

// The same through sql.Tx. Commit and Rollback end it, whatever they return.
func TestTransactionsByTx(t *testing.T) {
	eachSeed(t, 12, func(t *testing.T, seed uint64) {
		d, g := newTxComparison(t, seed), &txGenerator{rand.New(rand.NewPCG(seed, 2))}
		for range 12 {
			d.runTx(g)
			d.compareRows("after the transaction")
		}
	})
}

// runTx runs a transaction on both connections.
func (d *txComparison) runTx(g *txGenerator) {
	d.t.Helper()
	ctx := testrun.Context(d.t)
	var txs [2]*sql.Tx
	for i, c := range d.pair.conns {
		tx, err := c.BeginTx(ctx, nil)
		if err != nil {
			d.t.Fatalf("seed %d: %v", d.seed, err)
		}
		txs[i] = tx
	}
	d.past = append(d.past, "-- BeginTx")
	for range 3 + g.IntN(12) {
		m := g.action()
		for m.controls || len(m.parts) > 1 || strings.HasPrefix(m.text(), "BEGIN") || strings.HasPrefix(m.text(), "COMMIT") || strings.HasPrefix(m.text(), "END") || m.text() == "ROLLBACK" {
			m = g.action()
		}
		if d.cannotCompare(m, true) {
			continue
		}
		var got [2]string
		exec := g.IntN(2) == 0
		for i, tx := range txs {
			if exec {
				r, err := tx.ExecContext(ctx, m.text())
				got[i] = describeResult(m.text(), r, err)
			} else {
				rows, err := tx.QueryContext(ctx, m.text())
				got[i] = describeRows(rows, err)
			}
		}
		d.past = append(d.past, m.text())
		d.wantAlike(m.text(), got)
		if strings.Contains(got[theirs], "error") {
			d.changesDiffer, d.idDiffers = true, true
		}
		if strings.Contains(got[theirs], "error") && !d.inTransaction() {
			if _, err := txs[ours].ExecContext(ctx, "SELECT 1"); err == nil {
				d.fatal("a statement after a rollback by SQLite", "no error", "")
			}
			_ = txs[theirs].Rollback() // fails, because SQLite has rolled back
			if err := txs[ours].Rollback(); err != nil {
				d.fatal("Rollback after a rollback by SQLite", err.Error(), "")
			}
			return
		}
	}
	end := (*sql.Tx).Commit
	if g.IntN(3) == 0 {
		end = (*sql.Tx).Rollback
	}
	var got [2]string
	for i, tx := range txs {
		if err := end(tx); err != nil {
			got[i] = describeError(err)
		}
	}
	d.past = append(d.past, "-- Commit or Rollback")
	d.wantAlike("the end", got)
	if d.inTransaction() { // modernc.org/sqlite leaves it open if a deferred key is violated
		if err := d.exec(theirs, "ROLLBACK"); err != nil {
			d.t.Fatal(err)
		}
	}
}
