// Package lock provides locks that all nodes of a cluster share. A lock has one
// holder at a time; others wait for it in one queue.
//
//	held, err := lock.New(client).Lock(ctx, "nightly")
//	if err != nil {
//		return err
//	}
//	defer held.Unlock(ctx)
//	ctx, cancel := context.WithCancel(ctx)
//	defer cancel()
//	defer context.AfterFunc(held.Context(), cancel)()
//	err = work(ctx) // ctx also ends if the lock is lost
//
// The client is a *hiqlite.Node, or what hiqlite.From returns for a database.
//
// # Guarantees
//
//   - Waiters are served in the order in which they came, across all nodes.
//   - Each grant of a lock has a fencing token that is higher than the one
//     before: see [Held.Token]. A resource that refuses tokens lower than the
//     highest one it has seen is safe, whatever happens to holders, clocks and
//     the network.
//   - A held lock is renewed automatically. If it cannot be renewed, because the
//     holder's node is cut off or was killed, the lock is lost: [Held.Done] is
//     closed and [Held.Context] ends before anybody else can get the lock. The
//     next section says why.
//   - A change of leader never grants a lock twice. It costs no lock whose TTL is
//     4 s or more: with the default hiqlite.Config.Tick an election takes 1 to
//     2 s, and a renewal that begins at the same time has a little more than half
//     of the TTL to succeed.
//   - A new holder can read, on its own node, what earlier holders wrote while
//     they held the lock, through the nodes on which they held it: SQL, and
//     buckets of package kv.
//   - A lock belongs to the node through which it was taken. When that node is
//     closed, or restarted after it was killed, the next waiter gets the lock.
//   - Locks are not part of SQL transactions.
//
// A node takes part in the locks only while it can reach the node that leads the
// lock shard. Other nodes do not forward its requests, even if both can reach
// them: each node of a cluster has to reach every other. On a node that cannot
// reach the leader, Lock fails with hiqlite.ErrNoLeader, and the locks that it
// holds are lost; the next waiter gets them after their TTL, as if the node were
// cut off from all others.
//
// # Why a holder learns of a loss first
//
// Let r be the time at which a holder begins a renewal, on its own monotonic
// clock, and a the time at which the renewal is in the log, so a >= r. The
// cluster grants the lock to another when TTL has passed since the last renewal.
// It measures that on a clock that does not count any time before a, so this is
// not before a + TTL >= r + TTL. The holder considers the lock lost at
// r + TTL * 9/10, where r belongs to the last renewal that was answered. So it
// learns of the loss at least TTL/10 before anybody else can have the lock, as
// long as its clock runs less than a tenth slower than the leader's. A renewal
// begins every TTL/3, so two in a row may fail.
//
// A program that is stopped as a whole (by SIGSTOP, or because its machine is
// paused) cannot learn anything in time. When it continues, it believes for a
// moment that it still holds the lock; after the suspension of a machine, whose
// monotonic clock does not count that time, it believes so until its next
// renewal. Requests that it has sent before may also arrive late. Only the
// fencing token protects against these.
package lock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/shardapi"
)

const (
	// MaxKey is the largest size of a key, in bytes.
	MaxKey = 4 << 10
	// DefaultTTL is how long a lock stays with a holder that does not renew it,
	// unless WithTTL says otherwise.
	DefaultTTL = 10 * time.Second
	// MinTTL and MaxTTL are the bounds of WithTTL.
	MinTTL = time.Second
	MaxTTL = time.Hour
)

// Errors to test for with errors.Is, besides those of package hiqlite.
var (
	// ErrHeld: TryLock found that the lock is held.
	ErrHeld = errors.New("lock: held by another")
	// ErrLost: the lock was not renewed in time, and another may hold it. It is
	// the cause with which Held.Context ends.
	ErrLost = errors.New("lock: lost")
	// ErrNotHeld: the lock has been unlocked already.
	ErrNotHeld = errors.New("lock: not held")
	// ErrKey: a key is empty or too long.
	ErrKey = errors.New("lock: bad key")
	// ErrFull: 10,000 waiters are in the lock's queue already.
	ErrFull = errors.New("lock: too many wait")
)

// An Option configures a Locker.
type Option func(*Locker)

// WithTTL sets how long a lock stays with a holder that does not renew it, from
// MinTTL to MaxTTL. With less than 4 s, an election can cost the lock. The TTL
// also bounds how long others wait for a lock whose holder's node was killed; if
// that node is restarted, they get the lock at once.
func WithTTL(ttl time.Duration) Option { return func(l *Locker) { l.ttl = ttl } }

// WithoutOrder makes Lock return as soon as the lock is granted. What earlier
// holders wrote may then not be readable on this node yet.
func WithoutOrder() Option { return func(l *Locker) { l.unordered = true } }

// A Locker takes locks. Its methods may be called from any goroutine. It renews
// all locks that it holds or waits for together, with one small log entry every
// third of the TTL. While it holds or waits for any, it runs one goroutine.
type Locker struct {
	lock      shardapi.Lock
	ttl       time.Duration
	unordered bool

	mu    sync.Mutex
	owner *ownership // the latest one, which may have ended; nil before the first lock
}

// New returns a Locker. Two Lockers compete for locks, even in one program.
func New(c hiqlite.Client, opts ...Option) *Locker {
	l := &Locker{lock: c.InMemoryShards().Lock, ttl: DefaultTTL}
	for _, opt := range opts {
		opt(l)
	}
	return l
}

// Lock waits until it gets the lock of key, or ctx ends. Locks are not reentrant:
// a holder that locks the same key again waits for itself. The caller must
// Unlock the lock.
//
// When Lock returns, everything that earlier holders wrote can be read on this
// node. If it returns an error, the caller does not have the lock and no longer
// waits in the queue. The error is that of ctx, hiqlite.ErrNoLeader,
// hiqlite.ErrClosed, hiqlite.ErrDiskFull, ErrKey or ErrFull, or says that the TTL
// is out of bounds. ErrNoLeader is returned if ctx has no deadline and there was
// no leader for hiqlite.Config.Timeout; a waiter that is in the queue already
// notices that after at most TTL.
func (l *Locker) Lock(ctx context.Context, key string) (*Held, error) {
	return l.acquire(ctx, false, key)
}

// TryLock is like Lock, but returns ErrHeld if the lock is held.
func (l *Locker) TryLock(ctx context.Context, key string) (*Held, error) {
	return l.acquire(ctx, true, key)
}

func (l *Locker) acquire(ctx context.Context, try bool, key string) (*Held, error) {
	if key == "" || len(key) > MaxKey {
		return nil, fmt.Errorf("%w: it has %d bytes: give it 1 to %d", ErrKey, len(key), MaxKey)
	}
	if l.ttl < MinTTL || l.ttl > MaxTTL {
		return nil, fmt.Errorf("lock: a time to live of %v is not between %v and %v", l.ttl, MinTTL, MaxTTL)
	}
	for {
		w := l.newWaiter(key)
		h, maybeQueued, err := w.acquire(ctx, try, l.unordered)
		if h != nil {
			return h, nil
		}
		w.owner.remove(w.id)
		if maybeQueued {
			w.release(false)
		}
		if err := acquireError(err, key); err != nil {
			return nil, err
		}
		// The ownership was lost in the meantime, or the outcome is unknown for a
		// reason that does not concern the caller: ask again, as a new waiter.
	}
}

// newWaiter adds a waiter to the current ownership, or begins a new one if that
// has ended.
func (l *Locker) newWaiter(key string) *waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owner != nil {
		if w := l.owner.add(key); w != nil {
			return w
		}
	}
	var w *waiter
	l.owner, w = newOwnership(l.lock, l.ttl, key)
	return w
}

// acquireError returns the error that Lock returns after a failed attempt, or nil
// if it can try again. The error is never ErrOutcomeUnknown: whether the cluster
// knew the waiter does not matter, since the waiter has been released.
func acquireError(err error, key string) error {
	if err == nil || errors.Is(err, ErrHeld) || errors.Is(err, ErrFull) {
		return err
	}
	if errors.Is(err, hiqlite.ErrOutcomeUnknown) {
		var why error
		for _, known := range []error{hiqlite.ErrClosed, hiqlite.ErrDiskFull, hiqlite.ErrNoLeader, context.Canceled, context.DeadlineExceeded} {
			switch {
			case !errors.Is(err, known):
			case why == nil:
				why = known
			default:
				why = fmt.Errorf("%w: %w", why, known)
			}
		}
		if why == nil {
			return nil // for example, the node's session had expired
		}
		err = why
	}
	return fmt.Errorf("lock: %q was not acquired: %w", key, err)
}
