package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
)

// Codec turns operations into entries of the log. Only the combiner's goroutine
// calls OpenSession and Encode, one at a time, and has no use for an entry once
// it calls either again, so a buffer may be reused. Size and Exclusive may be
// called from any goroutine and must always answer the same for an operation.
type Codec[O any] interface {
	OpenSession(nonce uint64) []byte                          // an entry that opens a session; the machine answers with SessionOpened(nonce, id)
	Encode(session, sequence uint64, ops []O) ([]byte, error) // one entry of all ops; must not keep the slice
	Size(op O) int                                            // bytes, for the bound of an entry
	Exclusive(op O) bool                                      // must be alone in its entry
}

// CombinerConfig bounds a Combiner. The zero value has the defaults.
type CombinerConfig struct {
	MaxEntryBytes int           // sum of Size over an entry; 0: 8 MiB
	MaxOperations int           // of an entry; 0: 1024
	Yields        int           // how often the processor is yielded in vain, between entries, to callers who may come again; 0: 4, negative: never
	Eager         bool          // opens a session at once, not with the first operation: what an earlier incarnation of the node has left ends with it
	Resubmit      time.Duration // an entry without an answer is proposed again after this, doubling up to 8 times it; 0: 400 ms
}

// raft is what the combiner needs of a Shard.
type raft interface {
	Propose(cmd []byte, timeout time.Duration) (*dragonboat.RequestState, error)
	Leader() Leader
	LeaderChanged() <-chan struct{}
	Done() <-chan struct{}
}

// proposalTimeout is when Dragonboat forgets a copy of an entry. The combiner
// has proposed another one long before.
const proposalTimeout = 10 * time.Second

// Combiner makes one entry of all operations that wait, proposes it, hands the
// results out, and repeats: one entry is in flight at a time. An operation is
// applied at most once whatever happens to its entry on the way, because an
// entry is only ever repeated under its session and sequence, by which machines
// recognise it.
//
// Operations are proposed in the order in which Do was called.
type Combiner[O, R any] struct {
	raft  raft
	codec Codec[O]
	cfg   CombinerConfig
	pool  sync.Pool     // of *waiter[O, R]
	wake  chan struct{} // capacity 1: something the goroutine waits for happened
	stop  chan struct{} // closed by Close
	done  chan struct{} // closed when the goroutine has ended

	mu     sync.Mutex
	queue  []*waiter[O, R] // operations not yet in an entry
	left   int             // how many of the queue were abandoned by their callers
	idle   bool            // the goroutine sleeps until the queue is not empty
	closed bool            // no operation is accepted any more
	doubt  bool            // a copy of the entry in flight may be in a log, or will be at once
	live   int             // callers that did not leave the entry in flight
	shrunk bool            // a caller was told that the entry in flight was not proposed

	answers mailbox[R]
	opened  atomic.Uint64 // session, for other goroutines
	held    atomic.Int64  // until when nothing is proposed, since processStart; 0: no hold

	// Of the goroutine alone.
	session  uint64 // 0: none
	sequence uint64 // of the last entry
	flight   []*waiter[O, R]
	ops      []O
	timer    *time.Timer
	last     *dragonboat.RequestState // of an answered entry, not yet released
}

// waiter is one call of Do.
type waiter[O, R any] struct {
	op     O
	ctx    context.Context
	size   int
	state  atomic.Int32  // waits -> delivered by the goroutine, or -> abandoned by the caller
	ready  chan struct{} // capacity 1: delivered
	flying bool          // in the entry in flight; guarded by Combiner.mu
	solo   bool          // to be encoded alone; of the goroutine
	result R
	err    error
}

const (
	waits int32 = iota
	delivered
	abandoned
)

// NewCombiner starts a combiner for the shard. The caller connects the
// machine's apply to Applied, SessionOpened and SessionUnknown, and must Close
// it.
func NewCombiner[O, R any](s *Shard, codec Codec[O], cfg CombinerConfig) *Combiner[O, R] {
	return newCombiner[O, R](s, codec, cfg)
}

func newCombiner[O, R any](r raft, codec Codec[O], cfg CombinerConfig) *Combiner[O, R] {
	if cfg.MaxEntryBytes == 0 {
		cfg.MaxEntryBytes = 8 << 20
	}
	if cfg.MaxOperations == 0 {
		cfg.MaxOperations = 1024
	}
	if cfg.Yields == 0 {
		cfg.Yields = 4
	}
	if cfg.Resubmit == 0 {
		cfg.Resubmit = 400 * time.Millisecond
	}
	c := &Combiner[O, R]{
		raft:  r,
		codec: codec,
		cfg:   cfg,
		wake:  make(chan struct{}, 1),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
		timer: time.NewTimer(time.Hour),
	}
	c.pool.New = func() any { return &waiter[O, R]{ready: make(chan struct{}, 1)} }
	c.answers.wake = c.wake
	go c.run()
	return c
}

// Do has op applied and returns its result, as this node's own replica computed
// it: reads on this node that begin after Do returned see it. It blocks until
// then, or until ctx ends.
//
// Errors, beside those of the codec:
//   - ErrTooLarge: larger than an entry may be.
//   - ErrOutcomeUnknown: op may be applied, now or later. The error that caused
//     the end (of ctx, ErrClosed) is in the chain too.
//   - Any other, such as that of ctx or ErrClosed: op is not, and will never
//     be, applied.
//
// With the error of ctx comes ErrNoLeader if no leader was known.
func (c *Combiner[O, R]) Do(ctx context.Context, op O) (R, error) {
	var none R
	size := c.codec.Size(op)
	if size > c.cfg.MaxEntryBytes {
		return none, fmt.Errorf("%w: an operation of %d bytes, an entry has at most %d", ErrTooLarge, size, c.cfg.MaxEntryBytes)
	}
	w := c.pool.Get().(*waiter[O, R])
	w.op, w.ctx, w.size = op, ctx, size
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		c.recycle(w)
		return none, ErrClosed
	}
	c.queue = append(c.queue, w)
	rouse := c.idle
	c.idle = false
	c.mu.Unlock()
	if rouse {
		c.rouse()
	}
	select {
	case <-w.ready:
	case <-ctx.Done():
		if err := c.leave(w); err != nil {
			return none, err
		}
		<-w.ready
	}
	r, err := w.result, w.err
	c.recycle(w)
	return r, err
}

// Session returns the session under which operations are proposed; 0: none yet.
func (c *Combiner[O, R]) Session() uint64 { return c.opened.Load() }

// leave ends w's wait because its context ended. It returns nil when the result
// was faster.
func (c *Combiner[O, R]) leave(w *waiter[O, R]) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Read first: an abandoned waiter is the goroutine's, to use again.
	ctx, flying := w.ctx, w.flying
	if !w.state.CompareAndSwap(waits, abandoned) {
		return nil
	}
	if !flying {
		c.left++
		if c.left > len(c.queue)/2 {
			c.sweep()
		}
		return c.ended(ctx, false)
	}
	doubt := c.doubt
	if !doubt {
		c.shrunk = true
	}
	if c.live--; c.live == 0 {
		c.rouse()
	}
	return c.ended(ctx, doubt)
}

// ended is the error for a caller whose context ended.
func (c *Combiner[O, R]) ended(ctx context.Context, doubt bool) error {
	led := c.raft.Leader().Node != 0
	switch {
	case doubt && led:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
	case doubt:
		return fmt.Errorf("%w: %w: %w", ErrOutcomeUnknown, ErrNoLeader, ctx.Err())
	case led:
		return fmt.Errorf("hiqlite: not proposed: %w", ctx.Err())
	default:
		return fmt.Errorf("%w: not proposed: %w", ErrNoLeader, ctx.Err())
	}
}

// sweep drops abandoned operations from the queue, so that callers that come
// and go while there is no leader do not pile up. The caller holds mu.
func (c *Combiner[O, R]) sweep() {
	kept := c.queue[:0]
	for _, w := range c.queue {
		if w.state.Load() == abandoned {
			c.recycle(w)
		} else {
			kept = append(kept, w)
		}
	}
	clear(c.queue[len(kept):])
	c.queue, c.left = kept, 0
}

func (c *Combiner[O, R]) recycle(w *waiter[O, R]) {
	var op O
	var r R
	w.op, w.ctx, w.result, w.err = op, nil, r, nil
	w.flying, w.solo = false, false
	w.state.Store(waits)
	c.pool.Put(w)
}

// rouse makes the goroutine look again. It never blocks.
func (c *Combiner[O, R]) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// deliver ends w's wait, unless its caller has left.
func (c *Combiner[O, R]) deliver(w *waiter[O, R], r R, err error) {
	w.result, w.err = r, err
	if w.state.CompareAndSwap(waits, delivered) {
		w.ready <- struct{}{}
	} else {
		c.recycle(w)
	}
}

// Close ends the combiner and waits for its goroutine. Waiting callers get
// ErrClosed, with ErrOutcomeUnknown if their operation may be in a log.
// Idempotent; nil.
func (c *Combiner[O, R]) Close() error {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		close(c.stop)
	}
	c.mu.Unlock()
	<-c.done
	return nil
}

var errUnanswered = errors.New("hiqlite: the machine did not keep the results")

// run is the goroutine.
func (c *Combiner[O, R]) run() {
	defer close(c.done)
	defer c.timer.Stop()
	for (c.cfg.Eager && c.session == 0 || c.work()) && c.led() {
		if c.session == 0 {
			if !c.openSession() {
				break
			}
			continue // callers may have left meanwhile
		}
		if !c.heed() {
			break
		}
		if c.take() && !c.fly() {
			break
		}
		c.gather(len(c.flight))
	}
	c.shut()
}

// gather yields the processor to the callers just answered, who mostly come
// with their next operation at once: until as many wait as before, or no more
// come. An entry of many costs hardly more than an entry of one.
func (c *Combiner[O, R]) gather(want int) {
	last := 0
	for idle := 0; idle < c.cfg.Yields; idle++ {
		runtime.Gosched()
		c.mu.Lock()
		n := len(c.queue) - c.left
		c.mu.Unlock()
		if n >= want {
			return
		}
		if n > last {
			last, idle = n, 0
		}
	}
}

// work waits until an operation waits. It returns false when the combiner or
// its shard is closed, as led, openSession and fly do.
func (c *Combiner[O, R]) work() bool {
	for {
		c.mu.Lock()
		c.idle = len(c.queue) == c.left
		idle, closed := c.idle, c.closed
		c.mu.Unlock()
		if closed {
			return false
		}
		if !idle {
			return true
		}
		select {
		case <-c.wake:
		case <-c.stop:
			return false
		case <-c.raft.Done():
			return false
		}
	}
}

// led waits until a leader is known: only without one in sight is "not
// proposed" certain. It returns at once when there is one.
func (c *Combiner[O, R]) led() bool {
	for {
		changed := c.raft.LeaderChanged()
		if c.raft.Leader().Node != 0 {
			return true
		}
		select {
		case <-changed:
		case <-c.stop:
			return false
		case <-c.raft.Done():
			return false
		}
	}
}

// Hold makes the combiner propose nothing new for d, less if the leader changes:
// a leader that hands over can only be followed by a node that has applied all,
// and drops what is proposed meanwhile. It never blocks.
func (c *Combiner[O, R]) Hold(d time.Duration) { c.held.Store(int64(time.Since(processStart) + d)) }

// processStart makes clocks of this process that nobody can set.
var processStart = time.Now()

// heed waits while there is a hold.
func (c *Combiner[O, R]) heed() bool {
	if c.held.Load() == 0 {
		return true
	}
	changed := c.raft.LeaderChanged() // before the hold is taken: none is missed
	until := c.held.Swap(0)
	timer := time.NewTimer(time.Duration(until) - time.Since(processStart))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-c.stop:
		return false
	case <-c.raft.Done():
		return false
	}
	return true
}

// shut gives every waiting caller its error.
func (c *Combiner[O, R]) shut() {
	c.mu.Lock()
	c.closed = true
	queue := c.queue
	c.queue = nil
	c.mu.Unlock()
	var none R
	for _, w := range queue {
		c.deliver(w, none, ErrClosed)
	}
}

// nonce returns the first of a range of nonces that nobody else uses; never 0.
func nonce() uint64 { return rand.Uint64()&^0xffff | 1<<16 }
