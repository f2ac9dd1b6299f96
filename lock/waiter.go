package lock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A waiter is one request for a lock. The cluster appends it to the queue of the
// key, grants it the lock when it is the first one there, and removes it when it
// is released or its owner is dropped.
type waiter struct {
	owner *ownership
	key   string
	id    uint64 // unique within the ownership
	held  *Held  // nil until the lock is granted; guarded by owner.mu
}

// acquire waits for the lock. If h and err are nil, the ownership was lost
// meanwhile, because this program was cut off or too slow. If maybeQueued is set
// and h is nil, the cluster may have the waiter in the queue: release it.
func (w *waiter) acquire(ctx context.Context, try bool, unordered bool) (h *Held, maybeQueued bool, err error) {
	out, maybeQueued, err := w.waitForGrant(ctx, try, unordered)
	if err != nil || out.Code == wire.Missing {
		return nil, maybeQueued, err
	}
	if err := refused(out, w.key); err != nil {
		return nil, maybeQueued, err
	}
	if !unordered {
		if err := w.owner.lock.CatchUp(ctx, out); err != nil {
			return nil, maybeQueued, err
		}
	}
	return w.hold(ctx, out.Token, !unordered), maybeQueued, nil
}

// waitForGrant enters the queue and waits there. The outcome is wire.Missing if
// the ownership was lost meanwhile.
func (w *waiter) waitForGrant(ctx context.Context, try bool, unordered bool) (out wire.Outcome, maybeQueued bool, err error) {
	o := w.owner
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(o.ctx, stop)()
	if out, maybeQueued, err = w.enterQueue(ctx, try); err == nil && out.Code == wire.Waits {
		var queued bool
		if out, queued, err = o.lock.Await(ctx, o.id, w.id); err == nil && !queued {
			out.Code = wire.Missing
		}
	}
	if err != nil && o.ctx.Err() != nil && !errors.Is(err, hiqlite.ErrClosed) {
		return wire.Outcome{Code: wire.Missing}, maybeQueued, nil
	}
	return out, maybeQueued, err
}

// enterQueue asks for the lock. The outcome is a grant (wire.Done), wire.Waits, a
// refusal, or wire.Missing if the ownership has been lost.
func (w *waiter) enterQueue(ctx context.Context, try bool) (out wire.Outcome, maybeQueued bool, err error) {
	o := w.owner
	// After its first answer the cluster must not create the owner again. If it
	// does not know the owner any more, it has dropped it, and we have to learn
	// that the other locks are lost.
	mustExist := o.known()
	sent := time.Now()
	out, err = o.lock.Do(ctx, wire.LockAcquire{Key: w.key, Owner: o.id, Waiter: w.id, OwnerTTLMS: uint64(o.ttl.Milliseconds()), OwnerExists: mustExist, Try: try}.Command())
	switch {
	case err != nil:
		return out, errors.Is(err, hiqlite.ErrOutcomeUnknown), err
	case out.Code == wire.Missing: // the cluster has dropped the owner
		o.lose(ErrLost)
		return out, false, nil
	case out.Code != wire.Done && out.Code != wire.Waits:
		return out, false, nil
	}
	if !o.renewed(sent, out.Epoch) {
		out.Code = wire.Missing
	}
	return out, true, nil
}

func refused(out wire.Outcome, key string) error {
	switch out.Code {
	case wire.Done:
		return nil
	case wire.Held:
		return fmt.Errorf("%w: %q", ErrHeld, key)
	case wire.Full:
		return fmt.Errorf("%w for %q", ErrFull, key)
	}
	return errors.New("lock: the cluster does not know this command: upgrade all nodes")
}

// hold returns the held lock, or nil if the ownership has ended or expired. caughtUp
// says that this node has applied what earlier holders wrote.
func (w *waiter) hold(ctx context.Context, token uint64, caughtUp bool) *Held {
	o := w.owner
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiters[w.id] == nil || o.expiredLocked(time.Now()) {
		return nil
	}
	h := &Held{waiter: w, token: token, caughtUp: caughtUp}
	h.ctx, h.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	w.held = h
	return h
}

type releaseResult struct {
	wire.Outcome
	err error
}

// release removes the waiter from the cluster's queue, in the background; it
// stops trying after TTL, when the cluster drops the waiter by itself. caughtUp
// says that the lock was held, and that this node had applied what earlier
// holders wrote.
func (w *waiter) release(caughtUp bool) <-chan releaseResult {
	o, done := w.owner, make(chan releaseResult, 1)
	o.mu.Lock()
	c := wire.LockRelease{Owner: o.id, Waiter: w.id, CaughtUp: caughtUp}
	// The cluster must not forget the owner yet if there are other waiters, since
	// the request of one may still be on its way.
	c.OwnerStays = len(o.waiters) > 0
	o.mu.Unlock()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), o.ttl)
		defer cancel()
		out, err := o.lock.Do(ctx, c.Command())
		if err != nil && ctx.Err() != nil { // do not return DeadlineExceeded: the caller did not set this deadline
			why := hiqlite.ErrNoLeader
			if errors.Is(err, hiqlite.ErrOutcomeUnknown) {
				why = hiqlite.ErrOutcomeUnknown
			}
			err = fmt.Errorf("%w: the release was not acknowledged in %v; the lock ends with its time to live", why, o.ttl)
		}
		done <- releaseResult{out, err}
	}()
	return done
}
