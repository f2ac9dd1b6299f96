package replica

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"pgregory.net/rapid"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A leaseLog is a random log of proposers that acquire the write lease, wait for it,
// lose it, end and start again. A first replica applies each entry as soon as it is
// drawn, because what a transaction records depends on the rows.
type leaseLog struct {
	*history
	rt     *rapid.T
	m      *machine // the first replica
	states [][]byte // the first replica's state after each entry
	hashes []string // its hash after some of the entries; "": not computed
	nodes  []*proposer
	alive  map[*proposer][2]uint64 // node and incarnation of each proposer
	all    [][]byte                // all entries of operations, from which copies are drawn
	ids    []uint64                // ids of leases and waiters, also of ended ones
	n      int

	clients []*proposer // remote clients, each with its last sequence
}

var leaseLogSchema = []string{
	"CREATE TABLE done(n INTEGER UNIQUE, v)", "INSERT INTO done VALUES(0, 'is taken')", "CREATE VIRTUAL TABLE ft USING fts5(x)",
	"CREATE TABLE log(id INTEGER PRIMARY KEY AUTOINCREMENT, n, at DEFAULT CURRENT_TIMESTAMP)",
	"CREATE TRIGGER tr AFTER INSERT ON done BEGIN INSERT INTO log(n) VALUES(new.n); INSERT INTO ft VALUES('w'||new.n); END",
}

var leaseLogTexts = []string{
	"INSERT INTO done VALUES(%d, random())",
	"INSERT INTO done VALUES(%d, datetime('now')) RETURNING *, changes(), last_insert_rowid()",
	"INSERT INTO done VALUES(%d, 'a'); UPDATE done SET v=v||'+' WHERE n<%[1]d AND random()%%2=0",
	"INSERT OR ROLLBACK INTO done VALUES(%d, 'a'), (0, 'no')",
	"INSERT INTO done VALUES(%d, 'b'); INSERT INTO done VALUES(0, 'no')",
	"DELETE FROM ft WHERE rowid%%4=%d%%4",
	"CREATE TABLE t%d(a); INSERT INTO t%[1]d VALUES(random())",
	"INSERT OR FAIL INTO done VALUES(%d, 'f'), (0, 'no')",
	"ANALYZE; INSERT INTO done VALUES(%d, 'c')",
}

func (l *leaseLog) int(low, high int, what string) int {
	return rapid.IntRange(low, high).Draw(l.rt, what)
}

// send has the first replica apply an entry.
func (l *leaseLog) send(cmd []byte) {
	l.add(cmd)
	l.m.apply(l.entries[len(l.entries)-1])
	l.states = append(l.states, l.m.bytes())
	l.hashes = append(l.hashes, "")
	if l.int(0, 3, "hash") == 0 {
		l.hashes[len(l.hashes)-1] = l.m.hash()
	}
}

// bytes returns the replica's state without SQLIndex, which depends on the batches.
func (m *machine) bytes() []byte {
	s := *m.state()
	s.SQLIndex = 0
	return wire.AppendState(nil, &s)
}

func (l *leaseLog) open(node, incarnation uint64) *proposer {
	l.n++
	l.send(wire.EncodeOpenSession(uint64(l.n), node, incarnation))
	p := &proposer{session: uint64(len(l.entries))}
	l.nodes = append(l.nodes, p)
	l.alive[p] = [2]uint64{node, incarnation}
	return p
}

func (l *leaseLog) text() *wire.Operation {
	l.n++
	o := op(fmt.Sprintf(rapid.SampledFrom(leaseLogTexts).Draw(l.rt, "text"), l.n))
	o.Seed, o.StampMS = seedOf(uint64(l.n)), o.StampMS+int64(l.n)*1000
	return o
}

func (l *leaseLog) id() uint64 {
	if held := l.m.lease.held.ID; held != 0 && l.int(0, 1, "held") == 0 {
		return held
	}
	if q := l.m.lease.waiters; len(q) > 0 && l.int(0, 1, "queued") == 0 {
		return waiterID(&q[l.int(0, len(q)-1, "waiter")])
	}
	return rapid.SampledFrom(append(l.ids, 12345)).Draw(l.rt, "id")
}

// operation draws an operation that is not a transaction.
func (l *leaseLog) operation() *wire.Operation {
	switch l.int(0, 9, "operation") {
	case 0, 1, 2:
		l.n++
		id := uint64(l.n) | 1<<63
		l.ids = append(l.ids, id)
		return acquire(id, uint64(l.int(100, 3000, "ttl")))
	case 3, 4:
		var ids []uint64
		for range l.int(1, 3, "ids") {
			ids = append(ids, l.id())
		}
		return &wire.Operation{Lease: &wire.Lease{Release: ids, InUse: l.int(0, 1, "in use") == 0}}
	case 5:
		return &wire.Operation{Lease: &wire.Lease{InUse: true}}
	case 6:
		o := l.text()
		o.Lease = &wire.Lease{Under: l.id(), Keep: l.int(0, 1, "keep") == 0}
		return o
	}
	o := l.text()
	if l.int(0, 2, "remote") == 0 {
		o.Origin = l.origin()
	}
	return o
}

// origin draws that of a remote client's next operation, or of a copy of its last one or
// of an earlier one.
func (l *leaseLog) origin() *wire.Origin {
	if len(l.clients) < 2 {
		l.n++
		l.send(wire.EncodeOpenSession(uint64(l.n), 0, 0))
		l.clients = append(l.clients, &proposer{session: uint64(len(l.entries))})
	}
	client := rapid.SampledFrom(l.clients).Draw(l.rt, "client")
	sequence := client.seq + 1 - uint64(l.int(0, int(min(client.seq+1, 2)), "earlier"))
	client.seq = max(client.seq, sequence)
	return &wire.Origin{Session: client.session, Sequence: sequence}
}

// transaction draws a transaction under the lease that is held. It runs on the first
// replica, which has the rows that the holder sees.
func (l *leaseLog) transaction() *wire.EncodedOperation {
	held := l.m.lease.held
	keep := l.int(0, 2, "keep") > 0
	tx, err := l.m.Speculate(TransactionOptions{Seed: seedOf(uint64(l.n))})
	if err != nil {
		l.rt.Fatal(err)
	}
	defer tx.Close()
	if err := tx.Lease(held.ID, held.Base); err != nil {
		l.rt.Fatal(err)
	}
	for range l.int(1, 3, "statements") {
		l.n++
		text := fmt.Sprintf(rapid.SampledFrom([]string{"INSERT INTO done VALUES(%d, random())", "INSERT INTO done VALUES(%d, datetime('now')||changes()) RETURNING *",
			"INSERT OR FAIL INTO done VALUES(%d, 'f'), (0, 'no')", "INSERT INTO done VALUES(0, %d)", "CREATE TABLE t%d(a)"}).Draw(l.rt, "text"), l.n)
		_, _ = tx.Exec(context.Background(), text, nil)
		if err := tx.Err(); err != nil {
			l.rt.Fatal(text, err)
		}
	}
	o := &wire.Operation{Lease: &wire.Lease{Keep: keep}}
	e, err := tx.Record(o)
	if err != nil {
		l.rt.Fatal(err)
	}
	if e == nil {
		return nil
	}
	switch l.int(0, 9, "wrong") {
	case 0:
		o.Lease.Base++
	case 1:
		o.Lease.Under++
	case 2:
		o.Lease.Checksum++
	default:
		return e
	}
	return tx.rec.Encode(o)
}

func (l *leaseLog) proposer() *proposer { return rapid.SampledFrom(l.nodes).Draw(l.rt, "proposer") }

func (l *leaseLog) step() {
	p := l.proposer()
	if held := l.m.lease.held.Session; held != 0 && l.int(0, 1, "holder") == 0 {
		for _, other := range l.nodes {
			if other.session == held {
				p = other
			}
		}
	}
	switch l.int(0, 11, "step") {
	case 0: // the node starts again, or a session of an earlier incarnation comes late
		node := l.alive[p]
		l.open(node[0], node[1]+uint64(l.int(0, 2, "incarnation"))-1)
	case 1, 2:
		now := l.m.Clock().Now
		if l.int(0, 5, "late") == 0 {
			now--
		}
		l.send(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: now, Next: now + uint64(rapid.SampledFrom([]int{100, 200, 400, 2000, 12000}).Draw(l.rt, "by"))}))
	case 3, 4:
		if len(l.all) > 0 {
			l.send(l.all[len(l.all)-1-l.int(0, min(5, len(l.all)-1), "copy of")])
		}
	case 5, 6, 7:
		if l.m.lease.held.ID == 0 {
			break
		}
		if e := l.transaction(); e != nil {
			l.operations(p, e)
		}
	case 8:
		o := op("VACUUM")
		o.Vacuum = true
		if l.int(0, 1, "under") == 0 {
			o.Lease = &wire.Lease{Under: l.id(), Keep: l.int(0, 1, "keep") == 0}
		}
		l.operations(p, wire.EncodeOperation(o))
	default:
		var ops []*wire.EncodedOperation
		for range l.int(1, 4, "operations") {
			ops = append(ops, wire.EncodeOperation(l.operation()))
		}
		l.operations(p, ops...)
	}
}

// operations sends an entry. It may be in flight with others, of which some are lost and
// come later as copies, or never.
func (l *leaseLog) operations(p *proposer, ops ...*wire.EncodedOperation) {
	p.seq++
	oldest := uint64(0)
	if before := l.int(0, 3, "in flight before"); before > 0 && p.seq > uint64(before) {
		oldest = p.seq - uint64(before)
	}
	cmd := wire.EncodeEntry(p.session, p.seq, oldest, ops)
	l.all = append(l.all, cmd)
	if l.int(0, 9, "lost") > 0 {
		l.send(cmd)
	}
}

// shortSessionTTL is a TTL of sessions that is so short that they expire.
const shortSessionTTL = 10_000

func drawLeaseLog(t *testing.T, rt *rapid.T) *leaseLog {
	l := &leaseLog{history: &history{}, rt: rt, m: leaseMachine(t), alive: map[*proposer][2]uint64{}}
	first := l.open(1, 1)
	for _, text := range leaseLogSchema {
		first.seq++
		l.send(wire.EncodeEntry(first.session, first.seq, 0, []*wire.EncodedOperation{wire.EncodeOperation(op(text))}))
	}
	l.open(2, 1)
	l.open(3, 1)
	for range l.int(5, 60, "steps") {
		l.step()
	}
	return l
}

// leaseMachine returns a replica whose sessions expire soon.
func leaseMachine(t *testing.T) *machine {
	m := emptyMachine(t)
	m.cfg.SessionTTL = shortSessionTTL
	return m
}

func (l *leaseLog) check(m *machine, way string) {
	if want := l.states[m.index-1]; !bytes.Equal(m.bytes(), want) {
		s, _ := wire.DecodeState(want)
		l.rt.Fatalf("%s: at entry %d the state is\n%+v\nof the first replica it was\n%+v", way, m.index, m.state(), s)
	}
	if want := l.hashes[m.index-1]; want != "" && m.hash() != want {
		const q = "SELECT n, v FROM done ORDER BY n"
		l.rt.Fatalf("%s: at entry %d the rows are not those of the first replica:\n%s\n\n%s", way, m.index, m.rows(q), l.m.rows(q))
	}
}

// final returns the final results of an entry's operations, or "" while one of them
// waits.
func (m *machine) final(key [2]uint64) string {
	var b []byte
	for _, r := range m.got[key] {
		if r.Lease.State == wire.LeaseQueued {
			later, ok := m.settled[r.Lease.ID]
			if !ok {
				return ""
			}
			r = later
		}
		b = fmt.Appendf(b, "%x ", wire.AppendResult(nil, &r))
	}
	return string(b)
}

// The lease, its queue and all results are the same on every replica, whether it
// applies the log in batches, is restarted or recovers from snapshots.
func TestTheLeaseIsReplicated(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	rapid.Check(t, func(rt *rapid.T) {
		l := drawLeaseLog(t, rt)
		defer l.m.Close()
		for _, way := range []string{"one batch", "batches", "restarts", "snapshots"} {
			m := leaseMachine(t)
			for m.index < uint64(len(l.entries)) {
				n := len(l.entries)
				if way != "one batch" {
					n = l.int(1, 8, way+" batch")
				}
				m.apply(l.entries[m.index:min(int(m.index)+n, len(l.entries))]...)
				l.check(m, way)
				switch {
				case way == "restarts" && l.int(0, 2, "restart") == 0:
					if l.int(0, 1, "sync") == 0 {
						if err := m.Sync(); err != nil {
							rt.Fatal(err)
						}
					}
					m.restartWithShortSessions(l.history)
					l.check(m, way)
				case way == "snapshots" && l.int(0, 2, "snapshot") == 0:
					other := leaseMachine(t)
					m.snapshotTo(other)
					other.got, other.settled = m.got, m.settled
					m.Close()
					m = other
					l.check(m, way)
				}
			}
			for key := range l.m.got {
				if got, want := m.final(key), l.m.final(key); got != want {
					rt.Fatalf("%s: the results of entry %d of session %d are\n%s\n%+v\nof the first replica they are\n%s\n%+v", way, key[1], key[0], got, m.got[key], want, l.m.got[key])
				}
			}
			m.Close()
		}
	})
}

// restartWithShortSessions restarts the replica, and applies again what it had lost.
func (m *machine) restartWithShortSessions(h *history) {
	was := m.index
	m.Close()
	applied := m.start()
	m.cfg.SessionTTL = shortSessionTTL
	m.apply(append([]sm.Entry{}, h.entries[applied:was]...)...)
}

// acquire returns an operation that requests the lease.
func acquire(id, ttl uint64) *wire.Operation {
	return &wire.Operation{Lease: &wire.Lease{Acquire: id, TTLMS: ttl}}
}
