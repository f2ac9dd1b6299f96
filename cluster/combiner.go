package cluster

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"

	"github.com/hiqlite/hiqlite/internal/invariants"
)

// The states of an operation between the call of Do and its return:
//
//	state      what it means                          leads to
//	queued     in Combiner.queue                      in flight   fillEntry puts it into a new entry
//	                                                  answered    its context has ended, or the combiner closes
//	                                                  abandoned   its context ends
//	in flight  in an entry of Combiner.window; no     proposed    markProposed, before each copy is proposed
//	           copy of the entry can be in a log      queued      requeue: the entry could not be encoded, or the machine
//	                                                              has refused one before it, because the session does
//	                                                              not exist
//	                                                  answered    the operation cannot be encoded or proposed, or
//	                                                              the combiner closes
//	                                                  abandoned   its context ends; the caller learns "not proposed"
//	proposed   in an entry of Combiner.window; a      in flight   Raft has dropped, or not taken, the only copy
//	           copy of the entry may be in a log      queued      requeue: the machine has refused the only copy, or
//	                                                              that of an entry before it, because the session
//	                                                              does not exist
//	                                                  answered    the machine has applied the entry, or the outcome
//	                                                              will stay unknown
//	                                                  abandoned   its context ends; the caller learns ErrOutcomeUnknown
//	answered   the call has its result or error       the caller takes it and recycles the call
//	abandoned  the caller has returned                the goroutine drops the call and recycles it
//
// The entries in flight are the window. Their sequences follow each other without a gap,
// and machines apply them in this order and no other: see Entry.Oldest in package wire.
// The states of an entry of the window:
//
//	state     what it means                           leads to
//	due       it is at, or after, position            proposed  proposeDue
//	          Combiner.due of the window: a copy has
//	          to be proposed
//	proposed  it is before that position: a copy is   due       Raft has dropped its copy, or one before it in the
//	          on its way                                        window; or the leader changed; or no answer came
//	                                                            in time
//	answered  its calls are answered; copies of it    left      all entries before it in the window are answered
//	          need not be proposed
//
// If an entry is lost, the machine does not apply those after it in the window either. So
// if a copy of an entry is due, copies of all entries after it are due.
//
// An entry of which a caller left and was told "not proposed" is encoded again without
// that caller's operation before a copy is proposed. It keeps its sequence, because no
// copy with this sequence can be in a log.
//
// An entry whose callers have all left stays in the window while callers of other entries
// wait, since those after it would not be applied without it. If no caller of any entry
// waits, the whole window is given up. The next entry is then made as if nothing were in
// flight. Its sequence is higher than those that were given up, so that a copy of one of
// them that turns up in the log later is dropped by the machine.
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
// calls OpenSession and Encode, one at a time. Size, Exclusive and Remote may be called
// from any goroutine, and must always return the same for an operation.
type Codec[O any] interface {
	// OpenSession returns an entry that opens a session. The machine answers with
	// SessionOpened(nonce, id).
	OpenSession(nonce uint64) []byte
	// Encode returns one entry of all ops, of which there may be none. It must not keep
	// the slice, and must not change the entry later. If oldest is not 0, the machine
	// must apply the entry only directly after the one with the sequence before its own,
	// and keep the results of all entries from oldest on for copies of them. If it is 0,
	// the machine applies the entry if its sequence is higher than that of the last one.
	Encode(session, sequence, oldest uint64, ops []O) ([]byte, error)
	Size(op O) int       // bytes, for the bound of an entry
	Exclusive(op O) bool // the operation must be alone in its entry
	Remote(op O) bool    // its caller is another program's, which needs a round trip to come with its next operation
}

// CombinerConfig bounds a Combiner. MaxEntryBytes must be set, all others have
// defaults.
type CombinerConfig struct {
	MaxEntryBytes int           // bound of the sum of Size over the operations of all entries in flight, and so of an entry
	MaxOperations int           // bound of the operations of all entries in flight; 0: 1024
	Yields        int           // how often the goroutine yields the processor, without a new call, before it makes the next entry; 0: 4, negative: never
	Eager         bool          // open a session at once, not with the first operation; the machine then ends what earlier incarnations of the node held
	Resubmit      time.Duration // how long to wait for an answer before the entries in flight are proposed again; doubles up to 8 times this; 0: 400 ms
	LongRound     time.Duration // if rounds take longer than this, several entries are in flight; 0: 5 ms, negative: never
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
// out the results, and repeats. One entry is in flight at a time, unless a round takes
// long: see pace. An operation is applied at most once, whatever happens to its entry on
// the way: an entry is only ever repeated with the same session and sequence, by which
// the machines recognise it.
//
// Operations are proposed, and applied, in the order in which Do was called.
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
	wakeOnDo         bool            // Do wakes the goroutine, which could make an entry; the queue has only abandoned calls
	gatherUntil      int             // Do wakes the goroutine when so many calls wait; 0: it does not
	closed           bool            // no operation is accepted any more

	answers   mailbox[R]
	current   atomic.Uint64 // the session, for other goroutines
	holdUntil atomic.Int64  // time since processStart until which nothing is proposed; 0: no hold

	// The goroutine's own.
	session      uint64 // 0: none
	sequence     uint64 // of the last entry; entries that were given up have used theirs
	window       []*entryInFlight[O, R]
	due          int  // position in the window from which on copies are due; len(window): none is
	dueNow       bool // the copies that are due need not wait for the timer
	full         bool // the operations that wait do not fit beside those in flight
	lastAnswered int  // how many calls were answered together, the last time
	remote       int  // operations of the last entry whose callers are remote
	gathering    gathering
	free         []*entryInFlight[O, R]
	ops          []O

	leaderChanged <-chan struct{} // closed when another leader is known than when a copy was last proposed
	timer         *time.Timer     // fires when copies have to be proposed again
	patience      time.Duration   // how long the timer waits for an answer
	paceTimer     *time.Timer     // fires when the next entry may be made; runs only while operations wait for that
	pace          pace
	unreleased    []*dragonboat.RequestState // of answered entries: Raft reports their results later than the machine
}

// doCall is one call of Do.
type doCall[O, R any] struct {
	op     O
	ctx    context.Context
	size   int
	state  atomic.Int32         // waiting -> answered (by the goroutine) or abandoned (by the caller)
	ready  chan struct{}        // capacity 1: the state is answered
	entry  *entryInFlight[O, R] // that has the operation; nil: it is queued; guarded by Combiner.mu
	alone  bool                 // encode the operation alone; the goroutine's own
	result R                    // set before the state becomes answered, as err
	err    error
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
	if cfg.LongRound == 0 {
		cfg.LongRound = defaultLongRound
	}
	c := &Combiner[O, R]{
		raft:      r,
		codec:     codec,
		cfg:       cfg,
		wake:      make(chan struct{}, 1),
		stop:      make(chan struct{}),
		done:      make(chan struct{}),
		timer:     time.NewTimer(time.Hour),
		paceTimer: time.NewTimer(time.Hour),
		pace:      pace{long: cfg.LongRound},
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
	wake := c.wakeOnDo || c.gatherUntil != 0 && len(c.queue)-c.abandonedInQueue >= c.gatherUntil
	c.wakeOnDo = false
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
	ctx, e := call.ctx, call.entry // once abandoned, the call is the goroutine's
	if !call.state.CompareAndSwap(waiting, abandoned) {
		return nil
	}
	if e == nil {
		c.abandonedInQueue++
		if c.abandonedInQueue > len(c.queue)/2 {
			c.dropAbandoned()
		}
		return c.contextError(ctx, false)
	}
	maybeLogged := e.maybeLogged
	if !maybeLogged {
		e.callerToldNotProposed = true
	}
	if e.callersWaiting--; e.callersWaiting == 0 {
		signal(c.wake)
	}
	e.checkInvariants()
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
	call.entry, call.alone = nil, false
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
	case c.wakeOnDo && c.abandonedInQueue != len(c.queue):
		broken = fmt.Sprintf("the goroutine waits for a call and %d calls are queued", len(c.queue)-c.abandonedInQueue)
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
