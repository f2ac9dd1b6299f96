package replica

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// A session that is gone holds nothing and waits for nothing; its plain writes
// need nobody, and are applied in their turn.
func TestWhatTheDeadHoldAndWaitFor(t *testing.T) {
	for name, kill := range map[string]func(m *machine, p *proposer){
		"a new incarnation": func(m *machine, p *proposer) { m.openFor(2, 2) },
		"expiry": func(m *machine, p *proposer) {
			m.cfg.SessionTTL = 1000
			m.tickFor(500)
			m.by(&proposer{m.session, m.seq + 10, nil}) // this one lives
			m.tickFor(600)
		},
		"eviction": func(m *machine, p *proposer) {
			m.tick(1)
			m.by(&proposer{m.session, m.seq + 10, nil})
			var cmds [][]byte
			for len(cmds) < statemachine.MaxSessions-1 {
				cmds = append(cmds, wire.EncodeOpenSession(1<<50, 0, 0))
			}
			m.update(cmds...)
		},
	} {
		t.Run(name+" of the holder", func(t *testing.T) {
			m, other := leasing(t)
			base := m.grantTo(other, 9, 1<<40)
			mine := m.waits(other, op("INSERT INTO t(id) VALUES(1)"))
			again := m.waits(other, acquire(10, 1<<40))
			place := m.waits(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(2)"))
			kill(m, other)
			if !m.holds(0) || len(m.lease.waiters) != 0 {
				t.Errorf("left: %+v", m.lease)
			}
			if m.settled[mine].Err != nil || m.settled[place].Err != nil || m.became(again) != wire.LeaseExpired {
				t.Errorf("told %+v", m.settled)
			}
			m.expectRows("1 2")
			if r := m.by(other, inserting(9, base, false, 3)); len(m.unknown) != 1 {
				t.Errorf("its commit is answered %+v", r)
			}
			m.expectRows("1 2")
		})
		t.Run(name+" of one who waits", func(t *testing.T) {
			m, other := leasing(t)
			m.grantTo(&proposer{m.session, m.seq, nil}, 9, 1<<40)
			place := m.waits(other, acquire(10, 1<<40))
			mine := m.waits(other, op("INSERT INTO t(id) VALUES(1)"))
			kill(m, other)
			if !m.holds(9) || m.became(place) != wire.LeaseExpired || len(m.lease.waiters) != 1 {
				t.Errorf("the lease is %+v, the place %+v", m.lease, m.settled[place])
			}
			m.by(&proposer{m.session, m.seq + 20, nil}, release(9))
			if m.settled[mine].Err != nil {
				t.Errorf("told %+v", m.settled[mine])
			}
			m.expectRows("1")
		})
	}
}

// An entry that opens a session for an earlier start of a node, and comes late,
// ends nothing of the later one's.
func TestALateSessionOfAnEarlierStartEndsNothing(t *testing.T) {
	m, _ := leasing(t)
	now := m.openFor(2, 5)
	m.grantTo(now, 9, 1000)
	m.openFor(2, 4)
	if !m.holds(9) {
		t.Error("it took the lease")
	}
	m.openFor(3, 9) // another node
	m.openFor(0, 0) // nobody's
	m.openFor(2, 5) // the same start, once more
	if !m.holds(9) {
		t.Error("another session took the lease")
	}
	m.openFor(2, 6)
	if !m.holds(0) {
		t.Error("the next start left it the lease")
	}
}

// A lease lapses when somebody waits and its holder was not heard of: not while
// nobody waits, and not for the time before somebody did.
func TestTheLeaseLapsesForThoseWhoWait(t *testing.T) {
	m, other := leasing(t)
	base := m.grantTo(other, 9, 1000)
	for range 10 {
		m.tick(3000)
	}
	if !m.holds(9) {
		t.Fatal("nobody waits, and it lapsed")
	}
	place := m.waits(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(1)"))
	m.tickFor(900)
	if !m.holds(9) {
		t.Fatal("the time before somebody waited counted")
	}
	m.by(other) // its holder lives
	m.tickFor(900)
	if !m.holds(9) {
		t.Fatal("it lapsed 900 ms after its holder was heard of, its TTL is 1000")
	}
	m.tickFor(100)
	if !m.holds(0) || m.settled[place].Err != nil {
		t.Errorf("it did not lapse: %+v", m.lease)
	}
	if r := m.by(other, inserting(9, base, false, 2))[0]; r.Lease.State != wire.LeaseExpired {
		t.Errorf("a commit under a lease that lapsed answers %+v", r)
	}
	m.expectRows("1")
}

func TestTheNextHolderHasItsWholeTime(t *testing.T) {
	m, other := leasing(t)
	me := &proposer{m.session, m.seq, nil}
	m.grantTo(other, 9, 1000)
	m.waits(me, acquire(10, 2000))
	m.waits(me, op("INSERT INTO t(id) VALUES(1)"))
	m.tickFor(1000)
	if !m.holds(10) {
		t.Fatalf("the lease is %+v", m.lease.held)
	}
	m.tickFor(1900)
	if !m.holds(10) {
		t.Error("it lapsed early: the time that it waited counted")
	}
	m.tickFor(100)
	if !m.holds(0) {
		t.Error("it did not lapse")
	}
	m.expectRows("1")
}

// Ten who died while they waited cost no longer than one.
func TestPlacesOfTheSilentLapseTogether(t *testing.T) {
	m, other := leasing(t)
	m.grantTo(other, 9, 1000)
	var places []uint64
	for i := range uint64(10) {
		places = append(places, m.waits(m.openFor(10+i, 1), acquire(100+i, 1000)))
	}
	mine := m.waits(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(1)"))
	m.tickFor(1000)
	for _, id := range places {
		if m.became(id) != wire.LeaseExpired {
			t.Errorf("a place became %+v", m.settled[id])
		}
	}
	if !m.holds(0) || m.settled[mine].Err != nil {
		t.Errorf("left: %+v", m.lease)
	}
	m.expectRows("1")
}

func TestWhoWaitsStaysAsLongAsHeIsHeardOf(t *testing.T) {
	m, other := leasing(t)
	me := &proposer{m.session, m.seq, nil}
	m.grantTo(other, 9, 1<<40)
	place := m.waits(me, acquire(10, 1000))
	for range 3 {
		m.tickFor(900)
		m.by(me, &wire.Operation{Lease: &wire.Lease{InUse: true}})
	}
	if len(m.lease.waiters) != 1 {
		t.Fatal("the place lapsed although its session was heard of")
	}
	m.tickFor(1000)
	if m.became(place) != wire.LeaseExpired || !m.holds(9) {
		t.Errorf("the place became %+v", m.settled[place])
	}
}

// A kept lease that no transaction uses lapses soon; a keep-alive that says it
// is in use makes it an ordinary one.
func TestAnIdleLeaseLapsesSoon(t *testing.T) {
	for name, inUse := range map[string]bool{"idle": false, "in use": true} {
		t.Run(name, func(t *testing.T) {
			m, other := leasing(t)
			base := m.grantTo(other, 9, 3000)
			m.by(other, inserting(9, base, true, 1))
			m.tick(10_000)
			m.waits(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(2)"))
			m.tickFor(idleTTL - 100)
			if !m.holds(9) {
				t.Fatal("it lapsed early")
			}
			if inUse {
				m.by(other, &wire.Operation{Lease: &wire.Lease{InUse: true}})
			}
			m.tickFor(idleTTL)
			if m.holds(9) != inUse {
				t.Errorf("it is %+v", m.lease.held)
			}
			m.tickFor(3000 - idleTTL)
			if !m.holds(0) {
				t.Error("it did not lapse")
			}
			m.expectRows("1 2")
		})
	}
}

// A step of the clock that was proposed before somebody waited may be a statemachine.MaxTickInterval
// one: it takes no lease at once, not even an idle one, whose holder has yet to
// hear that others wait.
func TestACoarseTickTakesNoLeaseAtOnce(t *testing.T) {
	for name, keep := range map[string]bool{"in use": false, "idle": true} {
		t.Run(name, func(t *testing.T) {
			m, other := leasing(t)
			base := m.grantTo(other, 9, 600)
			if keep {
				m.by(other, inserting(9, base, true, 1))
			}
			m.waits(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(2)"))
			before := m.Clock().Now
			m.tick(60_000)
			if now := m.Clock().Now; now <= before || now-before >= idleTTL {
				t.Errorf("the clock moved by %d", now-before)
			}
			if !m.holds(9) {
				t.Error("the lease lapsed at once")
			}
		})
	}
	t.Run("nobody waits", func(t *testing.T) {
		m, other := leasing(t)
		m.grantTo(other, 9, 600)
		before := m.Clock().Now
		m.tick(60_000)
		if now := m.Clock().Now; now-before != 60_000 {
			t.Errorf("the clock moved by %d", now-before)
		}
	})
}

func TestTheQueueIsBounded(t *testing.T) {
	busy := func(t *testing.T, r wire.Result) {
		t.Helper()
		if r.Err == nil || r.Err.Code != sqlite.CodeBusy || r.Err.Hint == "" || r.Lease.State != wire.LeaseNone {
			t.Errorf("it answers %v, %+v", r.Err, r.Lease)
		}
	}
	t.Run("in places", func(t *testing.T) {
		m, other := leasing(t)
		m.grantTo(other, 9, 1000)
		var ops []*wire.Operation
		for i := range maxWaiters + 2 {
			ops = append(ops, op(fmt.Sprintf("INSERT INTO t(id) VALUES(%d)", i)))
		}
		r := m.do(ops...)
		if r[maxWaiters-1].Lease.State != wire.LeaseQueued || len(m.lease.waiters) != maxWaiters {
			t.Errorf("%d places, the last answers %+v", len(m.lease.waiters), r[maxWaiters-1])
		}
		busy(t, r[maxWaiters])
		busy(t, m.by(other, acquire(10, 1000))[0])
		m.by(other, release(9))
		if got := m.rows("SELECT count(*) FROM t"); got != fmt.Sprint(maxWaiters) {
			t.Errorf("%s rows", got)
		}
		m.grantTo(other, 11, 1000)
		m.waits(&proposer{m.session, m.seq + 1, nil}, op("DELETE FROM t")) // there is room again
	})
	t.Run("in bytes", func(t *testing.T) {
		m, other := leasing(t)
		m.grantTo(other, 9, 1000)
		large := func() *wire.Operation {
			return &wire.Operation{Statements: []wire.Statement{{SQL: "INSERT INTO t(v) VALUES(?)", Args: []wire.Argument{{Value: wire.BlobValue(make([]byte, 10<<20))}}}}}
		}
		for range 3 {
			if a := m.do(large())[0].Lease; a.State != wire.LeaseQueued {
				t.Errorf("what fits answers %+v", a)
			}
		}
		busy(t, m.do(large())[0])
		if a := m.do(op("INSERT INTO t(v) VALUES('small')"))[0].Lease; a.State != wire.LeaseQueued {
			t.Errorf("what fits answers %+v", a)
		}
		m.by(other, release(9))
		if got := m.rows("SELECT count(*) FROM t"); got != "4" || m.lease.bytes != 0 {
			t.Errorf("%s rows, %d bytes wait", got, m.lease.bytes)
		}
	})
}

func TestVacuumAndTheLease(t *testing.T) {
	vacuum := func() *wire.Operation {
		o := op("VACUUM")
		o.Vacuum = true
		return o
	}
	m, other := leasing(t)
	base := m.grantTo(other, 9, 1000)
	if r := m.do(vacuum())[0]; r.Err == nil || r.Err.Code != sqlite.CodeBusy || !strings.Contains(r.Err.Hint, "VACUUM") {
		t.Errorf("while another holds the lease it answers %v", r.Err)
	}
	if r := m.by(other, inserting(9, base, false, 1))[0]; r.Err != nil || r.Lease.State != wire.LeaseNone {
		t.Errorf("the commit answers %+v", r)
	}
	if r := m.do(vacuum())[0]; r.Err != nil {
		t.Errorf("it answers %v", r.Err)
	}
	m.grantTo(other, 10, 1000)
	wait := m.waits(&proposer{m.session, m.seq, nil}, op("INSERT INTO t(id) VALUES(2)"))
	o := vacuum()
	o.Lease = &wire.Lease{Under: 10, Keep: true}
	if r := m.by(other, o)[0]; r.Err != nil || !m.holds(0) || m.settled[wait].Err != nil {
		t.Errorf("under the lease it answers %v, the lease is %x", r.Err, m.lease.held.ID)
	}
	m.expectRows("1 2")
	// A base from before is not that of the rows now.
	base = m.grantTo(other, 11, 1000)
	o = vacuum()
	o.Lease = &wire.Lease{Under: 11, Keep: true}
	if a := m.by(other, o)[0].Lease; a.State != wire.LeaseKept || a.Base == base {
		t.Errorf("it answers %+v", a)
	}
	if err := m.Err(); err != nil {
		t.Fatal(err)
	}
}
