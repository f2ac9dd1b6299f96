package cluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/lni/dragonboat/v4"
)

// A resubmitter proposes the copies of one entry: the first one, and another
// whenever the last one may be lost. The combiner's goroutine owns it.
type resubmitter struct {
	raft          raft
	latest        *dragonboat.RequestState // of the latest copy; nil: none is pending
	leaderChanged <-chan struct{}          // closed when another leader is known than at the latest copy
	copies        int                      // how many may be in a log: those proposed, without those that Raft says it dropped
	patience      time.Duration            // how long to wait for an answer to the latest copy; 0: none was proposed since the leader changed
}

// maybeLogged reports whether a copy may be in a log.
func (s *resubmitter) maybeLogged() bool { return s.copies > 0 }

// submit proposes a copy, unless no leader is known. It returns how long to wait
// for an event before the next copy is due. An error means that this copy was not
// proposed and that no other will be accepted.
func (s *resubmitter) submit(cmd []byte, resubmit time.Duration) (time.Duration, error) {
	s.leaderChanged = s.raft.LeaderChanged()
	if s.raft.Leader().Node == 0 {
		return resubmit, nil
	}
	rs, err := s.raft.Propose(cmd, proposalTimeout)
	switch {
	case err == nil:
		s.latest = rs
		s.copies++
		s.patience = min(max(2*s.patience, resubmit), 8*resubmit)
		return s.patience, nil
	case errors.Is(err, ErrClosed):
		return 0, err
	case errors.Is(err, dragonboat.ErrPayloadTooBig):
		return 0, fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return retryPause, nil // the shard is busy, or not ready yet
}

// handleRaftResult takes what Raft reports of the latest copy. It returns whether
// another copy is needed, and how soon.
func (s *resubmitter) handleRaftResult(r dragonboat.RequestResult) (again bool, after time.Duration) {
	s.latest.Release()
	s.latest = nil
	switch {
	case r.Dropped():
		s.copies-- // this copy is in no log
		return true, retryPause
	case r.Completed():
		// The entry was applied here, so the machine has answered, or will not answer
		// this copy at all. The timer of the copy decides.
		return false, 0
	}
	return true, retryPause // timed out or terminated: the copy may be in a log
}

// An event ends a wait for the answer to an entry.
type event int

const (
	closing       event = iota // the combiner or its shard is closed
	woken                      // there may be an answer, or the last caller has left
	raftResult                 // Raft reports what became of the latest copy
	leaderChanged              // the latest copy may be lost
	timedOut                   // another copy is due
)

// await waits for the next event. The result is set for raftResult alone.
func (c *Combiner[O, R]) await(s *resubmitter) (event, dragonboat.RequestResult) {
	var results chan dragonboat.RequestResult
	if s.latest != nil {
		results = s.latest.AppliedC()
	}
	select {
	case <-c.wake:
		return woken, dragonboat.RequestResult{}
	case r := <-results:
		return raftResult, r
	case <-s.leaderChanged:
		return leaderChanged, dragonboat.RequestResult{}
	case <-c.timer.C:
		return timedOut, dragonboat.RequestResult{}
	case <-c.stop:
	case <-c.raft.Done():
	}
	return closing, dragonboat.RequestResult{}
}

// openSession opens a session. It proposes entries until one of them has opened a
// session, each with a nonce of its own: two entries with the same nonce would
// open two sessions, and one of them would stay unused for ever. It returns false
// when the combiner or its shard is closed.
func (c *Combiner[O, R]) openSession() bool {
	first, tries := randomNonces(), uint64(0)
	s := resubmitter{raft: c.raft}
	defer c.answers.expectSession(0, 0)
	for due := true; ; {
		if due {
			c.answers.expectSession(first, tries+1)
			next, err := s.submit(c.codec.OpenSession(first+tries), c.cfg.Resubmit)
			if err != nil {
				return false
			}
			tries++
			c.timer.Reset(next)
		}
		due = false
		switch event, r := c.await(&s); event {
		case closing:
			return false
		case woken:
			if kind, _, session := c.answers.takeAnswer(); kind == sessionOpened {
				c.session, c.sequence = session, 0
				c.current.Store(session)
				return true
			}
		case raftResult:
			if again, after := s.handleRaftResult(r); again {
				c.timer.Reset(after)
			}
		case leaderChanged:
			due, s.patience = true, 0 // start again with the shortest wait
		case timedOut:
			due = true
		}
	}
}

// randomNonces returns the first of 65536 consecutive nonces that nobody else uses.
// It is never 0.
func randomNonces() uint64 { return rand.Uint64()&^0xffff | 1<<16 }

// fillEntry moves operations from the queue into the entry in flight. It returns
// false if there are none, because all their callers have left.
func (c *Combiner[O, R]) fillEntry() bool {
	var none R
	c.inFlight, c.remote = c.inFlight[:0], 0
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.checkInvariants()
	bytes, n := 0, 0
	for _, call := range c.queue {
		if call.state.Load() == abandoned {
			c.abandonedInQueue--
			c.recycle(call)
			n++
			continue
		}
		alone := call.alone || c.codec.Exclusive(call.op)
		if len(c.inFlight) > 0 && (alone || bytes+call.size > c.cfg.MaxEntryBytes || len(c.inFlight) == c.cfg.MaxOperations) {
			break
		}
		n++
		if call.ctx.Err() != nil {
			c.deliver(call, none, c.contextError(call.ctx, false))
			continue
		}
		call.inFlight = true
		bytes += call.size
		if c.codec.Remote(call.op) {
			c.remote++
		}
		c.inFlight = append(c.inFlight, call)
		if alone {
			break
		}
	}
	rest := copy(c.queue, c.queue[n:])
	clear(c.queue[rest:])
	c.queue = c.queue[:rest]
	c.callersWaiting, c.maybeLogged, c.callerToldNotProposed = len(c.inFlight), false, false
	return c.callersWaiting > 0
}

// markProposed is called before a copy of the entry is proposed: from then on a
// caller that leaves does not know the outcome. It marks nothing if the entry must
// not be proposed: because no caller waits any more, or because a caller was told
// that nothing was proposed. It returns how many callers wait, and whether one was
// told so.
func (c *Combiner[O, R]) markProposed() (callersWaiting int, callerToldNotProposed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.checkInvariants()
	if c.callersWaiting > 0 && !c.callerToldNotProposed {
		c.maybeLogged = true
	}
	return c.callersWaiting, c.callerToldNotProposed
}

// setMaybeLogged records what is known after a copy was proposed, or after Raft
// has reported what became of it.
func (c *Combiner[O, R]) setMaybeLogged(maybeLogged bool) {
	c.mu.Lock()
	c.maybeLogged = maybeLogged
	c.checkInvariants()
	c.mu.Unlock()
}

// requeue puts the operations of the entry back to the front of the queue, to be
// encoded alone if alone is set.
func (c *Combiner[O, R]) requeue(alone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.checkInvariants()
	c.maybeLogged = false
	queue := make([]*doCall[O, R], 0, len(c.inFlight)+len(c.queue))
	for _, call := range c.inFlight {
		call.inFlight, call.alone = false, alone
		if call.state.Load() == abandoned {
			c.recycle(call)
			continue
		}
		queue = append(queue, call)
	}
	c.queue = append(queue, c.queue...)
}

// failAll answers all calls of the entry with an error.
func (c *Combiner[O, R]) failAll(err error) {
	var none R
	for _, call := range c.inFlight {
		c.deliver(call, none, err)
	}
}

// deliverAll answers each call of the entry with its result.
func (c *Combiner[O, R]) deliverAll(results []R) {
	if len(results) != len(c.inFlight) {
		c.failAll(fmt.Errorf("%w: %w", ErrOutcomeUnknown, errResultsNotKept))
		return
	}
	for i, call := range c.inFlight {
		c.deliver(call, results[i], nil)
	}
}

// dropEntry gives up an entry whose callers have all left.
func (c *Combiner[O, R]) dropEntry() {
	for _, call := range c.inFlight {
		c.recycle(call)
	}
}

// propose encodes the operations in flight, has them applied, and answers their
// callers. It returns false when the combiner or its shard is closed.
func (c *Combiner[O, R]) propose() bool {
	c.ops = c.ops[:0]
	for _, call := range c.inFlight {
		c.ops = append(c.ops, call.op)
	}
	c.sequence++
	cmd, err := c.codec.Encode(c.session, c.sequence, c.ops)
	clear(c.ops)
	if err != nil {
		if len(c.inFlight) > 1 {
			c.requeue(true) // each alone, so that only the one that cannot be encoded fails
		} else {
			c.failAll(err)
		}
		return true
	}
	c.answers.expect(c.session, c.sequence)
	defer c.answers.expect(0, 0)
	s := resubmitter{raft: c.raft}
	for due := true; ; {
		if due {
			next, done, open := c.proposeCopy(&s, cmd)
			if done {
				return open
			}
			c.timer.Reset(next)
		}
		due = false
		switch event, r := c.await(&s); event {
		case closing:
			c.failAll(closedError(s.maybeLogged()))
			return false
		case woken:
			if c.finished(&s) {
				return true
			}
		case raftResult:
			again, after := s.handleRaftResult(r)
			c.setMaybeLogged(s.maybeLogged())
			if again {
				c.timer.Reset(after)
			}
		case leaderChanged:
			due, s.patience = true, 0 // start again with the shortest wait
		case timedOut:
			due = true
		}
	}
}

// proposeCopy proposes a copy of the entry. It returns how long to wait before the
// next one; done, if the calls of the entry are answered, requeued or dropped; and
// open, if the combiner and its shard are open.
func (c *Combiner[O, R]) proposeCopy(s *resubmitter, cmd []byte) (next time.Duration, done, open bool) {
	callersWaiting, callerToldNotProposed := c.markProposed()
	if callersWaiting == 0 {
		c.dropEntry()
		return 0, true, true
	}
	if callerToldNotProposed {
		// These bytes hold the operation of a caller that was told it was not proposed,
		// so they must not be proposed. No copy is in a log, which is why the other
		// operations may go into another entry.
		c.requeue(false)
		return 0, true, true
	}
	c.releaseLast()
	next, err := s.submit(cmd, c.cfg.Resubmit)
	c.setMaybeLogged(s.maybeLogged())
	switch {
	case errors.Is(err, ErrClosed):
		c.failAll(closedError(s.maybeLogged()))
		return 0, true, false
	case err != nil && s.maybeLogged():
		c.failAll(fmt.Errorf("%w: %w", ErrOutcomeUnknown, err))
		return 0, true, true
	case err != nil:
		c.failAll(err)
		return 0, true, true
	}
	return next, false, true
}

// releaseLast gives the request of the last entry back to Dragonboat, which
// reports its result a moment after the machine has answered. A request without a
// result is left to the garbage collector.
func (c *Combiner[O, R]) releaseLast() {
	if c.unreleased == nil {
		return
	}
	select {
	case <-c.unreleased.AppliedC():
		c.unreleased.Release()
	default:
	}
	c.unreleased = nil
}

func closedError(maybeLogged bool) error {
	if maybeLogged {
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrClosed)
	}
	return ErrClosed
}

// finished reports whether the entry is answered, requeued or dropped, after the
// goroutine was woken.
func (c *Combiner[O, R]) finished(s *resubmitter) bool {
	kind, results, _ := c.answers.takeAnswer()
	switch kind {
	case entryApplied:
		c.deliverAll(results)
		c.unreleased = s.latest
		return true
	case sessionUnknown:
		c.session = 0
		if s.copies > 1 {
			// Another copy may have been applied while the session existed.
			c.failAll(fmt.Errorf("%w: the session has expired", ErrOutcomeUnknown))
		} else {
			c.requeue(false)
		}
		return true
	}
	c.mu.Lock()
	callersWaiting := c.callersWaiting
	c.mu.Unlock()
	if callersWaiting == 0 {
		c.dropEntry()
		return true
	}
	return false
}
