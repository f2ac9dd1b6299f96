package replica

import (
	"slices"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

const (
	// maxPlaces and maxPlaceBytes bound the queue for the lease, which every
	// replica keeps in memory.
	maxPlaces     = 16384
	maxPlaceBytes = 32 << 20
	// idleTTL is when, in milliseconds of the shard's ticks, a lease lapses that
	// others wait for and that no transaction is known to use.
	idleTTL = 500
)

// A lease is the write lease and the queue for it. While somebody holds it no
// other entry changes rows: what would has a place in the queue. All of it is
// replicated state.
//
// Who holds it need not be heard of as long as nobody waits: time counts from
// the moment when somebody does.
type lease struct {
	held      wire.HeldLease
	queue     []wire.Place // empty if nobody holds the lease
	last      uint64       // number of the last place
	contended uint64       // ticks since which somebody waits for held
	bytes     int          // of the operations in the queue
	written   map[uint64]bool
}

// load takes over a state; written are the places that SQLite holds.
func (l *lease) load(s, inSQLite *wire.State) {
	*l = lease{held: s.Lease, queue: s.Places, last: s.LastPlace, contended: s.Contended, written: map[uint64]bool{}}
	for i := range l.queue {
		l.bytes += bytesOf(&l.queue[i].Operation)
	}
	for i := range inSQLite.Places {
		l.written[inSQLite.Places[i].Number] = true
	}
}

// describe fills in s what stands in row 0 of the meta table.
func (l *lease) describe(s *wire.State) {
	s.Lease, s.LastPlace, s.Contended = l.held, l.last, l.contended
}

// saved tells that SQLite holds the places that are in the queue now.
func (l *lease) saved() {
	if len(l.written) == 0 && len(l.queue) == 0 {
		return
	}
	clear(l.written)
	for i := range l.queue {
		l.written[l.queue[i].Number] = true
	}
}

// ids returns what the places in the queue are known by.
func (l *lease) ids() map[uint64]bool {
	ids := make(map[uint64]bool, len(l.queue))
	for i := range l.queue {
		ids[idOf(&l.queue[i])] = true
	}
	return ids
}

// idOf returns what a place is known by: the id of the lease that it asks for,
// which its proposer chose, or its number.
func idOf(p *wire.Place) uint64 {
	if l := p.Operation.Lease; l != nil && l.Acquire != 0 {
		return l.Acquire
	}
	return p.Number
}

func acquires(p *wire.Place) bool { return p.Operation.Lease != nil && p.Operation.Lease.Acquire != 0 }

// bytesOf is about what an operation takes.
func bytesOf(op *wire.Operation) int {
	n := 200
	for i := range op.Statements {
		s := &op.Statements[i]
		n += len(s.SQL) + 64
		for j := range s.Args {
			n += len(s.Args[j].Data) + len(s.Args[j].Name) + 64
		}
	}
	return n
}

// turn applies operation i of an entry, or gives it a place in the queue.
func (r *SQL) turn(i int, op *wire.Operation, result *wire.Result) error {
	l := op.Lease
	switch {
	case l == nil:
		if r.lease.held.ID == 0 {
			return r.operation(op, result)
		}
		return r.enqueue(i, op, result)
	case l.Acquire != 0:
		if r.lease.held.ID == 0 {
			r.grant(r.batch.entry.session, l, result)
			return nil
		}
		return r.enqueue(i, op, result)
	case l.Under == 0 && l.Transaction: // it has no lease
		result.Lease = wire.LeaseAnswer{State: wire.LeaseExpired}
		return nil
	case l.Under == 0:
		if l.InUse && r.lease.held.Session == r.batch.entry.session {
			r.lease.held.Idle = false
			r.show()
		}
		return r.release(l.Release)
	}
	return r.under(i, op, result)
}

// grant gives the lease, which nobody holds, to a session.
func (r *SQL) grant(session uint64, l *wire.Lease, result *wire.Result) {
	r.hold(wire.HeldLease{ID: l.Acquire, Session: session, Base: r.changed, TTLMS: l.TTLMS})
	r.lease.contended = r.ticks
	result.Lease = wire.LeaseAnswer{State: wire.LeaseGranted, ID: l.Acquire, Base: r.changed}
}

func (r *SQL) hold(l wire.HeldLease) {
	r.lease.held = l
	r.show()
}

// show tells other goroutines who holds the lease.
func (r *SQL) show() {
	l, node := &r.lease.held, uint64(0)
	if s := r.sessions.Get(l.Session); s != nil {
		node = s.Node
	}
	r.holder.Store(l.ID)
	r.holderNode.Store(node)
	r.holderIdle.Store(l.Idle)
}

// under applies an operation that carries a lease.
func (r *SQL) under(i int, op *wire.Operation, result *wire.Result) error {
	l, held := op.Lease, &r.lease.held
	switch {
	case l.Under != held.ID:
		if l.Transaction {
			result.Lease = wire.LeaseAnswer{State: wire.LeaseExpired, ID: l.Under}
			return nil
		}
		if held.ID != 0 {
			return r.enqueue(i, op, result)
		}
		return r.operation(op, result)
	case l.Transaction && l.Base != r.changed: // by the rules it cannot be
		result.Lease = wire.LeaseAnswer{State: wire.LeaseExpired, ID: l.Under}
		return r.endLease()
	}
	if err := r.operation(op, result); err != nil {
		return err
	}
	if !l.Keep || len(r.lease.queue) > 0 || result.Err != nil {
		return r.endLease()
	}
	held.Idle, held.Base = true, r.changed
	r.show()
	result.Lease = wire.LeaseAnswer{State: wire.LeaseKept, ID: held.ID, Base: held.Base}
	return nil
}

// enqueue gives an operation a place in the queue.
func (r *SQL) enqueue(i int, op *wire.Operation, result *wire.Result) error {
	l := &r.lease
	size := bytesOf(op)
	switch {
	case op.Vacuum:
		// It stands between two transactions, and cannot be applied with others.
		result.Err = sqlite.Busy("VACUUM needs the write lease: run it again")
		return nil
	case len(l.queue) >= maxPlaces || l.bytes+size > maxPlaceBytes:
		result.Err = sqlite.Busy("too many writes wait for the write lease already")
		return nil
	}
	if len(l.queue) == 0 {
		l.contended = r.ticks
	}
	l.last++
	p := wire.Place{Number: l.last, Session: r.batch.entry.session, Sequence: r.batch.entry.sequence, Index: i, Operation: *op}
	copied, err := wire.DecodePlace(wire.AppendPlace(nil, &p)) // op points into the entry
	if err != nil {
		return err
	}
	l.queue = append(l.queue, *copied)
	l.bytes += size
	result.Lease = wire.LeaseAnswer{State: wire.LeaseQueued, ID: idOf(copied)}
	return nil
}

// release gives up leases and places, whoever's they are: the ids are known to
// their proposers alone.
func (r *SQL) release(ids []uint64) error {
	for _, id := range ids {
		if id == r.lease.held.ID {
			if err := r.endLease(); err != nil {
				return err
			}
			continue
		}
		r.leave(func(p *wire.Place) bool { return idOf(p) == id })
	}
	return nil
}

// leave takes places out of the queue whose operations will not be applied.
func (r *SQL) leave(goes func(*wire.Place) bool) {
	l := &r.lease
	l.queue = slices.DeleteFunc(l.queue, func(p wire.Place) bool {
		if !goes(&p) {
			return false
		}
		l.bytes -= bytesOf(&p.Operation)
		r.settle(&p, &wire.Result{Lease: wire.LeaseAnswer{State: wire.LeaseExpired, ID: idOf(&p)}})
		return true
	})
}

// endLease takes the lease from its holder and gives everyone in the queue his
// turn, up to the next one who takes it.
func (r *SQL) endLease() error {
	l := &r.lease
	ended := l.held.ID
	r.hold(wire.HeldLease{})
	r.endSpeculation(func(lease uint64) bool { return lease == ended })
	turns := 0
	for l.held.ID == 0 && turns < len(l.queue) {
		p := l.queue[turns]
		turns++
		l.bytes -= bytesOf(&p.Operation)
		result := r.resultOf(&p)
		if acquires(&p) {
			r.grant(p.Session, p.Operation.Lease, result)
		} else {
			op := p.Operation
			*result = wire.Result{}
			if err := r.operation(&op, result); err != nil {
				return err
			}
		}
		r.settle(&p, result)
	}
	l.queue = slices.Delete(l.queue, 0, turns)
	return nil
}

// resultOf returns where the result of a place's operation belongs: in the
// entry being applied, if it is of it.
func (r *SQL) resultOf(p *wire.Place) *wire.Result {
	if r.inEntry(p) {
		own := &r.batch.entry.results[p.Index]
		*own = wire.Result{}
		return own
	}
	return new(wire.Result)
}

func (r *SQL) inEntry(p *wire.Place) bool {
	return p.Session == r.batch.entry.session && p.Sequence == r.batch.entry.sequence && p.Index < len(r.batch.entry.results)
}

// settle tells what became of a place. A copy of its entry that comes later is
// answered alike.
func (r *SQL) settle(p *wire.Place, result *wire.Result) {
	if r.inEntry(p) {
		if own := &r.batch.entry.results[p.Index]; own != result {
			*own = *result
		}
		return
	}
	r.batch.news = append(r.batch.news, news{session: p.Session, place: idOf(p), settled: result})
	if s := r.sessions.Get(p.Session); s != nil && s.Sequence == p.Sequence && p.Index < len(s.Results) {
		s.Results[p.Index] = keptResults([]wire.Result{*result})[0]
		r.sessions.Changed(p.Session)
	}
}

// abandoned ends what sessions that are gone hold or wait for. Their plain
// writes keep their places: they need nobody to be applied.
func (r *SQL) abandoned() error {
	if r.lease.held.ID == 0 {
		return nil
	}
	r.leave(func(p *wire.Place) bool { return acquires(p) && r.sessions.Get(p.Session) == nil })
	if r.sessions.Get(r.lease.held.Session) == nil {
		return r.endLease()
	}
	return nil
}

// lapse ends what silent sessions hold or wait for, all at once: ten who died
// while they waited cost no longer than one.
func (r *SQL) lapse() error {
	l := &r.lease
	if len(l.queue) == 0 {
		return nil
	}
	r.leave(func(p *wire.Place) bool {
		return acquires(p) && r.ticks-r.sessions.Get(p.Session).Used >= p.Operation.Lease.TTLMS
	})
	ttl := l.held.TTLMS
	if l.held.Idle {
		ttl = idleTTL
	}
	if since := max(r.sessions.Get(l.held.Session).Used, l.contended); len(l.queue) > 0 && r.ticks-since >= ttl {
		return r.endLease()
	}
	return nil
}

// LeaseQueue returns how many operations wait for the write lease.
func (r *SQL) LeaseQueue() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.lease.queue)
}

// LeaseHolder returns the node that holds the write lease, and whether it only
// keeps it for its next transaction. Node 0: nobody holds it, or it is not known
// who does.
func (r *SQL) LeaseHolder() (node uint64, idle bool) {
	return r.holderNode.Load(), r.holderIdle.Load()
}
