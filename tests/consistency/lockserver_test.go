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
	Locker int    // number of the Locker; Lockers with different numbers or TTLs compete
	Hold   uint64 // id of a held lock, from lockReport.Hold
}

// A lockReport is the part of an answer that is about locks. Times are values of
// clock; 0 means that the event has not happened.
type lockReport struct {
	Hold, Token      uint64
	HolderAndWaiters int // of the lock, as far as the node has applied the log

	Called int64 // the process began to work on the request
	Queued int64 // the cluster had answered that Lock has to wait
	At     int64 // Lock, or the batch or Unlock under the lock, returned
	// Until is the last time at which Done was seen open, if the process has not
	// been paused between the return of Lock and that time. It is 0 if the process
	// may have been paused just when Lock returned.
	Until  int64
	Closed bool // Done is closed
}

// clock returns the machine's wall clock in nanoseconds, which all processes share.
// Unlike a monotonic clock, it can be set during a test; sameClock detects that.
func clock() int64 { return time.Now().UnixNano() }

const (
	// checkEvery is how often the process checks whether its locks are still held.
	checkEvery = 2 * time.Millisecond
	// stall is for how long a process may run nothing before it counts as paused.
	// A busy machine does not reach that; and it is half of the time between the
	// closing of Done and the next grant, for the shortest TTL.
	stall = lock.MinTTL / 20
	// afterStall is how long after a stall the process has noticed which locks it
	// has lost.
	afterStall = 100 * time.Millisecond
)

// lockServer is the part of a node process that takes locks.
type lockServer struct {
	node *hiqlite.Node

	mu      sync.Mutex
	lockers map[lockOrder]*lock.Locker // by Locker and TTL
	holds   map[uint64]*heldLock
	last    uint64 // id of the last hold
	ran     int64  // when noteRunning was last called
	stalled int64  // when the last stall was over
}

type heldLock struct {
	*lock.Held
	until  int64 // lockReport.Until
	frozen bool  // until does not change any more
}

func newLockServer(node *hiqlite.Node) *lockServer {
	return &lockServer{node: node, lockers: map[lockOrder]*lock.Locker{}, holds: map[uint64]*heldLock{}}
}

// watch begins to check all holds every checkEvery. It is called before the first
// lock, and the checks end with the process.
func (s *lockServer) watch() {
	s.noteRunning()
	go func() {
		for {
			time.Sleep(checkEvery)
			s.checkHolds()
		}
	}()
}

// checkHolds updates until for all holds.
func (s *lockServer) checkHolds() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.noteRunning()
	for _, h := range s.holds {
		h.check(now)
	}
}

// noteRunning notes that the process runs, and returns the time. After a stall it
// freezes all holds. The caller holds mu.
func (s *lockServer) noteRunning() int64 {
	now := clock()
	if gap := time.Duration(now - s.ran); s.ran != 0 && (gap > stall || gap < 0) {
		s.stalled = now
		for _, h := range s.holds {
			h.frozen = true
		}
	}
	s.ran = now
	return now
}

// check sets until to now if Done is open. now was read before the call.
func (h *heldLock) check(now int64) {
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

// add registers a lock that was taken.
func (s *lockServer) add(held *lock.Held) (id uint64, at, until int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at = s.noteRunning()
	h := &heldLock{Held: held, frozen: s.stalled != 0 && at-s.stalled < int64(afterStall)}
	h.check(at)
	s.last++
	s.holds[s.last] = h
	return s.last, at, h.until
}

// report returns a held lock and a report about it.
func (s *lockServer) report(id uint64) (*lock.Held, *lockReport, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.holds[id]
	if h == nil {
		return nil, nil, fmt.Errorf("there is no hold %d", id)
	}
	h.check(s.noteRunning())
	r := &lockReport{Hold: id, Token: h.Token(), Until: h.until}
	select {
	case <-h.Done():
		r.Closed = true
	default:
	}
	return h.Held, r, nil
}

// do does what a request asks for:
//   - lock, trylock: take a lock,
//   - queue: count the holder and the waiters of a lock,
//   - fence: execute a batch under a lock, even if the lock is lost,
//   - held: report about a held lock,
//   - unlock: release it.
func (s *lockServer) do(ctx context.Context, r *request, batch func(context.Context, *request) (answer, error)) (a answer, err error) {
	called := clock()
	if r.Do == "lock" || r.Do == "trylock" {
		a.Lock, err = s.lock(ctx, r.Do, r.Lock)
		a.Lock.Called = called
		return a, err
	}
	if r.Do == "queue" {
		return answer{Lock: &lockReport{HolderAndWaiters: s.node.InMemoryShards().Lock.QueueLen(r.Lock.Key)}}, nil
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
	key := lockOrder{Locker: o.Locker, TTL: o.TTL}
	s.mu.Lock()
	if len(s.lockers) == 0 {
		s.watch()
	}
	locker := s.lockers[key]
	if locker == nil {
		locker = lock.New(queueClient{s.node}, lock.WithTTL(o.TTL))
		s.lockers[key] = locker
	}
	s.mu.Unlock()
	lockFunc := locker.Lock
	if do == "trylock" {
		lockFunc = locker.TryLock
	}
	var queued atomic.Int64
	held, err := lockFunc(context.WithValue(ctx, queuedKey{}, &queued), o.Key)
	if err != nil {
		return &lockReport{At: clock()}, err
	}
	r := &lockReport{Token: held.Token(), Queued: queued.Load()}
	r.Hold, r.At, r.Until = s.add(held)
	return r, nil
}

// A queueClient notes when a Lock begins to wait for its grant. At that time its
// waiter is in the queue.
type queueClient struct{ *hiqlite.Node }

type queueLock struct{ shardapi.Lock }

// queuedKey is the key of a *atomic.Int64 in a context, in which the time is noted.
type queuedKey struct{}

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
