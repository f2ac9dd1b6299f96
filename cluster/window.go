package cluster

import (
	"errors"
	"fmt"
	"time"

	"github.com/lni/dragonboat/v4"

	"github.com/hiqlite/hiqlite/internal/invariants"
)

// An entryInFlight is an entry of a combiner's window. The combiner's goroutine owns all
// fields but the last three.
type entryInFlight[O, R any] struct {
	sequence, oldest uint64 // see Codec.Encode
	cmd              []byte
	calls            []*doCall[O, R] // whose operations the entry has; none once it is answered
	copies           copies
	proposed         time.Time // when the first copy was proposed; zero: none was
	answered         bool

	// Combiner.mu guards the following. maybeLogged and callerToldNotProposed are never
	// both true: if a caller was told "not proposed", its operation is removed from the
	// entry before a copy is proposed.
	maybeLogged           bool // a copy may be in a log, or is about to be proposed
	callersWaiting        int  // callers that have not left
	callerToldNotProposed bool // a caller left and was told that nothing was proposed
}

// checkInvariants panics if what the comments of the fields promise does not hold.
// The caller holds Combiner.mu.
func (e *entryInFlight[O, R]) checkInvariants() {
	switch {
	case !invariants.Enabled:
	case e.callersWaiting < 0:
		panic(fmt.Sprintf("hiqlite: combiner: %d callers wait", e.callersWaiting))
	case e.maybeLogged && e.callerToldNotProposed:
		panic(`hiqlite: combiner: an entry may be in a log, and a caller was told "not proposed"`)
	}
}

// runWindow makes an entry of queued operations and has it applied. If rounds are long, it
// makes more entries meanwhile. It returns true when no entry is in flight any more,
// because all were answered, requeued or given up, and false when the combiner or its
// shard is closed.
func (c *Combiner[O, R]) runWindow() (open bool) {
	c.patience, c.due, c.dueNow = c.cfg.Resubmit, 0, true
	c.leaderChanged = c.raft.LeaderChanged()
	c.addEntry()
	for len(c.window) > 0 {
		if !c.proposeDue() {
			c.closeWindow()
			return false
		}
		if len(c.window) == 0 {
			break
		}
		c.prepareToWait()
		pending := c.pending()
		var latest *dragonboat.RequestState
		if pending != nil {
			latest = pending.copies.latest
		}
		switch event, r := c.await(latest); event {
		case closing:
			c.closeWindow()
			return false
		case raftResult:
			c.handleRaftResult(pending, r)
		case leaderChanged:
			c.due, c.dueNow, c.patience = 0, true, c.cfg.Resubmit
		case timedOut:
			c.resubmit()
		}
		c.takeAnswers()
		c.pollRaftResults()
		if c.mayAdd() && c.pace.wait(time.Now()) <= 0 {
			if c.lastAnswered > 0 {
				c.yieldToCallers(c.lastAnswered, c.cfg.Yields)
			}
			c.addEntry()
		}
	}
	return true
}

// mayAdd reports whether another entry may be made while others are in flight, apart from
// the time that has to pass between two entries.
func (c *Combiner[O, R]) mayAdd() bool {
	n := len(c.window)
	return n > 0 && n < maxWindow && c.pace.several() && !c.full && c.due == n && c.holdUntil.Load() == 0
}

// prepareToWait has the goroutine woken when the next entry can be made.
func (c *Combiner[O, R]) prepareToWait() {
	if !c.mayAdd() {
		return
	}
	c.mu.Lock()
	c.wakeOnDo = len(c.queue) == c.abandonedInQueue
	c.checkInvariants()
	wait := !c.wakeOnDo
	c.mu.Unlock()
	if wait {
		c.paceTimer.Reset(max(c.pace.wait(time.Now()), 0))
	}
}

// addEntry makes an entry of operations from the queue and adds it to the window, if
// there are any that fit.
func (c *Combiner[O, R]) addEntry() {
	e := c.fillEntry()
	if e == nil {
		return
	}
	e.sequence, e.oldest = c.sequence+1, 0
	if len(c.window) > 0 {
		e.oldest = c.window[0].sequence
	}
	if err := c.encode(e); err != nil {
		if len(e.calls) > 1 {
			c.requeue(e.calls, true) // each alone, so that only the one that cannot be encoded fails
		} else {
			c.fail(e, err)
		}
		c.recycleEntry(e)
		return
	}
	c.sequence = e.sequence
	c.answers.expect(c.session, e.sequence)
	c.window = append(c.window, e)
	c.pace.last = time.Now()
	if len(c.window) == 1 {
		c.timer.Reset(c.patience)
	}
	c.dueNow = true
}

// fillEntry moves operations from the queue into a new entry. It returns nil if there are
// none, because all their callers have left, or if they do not fit beside those in flight.
func (c *Combiner[O, R]) fillEntry() *entryInFlight[O, R] {
	var none R
	var e *entryInFlight[O, R]
	if n := len(c.free); n > 0 {
		e, c.free = c.free[n-1], c.free[:n-1]
	} else {
		e = new(entryInFlight[O, R])
	}
	c.remote = 0
	bytes, count := 0, 0 // of all operations in flight
	for _, other := range c.window {
		for _, call := range other.calls {
			bytes += call.size
			count++
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.checkInvariants()
	n := 0
	for _, call := range c.queue {
		if call.state.Load() == abandoned {
			c.abandonedInQueue--
			c.recycle(call)
			n++
			continue
		}
		alone := call.alone || c.codec.Exclusive(call.op)
		if count > 0 && (bytes+call.size > c.cfg.MaxEntryBytes || count >= c.cfg.MaxOperations) || len(e.calls) > 0 && alone {
			break
		}
		n++
		if call.ctx.Err() != nil {
			c.deliver(call, none, c.contextError(call.ctx, false))
			continue
		}
		call.entry = e
		bytes += call.size
		if c.codec.Remote(call.op) {
			c.remote++
		}
		count++
		e.calls = append(e.calls, call)
		if alone {
			break
		}
	}
	rest := copy(c.queue, c.queue[n:])
	clear(c.queue[rest:])
	c.queue = c.queue[:rest]
	e.callersWaiting, e.maybeLogged, e.callerToldNotProposed = len(e.calls), false, false
	if len(e.calls) == 0 {
		c.full = rest > 0
		c.free = append(c.free, e)
		return nil
	}
	return e
}

// encode makes the bytes of an entry.
func (c *Combiner[O, R]) encode(e *entryInFlight[O, R]) (err error) {
	c.ops = c.ops[:0]
	for _, call := range e.calls {
		c.ops = append(c.ops, call.op)
	}
	e.cmd, err = c.codec.Encode(c.session, e.sequence, e.oldest, c.ops)
	clear(c.ops)
	return err
}

// takeAnswers answers the calls of entries that the machine has answered, and removes
// entries from the window when all before them are answered. It empties the window if
// the session does not exist, or if no caller waits any more.
func (c *Combiner[O, R]) takeAnswers() {
	c.lastAnswered = 0
	first := true // no entry before e waits for its answer
	for _, e := range c.window {
		if e.answered {
			continue
		}
		kind, results := c.answers.take(e.sequence)
		switch {
		case kind == entryApplied:
			c.pace.add(time.Since(e.proposed)) // also if a copy was lost: see pace
			c.lastAnswered += len(e.calls)
			c.deliverAll(e, results)
		case kind == sessionUnknown && first:
			c.sessionUnknown(e)
			return
		default:
			first = false
		}
	}
	c.removeAnswered()
	if len(c.window) > 0 && c.callersWaiting() == 0 {
		c.giveUpWindow()
	}
}

// removeAnswered removes the answered entries at the beginning of the window.
func (c *Combiner[O, R]) removeAnswered() {
	n := 0
	for n < len(c.window) && c.window[n].answered {
		if rs := c.window[n].copies.latest; rs != nil {
			c.unreleased = append(c.unreleased, rs)
		}
		c.recycleEntry(c.window[n])
		n++
	}
	if n == 0 {
		return
	}
	rest := copy(c.window, c.window[n:])
	clear(c.window[rest:])
	c.window = c.window[:rest]
	waitsForTimer := c.due < rest+n && !c.dueNow
	c.due = max(c.due-n, 0)
	c.full = false
	c.patience = c.cfg.Resubmit
	if rest > 0 && !waitsForTimer {
		c.timer.Reset(c.patience)
	}
}

// sessionUnknown is called when the machine has refused an entry because the session does
// not exist. All entries before it are answered. If the entry has only one copy, it was
// not applied and never will be. The same is true for all entries after it in the window,
// which the machine applies only after this one.
func (c *Combiner[O, R]) sessionUnknown(e *entryInFlight[O, R]) {
	c.session = 0
	if e.copies.count > 1 {
		// Another copy may have been applied while the session existed.
		c.failAll(fmt.Errorf("%w: the session has expired", ErrOutcomeUnknown))
		return
	}
	var calls []*doCall[O, R]
	for _, e := range c.window {
		calls = append(calls, e.calls...)
	}
	c.requeue(calls, false)
	c.clearWindow()
}

// requeue puts operations back to the front of the queue, to be encoded alone if alone is
// set.
func (c *Combiner[O, R]) requeue(calls []*doCall[O, R], alone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.checkInvariants()
	c.wakeOnDo = false
	queue := make([]*doCall[O, R], 0, len(calls)+len(c.queue))
	for _, call := range calls {
		call.entry, call.alone = nil, alone
		if call.state.Load() == abandoned {
			c.recycle(call)
			continue
		}
		queue = append(queue, call)
	}
	c.queue = append(queue, c.queue...)
}

// callersWaiting returns how many callers of entries in flight have not left.
func (c *Combiner[O, R]) callersWaiting() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.window {
		if !e.answered {
			n += e.callersWaiting
		}
	}
	return n
}

// fail answers all calls of an entry with an error.
func (c *Combiner[O, R]) fail(e *entryInFlight[O, R], err error) {
	var none R
	for _, call := range e.calls {
		c.deliver(call, none, err)
	}
	c.forgetCalls(e)
}

// deliverAll answers each call of an entry with its result.
func (c *Combiner[O, R]) deliverAll(e *entryInFlight[O, R], results []R) {
	e.answered = true
	if len(results) != len(e.calls) {
		c.fail(e, fmt.Errorf("%w: %w", ErrOutcomeUnknown, errResultsNotKept))
		return
	}
	for i, call := range e.calls {
		c.deliver(call, results[i], nil)
	}
	c.forgetCalls(e)
}

func (c *Combiner[O, R]) forgetCalls(e *entryInFlight[O, R]) {
	clear(e.calls)
	e.calls = e.calls[:0]
}

// giveUpWindow drops the entries in flight, of which all callers have left.
func (c *Combiner[O, R]) giveUpWindow() {
	for _, e := range c.window {
		for _, call := range e.calls {
			c.recycle(call)
		}
	}
	c.clearWindow()
}

// failAll answers all calls of entries in flight with err.
func (c *Combiner[O, R]) failAll(err error) {
	for _, e := range c.window {
		c.fail(e, err)
	}
	c.clearWindow()
}

// closeWindow answers all calls of entries in flight with ErrClosed, and with
// ErrOutcomeUnknown if their entry may be in a log.
func (c *Combiner[O, R]) closeWindow() {
	for _, e := range c.window {
		err := ErrClosed
		if e.copies.count > 0 {
			err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrClosed)
		}
		c.fail(e, err)
	}
	c.clearWindow()
}

// clearWindow removes all entries, whose calls are answered, requeued or recycled.
func (c *Combiner[O, R]) clearWindow() {
	for _, e := range c.window {
		c.recycleEntry(e)
	}
	clear(c.window)
	c.window, c.full = c.window[:0], false
	c.answers.expectNone()
}

// recycleEntry keeps an entry for fillEntry. A caller that is about to leave the entry may
// still use it, under mu. That does no harm, because fillEntry sets under mu all that the
// caller changes.
func (c *Combiner[O, R]) recycleEntry(e *entryInFlight[O, R]) {
	c.forgetCalls(e)
	e.cmd, e.copies, e.proposed, e.answered = nil, copies{}, time.Time{}, false
	c.free = append(c.free, e)
}

var errResultsNotKept = errors.New("hiqlite: the machine did not keep the results")
