package lock

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// A tenure is what a Locker is to the cluster from its first lock, or wait for
// one, until it has none: an owner, who renews all of it together. What is lost
// is lost together too. Its fields are guarded by the Locker's mu.
type tenure struct {
	locker   *Locker
	owner    uint64           // chosen at random: others have other ones
	last     uint64           // id of the last place
	places   map[uint64]*Held // what it holds or waits for
	deadline time.Time        // until when that is its own; zero: the cluster has not answered yet
	made     int64            // which of the owners of this id the cluster knows, see wire.Outcome
	running  bool             // the goroutine is started
	forget   func()           // see shardapi.Lock.OnClose

	ctx context.Context // ends when it is lost, or has nothing any more
	end context.CancelFunc
}

func newTenure(l *Locker) *tenure {
	t := &tenure{locker: l, owner: rand.Uint64() | 1, places: map[uint64]*Held{}}
	t.ctx, t.end = context.WithCancel(context.Background())
	t.forget = l.lock.OnClose(func() { t.lose(errClosed) })
	return t
}

// expired reports whether what it has may be another's.
func (t *tenure) expired(now time.Time) bool { return !t.deadline.IsZero() && !now.Before(t.deadline) }

func (t *tenure) place(key string) *Held {
	t.last++
	h := &Held{tenure: t, key: key, id: t.last}
	t.places[h.id] = h
	return h
}

// remove forgets a place, and reports whether it was there. The last one ends
// the tenure.
func (t *tenure) remove(id uint64) bool {
	if t.places[id] == nil {
		return false
	}
	if delete(t.places, id); len(t.places) == 0 {
		t.over()
	}
	return true
}

// over ends the tenure.
func (t *tenure) over() {
	t.end()
	t.forget()
	if t.locker.current == t {
		t.locker.current = nil
	}
}

// lose ends the tenure, and all that it holds.
func (t *tenure) lose(cause error) {
	l := t.locker
	l.mu.Lock()
	defer l.mu.Unlock()
	t.loseLocked(cause)
}

// loseLocked is lose for one who holds the Locker's mu.
func (t *tenure) loseLocked(cause error) {
	for _, h := range t.places {
		if h.end != nil {
			h.end(cause)
		}
	}
	clear(t.places)
	t.over()
}

// renewed says that all is its own for a time behind began, when a command that
// the cluster has answered was about to be sent. One that was sent too late says
// nothing of what there was before; and if it met a later owner than those
// before, all that they had was lost. It reports whether it has met the present
// one.
func (t *tenure) renewed(began time.Time, answer wire.Outcome) bool {
	l := t.locker
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.made == 0 {
		t.made = answer.Number
	}
	if answer.Number < t.made {
		return false
	}
	if answer.Number > t.made || t.expired(began) {
		t.loseLocked(ErrLost)
		return false
	}
	if until := began.Add(l.ttl / 10 * 9); until.After(t.deadline) {
		t.deadline = until
	}
	if !t.running && t.ctx.Err() == nil {
		t.running = true
		go t.run()
	}
	return true
}

// run renews until there is nothing left, or it is lost. Nobody else looks at the
// deadline, so it does, whatever becomes of renewals.
func (t *tenure) run() {
	l := t.locker
	timer := time.NewTimer(0)
	defer timer.Stop()
	for failed := false; ; {
		l.mu.Lock()
		deadline := t.deadline
		l.mu.Unlock()
		if !time.Now().Before(deadline) {
			t.lose(ErrLost)
			return
		}
		next := deadline.Add(l.ttl/3 - l.ttl/10*9) // TTL/3 behind what was answered last
		if failed {
			next = time.Now().Add(l.ttl / 30)
		}
		if next.After(deadline) {
			next = deadline
		}
		timer.Reset(time.Until(next))
		select {
		case <-t.ctx.Done():
			return
		case <-timer.C:
			failed = !t.renew(deadline)
		}
	}
}

// renew has the cluster renew what there is, until the deadline. It is sent again
// as long as there is no answer, so there is no second one beside it.
func (t *tenure) renew(deadline time.Time) bool {
	ctx, cancel := context.WithDeadline(t.ctx, deadline)
	defer cancel()
	l, began := t.locker, time.Now()
	c := &wire.Command{Kind: wire.LockRenew, Owner: t.owner}
	l.mu.Lock()
	c.ID, c.IDs = t.last, t.ids()
	l.mu.Unlock()
	o, err := l.lock.Do(ctx, c)
	if err != nil {
		return false
	}
	if o.Code != wire.Done { // the cluster does not know the owner
		t.lose(ErrLost)
		return false
	}
	return t.renewed(began, o)
}

// ids returns the places, in their order.
func (t *tenure) ids() []uint64 { return slices.Sorted(maps.Keys(t.places)) }
