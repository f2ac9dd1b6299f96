package node

import (
	"context"
	"time"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// A Lease is the write lease in the hands of one transaction. It ends when Release
// or Node.CommitUnder is called.
type Lease struct {
	ID   uint64
	Base uint64 // index of the last entry that changed rows before the lease was granted

	leases    *leases
	reused    bool        // a transaction of this node had it before
	validAsOf time.Time   // when a kept lease certainly was this node's
	wanted    bool        // others are known to wait for it; guarded by leases.mu
	onExpire  func(error) // guarded by leases.mu
}

// AcquireLease returns the write lease once it is granted to this call, which
// waits for other holders for up to busyTimeout.
func (n *Node) AcquireLease(ctx context.Context, busyTimeout time.Duration) (*Lease, error) {
	if err := n.RefusesWrites(); err != nil {
		return nil, err
	}
	ctx, cancel := n.Within(ctx)
	defer cancel()
	return n.sql.leases.acquire(ctx, busyTimeout)
}

// OnExpire has f called when the lease ends before its holder ends it, because the
// node closes.
func (lease *Lease) OnExpire(f func(error)) {
	l := lease.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	lease.onExpire = f
}

// Release ends the use of a lease under which nothing was proposed, or of which it
// is not known whether it still is this node's.
func (lease *Lease) Release() {
	l := lease.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.inUse, lease.ID)
	l.lastUse = time.Now()
	l.releaseSoon(lease.ID)
}

// Keep reports whether the operation of a transaction that began at that time
// should keep the lease for this node's next transaction.
func (lease *Lease) Keep(began time.Time) bool {
	l := lease.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	return !lease.wanted && !l.closed && (lease.reused || began.Sub(l.lastUse) < closelyFollows)
}

// applied ends the use of a lease whose transaction was applied, or refused. a
// says what the machine did with the lease.
func (lease *Lease) applied(a wire.LeaseResult, proposed time.Time) {
	l := lease.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.inUse, lease.ID)
	l.lastUse = time.Now()
	if a.State != wire.LeaseKept {
		return
	}
	if lease.wanted || l.closed || l.kept != nil {
		l.releaseSoon(lease.ID)
		return
	}
	l.kept = &Lease{ID: lease.ID, Base: a.Base, leases: l, reused: true, validAsOf: proposed}
	l.idle.Store(true)
	l.wakeRun()
}
