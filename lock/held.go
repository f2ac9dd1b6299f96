package lock

import (
	"context"
	"fmt"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// unlockGrace is how long Unlock waits if its context has already ended.
const unlockGrace = 2 * time.Second

// errClosed is the cause with which a lock ends when its node is closed.
var errClosed = fmt.Errorf("%w: %w", ErrLost, hiqlite.ErrClosed)

// A Held is a lock that is held until it is unlocked or lost. Its methods may be
// called from any goroutine.
type Held struct {
	waiter   *waiter
	token    uint64
	caughtUp bool            // this node had applied what earlier holders wrote when Lock returned
	ctx      context.Context // ends when the lock is unlocked or lost
	cancel   context.CancelCauseFunc
}

// Key returns the key of the lock.
func (h *Held) Key() string { return h.waiter.key }

// Token returns the fencing token, a number that is higher for each grant of the
// lock of this key. Send it along with what is done under the lock, and let the
// resource refuse tokens lower than the highest one it has seen. In SQL,
//
//	UPDATE job SET result=?, token=? WHERE id=? AND token<=?
//
// with int64(held.Token()), which never overflows, changes no row if the lock
// was lost and a later holder has written the row.
func (h *Held) Token() uint64 { return h.token }

// Done returns a channel that is closed when the lock is not held any more,
// because it was unlocked or lost. If it was lost, the channel is closed before
// another can have the lock: at least TTL/10 before, unless the node was closed.
func (h *Held) Done() <-chan struct{} { return h.ctx.Done() }

// Context returns a context that ends when Done is closed, for the work that is
// done under the lock. context.Cause returns why it ended: ErrLost or ErrNotHeld.
// It has the values of the context that Lock was given, but does not end with
// that, since its deadline is often meant for the wait only. See the example of
// the package for work that has to end with both.
func (h *Held) Context() context.Context { return h.ctx }

// Unlock releases the lock to the next waiter, and returns when the release is
// certain. If ctx has already ended, it tries for up to two seconds.
//
// It returns ErrLost if the lock was lost before, and ErrNotHeld if it was
// unlocked before. It returns hiqlite.ErrOutcomeUnknown if ctx ended or TTL passed
// before the release was acknowledged: then the lock is released soon or, without
// a leader, when its TTL has passed. After any other error of package hiqlite
// (ErrNoLeader, after TTL) the lock is not released, and ends with its TTL.
func (h *Held) Unlock(ctx context.Context) error {
	w, o := h.waiter, h.waiter.owner
	o.mu.Lock()
	expired := o.expiredLocked(time.Now())
	if !o.removeLocked(w.id) {
		cause := context.Cause(h.ctx)
		o.mu.Unlock()
		return fmt.Errorf("%w: %q", cause, w.key)
	}
	h.cancel(ErrNotHeld)
	o.mu.Unlock()
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), unlockGrace)
		defer cancel()
	}
	select {
	case r := <-w.release(h.caughtUp):
		// If the cluster does not know the waiter although the lock had not
		// expired, a renewal without the waiter arrived first and released it.
		if r.err == nil && r.Code == wire.Missing && expired {
			r.err = ErrLost
		}
		if r.err != nil {
			r.err = fmt.Errorf("%w: %q", r.err, w.key)
		}
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("%w: the release of lock %q was sent, but not acknowledged yet: %w", hiqlite.ErrOutcomeUnknown, w.key, ctx.Err())
	}
}
