// Package lock has locks that all nodes of a cluster share: one holder at a time,
// the others in one queue.
//
//	held, err := lock.New(client).Lock(ctx, "nightly")
//	if err != nil {
//		return err
//	}
//	defer held.Unlock(ctx)
//	ctx, cancel := context.WithCancel(ctx)
//	defer cancel()
//	defer context.AfterFunc(held.Context(), cancel)()
//	err = work(ctx) // which ends if the lock is lost, too
//
// The client is a *hiqlite.Node, or what hiqlite.From returns for a database.
//
// # Guarantees
//
//   - First come, first served, over all nodes.
//   - Each time the lock is given, its fencing token is a higher number: see
//     [Held.Token]. A resource that refuses lower tokens than it has seen is
//     safe, whatever happens to holders, clocks and the network.
//   - A holder renews the lock without being asked. If it cannot, because it is
//     cut off or its node was killed, the lock is lost: [Held.Done] is closed and
//     [Held.Context] ends, before anybody else can get it; see below.
//   - A change of leader gives no lock twice, and loses none whose TTL is 4 s or
//     more: an election takes 1 to 2 s, with the default hiqlite.Config.Tick, and
//     a renewal that begins with it has a bit more than half of TTL.
//   - Whoever gets a lock can read, on its own node, what was written under it
//     before, through the nodes on which it was held: SQL, and buckets of package
//     kv.
//   - A lock ends with the node through which it was taken: when that is closed,
//     or started again after it was killed, the next one in the queue gets it.
//     To hold a lock has no part in SQL transactions.
//
// A node that cannot reach the node that leads the locks takes no part in them,
// even if both reach a third one: nothing is handed on by others. To lock through
// it fails with hiqlite.ErrNoLeader; a lock that is held through it ends, and the
// next one in the queue waits until the TTL is over, as if it was cut off from all.
// Nodes of a cluster have to reach each other, each of them all the others.
//
// # Why the holder learns first
//
// A renewal that the holder began at r, on its own monotonic clock, is in the
// log at some moment a, not before r. The cluster gives the lock to another when
// TTL has passed since the last renewal, on a clock that counts nothing that was
// before a, so not before a + TTL >= r + TTL of real time. The holder gives up
// at r + TTL * 9/10 of the last renewal that was answered. So it does so at least
// TTL/10 before anybody else can have the lock, as long as its clock runs less
// than a tenth slower than that of the leader. Renewals begin every TTL/3, so
// two may fail.
//
// A program that is stopped as a whole (SIGSTOP, a paused machine) cannot learn
// anything in time: when it goes on it holds, for a moment, what it has lost; and
// on a machine that was suspended, whose monotonic clock does not count that,
// until its next renewal. The same holds for what it had sent before. Only the
// fencing token covers this.
package lock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
)

const (
	// MaxKey bounds keys, in bytes.
	MaxKey = 4 << 10
	// DefaultTTL is when a lock is taken from a holder that is not heard of.
	DefaultTTL = 10 * time.Second
	// MinTTL and MaxTTL bound WithTTL.
	MinTTL = time.Second
	MaxTTL = time.Hour
)

// Errors to test for with errors.Is, beside those of package hiqlite.
var (
	// ErrHeld: TryLock found the lock held.
	ErrHeld = errors.New("lock: held by another")
	// ErrLost: the lock was not renewed in time, and may be another's. It is the
	// cause of the end of Held.Context.
	ErrLost = errors.New("lock: lost")
	// ErrNotHeld: Unlock was called before.
	ErrNotHeld = errors.New("lock: not held")
	// ErrKey: a key is empty or too long.
	ErrKey = errors.New("lock: bad key")
	// ErrFull: 10,000 wait for the lock already.
	ErrFull = errors.New("lock: too many wait")
)

// An Option changes what New returns.
type Option func(*Locker)

// WithTTL sets when a lock is taken from a holder that is not heard of, from
// MinTTL to MaxTTL. With less than 4 s an election may cost the lock. It also
// bounds how long others wait for the lock of a node that was killed; if that is
// started again, they get it at once.
func WithTTL(ttl time.Duration) Option { return func(l *Locker) { l.ttl = ttl } }

// WithoutOrder makes Lock return as soon as the lock is given: what was written
// under it before may not be readable on this node yet.
func WithoutOrder() Option { return func(l *Locker) { l.unordered = true } }

// A Locker takes locks. Its methods may be called from any goroutine. It renews
// all that it holds together, by one small entry of the log in a third of TTL,
// from a goroutine that runs as long as it holds or waits for any.
type Locker struct {
	lock      shardapi.Lock
	ttl       time.Duration
	unordered bool

	mu      sync.Mutex
	current *tenure // nil: it has nothing
}

// New returns a Locker. Locks belong to it: two Lockers of one program compete
// as two programs do.
func New(c hiqlite.Client, opts ...Option) *Locker {
	l := &Locker{lock: c.InMemoryShards().Lock, ttl: DefaultTTL}
	for _, opt := range opts {
		opt(l)
	}
	return l
}

// Lock waits for the lock of key and returns it, until ctx ends. Whoever has it
// already waits for himself: locks are not reentrant. The caller must Unlock it.
//
// When it returns, what was written under the lock before can be read on this
// node. If it returns an error the lock is not had, and the place in the
// queue is given up. The error is that of ctx; hiqlite.ErrNoLeader, with a context
// without a deadline, if there was none for hiqlite.Config.Timeout (a waiter that
// is in the queue learns of that within TTL); hiqlite.ErrClosed,
// hiqlite.ErrDiskFull, ErrKey or ErrFull; or says that the TTL is out of bounds.
func (l *Locker) Lock(ctx context.Context, key string) (*Held, error) {
	return l.acquire(ctx, wire.LockAcquire, key)
}

// TryLock is Lock, but returns ErrHeld if somebody has the lock.
func (l *Locker) TryLock(ctx context.Context, key string) (*Held, error) {
	return l.acquire(ctx, wire.LockTry, key)
}

func (l *Locker) acquire(ctx context.Context, kind wire.CommandKind, key string) (*Held, error) {
	if key == "" || len(key) > MaxKey {
		return nil, fmt.Errorf("%w: it has %d bytes: give it 1 to %d", ErrKey, len(key), MaxKey)
	}
	if l.ttl < MinTTL || l.ttl > MaxTTL {
		return nil, fmt.Errorf("lock: a time to live of %v is not between %v and %v", l.ttl, MinTTL, MaxTTL)
	}
	for {
		h := l.place(key)
		o, known, err := h.ask(ctx, kind)
		if err == nil {
			var had bool
			if had, err = h.take(ctx, o); had {
				return h, nil
			}
		}
		h.leave()
		if known {
			h.release(false)
		}
		if err != nil {
			if err = notHad(err, key); err != nil {
				return nil, err
			}
		}
		// Once more, from the end.
	}
}

// notHad is the error of one who has not got the lock; nil: he can ask once more.
// Whether he had a place is nobody's concern: it is given up.
func notHad(err error, key string) error {
	if errors.Is(err, ErrHeld) || errors.Is(err, ErrFull) {
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
			return nil // such as that the session had expired
		}
		err = why
	}
	return fmt.Errorf("lock: %q was not had: %w", key, err)
}

// place registers a place that is about to be asked for.
func (l *Locker) place(key string) *Held {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil && l.current.expired(time.Now()) {
		l.current.loseLocked(ErrLost)
	}
	if l.current == nil {
		l.current = newTenure(l)
	}
	return l.current.place(key)
}

func refused(o wire.Outcome, key string) error {
	switch o.Code {
	case wire.Done:
		return nil
	case wire.Held:
		return fmt.Errorf("%w: %q", ErrHeld, key)
	case wire.Full:
		return fmt.Errorf("%w for %q", ErrFull, key)
	}
	return errors.New("lock: the cluster does not know this command: upgrade all nodes")
}
