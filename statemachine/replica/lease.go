package replica

import (
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// leaseHostOfSQL lets the SQL machine apply the operations of its lease queue. All
// methods run while an entry is being applied.
type leaseHostOfSQL struct{ r *SQL }

var _ leaseHost = leaseHostOfSQL{}

func (l leaseHostOfSQL) apply(op *wire.Operation, result *wire.Result) error {
	return l.r.applyOperation(op, result)
}
func (l leaseHostOfSQL) now() uint64        { return l.r.now }
func (l leaseHostOfSQL) lastChange() uint64 { return l.r.changed }

func (l leaseHostOfSQL) session(id uint64) *wire.Session[wire.Result] { return l.r.sessions.Get(id) }

// holderChanged publishes who holds the lease, and ends the speculative
// transactions that ran under a lease that has ended.
func (l leaseHostOfSQL) holderChanged(ended uint64) {
	l.r.publishHolder()
	if ended != 0 {
		l.r.endSpeculation(func(lease uint64) bool { return lease == ended })
	}
}

// settled notifies the listener, and has a later copy of the waiter's entry
// return the same result.
func (l leaseHostOfSQL) settled(w *wire.Waiter, result *wire.Result) {
	r := l.r
	r.batch.notifications = append(r.batch.notifications, notification{
		Notification: statemachine.Notification[wire.Result]{Session: w.Session}, waiter: waiterID(w), settled: result,
	})
	s := r.sessions.Get(w.Session)
	if s == nil {
		return
	}
	if kept := s.ResultsOf(w.Sequence); w.Index < len(kept) {
		kept[w.Index] = keptResult(result)
		r.sessions.Changed(w.Session)
	}
}

func (l leaseHostOfSQL) keep(w *wire.Waiter, result *wire.Result) {
	l.r.keepForClient(&w.Operation, result)
}

// publishHolder lets other goroutines see who holds the lease.
func (r *SQL) publishHolder() {
	held, node := &r.lease.held, uint64(0)
	if s := r.sessions.Get(held.Session); s != nil {
		node = s.Node
	}
	r.holder.Store(held.ID)
	r.holderNode.Store(node)
	r.holderIdle.Store(held.Idle)
}

// LeaseQueue returns how many operations wait for the write lease.
func (r *SQL) LeaseQueue() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.lease.waiters)
}

// LeaseHolder returns the node that holds the write lease, and whether the lease is
// idle: its node keeps it for its next transaction. Node 0 means that nobody holds
// the lease, or that the holder's node is not known.
func (r *SQL) LeaseHolder() (node uint64, idle bool) {
	return r.holderNode.Load(), r.holderIdle.Load()
}
