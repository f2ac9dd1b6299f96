package lock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// unlockGrace bounds an Unlock whose context has ended before.
const unlockGrace = 2 * time.Second

// errClosed is why a lock ends with its node.
var errClosed = fmt.Errorf("%w: %w", ErrLost, hiqlite.ErrClosed)

// A Held is a lock that is held, until it is unlocked or lost. Its methods may be
// called from any goroutine.
type Held struct {
	tenure *tenure
	key    string
	id     uint64 // of its place
	token  uint64
	ctx    context.Context // ends with the lock
	end    context.CancelCauseFunc
}

// Key returns what was locked.
func (h *Held) Key() string { return h.key }

// Token returns the fencing token: a number that is higher each time the lock of
// this key is given. Send it with what is done under the lock, and let the
// resource refuse lower ones than it has seen; in SQL
//
//	UPDATE job SET result=?, token=? WHERE id=? AND token<=?
//
// with int64(held.Token()), which it always fits into, changes no row if the lock was lost and another holder was there.
func (h *Held) Token() uint64 { return h.token }

// Done returns a channel that is closed when the lock is not held any more: it
// was unlocked or lost, at least TTL/10 before another can have it.
func (h *Held) Done() <-chan struct{} { return h.ctx.Done() }

// Context returns a context that ends with Done, for what is done under the lock.
// It has the values of Lock's context and does not end with it, since that often
// only bounds the wait; what has to end with both can be had by
// context.AfterFunc. context.Cause says why it ended: ErrLost or ErrNotHeld.
func (h *Held) Context() context.Context { return h.ctx }

// Unlock gives the lock to the next in the queue, and returns when that is
// certain. If ctx has ended before, it takes up to two seconds for that all the
// same. Errors are ErrLost, if the lock was lost before; ErrNotHeld, if it was
// unlocked before; and hiqlite.ErrOutcomeUnknown if ctx ended meanwhile, or TTL
// passed: then the lock is released soon, or, without a leader, when its time to
// live is over. By any other error, of package hiqlite (ErrNoLeader, after TTL),
// it is not released, but ends with its time to live.
func (h *Held) Unlock(ctx context.Context) error {
	l := h.tenure.locker
	l.mu.Lock()
	lost := h.tenure.expired(time.Now())
	if !h.tenure.remove(h.id) {
		cause := context.Cause(h.ctx)
		l.mu.Unlock()
		return fmt.Errorf("%w: %q", cause, h.key)
	}
	h.end(ErrNotHeld)
	l.mu.Unlock()
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), unlockGrace)
		defer cancel()
	}
	select {
	case a := <-h.release(true):
		if a.err == nil && a.Code == wire.Missing && lost { // otherwise a renewal has released it: it was held until now
			a.err = ErrLost
		}
		if a.err != nil {
			a.err = fmt.Errorf("%w: %q", a.err, h.key)
		}
		return a.err
	case <-ctx.Done():
		return fmt.Errorf("%w: the release of lock %q is on its way: %w", hiqlite.ErrOutcomeUnknown, h.key, ctx.Err())
	}
}

// ask has the place made, and waits until it has the lock; wire.Missing: it was
// lost meanwhile. known says that the cluster may know the place.
func (h *Held) ask(ctx context.Context, kind wire.CommandKind) (o wire.Outcome, known bool, err error) {
	t, l := h.tenure, h.tenure.locker
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(t.ctx, stop)() // what has been lost meanwhile is not worth waiting for
	if o, known, err = h.propose(ctx, kind); err == nil && o.Code == wire.Waits {
		var there bool
		if o, there, err = l.lock.Await(ctx, t.owner, h.id); err == nil && !there {
			o.Code = wire.Missing
		}
	}
	if err != nil && t.ctx.Err() != nil && !errors.Is(err, hiqlite.ErrClosed) {
		return wire.Outcome{Code: wire.Missing}, known, nil
	}
	return o, known, err
}

// propose has the place made.
func (h *Held) propose(ctx context.Context, kind wire.CommandKind) (o wire.Outcome, known bool, err error) {
	t, l := h.tenure, h.tenure.locker
	l.mu.Lock()
	joins := !t.deadline.IsZero() // the cluster knows the owner, or all of his is lost
	l.mu.Unlock()
	began := time.Now()
	o, err = l.lock.Do(ctx, &wire.Command{Kind: kind, Key: h.key, Owner: t.owner, ID: h.id, TTLMS: uint64(l.ttl.Milliseconds()), Force: joins})
	switch {
	case err != nil:
		return o, errors.Is(err, hiqlite.ErrOutcomeUnknown), err
	case o.Code == wire.Missing: // he is unknown: what he had is lost
		t.lose(ErrLost)
		return o, false, nil
	case o.Code != wire.Done && o.Code != wire.Waits:
		return o, false, nil
	}
	if !t.renewed(began, o) {
		o.Code = wire.Missing
	}
	return o, true, nil
}

// take makes the place that came to o a held lock. It reports false, and no
// error, if all was lost meanwhile: this program was cut off while it waited.
func (h *Held) take(ctx context.Context, o wire.Outcome) (bool, error) {
	l := h.tenure.locker
	if o.Code == wire.Missing {
		return false, nil
	}
	if err := refused(o, h.key); err != nil {
		return false, err
	}
	if !l.unordered {
		if err := l.lock.CatchUp(ctx, o); err != nil {
			return false, err
		}
	}
	return h.hold(ctx, o.Index), nil
}

// hold makes the place a held lock, unless the time for that is over.
func (h *Held) hold(ctx context.Context, token uint64) bool {
	t, l := h.tenure, h.tenure.locker
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.places[h.id] == nil || t.expired(time.Now()) {
		return false
	}
	h.token = token
	h.ctx, h.end = context.WithCancelCause(context.WithoutCancel(ctx))
	return true
}

// leave forgets the place here.
func (h *Held) leave() {
	l := h.tenure.locker
	l.mu.Lock()
	defer l.mu.Unlock()
	h.tenure.remove(h.id)
}

type answer struct {
	wire.Outcome
	err error
}

// release has the cluster forget the place, in the background, by the time that
// it ends by itself. used says that the lock was held, and that this node had
// caught up with what was written under it before.
func (h *Held) release(used bool) <-chan answer {
	t, l, done := h.tenure, h.tenure.locker, make(chan answer, 1)
	l.mu.Lock()
	c := &wire.Command{Kind: wire.LockRelease, Owner: t.owner, ID: h.id, Force: used && !l.unordered}
	for id := range t.places {
		c.IDs = []uint64{id} // one says it
		break
	}
	l.mu.Unlock()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), l.ttl)
		defer cancel()
		o, err := l.lock.Do(ctx, c)
		if err != nil && ctx.Err() != nil { // the deadline is none of the caller's
			why := hiqlite.ErrNoLeader
			if errors.Is(err, hiqlite.ErrOutcomeUnknown) {
				why = hiqlite.ErrOutcomeUnknown
			}
			err = fmt.Errorf("%w: the release was not acknowledged in %v; the lock ends with its time to live", why, l.ttl)
		}
		done <- answer{o, err}
	}()
	return done
}
