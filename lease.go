package hiqlite

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
	// idleLease is how long a lease is kept for the next transaction.
	idleLease = 50 * time.Millisecond
	// backToBack is how soon after one another transactions begin for which a
	// lease is kept.
	backToBack = 20 * time.Millisecond
	// closeWait bounds how long a node that closes tries to give back its leases
	// and locks. An election, at the defaults, takes less.
	closeWait = 3 * time.Second
)

// leases is a node's side of the write lease: who in this process waits for it,
// and who has it. What it decides is only when to ask and to give up; that a
// transaction has the lease is decided where it is applied.
//
// A transaction acquires the lease, or takes the one that was kept; it ends by
// applied, if something was proposed under it, or by drop. Others at this node
// await their turn at a place, which is settled or, when they run out of
// patience, left. What is given up (giveUp) is released by run.
type leases struct {
	n    *Node
	ttl  time.Duration
	wake chan struct{} // capacity 1: run has something to do
	idle atomic.Bool   // kept is not nil

	mu      sync.Mutex
	places  map[uint64]*place // in the queue, by id
	open    map[uint64]*grant // leases in use, by id
	kept    *grant            // a lease for the next transaction
	since   time.Time         // kept is, or the last transaction ended
	release []uint64          // to be given up
	beat    bool              // the others should hear of this node at once
	closed  bool
}

// A place is where an operation of this node waits in the cluster's queue.
type place struct {
	done   chan struct{} // closed when it has been left
	known  bool          // it has been in the queue; guarded by leases.mu
	result wire.Result
	err    error
}

// A grant is the lease, in the hands of one transaction.
type grant struct {
	id, base uint64
	again    bool        // it was kept from the transaction before
	sure     time.Time   // of one that is kept: it was this node's then
	wanted   bool        // others are known to wait; guarded by leases.mu
	end      func(error) // ends the transaction; guarded by leases.mu
}

func newLeases(n *Node) *leases {
	return &leases{n: n, ttl: n.cfg.LeaseTTL, wake: make(chan struct{}, 1), places: map[uint64]*place{}, open: map[uint64]*grant{}}
}

func (l *leases) rouse() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// await waits at a place until its turn, until ctx ends, or until patience, which
// began at since, is over.
func (l *leases) await(ctx context.Context, id uint64, p *place, patience time.Duration, since time.Time) (wire.Result, error) {
	wait := patience - time.Since(since)
	if _, idle := l.n.replica.LeaseHolder(); idle {
		wait = max(wait, keptPatience) // no transaction is in the way
	}
	timer := time.NewTimer(max(0, wait))
	defer timer.Stop()
	var left error
	select {
	case <-p.done:
		return l.came(p)
	case <-ctx.Done():
		left = ctx.Err()
	case <-timer.C:
	}
	holder, _ := l.n.replica.LeaseHolder()
	if id&chosen != 0 { // it asks for the lease: whether it gets it is of no interest any more
		return wire.Result{}, l.left("the transaction has not begun", left, holder, patience)
	}
	// A write: give the place up, and find out whether it was in time.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveWait)
	defer cancel()
	_, err := l.n.do(ctx, &wire.Operation{Lease: &wire.Lease{Release: []uint64{id}}})
	select {
	case <-p.done: // settled before it was given up, or by that
		if p.result.Lease.State != wire.LeaseExpired || p.err != nil {
			return p.result, p.err
		}
		err = nil
	default:
		if err == nil {
			err = errUnsettled
		}
	}
	if err != nil {
		return wire.Result{}, errors.Join(fmt.Errorf("%w: it waited for the write lease, and may be applied when its turn comes: %w", ErrOutcomeUnknown, err), left)
	}
	return wire.Result{}, l.left("not applied", left, holder, patience)
}

// came returns what came of a place that was not left.
func (l *leases) came(p *place) (wire.Result, error) {
	if p.err != nil || p.result.Lease.State != wire.LeaseExpired {
		return p.result, p.err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return wire.Result{}, ErrClosed
	}
	return wire.Result{}, errNotHeard
}

// errMayCome is the error of a write that waits still when the node closes.
func errMayCome() error {
	return fmt.Errorf("%w: it waited for the write lease, and may be applied when its turn comes: %w", ErrOutcomeUnknown, ErrClosed)
}

// errNotHeard is the error of those whose place lapsed.
var errNotHeard = locked("this node was not heard of for too long; try again")

func locked(hint string) error {
	return &Error{Message: "database is locked (5) (SQLITE_BUSY)", ExtendedCode: sqlite.CodeBusy, Hint: hint}
}

// keptPatience is the least that is waited for a lease that its node only keeps
// for a next transaction, and gives up when asked.
const keptPatience = 100 * time.Millisecond

// leaveWait bounds how long a write takes to leave the queue.
const leaveWait = 2 * time.Second

var errUnsettled = errors.New("hiqlite: its place is not known")

// left is the error of somebody who left the queue.
func (l *leases) left(what string, reason error, holder uint64, patience time.Duration) error {
	who := fmt.Sprintf("a transaction on node %d holds the write lease", holder)
	switch holder {
	case 0:
		who = "transactions of others held the write lease"
	case l.n.cfg.NodeID:
		who += " (this node: is it the caller's own? what belongs to it has to be done by its sql.Tx)"
	}
	if reason != nil {
		return fmt.Errorf("hiqlite: %s: %s: %w", what, who, reason)
	}
	return locked(fmt.Sprintf("%s; waited for %v, as busy_timeout says", who, patience))
}

// chosen marks the ids of leases: their proposers choose them at random. Those
// of other places are small.
const chosen = 1 << 63

// acquire returns the lease, once it is this caller's turn.
func (l *leases) acquire(ctx context.Context, patience time.Duration) (*grant, error) {
	if g := l.take(); g != nil {
		return g, nil
	}
	id := rand.Uint64() | chosen
	p := &place{done: make(chan struct{})}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, ErrClosed
	}
	l.places[id] = p
	l.mu.Unlock()
	began := time.Now()
	a, err := l.n.do(ctx, &wire.Operation{Lease: &wire.Lease{Acquire: id, TTLMS: uint64(l.ttl.Milliseconds()) * 9 / 10}})
	result := a.Result
	if err == nil && result.Lease.State == wire.LeaseQueued {
		result, err = l.await(ctx, id, p, patience, began)
	}
	switch {
	case err != nil:
	case result.Err != nil:
		err = sqlError(result.Err)
	case result.Lease.State != wire.LeaseGranted:
		err = errNotHeard
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.places, id)
	if l.closed {
		err = ErrClosed
	}
	if err != nil {
		l.giveUp(id)
		return nil, notBegun(ctx, err)
	}
	g := &grant{id: id, base: result.Lease.Base}
	l.open[id] = g
	return g, nil
}

// notBegun is the error of a transaction that has not begun. Whether the lease
// was obtained is nobody's concern.
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

// take returns the lease that was kept, if there is one.
func (l *leases) take() *grant {
	if !l.idle.Load() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.kept
	if g == nil {
		return nil
	}
	l.kept = nil
	l.idle.Store(false)
	if time.Since(g.sure) >= idleLease { // this process was stopped: others may have had it since
		l.giveUp(g.id)
		return nil
	}
	l.open[g.id] = g
	return g
}

// giveUp has a lease or place released soon. The caller holds mu.
func (l *leases) giveUp(id uint64) {
	l.release = append(l.release, id)
	l.rouse()
}

// begun tells how the transaction under g is ended from outside.
func (l *leases) begun(g *grant, end func(error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g.end = end
}

// drop gives a lease back whose transaction wrote nothing, or of which it is
// not known whether it still is this node's.
func (l *leases) drop(g *grant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, g.id)
	l.since = time.Now()
	l.giveUp(g.id)
}

// keeps tells whether the lease should be kept after g's transaction, which
// began at that time: if transactions follow each other closely.
func (l *leases) keeps(g *grant, began time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !g.wanted && !l.closed && (g.again || began.Sub(l.since) < backToBack)
}

// applied takes in what became of the lease when its transaction was applied.
func (l *leases) applied(g *grant, a wire.LeaseAnswer, proposed time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, g.id)
	l.since = time.Now()
	if a.State != wire.LeaseKept {
		return
	}
	if g.wanted || l.closed || l.kept != nil {
		l.giveUp(g.id)
		return
	}
	l.kept = &grant{id: g.id, base: a.Base, again: true, sure: proposed}
	l.idle.Store(true)
	l.rouse()
}

// queued notes that an operation of this node has a place. It is called before
// anything later is applied.
func (l *leases) queued(id uint64) *place {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.places[id]
	if p == nil {
		p = &place{done: make(chan struct{})}
		switch {
		case l.closed:
			p.settle(wire.Result{}, errMayCome())
		case id&chosen == 0: // else somebody has left already
			l.places[id] = p
		}
	}
	p.known = true
	l.rouse()
	return p
}

// settled notes that a place has been left.
func (l *leases) settled(id uint64, result wire.Result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.places[id]; p != nil {
		p.settle(result, nil)
		if id&chosen == 0 {
			delete(l.places, id)
		}
	}
}

func (p *place) settle(result wire.Result, err error) {
	select {
	case <-p.done:
	default:
		p.result, p.err = result, err
		close(p.done)
	}
}

// recovered notes that the replica took over a snapshot, which tells who holds
// the lease and who waits, but not what became of those who do not any more.
func (l *leases) recovered(held wire.HeldLease, waits func(id uint64) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, p := range l.places {
		switch {
		case waits(id):
		// One that is not known may not have been proposed yet.
		case id == held.ID:
			p.settle(wire.Result{Lease: wire.LeaseAnswer{State: wire.LeaseGranted, ID: id, Base: held.Base}}, nil)
		case id&chosen == 0:
			p.settle(wire.Result{}, fmt.Errorf("%w: a snapshot told this node what the rows are, not how they came about", ErrOutcomeUnknown))
			delete(l.places, id)
		case p.known:
			p.settle(wire.Result{Lease: wire.LeaseAnswer{State: wire.LeaseExpired, ID: id}}, nil)
		}
	}
	if l.kept != nil && l.kept.id != held.ID {
		l.kept = nil
		l.idle.Store(false)
	}
}

// wanted notes that others wait for a lease of this node's.
func (l *leases) wanted(held wire.HeldLease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept != nil && l.kept.id == held.ID {
		l.kept = nil
		l.idle.Store(false)
		l.giveUp(held.ID)
		return
	}
	if g := l.open[held.ID]; g != nil {
		if !g.wanted {
			g.wanted = true
			l.beat = held.Idle
			l.rouse()
		}
		return
	}
	if l.places[held.ID] == nil {
		l.giveUp(held.ID) // nobody knows of it any more
	}
}

// inherited notes that others wait for a lease of this node's incarnation before:
// the first entry of this one ends it.
func (l *leases) inherited() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.beat = true
	l.rouse()
}

// run gives up what is not needed, and lets the others hear of this node while
// it has or wants the lease and others wait for it too.
func (l *leases) run() {
	every := l.ttl / 10
	timer := time.NewTimer(every)
	defer timer.Stop()
	for l.n.ctx.Err() == nil {
		l.mu.Lock()
		if l.kept != nil && time.Since(l.since) >= idleLease {
			l.release = append(l.release, l.kept.id)
			l.kept = nil
			l.idle.Store(false)
		}
		release, beat := l.release, l.beat
		l.release, l.beat = nil, false
		active := len(l.open)+len(l.places) > 0
		next := time.Hour
		switch {
		case l.kept != nil:
			next = idleLease - time.Since(l.since)
		case active:
			next = every
		}
		l.mu.Unlock()
		if len(release) > 0 || beat {
			l.tell(release)
			continue
		}
		timer.Reset(max(next, time.Millisecond))
		select {
		case <-l.n.ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
			if c := l.n.replica.Clock(); active && c.Runs && c.Wait == 0 { // somebody waits
				l.tell(nil)
			}
		}
	}
}

// tell proposes a release, which also tells that this node is alive.
func (l *leases) tell(release []uint64) {
	ctx, cancel := context.WithTimeout(l.n.ctx, l.ttl)
	defer cancel()
	l.mu.Lock()
	inUse := len(l.open) > 0
	l.mu.Unlock()
	_, err := l.n.do(ctx, &wire.Operation{Lease: &wire.Lease{Release: release, InUse: inUse}})
	if err == nil {
		return
	}
	l.mu.Lock()
	l.release = append(l.release, release...)
	l.mu.Unlock()
	l.n.sleep(l.ttl / 10)
}

// close ends the transactions of this node and gives their leases back.
func (l *leases) close(ctx context.Context) {
	l.mu.Lock()
	l.closed = true
	release := l.release
	var ends []func(error)
	for id, g := range l.open {
		release = append(release, id)
		if g.end != nil {
			ends = append(ends, g.end)
		}
	}
	if l.kept != nil {
		release = append(release, l.kept.id)
	}
	for id := range l.places {
		release = append(release, id)
	}
	l.mu.Unlock()
	for _, end := range ends {
		end(ErrClosed)
	}
	if len(release) > 0 && l.n.writes.Load() != nil {
		_, _ = l.n.do(ctx, &wire.Operation{Lease: &wire.Lease{Release: release}}) // else they lapse
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, p := range l.places {
		err := ErrClosed
		if id&chosen == 0 {
			err = errMayCome()
		}
		p.settle(wire.Result{}, err)
	}
	clear(l.places)
}
