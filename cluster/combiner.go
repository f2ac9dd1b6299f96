package cluster

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"

	"github.com/hiqlite/hiqlite/internal/invariants"
)

// The states of an operation between the call of Do and its return:
//
//	state      what it means                          leads to
//	queued     in Combiner.queue                      in flight   fillEntry puts it into the next entry
//	                                                  answered    its context has ended, or the combiner closes
//	                                                  abandoned   its context ends
//	in flight  in Combiner.inFlight; no copy of the   proposed    markProposed, before each copy is proposed
//	           entry can be in a log                  queued      requeue: another caller of the entry left and was told
//	                                                              "not proposed", or the entry could not be encoded
//	                                                  answered    a lone operation could not be encoded, or the
//	                                                              combiner closes
//	                                                  abandoned   its context ends; the caller learns "not proposed"
//	proposed   in Combiner.inFlight; a copy of the    in flight   Raft has dropped, or not taken, the only copy
//	           entry may be in a log (maybeLogged)    queued      requeue: the machine refused the only copy, because
//	                                                              the session is unknown
//	                                                  answered    the machine has applied the entry, or the outcome
//	                                                              will stay unknown
//	                                                  abandoned   its context ends; the caller learns ErrOutcomeUnknown
//	answered   the call has its result or error       the caller takes it and recycles the call
//	abandoned  the caller has returned                the goroutine drops the call and recycles it
//
// An entry whose callers have all left is abandoned. Its sequence is not used
// again, so a copy that turns up in the log later is older than the next entry,
// and the machine drops it.
//
// Three kinds of goroutines meet here:
//
//	caller     runs Do. It owns its call until the call is queued, and again once it is answered.
//	           When its context ends it may only change the state to abandoned.
//	goroutine  the combiner's own, runs run. It owns the fields marked as its own, the calls in flight,
//	           and abandoned calls. It alone answers and requeues.
//	apply      the machine's. It calls Applied, SessionOpened and SessionUnknown, which touch the
//	           mailbox and nothing else, so that it never waits for the other two.
//
// A compare-and-swap of the call's state decides whether the call is answered or
// abandoned. Combiner.mu guards what both the callers and the goroutine use.

// Codec turns operations into entries of the log. Only the combiner's goroutine
// calls OpenSession and Encode, one at a time. It does not use an entry any more
// when it calls either of them again, so a Codec may reuse its buffer. Size,
// Exclusive and Remote may be called from any goroutine, and must always return the same for
// an operation.
type Codec[O any] interface {
	OpenSession(nonce uint64) []byte                          // an entry that opens a session; the machine answers with SessionOpened(nonce, id)
	Encode(session, sequence uint64, ops []O) ([]byte, error) // one entry of all ops; must not keep the slice
	Size(op O) int                                            // bytes, for the bound of an entry
	Exclusive(op O) bool                                      // the operation must be alone in its entry
	Remote(op O) bool                                         // its caller is another program's, which needs a round trip to come with its next operation
}

// CombinerConfig bounds a Combiner. MaxEntryBytes must be set, all others have
// defaults.
type CombinerConfig struct {
	MaxEntryBytes int           // bound of the sum of Size over the operations of an entry
	MaxOperations int           // bound of the operations of an entry; 0: 1024
	Yields        int           // how often the goroutine yields the processor, without a new call, before it makes the next entry; 0: 4, negative: never
	Eager         bool          // open a session at once, not with the first operation; the machine then ends what earlier incarnations of the node held
	Resubmit      time.Duration // how long to wait for an answer before the entry is proposed again; doubles up to 8 times this; 0: 400 ms
}

const (
	defaultMaxOperations = 1024
	defaultYields        = 4
	defaultResubmit      = 400 * time.Millisecond

	// proposalTimeout is how long Dragonboat keeps track of one copy of an entry.
	// It is longer than any wait of the combiner, which has proposed another copy
	// by then.
	proposalTimeout = 10 * time.Second
)

// raft is what the combiner needs of a Shard.
type raft interface {
	Propose(cmd []byte, timeout time.Duration) (*dragonboat.RequestState, error)
	Leader() Leader
	LeaderChanged() <-chan struct{}
	Done() <-chan struct{}
}

// Combiner makes one entry of all operations that wait, proposes the entry, hands
// out the results, and repeats. One entry is in flight at a time. An operation is
// applied at most once, whatever happens to its entry on the way: an entry is only
// ever repeated with the same session and sequence, by which the machines
// recognise it.
//
// Operations are proposed in the order in which Do was called.
type Combiner[O, R any] struct {
	raft  raft
	codec Codec[O]
	cfg   CombinerConfig
	pool  sync.Pool     // of *doCall[O, R]
	wake  chan struct{} // capacity 1: wakes the goroutine
	stop  chan struct{} // closed by Close
	done  chan struct{} // closed when the goroutine has ended

	mu               sync.Mutex
	queue            []*doCall[O, R] // calls whose operation is not in an entry, in the order of Do
	abandonedInQueue int             // how many calls of the queue are abandoned; <= len(queue)
	idle             bool            // the goroutine sleeps until Do wakes it; the queue has only abandoned calls
	gatherUntil      int             // Do wakes the goroutine when so many calls wait; 0: it does not
	closed           bool            // no operation is accepted any more

	// Of the entry in flight. maybeLogged and callerToldNotProposed are never both
	// true: an entry of which a caller was told "not proposed" is not proposed again,
	// since it would have that caller's operation applied.
	maybeLogged           bool // a copy may be in a log, or is about to be proposed; guarded by mu
	callersWaiting        int  // callers that have not left; guarded by mu
	callerToldNotProposed bool // a caller left and was told that nothing was proposed; guarded by mu

	answers   mailbox[R]
	current   atomic.Uint64 // the session, for other goroutines
	holdUntil atomic.Int64  // time since processStart until which nothing is proposed; 0: no hold

	// The goroutine's own.
	session    uint64 // 0: none
	sequence   uint64 // of the last entry; an entry that was abandoned has used its own
	inFlight   []*doCall[O, R]
	ops        []O
	remote     int // operations of the entry whose callers are remote
	gathering  gathering
	timer      *time.Timer
	unreleased *dragonboat.RequestState // of an answered entry: its result came later than the answer; nil: none
}

// doCall is one call of Do.
type doCall[O, R any] struct {
	op       O
	ctx      context.Context
	size     int
	state    atomic.Int32  // waiting -> answered (by the goroutine) or abandoned (by the caller)
	ready    chan struct{} // capacity 1: the state is answered
	inFlight bool          // the operation is in the entry in flight; guarded by Combiner.mu
	alone    bool          // encode the operation alone; the goroutine's own
	result   R             // set before the state becomes answered, as err
	err      error
}

const (
	waiting int32 = iota
	answered
	abandoned
)

// NewCombiner starts a combiner for the shard, which need not be started yet. The
// caller connects the machine's apply to Applied, SessionOpened and
// SessionUnknown, and must Close the combiner.
func NewCombiner[O, R any](s *Shard, codec Codec[O], cfg CombinerConfig) *Combiner[O, R] {
	return newCombiner[O, R](s, codec, cfg)
}

func newCombiner[O, R any](r raft, codec Codec[O], cfg CombinerConfig) *Combiner[O, R] {
	if cfg.MaxOperations == 0 {
		cfg.MaxOperations = defaultMaxOperations
	}
	if cfg.Yields == 0 {
		cfg.Yields = defaultYields
	}
	if cfg.Resubmit == 0 {
		cfg.Resubmit = defaultResubmit
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
	c.pool.New = func() any { return &doCall[O, R]{ready: make(chan struct{}, 1)} }
	c.answers.wake = c.wake
	go c.run()
	return c
}

// Do has op applied and returns its result, as this node's own replica computed
// it: reads on this node that begin after Do returned see what op did. Do blocks
// until then, or until ctx ends.
//
// Errors, beside those of the codec:
//   - ErrTooLarge: op is larger than an entry may be.
//   - ErrOutcomeUnknown: op may be applied, now or later. The error that ended the
//     wait (that of ctx, or ErrClosed) is in the chain too.
//   - Any other, such as that of ctx or ErrClosed: op is not, and will never
//     be, applied.
//
// If no leader was known when ctx ended, ErrNoLeader is in the chain too.
func (c *Combiner[O, R]) Do(ctx context.Context, op O) (R, error) {
	var none R
	size := c.codec.Size(op)
	if size > c.cfg.MaxEntryBytes {
		return none, fmt.Errorf("%w: an operation of %d bytes, an entry has at most %d", ErrTooLarge, size, c.cfg.MaxEntryBytes)
	}
	call := c.pool.Get().(*doCall[O, R])
	call.op, call.ctx, call.size = op, ctx, size
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		c.recycle(call)
		return none, ErrClosed
	}
	c.queue = append(c.queue, call)
	wake := c.idle || c.gatherUntil != 0 && len(c.queue)-c.abandonedInQueue >= c.gatherUntil
	c.idle = false
	c.checkInvariants()
	c.mu.Unlock()
	if wake {
		signal(c.wake)
	}
	select {
	case <-call.ready:
	case <-ctx.Done():
		if err := c.abandon(call); err != nil {
			return none, err
		}
		<-call.ready
	}
	r, err := call.result, call.err
	c.recycle(call)
	return r, err
}

// Session returns the session under which operations are proposed; 0: there is
// none yet.
func (c *Combiner[O, R]) Session() uint64 { return c.current.Load() }

// abandon ends the wait of a caller whose context ended, and returns the error for
// it. It returns nil if the call was answered just before.
func (c *Combiner[O, R]) abandon(call *doCall[O, R]) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.checkInvariants()
	ctx, inFlight := call.ctx, call.inFlight // once abandoned, the call is the goroutine's
	if !call.state.CompareAndSwap(waiting, abandoned) {
		return nil
	}
	if !inFlight {
		c.abandonedInQueue++
		if c.abandonedInQueue > len(c.queue)/2 {
			c.dropAbandoned()
		}
		return c.contextError(ctx, false)
	}
	maybeLogged := c.maybeLogged
	if !maybeLogged {
		c.callerToldNotProposed = true
	}
	if c.callersWaiting--; c.callersWaiting == 0 {
		signal(c.wake)
	}
	return c.contextError(ctx, maybeLogged)
}

// contextError returns the error for a caller whose context ended.
func (c *Combiner[O, R]) contextError(ctx context.Context, maybeLogged bool) error {
	hasLeader := c.raft.Leader().Node != 0
	switch {
	case maybeLogged && hasLeader:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
	case maybeLogged:
		return fmt.Errorf("%w: %w: %w", ErrOutcomeUnknown, ErrNoLeader, ctx.Err())
	case hasLeader:
		return fmt.Errorf("hiqlite: not proposed: %w", ctx.Err())
	default:
		return fmt.Errorf("%w: not proposed: %w", ErrNoLeader, ctx.Err())
	}
}

// dropAbandoned removes abandoned calls from the queue, which would otherwise grow
// while there is no leader and callers come and give up. The caller holds mu.
func (c *Combiner[O, R]) dropAbandoned() {
	kept := c.queue[:0]
	for _, call := range c.queue {
		if call.state.Load() == abandoned {
			c.recycle(call)
		} else {
			kept = append(kept, call)
		}
	}
	clear(c.queue[len(kept):])
	c.queue, c.abandonedInQueue = kept, 0
}

func (c *Combiner[O, R]) recycle(call *doCall[O, R]) {
	var op O
	var r R
	call.op, call.ctx, call.result, call.err = op, nil, r, nil
	call.inFlight, call.alone = false, false
	call.state.Store(waiting)
	c.pool.Put(call)
}

// checkInvariants panics if what the comments of the fields promise does not hold.
// The caller holds mu.
func (c *Combiner[O, R]) checkInvariants() {
	if !invariants.Enabled {
		return
	}
	broken := ""
	switch {
	case c.abandonedInQueue < 0 || c.abandonedInQueue > len(c.queue):
		broken = fmt.Sprintf("%d of %d queued calls are abandoned", c.abandonedInQueue, len(c.queue))
	case c.idle && c.abandonedInQueue != len(c.queue):
		broken = fmt.Sprintf("the goroutine is idle and %d calls are queued", len(c.queue)-c.abandonedInQueue)
	case c.callersWaiting < 0:
		broken = fmt.Sprintf("%d callers wait", c.callersWaiting)
	case c.maybeLogged && c.callerToldNotProposed:
		broken = `an entry may be in a log, and a caller was told "not proposed"`
	}
	if broken != "" {
		panic("hiqlite: combiner: " + broken)
	}
}

// signal fills a channel of capacity 1, if it is empty. It never blocks.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// deliver answers a call, or recycles it if its caller has left.
func (c *Combiner[O, R]) deliver(call *doCall[O, R], r R, err error) {
	call.result, call.err = r, err
	if call.state.CompareAndSwap(waiting, answered) {
		call.ready <- struct{}{}
	} else {
		c.recycle(call)
	}
}

// Close ends the combiner and waits for its goroutine. Callers that wait get
// ErrClosed, with ErrOutcomeUnknown if their operation may be in a log. Close is
// idempotent and returns nil.
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

// run is the goroutine. All that it calls as a condition returns false when the
// combiner or its shard is closed.
func (c *Combiner[O, R]) run() {
	defer close(c.done)
	defer c.timer.Stop()
	for (c.cfg.Eager && c.session == 0 || c.waitQueue()) && c.waitLeader() {
		if c.session == 0 {
			if !c.openSession() {
				break
			}
			continue // callers may have left meanwhile
		}
		if !c.waitHold() {
			break
		}
		if !c.gather() {
			break
		}
		c.gathering.begin()
		if c.fillEntry() && !c.propose() {
			break
		}
		c.gathering.end(c.remote, c.queued())
		c.yieldToCallers(len(c.inFlight))
	}
	c.failQueue()
}

// yieldToCallers yields the processor to the callers just answered, most of whom
// come with their next operation at once. It returns when as many calls wait as
// there were in the last entry, or when no more come. An entry of many operations
// costs hardly more than an entry of one.
func (c *Combiner[O, R]) yieldToCallers(want int) {
	last := 0
	for inVain := 0; inVain < c.cfg.Yields; inVain++ {
		runtime.Gosched()
		n := c.queued()
		if n >= want {
			return
		}
		if n > last {
			last, inVain = n, 0
		}
	}
}

// waitQueue waits until an operation is queued.
func (c *Combiner[O, R]) waitQueue() bool {
	for {
		c.mu.Lock()
		c.idle = len(c.queue) == c.abandonedInQueue
		c.checkInvariants()
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

// waitLeader waits until a leader is known. Operations stay in the queue until
// then, because only of those in the queue it is certain that they were not
// proposed.
func (c *Combiner[O, R]) waitLeader() bool {
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

// Hold keeps the combiner from proposing new entries for d, or until the leader
// changes. A leader that hands over leadership needs that: the next leader must
// have applied all entries first, and what is proposed meanwhile is dropped. Hold
// never blocks.
func (c *Combiner[O, R]) Hold(d time.Duration) {
	c.holdUntil.Store(int64(time.Since(processStart) + d))
}

// processStart is the origin of a monotonic clock, which nobody can set.
var processStart = time.Now()

// waitHold waits until the hold is over, if there is one.
func (c *Combiner[O, R]) waitHold() bool {
	if c.holdUntil.Load() == 0 {
		return true
	}
	changed := c.raft.LeaderChanged() // before the hold is taken, to miss no change
	until := c.holdUntil.Swap(0)
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

// failQueue answers all queued calls with ErrClosed.
func (c *Combiner[O, R]) failQueue() {
	c.mu.Lock()
	c.closed = true
	queue := c.queue
	c.queue, c.abandonedInQueue = nil, 0
	c.mu.Unlock()
	var none R
	for _, call := range queue {
		c.deliver(call, none, ErrClosed)
	}
}

var errResultsNotKept = errors.New("hiqlite: the machine did not keep the results")
