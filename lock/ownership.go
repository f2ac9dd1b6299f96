package lock

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// An ownership is what the cluster knows as one owner of locks. It begins with a
// waiter, keeps its waiters and their locks alive by renewing them together, and
// ends when it has no waiter left or when it is lost. All of its locks are lost
// together. An ended ownership is not used again: the Locker begins another one,
// with another id.
//
//	state     leads to           when
//	new       known, ended       the cluster answers the first waiter
//	known     ended              the last waiter is removed, the deadline passes,
//	                             the cluster does not know the owner, or the node
//	                             is closed
type ownership struct {
	lock shardapi.Lock
	ttl  time.Duration
	id   uint64 // random and not zero, so that no other ownership has it

	ctx    context.Context // ends with the ownership
	cancel context.CancelFunc

	mu       sync.Mutex
	waiters  map[uint64]*waiter // by id; empty once it has ended
	lastID   uint64             // of the waiters
	deadline time.Time          // it is lost at this time; zero: the cluster has not answered yet
	// The cluster numbers owners by their first renewal. If it has dropped an
	// owner, a delayed command can create another one with the same id, which has
	// a higher epoch. 0: the cluster has not answered yet.
	epoch     uint64
	renewing  bool   // run has been started
	unwatched func() // cancels shardapi.Lock.OnClose
}

// newOwnership begins an ownership with its first waiter.
func newOwnership(lock shardapi.Lock, ttl time.Duration, key string) (*ownership, *waiter) {
	o := &ownership{lock: lock, ttl: ttl, id: rand.Uint64() | 1, waiters: map[uint64]*waiter{}}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.addLocked(key)
	o.unwatched = lock.OnClose(func() { o.lose(errClosed) })
	return o, w
}

// add adds a waiter, or returns nil if the ownership has ended.
func (o *ownership) add(key string) *waiter {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.expiredLocked(time.Now()) {
		o.loseLocked(ErrLost)
	}
	if o.ctx.Err() != nil {
		return nil
	}
	return o.addLocked(key)
}

func (o *ownership) addLocked(key string) *waiter {
	o.lastID++
	w := &waiter{owner: o, key: key, id: o.lastID}
	o.waiters[w.id] = w
	return w
}

// remove removes a waiter, and ends the ownership if it was the last one.
func (o *ownership) remove(id uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.removeLocked(id)
}

// removeLocked is like remove, and reports whether the waiter was there.
func (o *ownership) removeLocked(id uint64) bool {
	if o.waiters[id] == nil {
		return false
	}
	delete(o.waiters, id)
	if len(o.waiters) == 0 {
		o.endLocked()
	}
	return true
}

func (o *ownership) endLocked() {
	o.cancel()
	o.unwatched()
}

// expiredLocked reports whether others may have the locks by now.
func (o *ownership) expiredLocked(now time.Time) bool {
	return !o.deadline.IsZero() && !now.Before(o.deadline)
}

// lose ends the ownership and the contexts of all locks that it holds.
func (o *ownership) lose(cause error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.loseLocked(cause)
}

func (o *ownership) loseLocked(cause error) {
	for _, w := range o.waiters {
		if w.held != nil {
			w.held.cancel(cause)
		}
	}
	clear(o.waiters)
	o.endLocked()
}

// known reports whether the cluster has answered a command of the owner.
func (o *ownership) known() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.deadline.IsZero()
}

// renewed is called after the cluster has answered a command that renews the
// owner: a request for a lock, or a renewal. It moves the deadline, which counts
// from sent, the time before the command was sent, because the owner was renewed
// some time between then and the answer. It returns false if the answer concerns
// another owner with the same id, or if the ownership has been lost.
func (o *ownership) renewed(sent time.Time, epoch uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.epoch == 0 {
		o.epoch = epoch
	}
	if epoch < o.epoch {
		return false // an answer to the owner that had the id earlier
	}
	// If the epoch is higher, the cluster had dropped the owner. If the command
	// was sent after the deadline, it may have dropped the owner and created
	// another one. Either way others may have the locks.
	if epoch > o.epoch || o.expiredLocked(sent) {
		o.loseLocked(ErrLost)
		return false
	}
	if deadline := sent.Add(o.ttl / 10 * 9); deadline.After(o.deadline) {
		o.deadline = deadline
	}
	if !o.renewing && o.ctx.Err() == nil {
		o.renewing = true
		go o.run()
	}
	return true
}

// run renews the ownership until it ends. It also loses it at the deadline, even
// while a renewal waits for an answer.
func (o *ownership) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for failed := false; ; {
		o.mu.Lock()
		deadline := o.deadline
		o.mu.Unlock()
		if !time.Now().Before(deadline) {
			o.lose(ErrLost)
			return
		}
		next := deadline.Add(o.ttl/3 - o.ttl/10*9) // TTL/3 after the last answered renewal was sent
		if failed {
			next = time.Now().Add(o.ttl / 30)
		}
		if next.After(deadline) {
			next = deadline
		}
		timer.Reset(time.Until(next))
		select {
		case <-o.ctx.Done():
			return
		case <-timer.C:
			failed = !o.renew(deadline)
		}
	}
}

// renew sends a renewal and waits for its answer until the deadline. The shard
// repeats the command until it is answered, so no second renewal is needed
// meanwhile.
func (o *ownership) renew(deadline time.Time) bool {
	ctx, cancel := context.WithDeadline(o.ctx, deadline)
	defer cancel()
	sent := time.Now()
	c := wire.LockRenew{Owner: o.id}
	o.mu.Lock() // the command lists the waiters that are left: the cluster releases the others
	c.LastWaiter, c.Waiters = o.lastID, slices.Sorted(maps.Keys(o.waiters))
	o.mu.Unlock()
	out, err := o.lock.Do(ctx, c.Command())
	if err != nil {
		return false
	}
	if out.Code != wire.Done { // the cluster does not know the owner
		o.lose(ErrLost)
		return false
	}
	return o.renewed(sent, out.Epoch)
}
