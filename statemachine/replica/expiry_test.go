package replica

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// When a session ends, its lease ends, and its requests for the lease are removed from
// the queue. Its plain writes stay in the queue and are applied in their turn, because
// the queue has the whole operations.
func TestTheEndOfASession(t *testing.T) {
	for name, end := range map[string]func(m *machine, p *proposer){
		"a new incarnation": func(m *machine, p *proposer) { m.openFor(2, 2) },
		"expiry": func(m *machine, p *proposer) {
			m.cfg.SessionTTL = 1000
			m.advanceFor(500)
			m.doAs(&proposer{m.session, m.seq + 10, nil}) // this session is used, and so stays
			m.advanceFor(600)
		},
		"eviction": func(m *machine, p *proposer) {
			m.advance(1)
			m.doAs(&proposer{m.session, m.seq + 10, nil})
			var cmds [][]byte
			for node := uint64(100); len(cmds) < statemachine.MaxSessions-1; node++ { // those of remote clients would be evicted first
				cmds = append(cmds, wire.EncodeOpenSession(1<<50, node, 1))
			}
			m.update(cmds...)
		},
	} {
		t.Run("of the holder, by "+name, func(t *testing.T) {
			m, other := newLeaseMachine(t)
			base := m.grantTo(other, 9, 1<<40)
			mine := m.mustQueue(other, op("INSERT INTO t(id) VALUES(1)"))
			again := m.mustQueue(other, acquire(10, 1<<40))
			waiter := m.mustQueue(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(2)"))
			end(m, other)
			if !m.holds(0) || len(m.lease.waiters) != 0 {
				t.Errorf("the lease queue is not empty: %+v", m.lease)
			}
			if m.settled[mine].Err != nil || m.settled[waiter].Err != nil || m.settledState(again) != wire.LeaseExpired {
				t.Errorf("the results are %+v", m.settled)
			}
			m.expectRows("1 2")
			if r := m.doAs(other, inserting(9, base, false, 3)); len(m.unknown) != 1 {
				t.Errorf("the result of its commit is %+v, want an unknown session", r)
			}
			m.expectRows("1 2")
		})
		t.Run("of a waiter, by "+name, func(t *testing.T) {
			m, other := newLeaseMachine(t)
			m.grantTo(&proposer{m.session, m.seq, nil}, 9, 1<<40)
			waiter := m.mustQueue(other, acquire(10, 1<<40))
			mine := m.mustQueue(other, op("INSERT INTO t(id) VALUES(1)"))
			end(m, other)
			if !m.holds(9) || m.settledState(waiter) != wire.LeaseExpired || len(m.lease.waiters) != 1 {
				t.Errorf("the lease is %+v; the result of the waiter is %+v", m.lease, m.settled[waiter])
			}
			m.doAs(&proposer{m.session, m.seq + 20, nil}, release(9))
			if m.settled[mine].Err != nil {
				t.Errorf("the result of the write is %+v", m.settled[mine])
			}
			m.expectRows("1")
		})
	}
}

// If an entry that opens a session for an earlier incarnation of a node comes late, the
// later incarnation keeps its lease.
func TestLateSessionsOfEarlierIncarnations(t *testing.T) {
	m, _ := newLeaseMachine(t)
	now := m.openFor(2, 5)
	m.grantTo(now, 9, 1000)
	m.openFor(2, 4)
	if !m.holds(9) {
		t.Error("the session of an earlier incarnation ended the lease")
	}
	m.openFor(3, 9) // another node
	m.openFor(0, 0) // no node
	m.openFor(2, 5) // the same incarnation again
	if !m.holds(9) {
		t.Error("the session of another node, or of the same incarnation, ended the lease")
	}
	m.openFor(2, 6)
	if !m.holds(0) {
		t.Error("the session of the next incarnation did not end the lease")
	}
}

// A lease expires if its holder is silent while somebody waits. Time during which nobody
// waits does not count.
func TestLeasesExpireOnlyWhileSomebodyWaits(t *testing.T) {
	m, other := newLeaseMachine(t)
	base := m.grantTo(other, 9, 1000)
	for range 10 {
		m.advance(3000)
	}
	if !m.holds(9) {
		t.Fatal("the lease expired while nobody waited")
	}
	waiter := m.mustQueue(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(1)"))
	m.advanceFor(900)
	if !m.holds(9) {
		t.Fatal("the lease expired too early: the time before somebody waited was counted")
	}
	m.doAs(other) // a keep-alive of the holder
	m.advanceFor(900)
	if !m.holds(9) {
		t.Fatal("the lease expired 900 ms after a keep-alive, its TTL is 1000 ms")
	}
	m.advanceFor(100)
	if !m.holds(0) || m.settled[waiter].Err != nil {
		t.Errorf("the lease did not expire: %+v", m.lease)
	}
	if r := m.doAs(other, inserting(9, base, false, 2))[0]; r.Lease.State != wire.LeaseExpired {
		t.Errorf("the result of a commit under an expired lease is %+v", r)
	}
	m.expectRows("1")
}

// The TTL of a lease is counted from its grant, not from the request for it.
func TestTheTTLIsCountedFromTheGrant(t *testing.T) {
	m, other := newLeaseMachine(t)
	me := &proposer{m.session, m.seq, nil}
	m.grantTo(other, 9, 1000)
	m.mustQueue(me, acquire(10, 2000))
	m.mustQueue(me, op("INSERT INTO t(id) VALUES(1)"))
	m.advanceFor(1000)
	if !m.holds(10) {
		t.Fatalf("the lease is %+v", m.lease.held)
	}
	m.advanceFor(1900)
	if !m.holds(10) {
		t.Error("the lease expired too early: the time in the queue was counted")
	}
	m.advanceFor(100)
	if !m.holds(0) {
		t.Error("the lease did not expire")
	}
	m.expectRows("1")
}

// The waiters of ten silent sessions expire at the same time, not one after the other.
func TestWaitersOfSilentSessionsExpireTogether(t *testing.T) {
	m, other := newLeaseMachine(t)
	m.grantTo(other, 9, 1000)
	var waiters []uint64
	for i := range uint64(10) {
		waiters = append(waiters, m.mustQueue(m.openFor(10+i, 1), acquire(100+i, 1000)))
	}
	mine := m.mustQueue(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(1)"))
	m.advanceFor(1000)
	for _, id := range waiters {
		if m.settledState(id) != wire.LeaseExpired {
			t.Errorf("the result of a waiter is %+v, want LeaseExpired", m.settled[id])
		}
	}
	if !m.holds(0) || m.settled[mine].Err != nil {
		t.Errorf("the lease queue is not empty: %+v", m.lease)
	}
	m.expectRows("1")
}

func TestWaitersStayWhileTheirSessionIsNotSilent(t *testing.T) {
	m, other := newLeaseMachine(t)
	me := &proposer{m.session, m.seq, nil}
	m.grantTo(other, 9, 1<<40)
	waiter := m.mustQueue(me, acquire(10, 1000))
	for range 3 {
		m.advanceFor(900)
		m.doAs(me, &wire.Operation{Lease: &wire.Lease{InUse: true}})
	}
	if len(m.lease.waiters) != 1 {
		t.Fatal("the waiter expired although its session was not silent")
	}
	m.advanceFor(1000)
	if m.settledState(waiter) != wire.LeaseExpired || !m.holds(9) {
		t.Errorf("the result of the waiter is %+v, want LeaseExpired", m.settled[waiter])
	}
}

// A kept lease that no transaction uses expires after idleTTL. After a keep-alive that
// says that the lease is in use, its own TTL counts again.
func TestIdleLeasesExpireSoon(t *testing.T) {
	for name, inUse := range map[string]bool{"idle": false, "in use": true} {
		t.Run(name, func(t *testing.T) {
			m, other := newLeaseMachine(t)
			base := m.grantTo(other, 9, 3000)
			m.doAs(other, inserting(9, base, true, 1))
			m.advance(10_000)
			m.mustQueue(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(2)"))
			m.advanceFor(idleTTL - 100)
			if !m.holds(9) {
				t.Fatal("the lease expired too early")
			}
			if inUse {
				m.doAs(other, &wire.Operation{Lease: &wire.Lease{InUse: true}})
			}
			m.advanceFor(idleTTL)
			if m.holds(9) != inUse {
				t.Errorf("the lease is %+v", m.lease.held)
			}
			m.advanceFor(3000 - idleTTL)
			if !m.holds(0) {
				t.Error("the lease did not expire")
			}
			m.expectRows("1 2")
		})
	}
}

// A clock advance that was proposed before somebody waited may be long. It does not
// expire a lease at once, not even an idle one, because the holder has not learned yet
// that others wait.
func TestLongClockAdvancesExpireNoLeaseAtOnce(t *testing.T) {
	for name, keep := range map[string]bool{"in use": false, "idle": true} {
		t.Run(name, func(t *testing.T) {
			m, other := newLeaseMachine(t)
			base := m.grantTo(other, 9, 600)
			if keep {
				m.doAs(other, inserting(9, base, true, 1))
			}
			m.mustQueue(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(2)"))
			before := m.Clock().Now
			m.advance(60_000)
			if now := m.Clock().Now; now <= before || now-before >= idleTTL {
				t.Errorf("the clock moved by %d", now-before)
			}
			if !m.holds(9) {
				t.Error("the lease expired at once")
			}
		})
	}
	t.Run("nobody waits", func(t *testing.T) {
		m, other := newLeaseMachine(t)
		m.grantTo(other, 9, 600)
		before := m.Clock().Now
		m.advance(60_000)
		if now := m.Clock().Now; now-before != 60_000 {
			t.Errorf("the clock moved by %d", now-before)
		}
	})
}

func TestTheQueueIsBounded(t *testing.T) {
	busy := func(t *testing.T, r wire.Result) {
		t.Helper()
		if r.Err == nil || r.Err.Code != sqlite.CodeBusy || r.Err.Hint == "" || r.Lease.State != wire.LeaseNone {
			t.Errorf("the result is %v, %+v; want SQLITE_BUSY", r.Err, r.Lease)
		}
	}
	t.Run("in waiters", func(t *testing.T) {
		m, other := newLeaseMachine(t)
		m.grantTo(other, 9, 1000)
		var ops []*wire.Operation
		for i := range maxWaiters + 2 {
			ops = append(ops, op(fmt.Sprintf("INSERT INTO t(id) VALUES(%d)", i)))
		}
		r := m.do(ops...)
		if r[maxWaiters-1].Lease.State != wire.LeaseQueued || len(m.lease.waiters) != maxWaiters {
			t.Errorf("there are %d waiters; the result of the last one is %+v", len(m.lease.waiters), r[maxWaiters-1])
		}
		busy(t, r[maxWaiters])
		busy(t, m.doAs(other, acquire(10, 1000))[0])
		m.doAs(other, release(9))
		if got := m.rows("SELECT count(*) FROM t"); got != fmt.Sprint(maxWaiters) {
			t.Errorf("there are %s rows", got)
		}
		m.grantTo(other, 11, 1000)
		m.mustQueue(&proposer{m.session, m.seq + 1, nil}, op("DELETE FROM t")) // there is room again
	})
	t.Run("in bytes", func(t *testing.T) {
		m, other := newLeaseMachine(t)
		m.grantTo(other, 9, 1000)
		large := func() *wire.Operation {
			return &wire.Operation{Statements: []wire.Statement{{SQL: "INSERT INTO t(v) VALUES(?)", Args: []wire.Argument{{Value: wire.BlobValue(make([]byte, 10<<20))}}}}}
		}
		for range 3 {
			if a := m.do(large())[0].Lease; a.State != wire.LeaseQueued {
				t.Errorf("the result of an operation that fits is %+v, want LeaseQueued", a)
			}
		}
		busy(t, m.do(large())[0])
		if a := m.do(op("INSERT INTO t(v) VALUES('small')"))[0].Lease; a.State != wire.LeaseQueued {
			t.Errorf("the result of an operation that fits is %+v, want LeaseQueued", a)
		}
		m.doAs(other, release(9))
		if got := m.rows("SELECT count(*) FROM t"); got != "4" || m.lease.bytes != 0 {
			t.Errorf("there are %s rows, and %d bytes wait", got, m.lease.bytes)
		}
	})
}

func TestVacuumAndTheLease(t *testing.T) {
	vacuum := func() *wire.Operation {
		o := op("VACUUM")
		o.Vacuum = true
		return o
	}
	m, other := newLeaseMachine(t)
	base := m.grantTo(other, 9, 1000)
	if r := m.do(vacuum())[0]; r.Err == nil || r.Err.Code != sqlite.CodeBusy || !strings.Contains(r.Err.Hint, "VACUUM") {
		t.Errorf("the error while another session holds the lease is %v", r.Err)
	}
	if r := m.doAs(other, inserting(9, base, false, 1))[0]; r.Err != nil || r.Lease.State != wire.LeaseNone {
		t.Errorf("the result of the commit is %+v", r)
	}
	if r := m.do(vacuum())[0]; r.Err != nil {
		t.Errorf("the error is %v", r.Err)
	}
	m.grantTo(other, 10, 1000)
	wait := m.mustQueue(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(2)"))
	o := vacuum()
	o.Lease = &wire.Lease{Under: 10, Keep: true}
	if r := m.doAs(other, o)[0]; r.Err != nil || !m.holds(0) || m.settled[wait].Err != nil {
		t.Errorf("the error under the lease is %v; the lease is held as %x", r.Err, m.lease.held.ID)
	}
	m.expectRows("1 2")
	// A VACUUM that keeps the lease changes its base.
	base = m.grantTo(other, 11, 1000)
	o = vacuum()
	o.Lease = &wire.Lease{Under: 11, Keep: true}
	if a := m.doAs(other, o)[0].Lease; a.State != wire.LeaseKept || a.Base == base {
		t.Errorf("the result is %+v", a)
	}
	if err := m.Err(); err != nil {
		t.Fatal(err)
	}
}
