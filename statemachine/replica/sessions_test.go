package replica

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// newCounterHistory returns a history whose table has a row for each time that an entry
// was applied.
func newCounterHistory() *history {
	h := newHistory()
	h.sql("CREATE TABLE applied(n INTEGER)")
	return h
}

// insert returns an operation that adds a row for entry n.
func insert(n int) *wire.Operation {
	return op(fmt.Sprintf("INSERT INTO applied VALUES(%d) RETURNING n, random()", n))
}

// applied returns how often each entry was applied.
func (m *machine) applied() string {
	m.t.Helper()
	return m.rows("SELECT n, count(*) FROM applied GROUP BY n ORDER BY n")
}

// encoded returns results as text, for comparison.
func encoded(r []wire.Result) string {
	var b []byte
	for i := range r {
		b = append(wire.AppendResult(b, &r[i]), '/')
	}
	return string(b)
}

func TestCopiesOfAnEntryAreAppliedOnce(t *testing.T) {
	for _, together := range []bool{true, false} {
		m := newMachine(t)
		m.must("CREATE TABLE applied(n INTEGER)")
		cmd := m.entry(insert(1))
		key := [2]uint64{m.session, m.seq}
		if together {
			m.update(cmd, cmd, cmd)
		} else {
			m.update(cmd)
			first := encoded(m.got[key])
			m.update(cmd)
			m.update(cmd)
			if got := encoded(m.got[key]); got != first {
				t.Errorf("the results of a copy are %q, those of the first one %q", got, first)
			}
		}
		if got := m.applied(); got != "1|1" {
			t.Errorf("together %v: applied %q", together, got)
		}
		if m.answered != 4 { // one for CREATE TABLE, and one for each copy
			t.Errorf("together %v: Applied was called %d times, want 4", together, m.answered)
		}
		if r := m.got[key][0]; r.Err != nil || r.Statements[0].Rows.Len() != 1 {
			t.Errorf("together %v: the results of the last copy are %+v", together, r)
		}
	}
}

func TestCopiesOfFailedEntriesFailAgain(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a PRIMARY KEY)")
	m.must("INSERT INTO t VALUES(1)")
	cmd := m.entry(op("INSERT INTO t VALUES(1)"))
	m.update(cmd)
	m.mustInNewSession(t, "DELETE FROM t")
	m.update(cmd)
	r := m.got[[2]uint64{m.session, m.seq}][0]
	if r.Err == nil || r.Err.Code != 1555 {
		t.Errorf("the results of the copy are %+v", r)
	}
	if got := m.rows("SELECT count(*) FROM t"); got != "0" {
		t.Errorf("the copy was applied: %s rows", got)
	}
}

// mustInNewSession applies a statement in a session that it opens for it.
func (m *machine) mustInNewSession(t *testing.T, text string) {
	t.Helper()
	nonce := uint64(1000 + m.index)
	m.update(wire.EncodeOpenSession(nonce, 0, 0))
	session := m.opened[nonce]
	m.update(entryOf(session, 1, op(text)))
	if r := m.got[[2]uint64{session, 1}]; len(r) != 1 || r[0].Err != nil {
		t.Fatalf("%s: %+v", text, r)
	}
}

func TestDelayedCopiesAreDropped(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE applied(n INTEGER)")
	var old [][]byte
	for n := range 5 {
		old = append(old, m.entry(insert(n)))
		m.update(old[n])
	}
	answered := m.answered
	m.update(old[2], old[0])
	m.update(old[3])
	if m.answered != answered {
		t.Errorf("Applied was called %d times for copies of older entries", m.answered-answered)
	}
	m.update(m.entry(insert(9)), old[4], old[1])
	if got := m.applied(); got != "0|1\n1|1\n2|1\n3|1\n4|1\n9|1" {
		t.Errorf("applied %q", got)
	}
}

func TestSequencesMayHaveGaps(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE applied(n INTEGER)")
	m.seq = 100
	late := entryOf(m.session, 50, insert(50))
	m.update(m.entry(insert(101)), late)
	if got := m.applied(); got != "101|1" {
		t.Errorf("applied %q", got)
	}
}

func TestEntriesOfUnknownSessionsAreNotApplied(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE applied(n INTEGER)")
	for _, session := range []uint64{0, 999, 1 << 63} {
		m.unknown = nil
		m.update(entryOf(session, 1, insert(1)))
		if !slices.Equal(m.unknown, [][2]uint64{{session, 1}}) {
			t.Errorf("session %d: the unknown entries are %v", session, m.unknown)
		}
	}
	if got := m.applied(); got != "" {
		t.Errorf("applied %q", got)
	}
}

// Sequences begin with 1. An entry without a sequence is dropped, and is not taken for a
// copy.
func TestEntriesWithoutASequenceAreDropped(t *testing.T) {
	m := newMachine(t)
	m.update(entryOf(m.session, 0, op("CREATE TABLE t(a)")))
	if m.answered != 0 {
		t.Errorf("there are results: %v", m.got)
	}
}

func TestCopiesAfterARestart(t *testing.T) {
	for _, sync := range []bool{false, true} {
		h := newCounterHistory()
		h.do(insert(1))
		h.do(insert(2))
		m := emptyMachine(t)
		m.apply(h.entries...)
		want := encoded(m.got[[2]uint64{1, 3}])
		if sync {
			if err := m.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		m.restart(h)
		h.add(h.entries[3].Cmd)
		h.add(h.entries[2].Cmd)
		m.got = map[[2]uint64][]wire.Result{}
		m.apply(h.entries[4:]...)
		if got := m.applied(); got != "1|1\n2|1" {
			t.Errorf("sync %v: applied %q", sync, got)
		}
		if got := encoded(m.got[[2]uint64{1, 3}]); got != want {
			t.Errorf("sync %v: the results of the copy are %q, want %q", sync, got, want)
		}
	}
}

func TestCopiesAfterASnapshot(t *testing.T) {
	h := newCounterHistory()
	h.do(insert(1))
	m, other := emptyMachine(t), emptyMachine(t)
	m.apply(h.entries...)
	m.snapshotTo(other)
	for range 2 { // the second time after a restart of the recovered replica
		h.add(h.entries[2].Cmd)
		other.apply(h.entries[other.index:]...)
		if got := other.applied(); got != "1|1" {
			t.Errorf("applied %q", got)
		}
		if got, want := encoded(other.got[[2]uint64{1, 2}]), encoded(m.got[[2]uint64{1, 2}]); got != want {
			t.Errorf("the results of the copy are %q, want %q", got, want)
		}
		other.restart(h)
	}
}

// inFlight encodes an entry that its proposer sends while those from oldest on are in
// flight.
func inFlight(session, sequence, oldest uint64, ops ...*wire.Operation) []byte {
	encoded := make([]*wire.EncodedOperation, len(ops))
	for i, o := range ops {
		encoded[i] = wire.EncodeOperation(o)
	}
	return wire.EncodeEntry(session, sequence, oldest, encoded)
}

// Several entries of a session are in flight, and one is lost. Those after it are not
// applied before it, on no replica, however it gets the log. Copies of all of them get the
// results that the proposer may not have yet.
func TestEntriesInFlightAreAppliedInOrder(t *testing.T) {
	h := newCounterHistory()
	of := func(n int) []byte { return inFlight(1, uint64(n)+1, 2, insert(n)) } // entry 1 made the table
	lone := entryOf(1, 2, insert(1))
	for _, cmd := range [][]byte{lone, of(3), of(4), of(2), of(2), of(4), of(3), of(5), lone, of(3), of(4)} {
		h.add(cmd)
	}
	want := "1|1\n2|1\n3|1\n4|1"
	m := emptyMachine(t)
	m.apply(h.entries...)
	if got := m.rows("SELECT group_concat(n) FROM applied"); got != "1,2,3,4" {
		t.Errorf("applied %s", got)
	}
	first := m.got
	for way, move := range map[string]func(m *machine) *machine{
		"restarts":  func(m *machine) *machine { m.restart(h); return m },
		"snapshots": func(m *machine) *machine { other := emptyMachine(t); m.snapshotTo(other); return other },
	} {
		m := emptyMachine(t)
		for int(m.index) < len(h.entries) {
			m.apply(h.entries[m.index])
			m = move(m)
		}
		if got := m.applied(); got != want {
			t.Errorf("%s: applied %q", way, got)
		}
		m.got = map[[2]uint64][]wire.Result{}
		copies := []sm.Entry{{Index: m.index + 1, Cmd: of(4)}, {Index: m.index + 2, Cmd: lone}, {Index: m.index + 3, Cmd: of(2)}, {Index: m.index + 4, Cmd: of(3)}}
		m.apply(copies...)
		for sequence := uint64(2); sequence <= 5; sequence++ {
			key := [2]uint64{1, sequence}
			if got, want := encoded(m.got[key]), encoded(first[key]); got != want {
				t.Errorf("%s: the results of a copy of entry %d are %q, want %q", way, sequence, got, want)
			}
		}
		if got := m.applied(); got != want {
			t.Errorf("%s: applied %q after the copies", way, got)
		}
	}
}

// An operation waits for the write lease while later entries of its session are applied.
// A copy of its entry then gets the result of the operation, after a snapshot too.
func TestAWaiterOfAnEarlierEntryInFlight(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE applied(n INTEGER)")
	m.do(acquire(5, 1000))
	m.seq++
	oldest := m.seq
	waiting := inFlight(m.session, oldest, 0, insert(1))
	m.update(waiting)
	if r := m.got[[2]uint64{m.session, oldest}]; len(r) != 1 || r[0].Lease.State != wire.LeaseQueued {
		t.Fatalf("the results are %+v", r)
	}
	m.seq++
	release := &wire.Operation{Lease: &wire.Lease{Release: []uint64{5}}}
	m.update(inFlight(m.session, m.seq, oldest, release))
	other := emptyMachine(t)
	m.snapshotTo(other)
	for _, m := range []*machine{m, other} {
		m.apply(sm.Entry{Index: m.index + 1, Cmd: waiting})
		if got := m.applied(); got != "1|1" {
			t.Errorf("applied %q", got)
		}
		if r := m.got[[2]uint64{m.SQL.state().Sessions[0].ID, oldest}]; len(r) != 1 || r[0].Err != nil || len(r[0].Statements) != 1 {
			t.Errorf("the results of the copy are %+v", r)
		}
	}
}

// A session that only the state file has must be written to SQLite with the next
// transaction, because the state file counts only until then.
func TestSessionsOfTheStateFileSurviveTheNextRestart(t *testing.T) {
	h := newCounterHistory()
	m := emptyMachine(t)
	h.add(wire.EncodeOpenSession(5, 0, 0)) // session 3, only in memory
	m.apply(h.entries...)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	m.restart(h)
	h.do(insert(1))
	m.apply(h.entries[3:]...)
	m.restart(h)
	h.add(entryOf(3, 1, insert(2)))
	m.apply(h.entries[4:]...)
	if got := m.applied(); got != "1|1\n2|1" {
		t.Errorf("applied %q: the session was forgotten", got)
	}
}

// A session that has expired only in memory must not come back after a restart.
func TestExpiredSessionsDoNotComeBack(t *testing.T) {
	h := newCounterHistory()
	h.add(wire.EncodeOpenSession(5, 0, 0)) // session 3
	h.do(insert(1))                        // writes session 3 to SQLite
	m := emptyMachine(t)
	h.add(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: 0, Next: 100}))
	h.do(insert(2)) // session 1 is used
	h.add(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: 100, Next: 3600_050}))
	for _, e := range h.entries {
		m.apply(e)
	}
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	m.restart(h)
	h.do(insert(3))
	m.apply(h.entries[7:]...)
	m.restart(h)
	h.add(entryOf(3, 1, insert(4)))
	m.apply(h.entries[8:]...)
	if got := m.applied(); got != "1|1\n2|1\n3|1" {
		t.Errorf("applied %q: an expired session came back", got)
	}
}

func TestSessionsExpireOnlyByClockAdvances(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE applied(n INTEGER)")
	for _, advance := range []wire.ClockAdvance{{Expected: 5, Next: 1 << 40}, {Expected: 0, Next: 0}} {
		m.update(wire.EncodeClockAdvance(advance)) // a proposer with an old clock has proposed it
		if c := m.Clock(); c.Now != 0 || !c.Runs || c.Wait != statemachine.MaxAdvanceInterval {
			t.Errorf("the clock is %+v", c)
		}
	}
	m.update(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: 0, Next: 3600_000}))
	if r := m.do(insert(1)); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	m.update(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: 3600_000, Next: 7200_001}))
	m.update(m.entry(insert(2)))
	if len(m.unknown) != 1 {
		t.Error("the session did not expire")
	}
	if m.Clock().Runs {
		t.Error("no session can expire any more, but the clock is still needed")
	}
}

// There are so many sessions that SQLite calls the progress callback while the replica
// reads them.
func TestManySessionsAreReadBack(t *testing.T) {
	h := newCounterHistory()
	for n := range 3000 {
		h.add(wire.EncodeOpenSession(uint64(n), 0, 0))
	}
	h.do(insert(1))
	m := emptyMachine(t)
	m.apply(h.entries...)
	m.restart(h)
	if n := m.sessions.Len(); n != 3001 {
		t.Errorf("there are %d sessions", n)
	}
}

func TestTheOldestSessionIsDroppedForANewOne(t *testing.T) {
	m := newMachine(t)
	cmds := make([][]byte, statemachine.MaxSessions)
	for i := range cmds {
		cmds[i] = wire.EncodeOpenSession(uint64(i), uint64(i)+100, 1)
	}
	m.update(cmds...)
	if n := m.sessions.Len(); n != statemachine.MaxSessions {
		t.Fatalf("there are %d sessions", n)
	}
	m.update(m.entry(op("CREATE TABLE t(a)")))
	if len(m.unknown) != 1 {
		t.Error("the first session is still there")
	}
}

// The size of a result is that of all result sets of a script together. If it is too
// large, none of them is kept for copies.
func TestLargeResultSetsAreNotKept(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	for _, test := range []struct {
		bytes int
		kept  bool
	}{{maxKeptResult / 4, true}, {maxKeptResult/2 + 1, false}} {
		read := fmt.Sprintf("SELECT zeroblob(%d)", test.bytes)
		cmd := m.entry(op("INSERT INTO t VALUES(1); " + read + "; " + read))
		key := [2]uint64{m.session, m.seq}
		m.update(cmd)
		if r := m.got[key][0]; r.RowsDropped || len(r.Statements[0].Sets()) != 2 {
			t.Errorf("%d bytes: the first result has RowsDropped=%v and %d result sets", test.bytes, r.RowsDropped, len(r.Statements[0].Sets()))
		}
		m.update(cmd)
		want := 0
		if test.kept {
			want = 2
		}
		if r := m.got[key][0]; r.RowsDropped == test.kept || len(r.Statements[0].Sets()) != want || r.Statements[0].More != nil != test.kept {
			t.Errorf("%d bytes: the result of the copy has RowsDropped=%v and %d result sets", test.bytes, r.RowsDropped, len(r.Statements[0].Sets()))
		}
	}
}

func TestLargeResultsAreNotKept(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	for _, test := range []struct {
		bytes int
		kept  bool
	}{{maxKeptResult / 2, true}, {maxKeptResult + 1, false}} {
		cmd := m.entry(op(fmt.Sprintf("INSERT INTO t VALUES(hex(zeroblob(%d))) RETURNING a", test.bytes/2)), op("INSERT INTO t VALUES(1) RETURNING a"))
		key := [2]uint64{m.session, m.seq}
		m.update(cmd)
		if r := m.got[key][0]; r.RowsDropped || r.Statements[0].Rows.Len() != 1 {
			t.Errorf("%d bytes: the first result has RowsDropped=%v and %d rows", test.bytes, r.RowsDropped, r.Statements[0].Rows.Len())
		}
		m.update(cmd)
		r := m.got[key]
		if r[0].RowsDropped == test.kept || (r[0].Statements[0].Rows != nil) != test.kept || r[0].Statements[0].RowsAffected != 1 {
			t.Errorf("%d bytes: the result of the copy is %+v", test.bytes, r[0])
		}
		if r[1].RowsDropped || r[1].Statements[0].Rows.Len() != 1 {
			t.Errorf("%d bytes: the small result of the same entry is %+v", test.bytes, r[1])
		}
	}
}

func TestEntriesOfANewerFormatStopTheReplica(t *testing.T) {
	h := newCounterHistory()
	h.do(insert(1))
	newer := h.entries[2]
	newer.Cmd = append([]byte{wire.FormatVersion + 1}, newer.Cmd[1:]...)
	m := emptyMachine(t)
	m.apply(h.entries[:2]...)
	answered := m.answered
	if _, err := m.Update([]sm.Entry{newer}); err != nil {
		t.Fatal("Update's error would end the process:", err)
	}
	if err := <-m.failed; !strings.Contains(err.Error(), "upgrade this node") {
		t.Errorf("the error is %q", err)
	}
	if m.answered != answered || m.SQL.Applied() != 2 {
		t.Errorf("Applied was called %d times; the replica is at entry %d", m.answered-answered, m.SQL.Applied())
	}
	if _, err := m.query("SELECT 1"); err == nil || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("the error of a read is %v", err)
	}
	m.restart(h)
	m.apply(h.entries[2:]...)
	if got := m.applied(); got != "1|1" {
		t.Errorf("after the upgrade: applied %q", got)
	}
}
