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

// Transactions as texts and by database/sql's Tx against modernc.org/sqlite:
// random steps, alike for both. What differs on purpose:
//
//   - A script is atomic. The reference is made to be so, by a savepoint. One that
//     first ends a transaction, of which there is none, does nothing: not tried.
//   - A statement that rolls back, as OR ROLLBACK does, ends our transaction,
//     which says so until it is ended; the reference goes on in autocommit.
//   - A RETURNING that fails gives no rows before its error.
//   - PRAGMA defer_foreign_keys = OFF makes the reference forget the violations
//     that it knows of; Commit here refuses them. Not tried.
//   - PRAGMA foreign_keys holds inside a transaction, until it ends; the reference
//     ignores it there. Not tried: see TestForeignKeysSwitchedOffInsideATransaction.
//   - changes() and last_insert_rowid() are compared from the next write that
//     succeeds on, once a statement failed.

// history makes the steps of one run.
type history struct{ *rand.Rand }

func (h *history) pick(options ...string) string { return options[h.IntN(len(options))] }

func (h *history) small() string { return fmt.Sprint(1 + h.IntN(8)) }

func (h *history) verb() string {
	return h.pick("INSERT", "INSERT", "INSERT", "INSERT OR ABORT", "INSERT OR FAIL", "INSERT OR IGNORE", "INSERT OR REPLACE", "REPLACE", "INSERT OR ROLLBACK")
}

func (h *history) row() string {
	return "(" + h.pick(h.small(), "NULL") + ", 'u" + h.small() + "', " + h.pick("1", "2", "3", "4", "5", "NULL") + ", " + h.pick("1", "2", "3", "4", "5", "0") + ")"
}

func (h *history) where() string {
	return h.pick("", " WHERE id = "+h.small(), " WHERE id > "+h.small(), " WHERE id % 3 = 0", " WHERE 0")
}

// write is a statement that writes, though it may fail.
func (h *history) write() string {
	returning := h.pick("", "", "", " RETURNING *", " RETURNING id AS x, id+1")
	switch h.IntN(16) {
	case 0, 1, 2, 3:
		return h.verb() + " INTO p(id, u, n, c) VALUES" + h.row() + h.pick("", ", "+h.row(), ", "+h.row()+", "+h.row()) + returning
	case 4, 5:
		return h.verb() + " INTO k(p, v) VALUES(" + h.small() + ", " + h.pick("'v'", "x'00ff'", "NULL", "1.5", "total_changes()*0") + ")" + returning
	case 6:
		return h.verb() + " INTO r(id, p) VALUES(" + h.small() + ", " + h.pick(h.small(), h.small(), "97", "98", "99", "NULL") + ")" + h.pick("", ", ("+h.small()+", 98)") + returning
	case 7:
		return "UPDATE " + h.pick("", "OR IGNORE ", "OR REPLACE ", "OR FAIL ", "OR ROLLBACK ") + "p SET " + h.pick("u = 'u"+h.small()+"'", "n = n + 1", "n = NULL", "c = c - 1", "id = id + 1") + h.where() + returning
	case 8:
		return "UPDATE k SET p = " + h.small() + h.where() + returning
	case 9, 10:
		return "DELETE FROM " + h.pick("p", "k", "r") + h.where() + returning
	case 11:
		return "INSERT INTO p(id, u, n, c) VALUES" + h.row() + " ON CONFLICT(" + h.pick("id", "u") + ") DO " + h.pick("NOTHING", "UPDATE SET n = n + 10") + returning
	case 12:
		return "INSERT INTO " + h.table() + "(a) " + h.pick("VALUES(1)", "SELECT id FROM p", "VALUES(changes()), (last_insert_rowid())")
	case 13:
		return h.pick("CREATE TABLE ", "CREATE TABLE IF NOT EXISTS ") + h.table() + "(a" + h.pick("", " UNIQUE", " DEFAULT 7, b DEFAULT 'x'") + ")"
	case 14:
		return h.pick("DROP TABLE "+h.table(), "DROP TABLE IF EXISTS "+h.table(), "ALTER TABLE "+h.table()+" ADD COLUMN extra DEFAULT 1", "ALTER TABLE "+h.table()+" RENAME TO "+h.table())
	}
	return h.pick("CREATE INDEX i1 ON p(n)", "DROP INDEX i1", "CREATE UNIQUE INDEX i2 ON k(p)", "DROP INDEX IF EXISTS i2", "CREATE VIEW w AS SELECT id, n FROM p", "DROP VIEW IF EXISTS w",
		"DELETE FROM nope", "INSERT INTO p(nope) VALUES(1)", "INSERT INTO k VALUE", "WITH x(n) AS (VALUES(21),(22)) INSERT INTO p(id,n) SELECT n, n FROM x", "PRAGMA user_version = "+h.small())
}

func (h *history) table() string { return "x" + h.pick("1", "2", "3") }

func (h *history) read() string {
	return h.pick("SELECT * FROM p ORDER BY id", "SELECT * FROM k ORDER BY id", "SELECT * FROM r ORDER BY id", "SELECT * FROM log", "SELECT count(*), sum(n), group_concat(u) FROM p",
		"SELECT * FROM "+h.table(), "SELECT * FROM w ORDER BY id", "SELECT name, sql FROM sqlite_schema WHERE name LIKE 'x%' ORDER BY name", "SELECT * FROM sqlite_sequence", "PRAGMA foreign_key_check",
		"PRAGMA table_info(x1)", "PRAGMA user_version", "SELECT nope", "SELECT 1 WHERE 0", "SELECT p.id, k.id FROM p LEFT JOIN k ON k.p = p.id ORDER BY 1, 2", "PRAGMA foreign_keys", "PRAGMA defer_foreign_keys")
}

func (h *history) savepoint() string {
	return h.pick("SAVEPOINT a", "SAVEPOINT b", "SAVEPOINT 'A'", "RELEASE a", "RELEASE SAVEPOINT b", "ROLLBACK TO a", "ROLLBACK TRANSACTION TO SAVEPOINT b")
}

// transaction begins or ends one.
func (h *history) transaction() string {
	return h.pick("BEGIN", "BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE TRANSACTION", "COMMIT", "COMMIT", "END", "END TRANSACTION", "ROLLBACK")
}

// a move is a statement, or a script of several.
type move struct {
	parts    []string
	controls bool // the script begins or ends transactions
}

func (m move) text() string { return strings.Join(m.parts, "; ") }

// begins reports that a script begins a transaction before it ends one.
func (m move) begins() bool {
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

func (h *history) move() move {
	one := func(text string) move { return move{parts: []string{text}} }
	switch n := h.IntN(100); {
	case n < 40:
		return one(h.write())
	case n < 58:
		return one(h.read())
	case n < 72:
		return one(h.transaction())
	case n < 84:
		return one(h.savepoint())
	case n < 88:
		return one(h.pick("PRAGMA foreign_keys = 0", "PRAGMA foreign_keys = 1", "PRAGMA foreign_keys(on)", "PRAGMA defer_foreign_keys = 1", "PRAGMA defer_foreign_keys = ON"))
	case n < 94:
		m := move{}
		for range 2 + h.IntN(3) {
			m.parts = append(m.parts, h.write())
		}
		return m
	}
	m := move{controls: true}
	for range 2 + h.IntN(5) {
		m.parts = append(m.parts, h.pick(h.write(), h.write(), h.savepoint(), h.transaction(), h.transaction()))
	}
	m.parts[h.IntN(len(m.parts))] = h.transaction()
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

// a duel is a run of a history on both.
type duel struct {
	t    testing.TB
	pair *pair
	seed uint64
	past []string
	// What may differ since a statement failed.
	changesDiffer, idDiffers bool

	begun int // number of the reference's transaction
}

func newDuel(t testing.TB, seed uint64) *duel {
	d := &duel{t: t, pair: newPair(t, ""), seed: seed}
	for _, c := range d.pair.conns {
		for _, text := range txSchema {
			run(t, c, text)
		}
	}
	return d
}

func (d *duel) fatal(what, ours, theirs string) {
	d.t.Helper()
	const most = 40
	past := d.past[max(0, len(d.past)-most):]
	d.t.Fatalf("seed %d, step %d, %s:\n--- modernc.org/sqlite\n%s\n--- hiqlite\n%s\n--- steps before\n%s", d.seed, len(d.past), what, theirs, ours, strings.Join(past, ";\n"))
}

func (d *duel) tell(who int, text string) error {
	_, err := d.pair.conns[who].ExecContext(testrun.Context(d.t), text)
	return err
}

// open reports whether the reference is in a transaction.
func (d *duel) open() bool {
	if d.tell(theirs, "BEGIN") != nil {
		return true
	}
	if err := d.tell(theirs, "ROLLBACK"); err != nil {
		d.t.Fatal(err)
	}
	return false
}

// script runs a script on the reference as ours is promised to run. lost says
// that it rolled back a transaction that was open before.
func (d *duel) script(m move) (lost bool, err error) {
	open := d.open()
	if !m.controls {
		if err := d.tell(theirs, "SAVEPOINT atomic"); err != nil {
			return false, err
		}
		err := d.tell(theirs, m.text())
		if err == nil {
			err = d.tell(theirs, "RELEASE atomic")
		}
		if err != nil {
			_ = d.tell(theirs, "ROLLBACK TO atomic; RELEASE atomic") // gone after OR ROLLBACK
		}
		return err != nil && open && !d.open(), err
	}
	at := d.begun
	for _, part := range m.parts {
		err := d.tell(theirs, part)
		now := d.open()
		if now && !open {
			d.begun++
		}
		if err != nil {
			if now && d.begun != at {
				_ = d.tell(theirs, "ROLLBACK")
			}
			return open && !now && d.begun == at, err
		}
		open = now
	}
	return false, nil
}

// alike fails unless both showed the same.
func (d *duel) alike(what string, got [2]string) {
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

// senseless reports a move whose outcome has to differ, or that asking whether
// the reference is in a transaction spoils.
func (d *duel) senseless(m move, open bool) bool {
	return strings.Contains(m.text(), "changes()") && (d.changesDiffer || d.idDiffers) ||
		strings.HasPrefix(m.text(), "PRAGMA defer_foreign_keys") && !open ||
		strings.HasPrefix(m.text(), "PRAGMA foreign_keys") && m.text() != "PRAGMA foreign_keys" && open
}

func (d *duel) step(ctx context.Context, h *history, m move) {
	d.t.Helper()
	before := d.open()
	if d.senseless(m, before) {
		return
	}
	if m.controls && !before && !m.begins() {
		m.parts = append([]string{h.pick("BEGIN", "SAVEPOINT a")}, m.parts...)
	}
	var got [2]string
	lost := false
	w := ways[h.IntN(len(ways))]
	if len(m.parts) > 1 {
		w.name = "exec"
		var err error
		lost, err = d.script(m)
		got = [2]string{"ok", "ok"}
		if err != nil {
			got[theirs] = seeError(err)
		}
		if err := d.tell(ours, m.text()); err != nil {
			got[ours] = seeError(err)
		}
	} else {
		got[theirs] = w.run(ctx, d.pair.conns[theirs], text(m.text()))
		got[ours] = w.run(ctx, d.pair.conns[ours], text(m.text()))
	}
	failed := strings.Contains(got[theirs], "error")
	d.past = append(d.past, fmt.Sprintf("%s -- %s", m.text(), map[bool]string{true: "failed"}[failed]))
	d.alike(w.name+" "+m.text(), got)
	if lost || before && !m.controls && failed && !d.open() {
		d.over(h)
	}
	switch {
	case failed || m.controls: // one of these may have failed within
		d.changesDiffer, d.idDiffers = true, true
	case len(m.parts) == 1 && changesRows(m.text()):
		d.changesDiffer = false
	}
	d.counters(m.text())
}

// withoutID leaves LastInsertId out of what seeResult shows.
func withoutID(seen string) string {
	if _, rest, ok := strings.Cut(seen, "; rows "); ok && strings.HasPrefix(seen, "id ") {
		return rest
	}
	return seen
}

// over is what follows a statement that rolled the transaction back.
func (d *duel) over(h *history) {
	d.t.Helper()
	for _, text := range []string{"SELECT 1", "INSERT INTO log VALUES('lost')", "SAVEPOINT lost"} {
		if err := d.tell(ours, text); err == nil {
			d.fatal(text+" after the transaction was rolled back", "no error", "")
		}
	}
	switch h.IntN(4) {
	case 0, 1:
		if err := d.tell(ours, "ROLLBACK"); err != nil {
			d.fatal("ROLLBACK after the transaction was rolled back", err.Error(), "")
		}
	case 2:
		if err := d.tell(ours, "COMMIT"); err == nil {
			d.fatal("COMMIT after the transaction was rolled back", "no error", "")
		}
	default: // it begins another
		for _, text := range []string{"BEGIN", "INSERT INTO log VALUES('lost')", "ROLLBACK"} {
			if err := d.tell(ours, text); err != nil {
				d.fatal(text+" after the transaction was rolled back", err.Error(), "")
			}
		}
		d.changesDiffer, d.idDiffers = true, true
	}
	d.past = append(d.past, "-- it was over")
}

// withoutRows leaves out rows that come before an error.
func withoutRows(seen string) string {
	if i := strings.Index(seen, "error \""); i > 0 {
		return seen[i:]
	}
	return seen
}

func (d *duel) counters(after string) {
	d.t.Helper()
	ask := func(what string) bool {
		a, b := seeQuery(testrun.Context(d.t), d.pair.conns[ours], text(what)), seeQuery(testrun.Context(d.t), d.pair.conns[theirs], text(what))
		may := d.idDiffers
		if what == "SELECT changes()" {
			may = d.changesDiffer
		}
		if a != b && !may {
			d.fatal(what+" after "+after, a, b)
		}
		return a == b
	}
	ask("SELECT changes()")
	if ask("SELECT last_insert_rowid()") && strings.HasPrefix(after, "INSERT") && !d.changesDiffer {
		d.idDiffers = false
	}
}

var everything = []string{"SELECT * FROM p ORDER BY id", "SELECT * FROM k ORDER BY id", "SELECT * FROM r ORDER BY id", "SELECT rowid, * FROM log",
	"SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name <> 'sqlite_hiqlite' ORDER BY name", "SELECT * FROM sqlite_sequence", "PRAGMA user_version", "PRAGMA foreign_keys", "PRAGMA foreign_key_check"}

func (d *duel) same(when string) {
	d.t.Helper()
	for _, ask := range everything {
		a, b := seeQuery(testrun.Context(d.t), d.pair.conns[ours], text(ask)), seeQuery(testrun.Context(d.t), d.pair.conns[theirs], text(ask))
		if a != b {
			d.fatal(when+": "+ask, a, b)
		}
	}
}

// eachSeed runs some histories that are always the same, and one that is new.
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

func TestTransactionsAsTexts(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	eachSeed(t, 30, func(t *testing.T, seed uint64) {
		d, h := newDuel(t, seed), &history{rand.New(rand.NewPCG(seed, 1))}
		for i := range 150 {
			d.step(testrun.Context(t), h, h.move())
			if i%10 == 0 {
				d.same("in between")
			}
		}
		if d.open() {
			d.step(testrun.Context(t), h, move{parts: []string{"ROLLBACK"}})
		}
		d.same("at the end")
	})
}

// The same through Tx, whose Commit and Rollback end it, whatever they return.
func TestTransactionsByTx(t *testing.T) {
	eachSeed(t, 12, func(t *testing.T, seed uint64) {
		d, h := newDuel(t, seed), &history{rand.New(rand.NewPCG(seed, 2))}
		for range 12 {
			d.transaction(h)
			d.same("after the transaction")
		}
	})
}

// transaction runs one on both.
func (d *duel) transaction(h *history) {
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
	for range 3 + h.IntN(12) {
		m := h.move()
		for m.controls || len(m.parts) > 1 || strings.HasPrefix(m.text(), "BEGIN") || strings.HasPrefix(m.text(), "COMMIT") || strings.HasPrefix(m.text(), "END") || m.text() == "ROLLBACK" {
			m = h.move()
		}
		if d.senseless(m, true) {
			continue
		}
		var got [2]string
		exec := h.IntN(2) == 0
		for i, tx := range txs {
			if exec {
				r, err := tx.ExecContext(ctx, m.text())
				got[i] = seeResult(m.text(), r, err)
			} else {
				rows, err := tx.QueryContext(ctx, m.text())
				got[i] = seeRows(rows, err)
			}
		}
		d.past = append(d.past, m.text())
		d.alike(m.text(), got)
		if strings.Contains(got[theirs], "error") {
			d.changesDiffer, d.idDiffers = true, true
		}
		if strings.Contains(got[theirs], "error") && !d.open() {
			if _, err := txs[ours].ExecContext(ctx, "SELECT 1"); err == nil {
				d.fatal("a statement after a rollback by SQLite", "no error", "")
			}
			_ = txs[theirs].Rollback() // fails: it is gone
			if err := txs[ours].Rollback(); err != nil {
				d.fatal("Rollback after a rollback by SQLite", err.Error(), "")
			}
			return
		}
	}
	end := (*sql.Tx).Commit
	if h.IntN(3) == 0 {
		end = (*sql.Tx).Rollback
	}
	var got [2]string
	for i, tx := range txs {
		if err := end(tx); err != nil {
			got[i] = seeError(err)
		}
	}
	d.past = append(d.past, "-- Commit or Rollback")
	d.alike("the end", got)
	if d.open() { // modernc.org/sqlite leaves it so if a deferred key is violated
		if err := d.tell(theirs, "ROLLBACK"); err != nil {
			d.t.Fatal(err)
		}
	}
}
