package replica

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// leasing returns a replica with a table and a second session.
func leasing(t *testing.T) (m *machine, other *proposer) {
	m = newMachine(t)
	m.must("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	return m, m.openFor(2, 1)
}

// openFor opens a session of a node's incarnation.
func (m *machine) openFor(node, incarnation uint64) *proposer {
	m.t.Helper()
	nonce := node<<32 | incarnation<<8 | uint64(len(m.opened))
	m.update(wire.EncodeOpenSession(nonce, node, incarnation))
	return &proposer{session: m.opened[nonce]}
}

// entry is the proposer's next.
func (p *proposer) entry(ops ...*wire.Operation) []byte {
	p.seq++
	return entryOf(p.session, p.seq, ops...)
}

// by applies operations as an entry of p's and returns their results.
func (m *machine) by(p *proposer, ops ...*wire.Operation) []wire.Result {
	m.t.Helper()
	m.update(p.entry(ops...))
	return m.got[[2]uint64{p.session, p.seq}]
}

func release(ids ...uint64) *wire.Operation {
	return &wire.Operation{Lease: &wire.Lease{Release: ids}}
}

func under(lease uint64, keep bool, texts ...string) *wire.Operation {
	o := op(texts...)
	o.Lease = &wire.Lease{Under: lease, Keep: keep}
	return o
}

// inserting is a transaction that inserts a row of this id.
func inserting(lease, base uint64, keep bool, id int) *wire.Operation {
	o := under(lease, keep, fmt.Sprintf("INSERT INTO t(id) VALUES(%d)", id))
	o.Lease.Transaction, o.Lease.Base = true, base
	o.Lease.Checksum.Add(0, 1, int64(id))
	return o
}

func (m *machine) tick(by uint64) {
	m.t.Helper()
	now := m.Clock().Now
	m.update(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: now, Next: now + by}))
}

// ticks moves the clock in steps as fine as when somebody waits.
func (m *machine) tickFor(ms uint64) {
	m.t.Helper()
	for ; ms > 0; ms -= min(ms, 100) {
		m.tick(min(ms, 100))
	}
}

func (m *machine) holds(id uint64) bool { return m.lease.held.ID == id }

// grantTo has a session take the lease, which must be free.
func (m *machine) grantTo(p *proposer, id, ttl uint64) (base uint64) {
	m.t.Helper()
	a := m.by(p, acquire(id, ttl))[0].Lease
	if a.State != wire.LeaseGranted || a.ID != id || !m.holds(id) {
		m.t.Fatalf("asking for the lease answers %+v", a)
	}
	return a.Base
}

// waits applies an operation that must get a place, and returns what it is known by.
func (m *machine) waits(p *proposer, o *wire.Operation) uint64 {
	m.t.Helper()
	r := m.by(p, o)[0]
	if r.Lease.State != wire.LeaseQueued || r.Err != nil {
		m.t.Fatalf("it answers %+v (%v), and should wait", r.Lease, r.Err)
	}
	return r.Lease.ID
}

func (m *machine) expectRows(want string) {
	m.t.Helper()
	if got := strings.ReplaceAll(m.rows("SELECT id FROM t ORDER BY rowid"), "\n", " "); got != want {
		m.t.Errorf("the rows are %q, want %q", got, want)
	}
}

// state of what became of a place.
func (m *machine) became(id uint64) wire.LeaseState {
	m.t.Helper()
	r, ok := m.settled[id]
	if !ok {
		m.t.Fatalf("nothing was told of place %x", id)
	}
	return r.Lease.State
}

func TestWritesWaitForTheLeaseInOrder(t *testing.T) {
	m, other := leasing(t)
	base := m.grantTo(other, 7<<60, 1000)
	if base != 2 {
		t.Errorf("the lease was granted at the rows of entry %d", base)
	}
	var places []uint64
	for i := range 5 {
		places = append(places, m.waits(&proposer{m.session, m.seq + uint64(i), nil}, op(fmt.Sprintf("INSERT INTO t VALUES(%d, (SELECT count(*) FROM t)) RETURNING v", 10-i))))
	}
	m.expectRows("")
	if len(m.settled) > 0 {
		t.Fatalf("told of places that nobody left: %v", m.settled)
	}
	r := m.by(other, inserting(7<<60, base, false, 100))[0]
	if r.Err != nil || r.Lease.State != wire.LeaseNone {
		t.Fatalf("the commit answers %+v, %v", r.Lease, r.Err)
	}
	for i, id := range places {
		r := m.settled[id]
		if r.Err != nil || len(r.Statements) != 1 || r.Statements[0].Rows.Len() != 1 || r.Statements[0].Rows.Cells[0].Int() != int64(i+1) {
			t.Errorf("place %d was told %+v, %v", i, r, r.Err)
		}
	}
	m.expectRows("6 7 8 9 10 100")
	if !m.holds(0) || len(m.lease.waiters) != 0 || m.lease.bytes != 0 {
		t.Errorf("left: %+v", m.lease)
	}
}

func TestTheLeaseIsGrantedInOrder(t *testing.T) {
	m, other := leasing(t)
	m.grantTo(other, 1<<63, 1000)
	third := m.openFor(3, 1)
	before := m.waits(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(1)"))
	place := m.waits(third, acquire(2<<62, 1000))
	after := m.waits(&proposer{m.session, m.seq + 1, nil}, op("INSERT INTO t(id) VALUES(2)"))
	if place != 2<<62 {
		t.Errorf("a place for the lease is known as %x", place)
	}
	m.by(other, release(1<<63))
	if m.settled[before].Err != nil || m.became(place) != wire.LeaseGranted || !m.holds(place) {
		t.Errorf("told %+v and %+v", m.settled[before], m.settled[place])
	}
	if base := m.settled[place].Lease.Base; base != m.index {
		t.Errorf("the lease was granted at %d: entry %d has changed rows before", base, m.index)
	}
	if _, ok := m.settled[after]; ok {
		t.Error("a write overtook the lease")
	}
	m.expectRows("1")
	m.by(third, inserting(place, m.settled[place].Lease.Base, false, 50))
	m.expectRows("1 2 50")
}

// A transaction is applied under its lease, on the rows it has seen, or not at all.
func TestATransactionIsAppliedUnderItsLeaseOnly(t *testing.T) {
	for name, test := range map[string]struct {
		o       func(base uint64) *wire.Operation
		applied bool
		holds   bool // after it
	}{
		"right":            {func(base uint64) *wire.Operation { return inserting(9, base, false, 1) }, true, false},
		"kept":             {func(base uint64) *wire.Operation { return inserting(9, base, true, 1) }, true, true},
		"of another lease": {func(base uint64) *wire.Operation { return inserting(8, base, true, 1) }, false, true},
		"of other rows":    {func(base uint64) *wire.Operation { return inserting(9, base-1, true, 1) }, false, false},
		"of later rows":    {func(base uint64) *wire.Operation { return inserting(9, base+1, true, 1) }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			m, other := leasing(t)
			base := m.grantTo(other, 9, 1000)
			r := m.by(other, test.o(base))[0]
			if (r.Lease.State == wire.LeaseExpired) == test.applied || r.Err != nil {
				t.Errorf("it answers %+v, %v", r.Lease, r.Err)
			}
			m.expectRows(map[bool]string{true: "1"}[test.applied])
			if m.holds(9) != test.holds {
				t.Errorf("the lease is %+v", m.lease.held)
			}
		})
	}
	t.Run("after it was given up", func(t *testing.T) {
		m, other := leasing(t)
		base := m.grantTo(other, 9, 1000)
		m.by(other, release(9))
		if r := m.by(other, inserting(9, base, false, 1))[0]; r.Lease.State != wire.LeaseExpired {
			t.Errorf("it answers %+v", r.Lease)
		}
		m.expectRows("")
	})
}

// One that comes out otherwise than it did where it ran is an error, and nothing
// of it is applied; the lease ends.
func TestATransactionThatDiffersIsNotApplied(t *testing.T) {
	m, other := leasing(t)
	base := m.grantTo(other, 9, 1000)
	wait := m.waits(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(77)"))
	o := inserting(9, base, true, 1)
	o.Statements = append(o.Statements, op("INSERT INTO t(id) VALUES(2)").Statements...)
	r := m.by(other, o)[0]
	if r.Err == nil || r.Err.Code != sqlite.CodeAbort || r.Err.Hint == "" {
		t.Errorf("it answers %v", r.Err)
	}
	m.expectRows("77")
	if m.settled[wait].Err != nil || !m.holds(0) {
		t.Errorf("who waited is told %v, the lease is %x", m.settled[wait].Err, m.lease.held.ID)
	}
	// Its one statement, where no savepoint was needed.
	base = m.grantTo(other, 10, 1000)
	o = inserting(10, base, true, 3)
	o.Lease.Checksum++
	if r := m.by(other, o)[0]; r.Err == nil || r.Err.Code != sqlite.CodeAbort {
		t.Errorf("it answers %v", r.Err)
	}
	m.expectRows("77")
}

func TestALeaseIsKeptUnlessSomebodyWaits(t *testing.T) {
	m, other := leasing(t)
	base := m.grantTo(other, 9, 1000)
	a := m.by(other, inserting(9, base, true, 1))[0].Lease
	if a.State != wire.LeaseKept || a.ID != 9 || a.Base != m.index || !m.lease.held.Idle {
		t.Fatalf("a kept lease answers %+v, it is %+v", a, m.lease.held)
	}
	// The next one under it, with the new base.
	if a = m.by(other, inserting(9, a.Base, true, 2))[0].Lease; a.State != wire.LeaseKept {
		t.Fatalf("the next answers %+v", a)
	}
	m.by(other, &wire.Operation{Lease: &wire.Lease{InUse: true}})
	if m.lease.held.Idle {
		t.Error("it is in use, and counts as idle")
	}
	m.waits(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(77)"))
	if a = m.by(other, inserting(9, a.Base, true, 3))[0].Lease; a.State != wire.LeaseNone {
		t.Errorf("others wait, and it answers %+v", a)
	}
	m.expectRows("1 2 3 77")
	if m.by(&proposer{m.session, m.seq + 1, nil}, &wire.Operation{Lease: &wire.Lease{InUse: true}}); !m.holds(0) {
		t.Error("somebody holds the lease")
	}
}

// A plain write that carries a lease ends it, or waits like any other.
func TestAWriteThatCarriesALease(t *testing.T) {
	m, other := leasing(t)
	m.grantTo(other, 9, 1000)
	if r := m.by(other, under(9, false, "INSERT INTO t(id) VALUES(1)"))[0]; r.Err != nil || r.Lease.State != wire.LeaseNone || !m.holds(0) {
		t.Errorf("under its lease it answers %+v", r)
	}
	if r := m.by(other, under(9, true, "INSERT INTO t(id) VALUES(2)"))[0]; r.Err != nil || r.Lease.State != wire.LeaseNone || !m.holds(0) {
		t.Errorf("its lease gone it answers %+v", r)
	}
	m.grantTo(other, 10, 1000)
	place := m.waits(other, under(9, true, "INSERT INTO t(id) VALUES(3)"))
	m.expectRows("1 2")
	a := m.by(other, under(10, true, "INSERT INTO t(id) VALUES(4)"))[0].Lease
	if a.State != wire.LeaseNone { // one waits
		t.Errorf("it answers %+v", a)
	}
	if m.settled[place].Err != nil || !m.holds(0) {
		t.Errorf("the other was told %+v", m.settled[place])
	}
	m.expectRows("1 2 3 4")
	m.grantTo(other, 11, 1000)
	if a := m.by(other, under(11, true, "INSERT INTO t(id) VALUES(5)"))[0].Lease; a.State != wire.LeaseKept || a.Base != m.index {
		t.Errorf("kept, it answers %+v", a)
	}
	if r := m.by(other, under(11, true, "INSERT INTO t(id) VALUES(5)"))[0]; r.Err == nil || !m.holds(0) {
		t.Errorf("failed, it answers %+v and the lease is %x", r, m.lease.held.ID)
	}
}

// What was told of a kept lease does not change when an operation that comes
// later in the batch has all of it executed again.
func TestAKeptLeaseSurvivesARollbackOfItsBatch(t *testing.T) {
	m, other := leasing(t)
	base := m.grantTo(other, 9, 1000)
	m.update(other.entry(inserting(9, base, true, 1)), other.entry(release(9)), other.entry(op("INSERT OR ROLLBACK INTO t(id) VALUES(2),(1)")))
	if a := m.got[[2]uint64{other.session, 2}][0].Lease; a.State != wire.LeaseKept || a.ID != 9 {
		t.Errorf("the commit was told %+v", a)
	}
	m.expectRows("1")
}

func TestRelease(t *testing.T) {
	m, other := leasing(t)
	m.grantTo(other, 9, 1000)
	third := m.openFor(3, 1)
	a, b := m.waits(third, acquire(10, 1000)), m.waits(other, acquire(11, 1000))
	c := m.waits(other, op("INSERT INTO t(id) VALUES(1)"))
	d := m.waits(other, op("INSERT INTO t(id) VALUES(2)"))
	m.by(other, release(12345)) // nobody's
	if !m.holds(9) || len(m.lease.waiters) != 4 {
		t.Errorf("giving up what is not there left %+v", m.lease)
	}
	m.by(other, release(a, c))
	if m.became(a) != wire.LeaseExpired || m.became(c) != wire.LeaseExpired || len(m.lease.waiters) != 2 {
		t.Errorf("given up places were told %+v, %+v", m.settled[a], m.settled[c])
	}
	// The lease, and the place that it goes to, at once.
	m.by(other, release(9, b))
	if m.became(b) != wire.LeaseGranted || !m.holds(0) {
		t.Errorf("told %+v, the lease is %x", m.settled[b], m.lease.held.ID)
	}
	m.expectRows("2")
	if m.settled[d].Err != nil {
		t.Error(m.settled[d].Err)
	}
	if m.lease.bytes != 0 || len(m.lease.waiters) != 0 {
		t.Errorf("left: %+v", m.lease)
	}
}

// A copy of an entry is answered with where its operations stand, and applies
// nothing a second time, whichever batch it comes in.
func TestCopiesOfWhatWaits(t *testing.T) {
	for name, together := range map[string]bool{"in one batch": true, "one by one": false} {
		t.Run(name, func(t *testing.T) {
			m, other := leasing(t)
			base := m.grantTo(other, 9, 1000)
			m.seq++
			write := entryOf(m.session, m.seq, op("INSERT INTO t(id) VALUES(1)"), op("INSERT INTO t(id) VALUES(2) RETURNING id"), acquire(20, 1000))
			key := [2]uint64{m.session, m.seq}
			commit := other.entry(inserting(9, base, false, 100))
			var answers [][]wire.Result
			log := [][]byte{write, write, commit, commit, write}
			if together {
				m.update(log...)
				answers = append(answers, m.got[key])
			} else {
				for _, cmd := range log {
					m.update(cmd)
					answers = append(answers, m.got[key])
				}
				if a := answers[1]; a[0].Lease.State != wire.LeaseQueued || a[2].Lease.ID != 20 {
					t.Errorf("a copy that came before its turn is answered %+v", a)
				}
			}
			last := answers[len(answers)-1]
			if len(last) != 3 || last[0].Err != nil || last[0].Lease.State != wire.LeaseNone || last[1].Statements[0].Rows.Len() != 1 || last[2].Lease.State != wire.LeaseGranted {
				t.Errorf("a copy that came after is answered %+v", last)
			}
			if len(m.settled) != 3 {
				t.Errorf("told of %d places: %v", len(m.settled), m.settled)
			}
			m.expectRows("1 2 100")
		})
	}
}

// Everything of one entry: its result tells the end, and nothing else is told.
func TestQueuedAndSettledInOneEntry(t *testing.T) {
	m, other := leasing(t)
	r := m.by(other, acquire(9, 1000), op("INSERT INTO t(id) VALUES(1)"), acquire(10, 1000), op("INSERT INTO t(id) VALUES(2)"), release(9), release(10), op("INSERT INTO t(id) VALUES(3)"))
	for i, want := range []wire.LeaseState{wire.LeaseGranted, wire.LeaseNone, wire.LeaseGranted, wire.LeaseNone, wire.LeaseNone, wire.LeaseNone, wire.LeaseNone} {
		if r[i].Lease.State != want || r[i].Err != nil {
			t.Errorf("operation %d answers %+v, %v", i, r[i].Lease, r[i].Err)
		}
	}
	if len(r[1].Statements) != 1 || len(m.settled) != 0 {
		t.Errorf("told %+v and %v", r[1], m.settled)
	}
	m.expectRows("1 2 3")
}
