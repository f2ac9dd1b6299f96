package cluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lni/dragonboat/v4"
)

// copies is what is known of the copies of one entry that were proposed. The combiner's
// goroutine owns it.
type copies struct {
	latest *dragonboat.RequestState // of the latest copy; nil: Raft has reported what became of it, or there is none
	count  int                      // how many may be in a log: those proposed, without those that Raft says it dropped
}

// propose proposes a copy. An error means that it was not proposed.
func (s *copies) propose(raft raft, cmd []byte) error {
	rs, err := raft.Propose(cmd, proposalTimeout)
	if err == nil {
		s.latest = rs
		s.count++
	}
	return err
}

// report takes what Raft reports of the latest copy. It returns whether another copy has
// to be proposed.
func (s *copies) report(r dragonboat.RequestResult) (again bool) {
	s.latest.Release()
	s.latest = nil
	if r.Dropped() {
		s.count-- // this copy is in no log
	}
	// If it is completed, the entry was applied here, so the machine has answered, or will
	// not answer this copy at all. The timer decides. If it has timed out or was
	// terminated, it may be in a log.
	return !r.Completed()
}

// An event ends a wait for the answers to the entries in flight.
type event int

const (
	closing       event = iota // the combiner or its shard is closed
	woken                      // there may be an answer or an operation, or the last caller of an entry has left
	raftResult                 // Raft reports what became of the given copy
	leaderChanged              // the copies in flight may be lost
	timedOut                   // the copies that are due have to be proposed, or all again
	paced                      // the next entry may be made
)

// await waits for the next event. latest is of the copy whose result is returned with
// raftResult, and may be nil.
func (c *Combiner[O, R]) await(latest *dragonboat.RequestState) (event, dragonboat.RequestResult) {
	var results chan dragonboat.RequestResult
	if latest != nil {
		results = latest.AppliedC()
	}
	select {
	case <-c.wake:
		return woken, dragonboat.RequestResult{}
	case r := <-results:
		return raftResult, r
	case <-c.leaderChanged:
		return leaderChanged, dragonboat.RequestResult{}
	case <-c.timer.C:
		return timedOut, dragonboat.RequestResult{}
	case <-c.paceTimer.C:
		return paced, dragonboat.RequestResult{}
	case <-c.stop:
	case <-c.raft.Done():
	}
	return closing, dragonboat.RequestResult{}
}

// proposeDue proposes copies of the entries of the window of which copies are due, in
// order, unless they have to wait for the timer. It returns false if the shard is closed.
func (c *Combiner[O, R]) proposeDue() (open bool) {
	if !c.dueNow || c.due == len(c.window) {
		return true
	}
	c.dueNow = false
	changed := c.raft.LeaderChanged() // before the leader is asked for, to miss no change
	if changed != c.leaderChanged {
		c.due, c.leaderChanged = 0, changed
	}
	if c.raft.Leader().Node == 0 {
		c.timer.Reset(c.cfg.Resubmit)
		return true
	}
	if c.callersWaiting() == 0 {
		c.giveUpWindow()
		return true
	}
	c.releaseAnswered()
	if c.due == 0 {
		c.timer.Reset(c.patience)
	}
	for c.due < len(c.window) {
		if e := c.window[c.due]; !e.answered {
			switch err := c.proposeCopy(e); {
			case errors.Is(err, ErrClosed):
				return false
			case err != nil: // the shard is busy, or not ready yet
				c.timer.Reset(retryPause)
				return true
			}
		}
		c.due++
	}
	return true
}

// proposeCopy proposes a copy of an entry. Its error is ErrClosed or one that passes by
// itself.
func (c *Combiner[O, R]) proposeCopy(e *entryInFlight[O, R]) error {
	if c.markProposed(e) {
		if err := c.encode(e); err != nil {
			c.failAlone(e, err)
		}
	}
	now := time.Now()
	err := e.copies.propose(c.raft, e.cmd)
	if errors.Is(err, dragonboat.ErrPayloadTooBig) { // as the first copy was, too
		c.failAlone(e, fmt.Errorf("%w: %w", ErrTooLarge, err))
		err = e.copies.propose(c.raft, e.cmd)
	}
	c.setMaybeLogged(e)
	if err == nil && e.proposed.IsZero() {
		e.proposed = now
	}
	return err
}

// failAlone answers the calls of an entry of which no copy was proposed with an error.
// The entry stays in the window, without operations, because those after it follow it.
func (c *Combiner[O, R]) failAlone(e *entryInFlight[O, R], err error) {
	c.fail(e, err)
	c.mu.Lock()
	e.callersWaiting = 0
	c.mu.Unlock()
	if err := c.encode(e); err != nil {
		panic("hiqlite: combiner: an entry without operations could not be encoded: " + err.Error())
	}
}

// markProposed is called before a copy of an entry is proposed: from then on a caller
// that leaves does not know the outcome. If a caller was told before that its operation
// was not proposed, markProposed removes the operations of all callers that have left.
// The entry then has to be encoded again, which markProposed reports. No copy of it is in
// a log.
func (c *Combiner[O, R]) markProposed(e *entryInFlight[O, R]) (encodeAgain bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer e.checkInvariants()
	if e.callerToldNotProposed {
		encodeAgain = true
		e.calls = slices.DeleteFunc(e.calls, func(call *doCall[O, R]) bool {
			left := call.state.Load() == abandoned
			if left {
				c.recycle(call)
			}
			return left
		})
		e.callersWaiting, e.callerToldNotProposed = len(e.calls), false
	}
	e.maybeLogged = true
	return encodeAgain
}

// setMaybeLogged records what is known after a copy was proposed, or after Raft has
// reported what became of it.
func (c *Combiner[O, R]) setMaybeLogged(e *entryInFlight[O, R]) {
	c.mu.Lock()
	e.maybeLogged = e.copies.count > 0
	e.checkInvariants()
	c.mu.Unlock()
}

// resubmit has copies proposed when the timer has fired: those that are due, or else of
// all entries in flight, because none of them was answered in time.
func (c *Combiner[O, R]) resubmit() {
	if c.due == len(c.window) {
		c.due, c.patience = 0, min(2*c.patience, 8*c.cfg.Resubmit)
	} else {
		c.timer.Reset(c.patience)
	}
	c.dueNow = true
}

// pending returns the first entry of whose latest copy Raft has not reported what became
// of it, or nil.
func (c *Combiner[O, R]) pending() *entryInFlight[O, R] {
	for _, e := range c.window {
		if e.copies.latest != nil && !e.answered {
			return e
		}
	}
	return nil
}

// handleRaftResult takes what Raft reports of the latest copy of an entry.
func (c *Combiner[O, R]) handleRaftResult(e *entryInFlight[O, R], r dragonboat.RequestResult) {
	again := e.copies.report(r)
	c.setMaybeLogged(e)
	if !again {
		return
	}
	c.due = min(c.due, slices.Index(c.window, e))
	if !c.dueNow {
		c.timer.Reset(retryPause)
	}
}

// pollRaftResults takes what Raft has reported of entries that await does not wait for.
func (c *Combiner[O, R]) pollRaftResults() {
	if len(c.window) < 2 {
		return
	}
	for _, e := range c.window {
		if e.copies.latest == nil || e.answered {
			continue
		}
		select {
		case r := <-e.copies.latest.AppliedC():
			c.handleRaftResult(e, r)
		default:
		}
	}
}

// releaseAnswered gives the requests of answered entries back to Dragonboat, which
// reports their results a moment after the machine has answered. A request without a
// result is left to the garbage collector.
func (c *Combiner[O, R]) releaseAnswered() {
	for _, rs := range c.unreleased {
		select {
		case <-rs.AppliedC():
			rs.Release()
		default:
		}
	}
	clear(c.unreleased)
	c.unreleased = c.unreleased[:0]
}

// openSession opens a session. It proposes entries until one of them has opened a
// session, each with a nonce of its own: two entries with the same nonce would
// open two sessions, and one of them would stay unused for ever. It returns false
// when the combiner or its shard is closed.
func (c *Combiner[O, R]) openSession() bool {
	first, tries := randomNonces(), uint64(0)
	var s copies
	patience := c.cfg.Resubmit
	defer c.answers.expectSession(0, 0)
	for due := true; ; {
		if due {
			c.leaderChanged = c.raft.LeaderChanged() // before the leader is asked for, to miss no change
			next := c.cfg.Resubmit
			if c.raft.Leader().Node != 0 {
				c.answers.expectSession(first, tries+1)
				switch err := s.propose(c.raft, c.codec.OpenSession(first+tries)); {
				case err == nil:
					tries++
					next, patience = patience, min(2*patience, 8*c.cfg.Resubmit)
				case errors.Is(err, ErrClosed):
					return false
				default: // the shard is busy, or not ready yet
					next = retryPause
				}
			}
			c.timer.Reset(next)
		}
		due = false
		switch event, r := c.await(s.latest); event {
		case closing:
			return false
		case woken:
			if session := c.answers.takeSession(); session != 0 {
				c.session, c.sequence = session, 0
				c.current.Store(session)
				return true
			}
		case raftResult:
			if s.report(r) {
				c.timer.Reset(retryPause)
			}
		case leaderChanged:
			due, patience = true, c.cfg.Resubmit // start again with the shortest wait
		case timedOut:
			due = true
		}
	}
}

// randomNonces returns the first of 65536 consecutive nonces that nobody else uses.
// It is never 0.
func randomNonces() uint64 { return rand.Uint64()&^0xffff | 1<<16 }
