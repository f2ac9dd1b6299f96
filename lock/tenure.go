package lock

import (
	"context"
	"math/rand/v2"
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
	running  bool             // the goroutine is started
	over     bool             // it is lost, or has nothing any more
	wake     chan struct{}    // capacity 1: see whether it is over
	forget   func()           // see companion.Lock.OnClose
}

func newTenure(l *Locker) *tenure {
	t := &tenure{locker: l, owner: rand.Uint64() | 1, places: map[uint64]*Held{}, wake: make(chan struct{}, 1)}
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
		t.end()
	}
	return true
}

func (t *tenure) end() {
	if !t.over {
		t.over = true
		t.forget()
	}
	if t.locker.current == t {
		t.locker.current = nil
	}
	select {
	case t.wake <- struct{}{}:
	default:
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
	t.end()
}

// renewed says that all is its own for a time behind began, when a command that
// the cluster has answered was about to be sent. One that was sent too late says
// nothing of what there was before.
func (t *tenure) renewed(began time.Time) {
	l := t.locker
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.expired(began) {
		t.loseLocked(ErrLost)
		return
	}
	if until := began.Add(l.ttl / 10 * 9); until.After(t.deadline) {
		t.deadline = until
	}
	if !t.running && !t.over {
		t.running = true
		go t.run()
	}
}

// run renews until there is nothing left.
func (t *tenure) run() {
	l := t.locker
	timer := time.NewTimer(l.ttl / 3)
	defer timer.Stop()
	for {
		select {
		case <-t.wake:
		case <-timer.C:
			began := time.Now()
			next := l.ttl / 30
			if t.renew(began) {
				next = time.Until(began.Add(l.ttl / 3))
			}
			timer.Reset(max(next, 0))
		}
		l.mu.Lock()
		over, late := t.over, t.expired(time.Now())
		l.mu.Unlock()
		if over {
			return
		}
		if late {
			t.lose(ErrLost)
			return
		}
	}
}

// renew has the cluster renew what there is, until it is too late. It is sent
// again as long as there is no answer, so there is no second one beside it.
func (t *tenure) renew(began time.Time) bool {
	l := t.locker
	l.mu.Lock()
	if t.over {
		l.mu.Unlock()
		return false
	}
	c := &wire.Command{Kind: wire.LockRenew, Owner: t.owner, ID: t.last}
	for id := range t.places {
		c.IDs = append(c.IDs, id)
	}
	deadline := t.deadline
	l.mu.Unlock()
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	o, err := l.lock.Do(ctx, c)
	if err != nil {
		return false
	}
	if o.Code != wire.Done { // the cluster does not know the owner
		t.lose(ErrLost)
		return false
	}
	t.renewed(began)
	return true
}
