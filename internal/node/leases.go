package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

const (
	// keptFor is how long a node keeps the write lease after a transaction, for
	// the next one.
	keptFor = 50 * time.Millisecond
	// closelyFollows is the most time between two transactions for which the node
	// keeps the lease.
	closelyFollows = 20 * time.Millisecond
	// minKeptWait is the least time to wait for a lease that another node only
	// keeps: that node releases it as soon as it learns of the waiter.
	minKeptWait = 100 * time.Millisecond
	// leaveWait bounds how long a write that gives up takes to leave the queue.
	leaveWait = 2 * time.Second
)

// leaseIDBit marks the ids of leases, which the requesting node chooses at random.
// The ids of plain writes in the lease queue are small numbers.
const leaseIDBit = 1 << 63

// leases is this node's side of the write lease. The lease itself, and the queue for it,
// are replicated state of the SQL machine (`leasequeue.go` in statemachine/replica): that
// decides who has the lease. leases only decides when this node asks for it and releases
// it, and connects what the machine reports with the calls that wait here.
//
//	requested   AcquireLease proposed it and waits, at its waiter if it is queued
//	in use      a transaction has it: from AcquireLease until Release or applied
//	kept        no transaction has it, but the next one of this node can have it
//	to release  run proposes its release
//
// AcquireLease leads from requested to in use, or from kept directly to in use.
// applied leads from in use to kept if transactions follow closely on each other;
// otherwise the lease ended with the transaction's operation. Everything else that
// ends a use leads to "to release".
type leases struct {
	node *Node
	wake chan struct{} // capacity 1: run has something to do
	idle atomic.Bool   // kept is not nil; read without mu

	mu        sync.Mutex
	waiters   map[uint64]*waiter // requested leases and queued writes, by id
	inUse     map[uint64]*Lease  // by id
	kept      *Lease
	lastUse   time.Time // when a transaction last ended; kept has been kept since
	toRelease []uint64  // ids of leases and waiters
	keepAlive bool      // run should propose something at once, so that others hear of this node
	closed    bool
}

// A waiter is an operation of this node in the cluster's lease queue.
type waiter struct {
	settled chan struct{} // closed when the operation has left the queue
	queued  bool          // it was in the queue; guarded by leases.mu
	result  wire.Result   // set before settled is closed
	err     error         // as result
}

func newWaiter() *waiter { return &waiter{settled: make(chan struct{})} }

// settle sets what became of the operation, once. The caller holds leases.mu.
func (w *waiter) settle(result wire.Result, err error) {
	select {
	case <-w.settled:
	default:
		w.result, w.err = result, err
		close(w.settled)
	}
}

func newLeases(n *Node) *leases {
	return &leases{node: n, wake: make(chan struct{}, 1), waiters: map[uint64]*waiter{}, inUse: map[uint64]*Lease{}}
}

func (l *leases) wakeRun() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *leases) acquire(ctx context.Context, busyTimeout time.Duration) (*Lease, error) {
	if lease := l.takeKept(); lease != nil {
		return lease, nil
	}
	id := rand.Uint64() | leaseIDBit
	w := newWaiter()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, ErrClosed
	}
	l.waiters[id] = w
	l.mu.Unlock()
	began := time.Now()
	// The machine expires the lease a little earlier than LeaseTTL, because its
	// clock advances in steps.
	r, err := l.propose(ctx, &wire.Lease{Acquire: id, TTLMS: uint64(l.node.opts.LeaseTTL.Milliseconds()) * 9 / 10})
	result := r.Result
	if err == nil && result.Lease.State == wire.LeaseQueued {
		result, err = l.await(ctx, id, w, busyTimeout, began)
	}
	switch {
	case err != nil:
	case result.Err != nil:
		err = result.Err
	case result.Lease.State != wire.LeaseGranted:
		err = errNotHeard
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiters, id)
	if l.closed {
		err = ErrClosed
	}
	if err != nil {
		l.releaseSoon(id)
		return nil, notBegun(ctx, err)
	}
	lease := &Lease{ID: id, Base: result.Lease.Base, leases: l}
	l.inUse[id] = lease
	return lease, nil
}

func (l *leases) propose(ctx context.Context, lease *wire.Lease) (resultOrWaiter, error) {
	return l.node.sql.propose(ctx, wire.EncodeOperation(&wire.Operation{Lease: lease}))
}

// notBegun returns the error of a transaction that has not begun. It never is
// ErrOutcomeUnknown: if the lease was granted after all, it is released.
func notBegun(ctx context.Context, err error) error {
	if !errors.Is(err, ErrOutcomeUnknown) {
		return err
	}
	for _, known := range []error{ErrClosed, ErrNoLeader} {
		if errors.Is(err, known) {
			err = known
			break
		}
	}
	if errors.Is(err, ErrOutcomeUnknown) {
		err = errors.New("hiqlite: the write lease was not obtained")
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", err, ctx.Err())
	}
	return err
}

// takeKept returns the kept lease, or nil if none is kept.
func (l *leases) takeKept() *Lease {
	if !l.idle.Load() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	lease := l.kept
	if lease == nil {
		return nil
	}
	l.dropKept()
	if time.Since(lease.validAsOf) >= keptFor { // this process was stopped: the lease may have expired
		l.releaseSoon(lease.ID)
		return nil
	}
	l.inUse[lease.ID] = lease
	return lease
}

// dropKept makes kept nil. The caller holds mu.
func (l *leases) dropKept() {
	l.kept = nil
	l.idle.Store(false)
}

// releaseSoon has run release a lease, or remove a waiter from the queue. The
// caller holds mu.
func (l *leases) releaseSoon(id uint64) {
	l.toRelease = append(l.toRelease, id)
	l.wakeRun()
}

// await waits until w is settled, until ctx ends, or until busyTimeout has passed since
// the time since.
func (l *leases) await(ctx context.Context, id uint64, w *waiter, busyTimeout time.Duration, since time.Time) (wire.Result, error) {
	wait := busyTimeout - time.Since(since)
	if _, idle := l.node.sql.machine.LeaseHolder(); idle {
		wait = max(wait, minKeptWait)
	}
	timer := time.NewTimer(max(0, wait))
	defer timer.Stop()
	var ended error // of ctx
	select {
	case <-w.settled:
		return l.outcome(w)
	case <-ctx.Done():
		ended = ctx.Err()
	case <-timer.C:
	}
	holder, _ := l.node.sql.machine.LeaseHolder()
	if id&leaseIDBit != 0 { // acquire releases the lease, if it is granted after all
		return wire.Result{}, l.gaveUp("the transaction has not begun", ended, holder, busyTimeout)
	}
	return l.withdraw(ctx, id, w, func() error { return l.gaveUp("not applied", ended, holder, busyTimeout) }, ended)
}

// withdraw removes a plain write from the queue and finds out whether it was
// applied before that.
func (l *leases) withdraw(ctx context.Context, id uint64, w *waiter, notApplied func() error, ended error) (wire.Result, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.node.opts.Hooks.LeaveWait)
	defer cancel()
	_, err := l.propose(ctx, &wire.Lease{Release: []uint64{id}})
	select {
	case <-w.settled: // by the withdrawal, or before it
		if w.result.Lease.State != wire.LeaseExpired || w.err != nil {
			return w.result, w.err
		}
		return wire.Result{}, notApplied()
	default:
	}
	if err == nil {
		err = errors.New("hiqlite: it is not known whether it left the queue")
	}
	// Nobody waits for the write any more, so it should not keep others waiting.
	l.mu.Lock()
	l.releaseSoon(id)
	l.mu.Unlock()
	return wire.Result{}, errors.Join(fmt.Errorf("%w: it waited for the write lease, and may be applied when its turn comes: %w", ErrOutcomeUnknown, err), ended)
}

// outcome returns what became of a settled waiter.
func (l *leases) outcome(w *waiter) (wire.Result, error) {
	if w.err != nil || w.result.Lease.State != wire.LeaseExpired {
		return w.result, w.err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return wire.Result{}, ErrClosed
	}
	return wire.Result{}, errNotHeard
}

// errWaitsStill returns the error of a write that is in the queue when the node
// closes.
func errWaitsStill() error {
	return fmt.Errorf("%w: it waited for the write lease, and may be applied when its turn comes: %w", ErrOutcomeUnknown, ErrClosed)
}

// errNotHeard is the error of an operation whose waiter expired.
var errNotHeard = sqlite.Busy("the other nodes did not hear from this one for too long; try again")

// gaveUp returns the error of an operation that has left the queue because ctx has ended or
// busyTimeout has passed.
func (l *leases) gaveUp(what string, ended error, holder uint64, busyTimeout time.Duration) error {
	who := fmt.Sprintf("a transaction on node %d holds the write lease", holder)
	switch holder {
	case 0:
		who = "other transactions held the write lease"
	case l.node.opts.ID:
		who += " (this node; if it is the caller's own, use its sql.Tx for all statements that belong to it)"
	}
	if ended != nil {
		return fmt.Errorf("hiqlite: %s: %s: %w", what, who, ended)
	}
	return sqlite.Busy(fmt.Sprintf("%s; waited for the %v of busy_timeout", who, busyTimeout))
}

// The goroutine that applies entries calls the following methods.

// queued notes that an operation of this node is in the queue. It is called before
// any later entry is applied.
func (l *leases) queued(id uint64) *waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.waiters[id]
	if w == nil {
		w = newWaiter()
		switch {
		case l.closed:
			w.settle(wire.Result{}, errWaitsStill())
		case id&leaseIDBit == 0: // acquire of a lease has given up already
			l.waiters[id] = w
		}
	}
	w.queued = true
	l.wakeRun()
	return w
}

// settled notes that an operation has left the queue.
func (l *leases) settled(id uint64, result wire.Result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.waiters[id]; w != nil {
		w.settle(result, nil)
		if id&leaseIDBit == 0 {
			delete(l.waiters, id)
		}
	}
}

// recovered notes that the machine has taken over a snapshot. The snapshot says
// who has the lease and who waits for it, but not what became of operations that
// wait no longer.
func (l *leases) recovered(held wire.HeldLease, waits func(id uint64) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, w := range l.waiters {
		switch {
		case waits(id):
		case id == held.ID:
			w.settle(wire.Result{Lease: wire.LeaseResult{State: wire.LeaseGranted, ID: id, Base: held.Base}}, nil)
		case id&leaseIDBit == 0:
			w.settle(wire.Result{}, fmt.Errorf("%w: this node took over a snapshot, which does not say what became of the operation", ErrOutcomeUnknown))
			delete(l.waiters, id)
		case w.queued: // otherwise its request may not have been proposed yet
			w.settle(wire.Result{Lease: wire.LeaseResult{State: wire.LeaseExpired, ID: id}}, nil)
		}
	}
	if l.kept != nil && l.kept.ID != held.ID {
		l.dropKept()
	}
}

// wanted notes that others wait for a lease of this node.
func (l *leases) wanted(held wire.HeldLease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept != nil && l.kept.ID == held.ID {
		l.dropKept()
		l.releaseSoon(held.ID)
		return
	}
	if lease := l.inUse[held.ID]; lease != nil {
		if !lease.wanted {
			lease.wanted = true
			l.keepAlive = held.Idle
			l.wakeRun()
		}
		return
	}
	if l.waiters[held.ID] == nil { // nobody on this node has a use for it
		l.releaseSoon(held.ID)
	}
}

// previousIncarnationHolds notes that others wait for a lease that this node had
// before it was started again. The first entry of this incarnation ends it.
func (l *leases) previousIncarnationHolds() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keepAlive = true
	l.wakeRun()
}

// run releases what is to be released. While this node has the lease or waits for
// it, and others wait too, run also proposes something now and then, so that the
// machines do not take this node for dead and expire its lease and waiters.
func (l *leases) run() {
	ctx := l.node.ctx
	every := l.node.opts.LeaseTTL / 10
	timer := time.NewTimer(every)
	defer timer.Stop()
	for ctx.Err() == nil {
		l.mu.Lock()
		if l.kept != nil && time.Since(l.lastUse) >= keptFor {
			l.toRelease = append(l.toRelease, l.kept.ID)
			l.dropKept()
		}
		release, keepAlive := l.toRelease, l.keepAlive
		l.toRelease, l.keepAlive = nil, false
		active := len(l.inUse)+len(l.waiters) > 0
		next := time.Hour
		switch {
		case l.kept != nil:
			next = keptFor - time.Since(l.lastUse)
		case active:
			next = every
		}
		l.mu.Unlock()
		if len(release) > 0 || keepAlive {
			l.proposeRelease(release)
			continue
		}
		timer.Reset(max(next, time.Millisecond))
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
			if c := l.node.sql.machine.Clock(); active && c.Runs && c.Wait == 0 { // others wait
				l.proposeRelease(nil)
			}
		}
	}
}

// proposeRelease releases leases and waiters. Without any it only shows that this
// node is alive.
func (l *leases) proposeRelease(ids []uint64) {
	ttl := l.node.opts.LeaseTTL
	ctx, cancel := context.WithTimeout(l.node.ctx, ttl)
	defer cancel()
	l.mu.Lock()
	inUse := len(l.inUse) > 0
	l.mu.Unlock()
	if _, err := l.propose(ctx, &wire.Lease{Release: ids, InUse: inUse}); err == nil {
		return
	}
	l.mu.Lock()
	l.toRelease = append(l.toRelease, ids...)
	l.mu.Unlock()
	l.node.sleep(ttl / 10)
}

// close ends the transactions of this node and releases all that it has.
func (l *leases) close(ctx context.Context) {
	l.mu.Lock()
	l.closed = true
	release := l.toRelease
	var expire []func(error)
	for id, lease := range l.inUse {
		release = append(release, id)
		if lease.onExpire != nil {
			expire = append(expire, lease.onExpire)
		}
	}
	if l.kept != nil {
		release = append(release, l.kept.ID)
	}
	for id := range l.waiters {
		release = append(release, id)
	}
	l.mu.Unlock()
	for _, f := range expire {
		f(ErrClosed)
	}
	if len(release) > 0 {
		_, _ = l.propose(ctx, &wire.Lease{Release: release}) // if it fails, they expire
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, w := range l.waiters {
		err := ErrClosed
		if id&leaseIDBit == 0 {
			err = errWaitsStill()
		}
		w.settle(wire.Result{}, err)
	}
	clear(l.waiters)
}
