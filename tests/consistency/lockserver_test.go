package consistency_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/lock"
)

// A lockOrder is the part of a request that is about locks.
type lockOrder struct {
	Key    string
	TTL    time.Duration
	Locker int    // of the process: those with another number, or TTL, compete
	Hold   uint64 // as a report calls it
}

// A lockReport is the part of an answer that is about locks. Times are those of
// clock; 0: it has not come to that.
type lockReport struct {
	Hold, Token uint64

	Called int64 // the order began
	Queued int64 // the cluster had answered that Lock has to wait
	At     int64 // Lock, or what was done under the lock, returned
	// Until is when Done was last seen open, at the end of an uninterrupted
	// time since Lock returned: 0 if the process may have been stopped in that
	// moment.
	Until  int64
	Closed bool // Done is closed
}

// clock is the time of the machine's clock, in nanoseconds: all processes read
// the same. It is not that of any process, and somebody may set it; sameClock
// finds that out.
func clock() int64 { return time.Now().UnixNano() }

const (
	// beatEvery is how often holds are looked at.
	beatEvery = 2 * time.Millisecond
	// stall is for how long a process may not get the processor, before that
	// counts as being paused: half of what is between Done and the next holder,
	// for the shortest TTL. The processes share a machine that is busy.
	stall = lock.MinTTL / 20
	// settled is how long after a stall the program has learnt what it missed.
	settled = 100 * time.Millisecond
)

// lockServer is what a node process has of locks.
type lockServer struct {
	node *hiqlite.Node

	mu      sync.Mutex
	lockers map[lockOrder]*lock.Locker // by Locker and TTL
	holds   map[uint64]*heldLock
	last    uint64
	beat    int64 // when holds were looked at
	stalled int64 // when the last stall was over
}

type heldLock struct {
	*lock.Held
	until  int64
	frozen bool // until stays
}

func newLockServer(node *hiqlite.Node) *lockServer {
	return &lockServer{node: node, lockers: map[lockOrder]*lock.Locker{}, holds: map[uint64]*heldLock{}}
}

// watch looks at the holds, from the first lock on for as long as the process
// lasts.
func (s *lockServer) watch() {
	s.pulse()
	go func() {
		for {
			time.Sleep(beatEvery) // between two looks: nothing else tells what a holder believes
			s.look()
		}
	}()
}

// look extends what holders believe, but for those who may have been stopped.
func (s *lockServer) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.pulse()
	for _, h := range s.holds {
		h.look(now)
	}
}

// pulse notes that the process runs, and returns the time. The caller holds mu.
func (s *lockServer) pulse() int64 {
	now := clock()
	if gap := time.Duration(now - s.beat); s.beat != 0 && (gap > stall || gap < 0) {
		s.stalled = now
		for _, h := range s.holds {
			h.frozen = true
		}
	}
	s.beat = now
	return now
}

// look is told the time, which is before it sees that Done is open.
func (h *heldLock) look(now int64) {
	if h.frozen {
		return
	}
	select {
	case <-h.Done():
		h.frozen = true
	default:
		h.until = now
	}
}

// enter registers a lock when it has been got.
func (s *lockServer) enter(held *lock.Held) (id uint64, at, until int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at = s.pulse()
	h := &heldLock{Held: held, frozen: s.stalled != 0 && at-s.stalled < int64(settled)}
	h.look(at)
	s.last++
	s.holds[s.last] = h
	return s.last, at, h.until
}

// report looks at a hold.
func (s *lockServer) report(id uint64) (*lock.Held, *lockReport, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.holds[id]
	if h == nil {
		return nil, nil, fmt.Errorf("there is no hold %d", id)
	}
	h.look(s.pulse())
	r := &lockReport{Hold: id, Token: h.Token(), Until: h.until}
	select {
	case <-h.Done():
		r.Closed = true
	default:
	}
	return h.Held, r, nil
}

// do obeys the orders
//   - lock, trylock: take a lock,
//   - fence: do a batch under it, whether it is held or not,
//   - held: tell about it,
//   - unlock: end it.
func (s *lockServer) do(ctx context.Context, r *request, batch func(context.Context, *request) (answer, error)) (a answer, err error) {
	called := clock()
	if r.Do == "lock" || r.Do == "trylock" {
		a.Lock, err = s.lock(ctx, r.Do, r.Lock)
		a.Lock.Called = called
		return a, err
	}
	held, report, err := s.report(r.Lock.Hold)
	if err != nil {
		return a, err
	}
	switch r.Do {
	case "fence":
		if a, err = batch(ctx, r); err == nil {
			at := clock()
			_, report, err = s.report(r.Lock.Hold)
			report.At = at
		}
	case "unlock":
		s.mu.Lock()
		delete(s.holds, r.Lock.Hold)
		s.mu.Unlock()
		err = held.Unlock(ctx)
		report.At = clock()
	}
	report.Called = called
	a.Lock = report
	return a, err
}

func (s *lockServer) lock(ctx context.Context, do string, o *lockOrder) (*lockReport, error) {
	who := lockOrder{Locker: o.Locker, TTL: o.TTL}
	s.mu.Lock()
	if len(s.lockers) == 0 {
		s.watch()
	}
	locker := s.lockers[who]
	if locker == nil {
		locker = lock.New(queueClient{s.node}, lock.WithTTL(o.TTL))
		s.lockers[who] = locker
	}
	s.mu.Unlock()
	take := locker.Lock
	if do == "trylock" {
		take = locker.TryLock
	}
	var queued atomic.Int64
	held, err := take(context.WithValue(ctx, queuedKey{}, &queued), o.Key)
	if err != nil {
		return &lockReport{At: clock()}, err
	}
	r := &lockReport{Token: held.Token(), Queued: queued.Load()}
	r.Hold, r.At, r.Until = s.enter(held)
	return r, nil
}

// A queueClient notes when those who want a lock begin to wait in its queue: they
// have a place there.
type queueClient struct{ *hiqlite.Node }

type queueLock struct{ shardapi.Lock }

type queuedKey struct{} // in a context: where to note it, *atomic.Int64

func (c queueClient) InMemoryShards() shardapi.Shards {
	all := c.Node.InMemoryShards()
	all.Lock = queueLock{all.Lock}
	return all
}

func (l queueLock) Await(ctx context.Context, owner, id uint64) (wire.Outcome, bool, error) {
	if queued, ok := ctx.Value(queuedKey{}).(*atomic.Int64); ok {
		queued.CompareAndSwap(0, clock())
	}
	return l.Lock.Await(ctx, owner, id)
}
