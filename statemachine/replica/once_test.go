package replica

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"pgregory.net/rapid"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// operations are the statements that proposers send: inserts, failures, scripts, and
// statements that end the SQLite transaction.
var operations = []string{
	"INSERT INTO done VALUES(%d, random())",
	"INSERT INTO done VALUES(%d, datetime('now')) RETURNING *",
	"INSERT INTO done VALUES(%d, hex(randomblob(4))); INSERT INTO done SELECT -n, v FROM done WHERE n=%[1]d",
	"INSERT OR ROLLBACK INTO done VALUES(%d, 'a'), (0, 'no')",
	"INSERT INTO done VALUES(%d, 'b'); INSERT INTO done VALUES(0, 'no')",
	"INSERT INTO ft VALUES('w%d rest')",
	"UPDATE done SET v=v||'+' WHERE n%%3=%d%%3",
	"CREATE TABLE t%d(a); INSERT INTO t%[1]d VALUES(random())",
	"ANALYZE; INSERT INTO done VALUES(%d, 'c')",
	"INSERT INTO done SELECT %d, group_concat(tbl||coalesce(stat,'')) FROM (SELECT * FROM sqlite_stat1 ORDER BY 1,2,3)",
	"INSERT INTO done SELECT %d, group_concat(name) FROM pragma_table_list",
	"INSERT INTO child VALUES(%d)",
	"PRAGMA foreign_keys=OFF; INSERT INTO child VALUES(%d)",
	"DELETE FROM ft WHERE rowid%%4=%d%%4",
}

// A proposer proposes its entries in order, and proposes each until it has the results.
// Copies of its entries may come at any time.
type proposer struct {
	session, seq uint64
	sent         [][]byte // its entries, from which copies are drawn
}

// randomLog draws a log of three proposers, with copies of entries.
func randomLog(t *rapid.T) *history {
	h := newHistory()
	h.sql("CREATE TABLE done(n INTEGER UNIQUE, v)", "CREATE VIRTUAL TABLE ft USING fts5(x)", "INSERT INTO done VALUES(0, 'is taken')",
		"CREATE TABLE parent(a INTEGER PRIMARY KEY)", "CREATE TABLE child(a REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
	var proposers []*proposer
	for i := range 3 {
		h.add(wire.EncodeOpenSession(uint64(i), 0, 0))
		proposers = append(proposers, &proposer{session: uint64(len(h.entries))})
	}
	n := 0
	for range rapid.IntRange(1, 40).Draw(t, "entries") {
		p := rapid.SampledFrom(proposers).Draw(t, "proposer")
		if len(p.sent) > 0 && rapid.IntRange(0, 3).Draw(t, "copy") == 0 {
			h.add(rapid.SampledFrom(p.sent).Draw(t, "of"))
			continue
		}
		var ops []*wire.Operation
		for range rapid.IntRange(1, 4).Draw(t, "operations") {
			n++
			o := op(fmt.Sprintf(rapid.SampledFrom(operations).Draw(t, "text"), n))
			o.Seed, o.StampMS = seedOf(uint64(n)), o.StampMS+int64(n)
			ops = append(ops, o)
		}
		p.seq += rapid.Uint64Range(1, 3).Draw(t, "gap")
		cmd := entryOf(p.session, p.seq, ops...)
		p.sent = append(p.sent, cmd)
		h.add(cmd)
	}
	return h
}

// withoutCopies returns the log with empty entries in place of copies.
func (h *history) withoutCopies() *history {
	out := &history{}
	seen := map[string]bool{}
	for _, e := range h.entries {
		if seen[string(e.Cmd)] {
			e.Cmd = nil
		}
		seen[string(e.Cmd)] = true
		out.entries = append(out.entries, e)
	}
	return out
}

// run applies a log in batches of random size, with restarts and snapshots.
func (h *history) run(t *testing.T, rt *rapid.T, name string) *machine {
	m := emptyMachine(t)
	for m.index < uint64(len(h.entries)) {
		n := rapid.IntRange(1, 10).Draw(rt, name+" batch")
		m.apply(h.entries[m.index:min(m.index+uint64(n), uint64(len(h.entries)))]...)
		switch rapid.IntRange(0, 9).Draw(rt, name+" then") {
		case 0:
			m.restart(h)
		case 1:
			if err := m.Sync(); err != nil {
				rt.Fatal(err)
			}
			m.restart(h)
		case 2:
			other := emptyMachine(t)
			m.snapshotTo(other)
			m.Close()
			m = other
		}
	}
	return m
}

// Entries are applied once on every replica, although there are copies, and although the
// replicas apply the log in different batches. All replicas have the same rows.
func TestEveryEntryIsAppliedOnceOnEveryReplica(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	rapid.Check(t, func(rt *rapid.T) {
		h := randomLog(rt)
		want := h.withoutCopies().run(t, rt, "plain")
		defer want.Close()
		for i := range 2 {
			m := h.run(t, rt, fmt.Sprint("replica ", i))
			if m.hash() != want.hash() {
				const q = "SELECT n, v FROM done ORDER BY n"
				rt.Errorf("replica %d differs:\n%s\n\nwithout copies:\n%s", i, m.rows(q), want.rows(q))
			}
			m.Close()
		}
	})
}

// In a log with sequences in any order, an entry is applied if its sequence is higher
// than all earlier ones of its session.
func TestOnlyHigherSequencesAreApplied(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		sequences := rapid.SliceOfN(rapid.Uint64Range(0, 12), 1, 30).Draw(rt, "sequences")
		m := emptyMachine(t)
		defer m.Close()
		m.apply(newCounterHistory().entries...)
		last := uint64(1) // the sequence of CREATE TABLE
		var want []string
		var entries []sm.Entry
		for i, seq := range sequences {
			entries = append(entries, sm.Entry{Index: m.index + uint64(i) + 1, Cmd: entryOf(1, seq, op(fmt.Sprintf("INSERT INTO applied VALUES(%d)", i)))})
			if seq > last {
				last = seq
				want = append(want, fmt.Sprint(i))
			}
		}
		for batch := range slices.Chunk(entries, rapid.IntRange(1, 8).Draw(rt, "batch")) {
			m.apply(batch...)
		}
		if got := m.rows("SELECT n FROM applied ORDER BY rowid"); got != strings.Join(want, "\n") {
			rt.Errorf("%v: applied %q, want %q", sequences, got, want)
		}
	})
}
