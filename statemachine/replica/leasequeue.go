package replica

import (
	"fmt"
	"slices"

	"github.com/hiqlite/hiqlite/internal/invariants"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

const (
	// maxWaiters and maxWaiterBytes bound the lease queue, which every replica
	// keeps in memory.
	maxWaiters     = 16384
	maxWaiterBytes = 32 << 20
	// idleTTL is the time, in milliseconds of the shard's clock, after which an
	// idle lease expires while somebody waits for it.
	idleTTL = 500
)

// A leaseQueue is the write lease and the queue for it. While a session holds the
// lease, no other operation changes rows: it becomes a waiter instead. The queue is
// replicated state and knows no SQLite; a leaseHost applies the operations.
//
// The states of the lease:
//
//	state  | held            | waiters | leads to
//	-------+-----------------+---------+------------------------------------------
//	free   | ID is 0         | none    | in use: an operation acquires the lease
//	in use | ID is not 0     | any     | free or in use by the next waiter: the holder's
//	       |                 |         | transaction is applied or fails, the holder
//	       |                 |         | releases the lease, its session ends, or it
//	       |                 |         | was silent for TTLMS while somebody waits.
//	       |                 |         | idle: the transaction is applied, its proposer
//	       |                 |         | asked to keep the lease, and nobody waits
//	idle   | Idle is set     | any     | as in use, but expires after idleTTL.
//	       |                 |         | in use: its session says that it uses it
//
// The states of a waiter (wire.LeaseState is what its proposer gets):
//
//	queued   it has been added; its entry was answered with LeaseQueued
//	applied  its turn came, and its operation was applied
//	granted  its turn came, and it asked for the lease: it holds it now
//	expired  it was released, its session ended, or its session was silent for
//	         TTLMS: its operation will never be applied
//
// The time for which a holder or waiter is silent counts only while somebody
// waits. A holder that nobody waits for keeps the lease for ever.
type leaseQueue struct {
	host leaseHost

	// held is the lease. Its session exists.
	held wire.HeldLease
	// waiters are ordered by number. There are none if nobody holds the lease.
	// The sessions of those that ask for the lease exist; those of other waiters
	// may have ended, their operations are applied all the same.
	waiters []wire.Waiter
	// lastNumber is the number of the last waiter that was added. It never
	// decreases, so that no number is used twice.
	lastNumber uint64
	// contended is the time of the clock since which somebody has waited for the
	// present holder. It is at most the present time.
	contended uint64
	// bytes is the sum of operationSize over the waiters; at most maxWaiterBytes.
	bytes int
	// saved are the numbers of the waiters that SQLite holds.
	saved map[uint64]bool
}

// A leaseHost applies the operations of a leaseQueue, gives it the state that it needs,
// and is notified of its changes.
type leaseHost interface {
	// apply applies an operation. An error is one of this machine.
	apply(op *wire.Operation, result *wire.Result) error
	// now is the shard's clock, in milliseconds.
	now() uint64
	// lastChange is the index of the last entry that may have changed rows.
	lastChange() uint64
	// session returns a session, or nil if there is none with this id.
	session(id uint64) *wire.Session[wire.Result]
	// holderChanged is called when the lease was granted or ended, or became idle
	// or used. ended is the id of the lease that has ended, or 0.
	holderChanged(ended uint64)
	// settled is called when a waiter leaves the queue whose entry was applied
	// before the present one.
	settled(w *wire.Waiter, result *wire.Result)
	// keep is called when a waiter with an origin leaves the queue. A copy of its
	// operation gets this result.
	keep(w *wire.Waiter, result *wire.Result)
}

// entry is the entry being applied.
type entry struct {
	session, sequence uint64
	results           []wire.Result // of its operations
}

// load replaces the queue by that of a state. inSQLite is the state that SQLite
// holds, which may be older.
func (q *leaseQueue) load(s, inSQLite *wire.State) {
	*q = leaseQueue{host: q.host, held: s.Lease, waiters: s.Waiters, lastNumber: s.LastWaiter, contended: s.ContendedSince, saved: map[uint64]bool{}}
	for i := range q.waiters {
		q.bytes += operationSize(&q.waiters[i].Operation)
	}
	for i := range inSQLite.Waiters {
		q.saved[inSQLite.Waiters[i].Number] = true
	}
}

// describe sets the fields of s that row 0 of the meta table holds of the queue.
func (q *leaseQueue) describe(s *wire.State) {
	s.Lease, s.LastWaiter, s.ContendedSince = q.held, q.lastNumber, q.contended
}

// markSaved records that SQLite holds the present waiters, and no others.
func (q *leaseQueue) markSaved() {
	if len(q.saved) == 0 && len(q.waiters) == 0 {
		return
	}
	clear(q.saved)
	for i := range q.waiters {
		q.saved[q.waiters[i].Number] = true
	}
}

// ids returns the ids of the waiters.
func (q *leaseQueue) ids() map[uint64]bool {
	ids := make(map[uint64]bool, len(q.waiters))
	for i := range q.waiters {
		ids[waiterID(&q.waiters[i])] = true
	}
	return ids
}

// waiterID returns the id under which a proposer knows its waiter: the id of the
// lease that it asks for, which the proposer chose, or else the waiter's number.
// The two ranges do not overlap: ids of leases have leaseIDBit set.
func waiterID(w *wire.Waiter) uint64 {
	if asksForLease(w) {
		return w.Operation.Lease.Acquire
	}
	return w.Number
}

func asksForLease(w *wire.Waiter) bool {
	return w.Operation.Lease != nil && w.Operation.Lease.Acquire != 0
}

// operationSize is the approximate size of an operation in bytes.
func operationSize(op *wire.Operation) int {
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

// applyOrQueue applies operation i of an entry, or adds it to the queue.
func (q *leaseQueue) applyOrQueue(e *entry, i int, op *wire.Operation, result *wire.Result) error {
	l := op.Lease
	switch {
	case l == nil:
		if q.held.ID == 0 {
			return q.host.apply(op, result)
		}
		return q.add(e, i, op, result)
	case l.Acquire != 0:
		if q.held.ID == 0 {
			q.grant(e.session, l, result)
			return nil
		}
		return q.add(e, i, op, result)
	case l.Under == 0 && l.Transaction: // a transaction without a lease
		result.Lease = wire.LeaseResult{State: wire.LeaseExpired}
		return nil
	case l.Under == 0:
		if l.InUse && q.held.Session == e.session {
			q.held.Idle = false
			q.host.holderChanged(0)
		}
		return q.release(e, l.Release)
	}
	return q.applyUnder(e, i, op, result)
}

// grant gives the lease, which nobody holds, to a session.
func (q *leaseQueue) grant(session uint64, l *wire.Lease, result *wire.Result) {
	base := q.host.lastChange()
	q.held = wire.HeldLease{ID: l.Acquire, Session: session, Base: base, TTLMS: l.TTLMS}
	q.contended = q.host.now()
	result.Lease = wire.LeaseResult{State: wire.LeaseGranted, ID: l.Acquire, Base: base}
	q.host.holderChanged(0)
}

// applyUnder applies an operation that names the lease it runs under.
func (q *leaseQueue) applyUnder(e *entry, i int, op *wire.Operation, result *wire.Result) error {
	l := op.Lease
	switch {
	case l.Under != q.held.ID:
		if l.Transaction {
			result.Lease = wire.LeaseResult{State: wire.LeaseExpired, ID: l.Under}
			return nil
		}
		if q.held.ID != 0 {
			return q.add(e, i, op, result)
		}
		return q.host.apply(op, result)
	case l.Transaction && l.Base != q.host.lastChange():
		// Only the holder changes rows, so a correct proposer never gets here. Its
		// transaction has read rows that are not the present ones.
		result.Lease = wire.LeaseResult{State: wire.LeaseExpired, ID: l.Under}
		return q.endLease(e)
	}
	if l.Transaction && op.Origin != nil { // tells the commit from one of another view
		result.Lease.ID = l.Under
	}
	if err := q.host.apply(op, result); err != nil {
		return err
	}
	if !l.Keep || len(q.waiters) > 0 || result.Err != nil {
		return q.endLease(e)
	}
	q.held.Idle, q.held.Base = true, q.host.lastChange()
	q.host.holderChanged(0)
	result.Lease = wire.LeaseResult{State: wire.LeaseKept, ID: q.held.ID, Base: q.held.Base}
	return nil
}

// add makes operation i of an entry a waiter.
func (q *leaseQueue) add(e *entry, i int, op *wire.Operation, result *wire.Result) error {
	size := operationSize(op)
	switch {
	case op.Vacuum:
		// VACUUM cannot run inside a transaction, but the queue is applied in one.
		result.Err = sqlite.Busy("VACUUM needs the write lease: run it again")
		return nil
	case len(q.waiters) >= maxWaiters || q.bytes+size > maxWaiterBytes:
		result.Err = sqlite.Busy("too many writes wait for the write lease already")
		return nil
	}
	if len(q.waiters) == 0 {
		q.contended = q.host.now()
	}
	q.lastNumber++
	w := wire.Waiter{Number: q.lastNumber, Session: e.session, Sequence: e.sequence, Index: i, Operation: *op}
	copied, err := wire.DecodeWaiter(wire.AppendWaiter(nil, &w)) // op points into the entry
	if err != nil {
		return err
	}
	q.waiters = append(q.waiters, *copied)
	q.bytes += size
	result.Lease = wire.LeaseResult{State: wire.LeaseQueued, ID: waiterID(copied)}
	return nil
}

// release ends leases and removes waiters, of whatever session: only the proposer
// of an id knows it.
func (q *leaseQueue) release(e *entry, ids []uint64) error {
	for _, id := range ids {
		if id == q.held.ID {
			if err := q.endLease(e); err != nil {
				return err
			}
			continue
		}
		q.remove(e, func(w *wire.Waiter) bool { return waiterID(w) == id })
	}
	return nil
}

// remove removes the waiters that match. Their operations will not be applied.
func (q *leaseQueue) remove(e *entry, match func(*wire.Waiter) bool) {
	q.waiters = slices.DeleteFunc(q.waiters, func(w wire.Waiter) bool {
		if !match(&w) {
			return false
		}
		q.bytes -= operationSize(&w.Operation)
		q.settle(e, &w, &wire.Result{Lease: wire.LeaseResult{State: wire.LeaseExpired, ID: waiterID(&w)}})
		return true
	})
}

// endLease takes the lease from its holder. It then applies the operations of the
// waiters in order, up to the first one that asks for the lease and gets it.
func (q *leaseQueue) endLease(e *entry) error {
	ended := q.held.ID
	q.held = wire.HeldLease{}
	q.host.holderChanged(ended)
	served := 0
	for q.held.ID == 0 && served < len(q.waiters) {
		w := q.waiters[served]
		served++
		q.bytes -= operationSize(&w.Operation)
		result := e.resultOf(&w)
		if asksForLease(&w) {
			q.grant(w.Session, w.Operation.Lease, result)
		} else {
			op := w.Operation
			if err := q.host.apply(&op, result); err != nil {
				return err
			}
		}
		q.settle(e, &w, result)
	}
	q.waiters = slices.Delete(q.waiters, 0, served)
	return nil
}

// contains reports whether a waiter is an operation of this entry.
func (e *entry) contains(w *wire.Waiter) bool {
	return w.Session == e.session && w.Sequence == e.sequence && w.Index < len(e.results)
}

// resultOf returns an empty result for a waiter: that of its operation in the
// entry being applied, if the waiter is of this entry.
func (e *entry) resultOf(w *wire.Waiter) *wire.Result {
	if !e.contains(w) {
		return new(wire.Result)
	}
	inEntry := &e.results[w.Index]
	*inEntry = wire.Result{}
	return inEntry
}

// settle sets the final result of a waiter: in the results of its entry, if that is being
// applied, and through the host otherwise.
func (q *leaseQueue) settle(e *entry, w *wire.Waiter, result *wire.Result) {
	if w.Operation.Origin != nil {
		q.host.keep(w, result)
		// Copies of the operation in this entry have got the result LeaseQueued.
		for i := range e.results {
			if copied := &e.results[i].Lease; copied.State == wire.LeaseQueued && copied.ID == waiterID(w) {
				e.results[i] = *result
			}
		}
	}
	if !e.contains(w) {
		q.host.settled(w, result)
		return
	}
	if inEntry := &e.results[w.Index]; inEntry != result {
		*inEntry = *result
	}
}

// dropGoneSessions ends the lease and removes the waiters of sessions that have
// ended. Waiters that do not ask for the lease stay: their operations can be
// applied without their proposers.
func (q *leaseQueue) dropGoneSessions(e *entry) error {
	if q.held.ID == 0 {
		return nil
	}
	q.remove(e, func(w *wire.Waiter) bool { return asksForLease(w) && q.host.session(w.Session) == nil })
	if q.host.session(q.held.Session) == nil {
		return q.endLease(e)
	}
	return nil
}

// expireSilent ends the lease and removes the waiters of sessions that have been
// silent for too long, all at once: if ten nodes fail while they wait, the others
// wait no longer than for one. Waiters that do not ask for the lease stay.
func (q *leaseQueue) expireSilent(e *entry) error {
	if len(q.waiters) == 0 {
		return nil
	}
	now := q.host.now()
	q.remove(e, func(w *wire.Waiter) bool {
		return asksForLease(w) && now-q.host.session(w.Session).LastUsed >= w.Operation.Lease.TTLMS
	})
	ttl := q.held.TTLMS
	if q.held.Idle {
		ttl = idleTTL
	}
	if since := max(q.host.session(q.held.Session).LastUsed, q.contended); len(q.waiters) > 0 && now-since >= ttl {
		return q.endLease(e)
	}
	return nil
}

// checkInvariants panics if an invariant of the fields does not hold, in test builds. It is
// called between entries.
func (q *leaseQueue) checkInvariants() {
	if !invariants.Enabled || len(q.waiters) > 256 && q.lastNumber%256 > 0 { // long queues now and then
		return
	}
	require := func(ok bool, format string, args ...any) {
		if !ok {
			panic("hiqlite: the lease queue is inconsistent: " + fmt.Sprintf(format, args...))
		}
	}
	require(q.held.ID != 0 || len(q.waiters) == 0, "%d waiters, but nobody holds the lease", len(q.waiters))
	require(q.held.ID == 0 || q.host.session(q.held.Session) != nil, "session %d holds the lease, but has ended", q.held.Session)
	require(q.contended <= q.host.now(), "contended since %d, but it is %d", q.contended, q.host.now())
	bytes, last := 0, uint64(0)
	for i := range q.waiters {
		w := &q.waiters[i]
		require(w.Number > last, "waiter %d follows waiter %d", w.Number, last)
		require(!asksForLease(w) || q.host.session(w.Session) != nil, "waiter %d is of session %d, which has ended", w.Number, w.Session)
		bytes, last = bytes+operationSize(&w.Operation), w.Number
	}
	require(last <= q.lastNumber, "waiter %d was added after the last one, %d", last, q.lastNumber)
	require(bytes == q.bytes && len(q.waiters) <= maxWaiters && bytes <= maxWaiterBytes, "%d waiters of %d bytes, counted as %d", len(q.waiters), bytes, q.bytes)
}
