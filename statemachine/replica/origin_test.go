package replica

import (
	"testing"

	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// remote returns an operation of a remote client.
func remote(client *proposer, sequence uint64, o *wire.Operation) *wire.Operation {
	o.Origin = &wire.Origin{Session: client.session, Sequence: sequence}
	return o
}

// A remote client that got no answer sends its operation again, through another node.
func TestCopiesOfARemoteOperationAreAppliedOnce(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE applied(n INTEGER)")
	client, first, second := m.openFor(0, 0), m.openFor(1, 1), m.openFor(2, 1)
	want := m.doAs(first, remote(client, 1, insert(1)))
	got := m.doAs(second, insert(5), remote(client, 1, insert(1)), remote(client, 1, insert(1)), insert(6))
	for _, i := range []int{1, 2} {
		if encoded(got[i:i+1]) != encoded(want) {
			t.Errorf("copy %d got the result %+v, the operation %+v", i, got[i], want[0])
		}
	}
	next := m.doAs(second, remote(client, 2, insert(2)), remote(client, 1, insert(1)))
	if next[0].Admission != wire.Admitted || next[0].Err != nil || next[1].Admission != wire.StaleSequence {
		t.Errorf("the next operation and a late copy got %+v", next)
	}
	if got := m.applied(); got != "1|1\n2|1\n5|1\n6|1" {
		t.Errorf("applied %q", got)
	}
}

func TestCopiesOfARemoteOperationInOneEntry(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE applied(n INTEGER)")
	client, node := m.openFor(0, 0), m.openFor(1, 1)
	// What ends the transaction makes the operations before it execute again.
	results := m.doAs(node, remote(client, 1, insert(1)), op("INSERT OR ROLLBACK INTO applied VALUES(NULL, NULL)"), op("CREATE TABLE u(a UNIQUE)"),
		op("INSERT OR ROLLBACK INTO u VALUES(1), (1)"), remote(client, 1, insert(1)))
	if got := m.applied(); got != "1|1" || encoded(results[:1]) != encoded(results[4:]) {
		t.Errorf("applied %q, the results are %+v", got, results)
	}
}

func TestRemoteOperationsOfUnknownSessions(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE applied(n INTEGER)")
	results := m.doAs(m.openFor(1, 1), remote(&proposer{session: 999}, 1, insert(1)), remote(m.openFor(0, 0), 0, insert(2)))
	if results[0].Admission != wire.UnknownSession || results[1].Admission != wire.StaleSequence {
		t.Errorf("the results are %+v", results)
	}
	if got := m.applied(); got != "" {
		t.Errorf("applied %q", got)
	}
}

func TestCopiesOfAFailedRemoteOperation(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a PRIMARY KEY)")
	m.must("INSERT INTO t VALUES(1)")
	client, node := m.openFor(0, 0), m.openFor(1, 1)
	m.doAs(node, remote(client, 1, op("INSERT INTO t VALUES(1)")))
	m.must("DELETE FROM t")
	r := m.doAs(node, remote(client, 1, op("INSERT INTO t VALUES(1)")))[0]
	if r.Err == nil || r.Err.Code != 1555 || m.rows("SELECT count(*) FROM t") != "0" {
		t.Errorf("the copy got %+v", r)
	}
}

func TestCopiesOfRemoteOperationsAfterARestartAndASnapshot(t *testing.T) {
	h := newCounterHistory() // session 1
	h.add(wire.EncodeOpenSession(7, 0, 0))
	client := &proposer{session: uint64(len(h.entries))}
	h.do(remote(client, 1, insert(1)))
	m, other := emptyMachine(t), emptyMachine(t)
	m.apply(h.entries...)
	want := m.got[[2]uint64{1, h.seq}]
	m.snapshotTo(other)
	m.restart(h)
	h.do(remote(client, 1, insert(1)))
	for _, m := range []*machine{m, other} {
		m.apply(h.entries[len(h.entries)-1:]...)
		if got := m.got[[2]uint64{1, h.seq}]; m.applied() != "1|1" || encoded(got) != encoded(want) {
			t.Errorf("applied %q, the copy got %+v", m.applied(), got)
		}
	}
}

// While a transaction has the write lease, a remote operation waits in the queue. A
// copy waits for the same waiter.
func TestCopiesOfAQueuedRemoteOperation(t *testing.T) {
	for _, sameEntry := range []bool{false, true} {
		m, holder := newLeaseMachine(t)
		client, node := m.openFor(0, 0), m.openFor(3, 1)
		m.grantTo(holder, 1|leaseIDBit, 3000)
		insert := func() *wire.Operation { return remote(client, 1, op("INSERT INTO t(id) VALUES(7)")) }
		if sameEntry { // the operation is applied by a later one of its entry
			r := m.doAs(node, insert(), release(1|leaseIDBit))
			if r[0].Lease.State != wire.LeaseNone || r[0].Err != nil {
				t.Errorf("the operation got %+v", r[0])
			}
		} else {
			id := m.mustQueue(node, insert())
			if again := m.mustQueue(holder, insert()); again != id {
				t.Errorf("the copy waits as %d, the operation as %d", again, id)
			}
			m.doAs(holder, release(1|leaseIDBit))
			if m.settledState(id) != wire.LeaseNone {
				t.Errorf("the waiter became %d", m.settledState(id))
			}
		}
		if r := m.doAs(holder, insert())[0]; r.Err != nil || r.Lease.State != wire.LeaseNone || len(r.Statements) != 1 {
			t.Errorf("after it was applied, a copy got %+v", r)
		}
		m.expectRows("7")
	}
}

// A node's entry has a copy of an operation that waits through another node, and what
// ends the lease: the operation is applied in this entry, and the copy gets its result.
func TestACopyIsSettledInItsOwnEntry(t *testing.T) {
	for _, name := range []string{"one entry", "two entries"} {
		m, holder := newLeaseMachine(t)
		client, node := m.openFor(0, 0), m.openFor(3, 1)
		m.grantTo(holder, 1|leaseIDBit, 3000)
		insert := func() *wire.Operation { return remote(client, 1, op("INSERT INTO t(id) VALUES(7)")) }
		var ops []*wire.Operation
		if name == "one entry" {
			ops = append(ops, insert())
		} else {
			m.mustQueue(node, insert())
		}
		results := m.doAs(holder, append(ops, insert(), release(1|leaseIDBit))...)
		for i, r := range results[:len(results)-1] {
			if r.Lease.State != wire.LeaseNone || len(r.Statements) != 1 {
				t.Errorf("%s: the result of copy %d is %+v", name, i, r)
			}
		}
		m.expectRows("7")
	}
}

// A node's entry that has a copy of a queued operation may be delivered once more after
// the operation has left the queue.
func TestACopyOfAnEntryWithAQueuedCopy(t *testing.T) {
	m, holder := newLeaseMachine(t)
	client, node, other := m.openFor(0, 0), m.openFor(3, 1), m.openFor(4, 1)
	m.grantTo(holder, 1|leaseIDBit, 3000)
	insert := func() *wire.Operation { return remote(client, 1, op("INSERT INTO t(id) VALUES(7)")) }
	m.mustQueue(node, insert())
	entry := other.entry(insert())
	m.update(entry)
	m.doAs(holder, release(1|leaseIDBit))
	m.update(entry)
	if r := m.got[[2]uint64{other.session, other.seq}][0]; r.Lease.State != wire.LeaseNone || len(r.Statements) != 1 {
		t.Errorf("the result is %+v", r)
	}
}

// A node that gives up removes its waiter from the queue. Then nothing is applied, and a
// copy through another node is applied in its turn.
func TestACopyOfARemovedOperationIsApplied(t *testing.T) {
	m, holder := newLeaseMachine(t)
	client, node := m.openFor(0, 0), m.openFor(3, 1)
	m.grantTo(holder, 1|leaseIDBit, 3000)
	insert := func() *wire.Operation { return remote(client, 1, op("INSERT INTO t(id) VALUES(7)")) }
	id := m.mustQueue(node, insert())
	m.doAs(node, release(id))
	if m.settledState(id) != wire.LeaseExpired || m.settled[id].RetryAbove != 1 {
		t.Errorf("the removed waiter got %+v", m.settled[id])
	}
	id = m.mustQueue(holder, insert())
	m.doAs(holder, release(1|leaseIDBit))
	if m.settledState(id) != wire.LeaseNone {
		t.Errorf("the copy got %+v", m.settled[id])
	}
	if r := m.doAs(node, insert())[0]; r.Err != nil || len(r.Statements) != 1 {
		t.Errorf("a late copy got %+v", r)
	}
	m.expectRows("7")
}

// Attempts of an operation with different bounds of steps: one with more steps is
// applied, and the last one is final.
func TestAttemptsOfARemoteOperation(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(n)")
	client, first, second := m.openFor(0, 0), m.openFor(1, 1), m.openFor(2, 1)
	attempt := func(p *proposer, sequence, steps uint64, last bool) wire.Result {
		o := remote(client, sequence, op("WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<10000) INSERT INTO t SELECT n FROM x"))
		o.MaxSteps, o.Origin.Last = steps, last
		return m.doAs(p, o)[0]
	}
	for _, a := range []struct {
		sequence, steps uint64
		last            bool
		retryAbove      uint64
		applied         bool
	}{
		{1, 1000, false, 1000, false}, {1, 1000, false, 1000, false}, {1, 500, false, 1000, false}, {1, 4000, false, 4000, false},
		{1, 10_000_000, false, 0, true}, {1, 1000, true, 0, true},
		{2, 1000, false, 1000, false}, {2, 500, true, 0, false}, {2, 10_000_000, false, 0, false},
		{3, 1000, true, 0, false}, {3, 10_000_000, true, 0, false},
	} {
		for _, p := range []*proposer{first, second} {
			r := attempt(p, a.sequence, a.steps, a.last)
			if r.RetryAbove != a.retryAbove || (r.Err == nil) != a.applied {
				t.Errorf("attempt %+v: the result is %+v", a, r)
			}
		}
	}
	if n := m.rows("SELECT count(*) FROM t"); n != "10000" {
		t.Errorf("there are %s rows, want 10000", n)
	}
}

// What a client names as its session must not be a node's.
func TestAnOriginCannotNameTheSessionOfANode(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE applied(n INTEGER)")
	node := m.openFor(1, 1)
	if r := m.do(remote(node, 1<<40, insert(1)))[0]; r.Admission != wire.UnknownSession {
		t.Errorf("the result is %+v", r)
	}
	if r := m.doAs(node, insert(2)); len(r) != 1 || r[0].Err != nil {
		t.Errorf("the node's next entry got %+v", r)
	}
}

// A client that does not know what became of its Commit sends an operation that does
// nothing with the same origin: it gets the result of the commit, or there will be none.
func TestAClientLearnsWhatBecameOfItsCommit(t *testing.T) {
	ask := func(client *proposer) *wire.Operation {
		return remote(client, 1, &wire.Operation{Lease: &wire.Lease{Transaction: true}})
	}
	m, holder := newLeaseMachine(t)
	client, other := m.openFor(0, 0), m.openFor(3, 1)
	base := m.grantTo(holder, 1|leaseIDBit, 3000)
	m.doAs(holder, remote(client, 1, inserting(1|leaseIDBit, base, false, 1)))
	if r := m.doAs(other, ask(client))[0]; r.Err != nil || r.Lease.State != wire.LeaseNone || r.Admission != wire.Admitted {
		t.Errorf("of a commit that was applied, the client learns %+v", r)
	}
	m.expectRows("1")

	client = m.openFor(0, 0)
	base = m.grantTo(holder, 2|leaseIDBit, 3000)
	if r := m.doAs(other, ask(client))[0]; r.Lease.State != wire.LeaseExpired {
		t.Errorf("of a commit that was not applied, the client learns %+v", r)
	}
	if r := m.doAs(holder, remote(client, 1, inserting(2|leaseIDBit, base, false, 2)))[0]; r.Lease.State != wire.LeaseExpired {
		t.Errorf("the late commit got %+v", r)
	}
	m.expectRows("1")
}

// Remote clients may open many sessions. Those of the nodes stay.
func TestSessionsOfClientsMakeRoomForNodes(t *testing.T) {
	m := newMachine(t)
	node := m.openFor(1, 1)
	var open [][]byte
	for i := range statemachine.MaxSessions + 10 {
		open = append(open, wire.EncodeOpenSession(uint64(i)|1<<62, 0, 0))
	}
	m.advance(100)
	m.update(open...)
	if r := m.doAs(node, op("CREATE TABLE t(a)")); len(r) != 1 || r[0].Err != nil {
		t.Errorf("the node's session got %+v", r)
	}
}
