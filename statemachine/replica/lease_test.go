package replica

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// newLeaseMachine returns a replica with a table and a second session.
func newLeaseMachine(t *testing.T) (m *machine, other *proposer) {
	m = newMachine(t)
	m.must("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	return m, m.openFor(2, 1)
}

// openFor opens a session for an incarnation of a node.
func (m *machine) openFor(node, incarnation uint64) *proposer {
	m.t.Helper()
	nonce := node<<32 | incarnation<<8 | uint64(len(m.opened))
	m.update(wire.EncodeOpenSession(nonce, node, incarnation))
	return &proposer{session: m.opened[nonce]}
}

// entry returns the proposer's next entry.
func (p *proposer) entry(ops ...*wire.Operation) []byte {
	p.seq++
	return entryOf(p.session, p.seq, ops...)
}

// doAs applies operations as the next entry of p and returns their results.
func (m *machine) doAs(p *proposer, ops ...*wire.Operation) []wire.Result {
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

// inserting returns a transaction that inserts a row with this id.
func inserting(lease, base uint64, keep bool, id int) *wire.Operation {
	o := under(lease, keep, fmt.Sprintf("INSERT INTO t(id) VALUES(%d)", id))
	o.Lease.Transaction, o.Lease.Base = true, base
	o.Lease.Checksum.Add(0, 1, int64(id))
	return o
}

func (m *machine) advance(by uint64) {
	m.t.Helper()
	now := m.Clock().Now
	m.update(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: now, Next: now + by}))
}

// advanceFor moves the clock in steps that are as short as while somebody waits.
func (m *machine) advanceFor(ms uint64) {
	m.t.Helper()
	for ; ms > 0; ms -= min(ms, 100) {
		m.advance(min(ms, 100))
	}
}

func (m *machine) holds(id uint64) bool { return m.lease.held.ID == id }

// grantTo has a session acquire the lease, which must be free.
func (m *machine) grantTo(p *proposer, id, ttl uint64) (base uint64) {
	m.t.Helper()
	a := m.doAs(p, acquire(id, ttl))[0].Lease
	if a.State != wire.LeaseGranted || a.ID != id || !m.holds(id) {
		m.t.Fatalf("acquiring the lease returns %+v", a)
	}
	return a.Base
}

// mustQueue applies an operation that must be queued, and returns the id of its waiter.
func (m *machine) mustQueue(p *proposer, o *wire.Operation) uint64 {
	m.t.Helper()
	r := m.doAs(p, o)[0]
	if r.Lease.State != wire.LeaseQueued || r.Err != nil {
		m.t.Fatalf("the result is %+v (%v), want a queued waiter", r.Lease, r.Err)
	}
	return r.Lease.ID
}

func (m *machine) expectRows(want string) {
	m.t.Helper()
	if got := strings.ReplaceAll(m.rows("SELECT id FROM t ORDER BY rowid"), "\n", " "); got != want {
		m.t.Errorf("the rows are %q, want %q", got, want)
	}
}

// settledState returns the state with which a waiter was settled.
func (m *machine) settledState(id uint64) wire.LeaseState {
	m.t.Helper()
	r, ok := m.settled[id]
	if !ok {
		m.t.Fatalf("waiter %x was not settled", id)
	}
	return r.Lease.State
}

func TestWritesWaitForTheLeaseInOrder(t *testing.T) {
	m, other := newLeaseMachine(t)
	base := m.grantTo(other, 7<<60, 1000)
	if base != 2 {
		t.Errorf("the base of the lease is %d, want 2", base)
	}
	var waiters []uint64
	for i := range 5 {
		waiters = append(waiters, m.mustQueue(&proposer{m.session, m.seq + uint64(i), nil}, op(fmt.Sprintf("INSERT INTO t VALUES(%d, (SELECT count(*) FROM t)) RETURNING v", 10-i))))
	}
	m.expectRows("")
	if len(m.settled) > 0 {
		t.Fatalf("waiters were settled while the lease was held: %v", m.settled)
	}
	r := m.doAs(other, inserting(7<<60, base, false, 100))[0]
	if r.Err != nil || r.Lease.State != wire.LeaseNone {
		t.Fatalf("the result of the commit is %+v, %v", r.Lease, r.Err)
	}
	for i, id := range waiters {
		r := m.settled[id]
		if r.Err != nil || len(r.Statements) != 1 || r.Statements[0].Rows.Len() != 1 || r.Statements[0].Rows.Cells[0].Int() != int64(i+1) {
			t.Errorf("the result of waiter %d is %+v, %v", i, r, r.Err)
		}
	}
	m.expectRows("6 7 8 9 10 100")
	if !m.holds(0) || len(m.lease.waiters) != 0 || m.lease.bytes != 0 {
		t.Errorf("the lease queue is not empty: %+v", m.lease)
	}
}

func TestTheLeaseIsGrantedInOrder(t *testing.T) {
	m, other := newLeaseMachine(t)
	m.grantTo(other, 1<<63, 1000)
	third := m.openFor(3, 1)
	before := m.mustQueue(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(1)"))
	waiter := m.mustQueue(third, acquire(2<<62, 1000))
	after := m.mustQueue(&proposer{m.session, m.seq + 1, nil}, op("INSERT INTO t(id) VALUES(2)"))
	if waiter != 2<<62 {
		t.Errorf("the id of the waiter is %x, want that of its lease", waiter)
	}
	m.doAs(other, release(1<<63))
	if m.settled[before].Err != nil || m.settledState(waiter) != wire.LeaseGranted || !m.holds(waiter) {
		t.Errorf("the results of the waiters are %+v and %+v", m.settled[before], m.settled[waiter])
	}
	if base := m.settled[waiter].Lease.Base; base != m.index {
		t.Errorf("the base of the lease is %d, but entry %d has changed rows before the grant", base, m.index)
	}
	if _, ok := m.settled[after]; ok {
		t.Error("a write overtook the lease")
	}
	m.expectRows("1")
	m.doAs(third, inserting(waiter, m.settled[waiter].Lease.Base, false, 50))
	m.expectRows("1 2 50")
}

// A transaction is applied only if it still has its lease and if the rows are those
// that it has seen.
func TestTransactionsAreAppliedOnlyUnderTheirLease(t *testing.T) {
	for name, test := range map[string]struct {
		o       func(base uint64) *wire.Operation
		applied bool
		holds   bool // its session holds the lease afterwards
	}{
		"right":            {func(base uint64) *wire.Operation { return inserting(9, base, false, 1) }, true, false},
		"kept":             {func(base uint64) *wire.Operation { return inserting(9, base, true, 1) }, true, true},
		"of another lease": {func(base uint64) *wire.Operation { return inserting(8, base, true, 1) }, false, true},
		"of other rows":    {func(base uint64) *wire.Operation { return inserting(9, base-1, true, 1) }, false, false},
		"of later rows":    {func(base uint64) *wire.Operation { return inserting(9, base+1, true, 1) }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			m, other := newLeaseMachine(t)
			base := m.grantTo(other, 9, 1000)
			r := m.doAs(other, test.o(base))[0]
			if (r.Lease.State == wire.LeaseExpired) == test.applied || r.Err != nil {
				t.Errorf("the result is %+v, %v", r.Lease, r.Err)
			}
			m.expectRows(map[bool]string{true: "1"}[test.applied])
			if m.holds(9) != test.holds {
				t.Errorf("the lease is %+v", m.lease.held)
			}
		})
	}
	t.Run("after the lease was released", func(t *testing.T) {
		m, other := newLeaseMachine(t)
		base := m.grantTo(other, 9, 1000)
		m.doAs(other, release(9))
		if r := m.doAs(other, inserting(9, base, false, 1))[0]; r.Lease.State != wire.LeaseExpired {
			t.Errorf("the result is %+v", r.Lease)
		}
		m.expectRows("")
	})
}

// If the statements of a transaction return something else than they did on its view,
// the result is an error, nothing is applied, and the lease ends.
func TestTransactionsThatDifferAreNotApplied(t *testing.T) {
	m, other := newLeaseMachine(t)
	base := m.grantTo(other, 9, 1000)
	wait := m.mustQueue(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(77)"))
	o := inserting(9, base, true, 1)
	o.Statements = append(o.Statements, op("INSERT INTO t(id) VALUES(2)").Statements...)
	r := m.doAs(other, o)[0]
	if r.Err == nil || r.Err.Code != sqlite.CodeAbort || r.Err.Hint == "" {
		t.Errorf("the error is %v", r.Err)
	}
	m.expectRows("77")
	if m.settled[wait].Err != nil || !m.holds(0) {
		t.Errorf("the error of the waiter is %v; the lease is held as %x", m.settled[wait].Err, m.lease.held.ID)
	}
	// A transaction with only one statement is applied without a savepoint.
	base = m.grantTo(other, 10, 1000)
	o = inserting(10, base, true, 3)
	o.Lease.Checksum++
	if r := m.doAs(other, o)[0]; r.Err == nil || r.Err.Code != sqlite.CodeAbort {
		t.Errorf("the error is %v", r.Err)
	}
	m.expectRows("77")
}

func TestLeasesAreKeptUnlessSomebodyWaits(t *testing.T) {
	m, other := newLeaseMachine(t)
	base := m.grantTo(other, 9, 1000)
	a := m.doAs(other, inserting(9, base, true, 1))[0].Lease
	if a.State != wire.LeaseKept || a.ID != 9 || a.Base != m.index || !m.lease.held.Idle {
		t.Fatalf("the result of a commit that keeps the lease is %+v; the lease is %+v", a, m.lease.held)
	}
	// The next transaction under the kept lease has the new base.
	if a = m.doAs(other, inserting(9, a.Base, true, 2))[0].Lease; a.State != wire.LeaseKept {
		t.Fatalf("the result of the next commit is %+v", a)
	}
	m.doAs(other, &wire.Operation{Lease: &wire.Lease{InUse: true}})
	if m.lease.held.Idle {
		t.Error("a lease that is in use counts as idle")
	}
	m.mustQueue(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(77)"))
	if a = m.doAs(other, inserting(9, a.Base, true, 3))[0].Lease; a.State != wire.LeaseNone {
		t.Errorf("the result of a commit while others wait is %+v", a)
	}
	m.expectRows("1 2 3 77")
	if m.doAs(&proposer{m.session, m.seq + 1, nil}, &wire.Operation{Lease: &wire.Lease{InUse: true}}); !m.holds(0) {
		t.Error("the lease is held although nobody acquired it")
	}
}

// A plain write under a lease ends that lease. If the lease has ended before, the
// write waits like any other.
func TestPlainWritesUnderALease(t *testing.T) {
	m, other := newLeaseMachine(t)
	m.grantTo(other, 9, 1000)
	if r := m.doAs(other, under(9, false, "INSERT INTO t(id) VALUES(1)"))[0]; r.Err != nil || r.Lease.State != wire.LeaseNone || !m.holds(0) {
		t.Errorf("the result under the lease is %+v", r)
	}
	if r := m.doAs(other, under(9, true, "INSERT INTO t(id) VALUES(2)"))[0]; r.Err != nil || r.Lease.State != wire.LeaseNone || !m.holds(0) {
		t.Errorf("the result after the lease has ended is %+v", r)
	}
	m.grantTo(other, 10, 1000)
	waiter := m.mustQueue(other, under(9, true, "INSERT INTO t(id) VALUES(3)"))
	m.expectRows("1 2")
	a := m.doAs(other, under(10, true, "INSERT INTO t(id) VALUES(4)"))[0].Lease
	if a.State != wire.LeaseNone { // the lease is not kept, because a write waits
		t.Errorf("the result is %+v", a)
	}
	if m.settled[waiter].Err != nil || !m.holds(0) {
		t.Errorf("the result of the waiting write is %+v", m.settled[waiter])
	}
	m.expectRows("1 2 3 4")
	m.grantTo(other, 11, 1000)
	if a := m.doAs(other, under(11, true, "INSERT INTO t(id) VALUES(5)"))[0].Lease; a.State != wire.LeaseKept || a.Base != m.index {
		t.Errorf("the result of a write that keeps the lease is %+v", a)
	}
	if r := m.doAs(other, under(11, true, "INSERT INTO t(id) VALUES(5)"))[0]; r.Err == nil || !m.holds(0) {
		t.Errorf("the result of a write that fails is %+v; the lease is held as %x", r, m.lease.held.ID)
	}
}

// A later operation of the batch ends the SQLite transaction, so that the batch is
// executed again. That does not change the result of a commit that kept its lease.
func TestKeptLeasesSurviveARollbackOfTheBatch(t *testing.T) {
	m, other := newLeaseMachine(t)
	base := m.grantTo(other, 9, 1000)
	m.update(other.entry(inserting(9, base, true, 1)), other.entry(release(9)), other.entry(op("INSERT OR ROLLBACK INTO t(id) VALUES(2),(1)")))
	if a := m.got[[2]uint64{other.session, 2}][0].Lease; a.State != wire.LeaseKept || a.ID != 9 {
		t.Errorf("the result of the commit is %+v", a)
	}
	m.expectRows("1")
}

func TestRelease(t *testing.T) {
	m, other := newLeaseMachine(t)
	m.grantTo(other, 9, 1000)
	third := m.openFor(3, 1)
	a, b := m.mustQueue(third, acquire(10, 1000)), m.mustQueue(other, acquire(11, 1000))
	c := m.mustQueue(other, op("INSERT INTO t(id) VALUES(1)"))
	d := m.mustQueue(other, op("INSERT INTO t(id) VALUES(2)"))
	m.doAs(other, release(12345)) // no such lease or waiter
	if !m.holds(9) || len(m.lease.waiters) != 4 {
		t.Errorf("after the release of an unknown id the queue is %+v", m.lease)
	}
	m.doAs(other, release(a, c))
	if m.settledState(a) != wire.LeaseExpired || m.settledState(c) != wire.LeaseExpired || len(m.lease.waiters) != 2 {
		t.Errorf("the results of released waiters are %+v, %+v", m.settled[a], m.settled[c])
	}
	// One operation releases the lease and the next waiter.
	m.doAs(other, release(9, b))
	if m.settledState(b) != wire.LeaseGranted || !m.holds(0) {
		t.Errorf("the result of the released waiter is %+v; the lease is held as %x", m.settled[b], m.lease.held.ID)
	}
	m.expectRows("2")
	if m.settled[d].Err != nil {
		t.Error(m.settled[d].Err)
	}
	if m.lease.bytes != 0 || len(m.lease.waiters) != 0 {
		t.Errorf("the lease queue is not empty: %+v", m.lease)
	}
}

// A copy of an entry with queued operations returns their present results and applies
// nothing again, in whichever batch it comes.
func TestCopiesOfQueuedOperations(t *testing.T) {
	for name, together := range map[string]bool{"in one batch": true, "one by one": false} {
		t.Run(name, func(t *testing.T) {
			m, other := newLeaseMachine(t)
			base := m.grantTo(other, 9, 1000)
			m.seq++
			write := entryOf(m.session, m.seq, op("INSERT INTO t(id) VALUES(1)"), op("INSERT INTO t(id) VALUES(2) RETURNING id"), acquire(20, 1000))
			key := [2]uint64{m.session, m.seq}
			commit := other.entry(inserting(9, base, false, 100))
			var results [][]wire.Result
			log := [][]byte{write, write, commit, commit, write}
			if together {
				m.update(log...)
				results = append(results, m.got[key])
			} else {
				for _, cmd := range log {
					m.update(cmd)
					results = append(results, m.got[key])
				}
				if a := results[1]; a[0].Lease.State != wire.LeaseQueued || a[2].Lease.ID != 20 {
					t.Errorf("the results of a copy before the operations were applied are %+v", a)
				}
			}
			last := results[len(results)-1]
			if len(last) != 3 || last[0].Err != nil || last[0].Lease.State != wire.LeaseNone || last[1].Statements[0].Rows.Len() != 1 || last[2].Lease.State != wire.LeaseGranted {
				t.Errorf("the results of a copy after the operations were applied are %+v", last)
			}
			if len(m.settled) != 3 {
				t.Errorf("%d waiters were settled, want 3: %v", len(m.settled), m.settled)
			}
			m.expectRows("1 2 100")
		})
	}
}

// If an operation is queued and applied within one entry, its final result is in the
// results of the entry, and it is not settled separately.
func TestQueuedAndSettledInOneEntry(t *testing.T) {
	m, other := newLeaseMachine(t)
	r := m.doAs(other, acquire(9, 1000), op("INSERT INTO t(id) VALUES(1)"), acquire(10, 1000), op("INSERT INTO t(id) VALUES(2)"), release(9), release(10), op("INSERT INTO t(id) VALUES(3)"))
	for i, want := range []wire.LeaseState{wire.LeaseGranted, wire.LeaseNone, wire.LeaseGranted, wire.LeaseNone, wire.LeaseNone, wire.LeaseNone, wire.LeaseNone} {
		if r[i].Lease.State != want || r[i].Err != nil {
			t.Errorf("the result of operation %d is %+v, %v", i, r[i].Lease, r[i].Err)
		}
	}
	if len(r[1].Statements) != 1 || len(m.settled) != 0 {
		t.Errorf("the result is %+v; settled separately: %v", r[1], m.settled)
	}
	m.expectRows("1 2 3")
}
