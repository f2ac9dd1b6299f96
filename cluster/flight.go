package cluster

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"
)

// mailbox is where the apply goroutine leaves answers for the combiner's. It
// has a lock of its own, held for a few instructions, so that apply never waits
// for the combiner.
type mailbox[R any] struct {
	wake chan struct{} // the combiner's

	mu       sync.Mutex
	session  uint64 // of the entry in flight
	sequence uint64 // of the entry in flight; 0: none, or answered
	nonce    uint64 // the first of the session being opened; 0: none
	nonces   uint64 // how many were proposed
	kind     answerKind
	results  []R
	opened   uint64
}

type answerKind int

const (
	noAnswer       answerKind = iota
	applied                   // results has the results of the entry in flight
	unknownSession            // a machine refused the entry in flight
	openedSession             // opened has the new session
)

func (m *mailbox[R]) expect(session, sequence uint64) {
	m.mu.Lock()
	m.session, m.sequence, m.kind = session, sequence, noAnswer
	m.mu.Unlock()
}

func (m *mailbox[R]) expectSession(nonce, nonces uint64) {
	m.mu.Lock()
	m.nonce, m.nonces = nonce, nonces
	m.mu.Unlock()
}

// take returns the answer, once.
func (m *mailbox[R]) take() (kind answerKind, results []R, session uint64) {
	m.mu.Lock()
	kind, results, session = m.kind, m.results, m.opened
	m.kind, m.results = noAnswer, nil
	m.mu.Unlock()
	return kind, results, session
}

// Applied tells that an entry was applied, with one result per operation. The
// machine calls it from its apply goroutine for every entry of every session,
// after its commit, also when it only repeated stored results of a known
// sequence; what is not in flight here is ignored. With another number of
// results (nil, if they were not kept) the callers get ErrOutcomeUnknown. The
// combiner keeps results; they must not be changed any more. It never blocks.
func (c *Combiner[O, R]) Applied(session, sequence uint64, results []R) {
	c.answers.answer(session, sequence, applied, results)
}

// SessionUnknown tells that an entry was refused because its session does not
// exist. Called like Applied. It never blocks.
func (c *Combiner[O, R]) SessionUnknown(session, sequence uint64) {
	c.answers.answer(session, sequence, unknownSession, nil)
}

func (m *mailbox[R]) answer(session, sequence uint64, kind answerKind, results []R) {
	m.mu.Lock()
	match := sequence != 0 && session == m.session && sequence == m.sequence
	if match {
		m.sequence, m.kind, m.results = 0, kind, results
	}
	m.mu.Unlock()
	if match {
		m.signal()
	}
}

// SessionOpened tells that the entry OpenSession(nonce) was applied, and made
// the session. Called like Applied, for every such entry. It never blocks.
func (c *Combiner[O, R]) SessionOpened(nonce, session uint64) {
	m := &c.answers
	m.mu.Lock()
	match := m.nonce != 0 && nonce-m.nonce < m.nonces
	if match {
		m.nonce, m.kind, m.opened = 0, openedSession, session
	}
	m.mu.Unlock()
	if match {
		m.signal()
	}
}

func (m *mailbox[R]) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// courier proposes one entry again and again until it is answered.
type courier struct {
	raft    raft
	rs      *dragonboat.RequestState // of the latest copy; nil: it has an outcome
	changed <-chan struct{}
	copies  int           // how many copies may be in a log
	wait    time.Duration // until the next copy
}

// doubt tells whether some copy may be in a log.
func (f *courier) doubt() bool { return f.copies > 0 }

// propose proposes a copy. It returns when to look again without an event, and
// an error if there will be no use in trying again. No leader: no copy.
func (f *courier) propose(cmd []byte, resubmit time.Duration) (time.Duration, error) {
	f.changed = f.raft.LeaderChanged()
	if f.raft.Leader().Node == 0 {
		return resubmit, nil
	}
	rs, err := f.raft.Propose(cmd, proposalTimeout)
	switch {
	case err == nil:
		f.rs = rs
		f.copies++
		f.wait = min(max(2*f.wait, resubmit), 8*resubmit)
		return f.wait, nil
	case errors.Is(err, ErrClosed):
		return 0, err
	case errors.Is(err, dragonboat.ErrPayloadTooBig):
		return 0, fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return pause, nil // busy, or not ready yet
}

// outcome takes in what Raft says of the latest copy, and tells whether to
// propose another one and how soon.
func (f *courier) outcome(r dragonboat.RequestResult) (again bool, after time.Duration) {
	f.rs.Release()
	f.rs = nil
	switch {
	case r.Dropped():
		f.copies-- // this one is in no log
		return true, pause
	case r.Completed():
		// Applied, so the machine has answered or will not: the timer decides.
		return false, 0
	}
	return true, pause // timed out, terminated: who knows
}

// event is what ended a wait.
type event int

const (
	closing event = iota
	roused
	outcome
	leaderChanged
	timedOut
)

// await waits for the next event of the courier's entry.
func (c *Combiner[O, R]) await(f *courier) (event, dragonboat.RequestResult) {
	var results chan dragonboat.RequestResult
	if f.rs != nil {
		results = f.rs.AppliedC()
	}
	select {
	case <-c.wake:
		return roused, dragonboat.RequestResult{}
	case r := <-results:
		return outcome, r
	case <-f.changed:
		return leaderChanged, dragonboat.RequestResult{}
	case <-c.timer.C:
		return timedOut, dragonboat.RequestResult{}
	case <-c.stop:
	case <-c.raft.Done():
	}
	return closing, dragonboat.RequestResult{}
}

// openSession opens a session: it tries until it has one, each time with
// another nonce, as two entries with the same one would open two sessions of
// which one is lost. False: closed.
func (c *Combiner[O, R]) openSession() bool {
	first, tries := nonce(), uint64(0)
	f := courier{raft: c.raft}
	defer c.answers.expectSession(0, 0)
	for due := true; ; {
		if due {
			c.answers.expectSession(first, tries+1)
			next, err := f.propose(c.codec.OpenSession(first+tries), c.cfg.Resubmit)
			if err != nil {
				return false
			}
			tries++
			c.timer.Reset(next)
		}
		due = false
		switch event, r := c.await(&f); event {
		case closing:
			return false
		case roused:
			if kind, _, session := c.answers.take(); kind == openedSession {
				c.session, c.sequence = session, 0
				c.opened.Store(session)
				return true
			}
		case outcome:
			if again, after := f.outcome(r); again {
				c.timer.Reset(after)
			}
		case leaderChanged:
			due, f.wait = true, 0 // not as patient as with the one before
		case timedOut:
			due = true
		}
	}
}

// take moves waiting operations into the entry in flight. It returns false if
// none is left.
func (c *Combiner[O, R]) take() bool {
	var none R
	c.flight = c.flight[:0]
	c.mu.Lock()
	defer c.mu.Unlock()
	bytes, n := 0, 0
	for _, w := range c.queue {
		if w.state.Load() == abandoned {
			c.left--
			c.recycle(w)
			n++
			continue
		}
		alone := w.solo || c.codec.Exclusive(w.op)
		if len(c.flight) > 0 && (alone || bytes+w.size > c.cfg.MaxEntryBytes || len(c.flight) == c.cfg.MaxOperations) {
			break
		}
		n++
		if w.ctx.Err() != nil {
			c.deliver(w, none, c.ended(w.ctx, false))
			continue
		}
		w.flying = true
		bytes += w.size
		c.flight = append(c.flight, w)
		if alone {
			break
		}
	}
	rest := copy(c.queue, c.queue[n:])
	clear(c.queue[rest:])
	c.queue = c.queue[:rest]
	c.live, c.doubt, c.shrunk = len(c.flight), false, false
	return c.live > 0
}

// commit says that a copy of the entry is about to be proposed: from here on a
// caller that leaves does not know the outcome. It returns how many callers
// wait, and whether some left who were told that nothing was proposed.
func (c *Combiner[O, R]) commit() (live int, shrunk bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live > 0 && !c.shrunk {
		c.doubt = true
	}
	return c.live, c.shrunk
}

// settle says what is known after a proposal or an outcome.
func (c *Combiner[O, R]) settle(doubt bool) {
	c.mu.Lock()
	c.doubt = doubt
	c.mu.Unlock()
}

// requeue puts the entry's operations back in front of the queue.
func (c *Combiner[O, R]) requeue(solo bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doubt = false
	queue := make([]*waiter[O, R], 0, len(c.flight)+len(c.queue))
	for _, w := range c.flight {
		w.flying, w.solo = false, solo
		if w.state.Load() == abandoned {
			c.recycle(w)
			continue
		}
		queue = append(queue, w)
	}
	c.queue = append(queue, c.queue...)
}

// fail gives every caller of the entry the error.
func (c *Combiner[O, R]) fail(err error) {
	var none R
	for _, w := range c.flight {
		c.deliver(w, none, err)
	}
}

// fly has the operations in flight applied, and answers their callers. False:
// closed.
func (c *Combiner[O, R]) fly() bool {
	c.ops = c.ops[:0]
	for _, w := range c.flight {
		c.ops = append(c.ops, w.op)
	}
	c.sequence++
	cmd, err := c.codec.Encode(c.session, c.sequence, c.ops)
	clear(c.ops)
	if err != nil {
		if len(c.flight) > 1 {
			c.requeue(true) // each alone: only the guilty one shall fail
		} else {
			c.fail(err)
		}
		return true
	}
	c.answers.expect(c.session, c.sequence)
	defer c.answers.expect(0, 0)
	f := courier{raft: c.raft}
	for due := true; ; {
		if due {
			next, done, open := c.send(&f, cmd)
			if done {
				return open
			}
			c.timer.Reset(next)
		}
		due = false
		switch event, r := c.await(&f); event {
		case closing:
			c.fail(closedError(f.doubt()))
			return false
		case roused:
			if c.answered(&f) {
				return true
			}
		case outcome:
			again, after := f.outcome(r)
			c.settle(f.doubt())
			if again {
				c.timer.Reset(after)
			}
		case leaderChanged:
			due, f.wait = true, 0 // as in openSession
		case timedOut:
			due = true
		}
	}
}

// send proposes a copy of the entry. done: the entry is over; open: the
// combiner is not.
func (c *Combiner[O, R]) send(f *courier, cmd []byte) (next time.Duration, done, open bool) {
	live, shrunk := c.commit()
	if live == 0 {
		c.abandon()
		return 0, true, true
	}
	if shrunk {
		// Someone was told that nothing was proposed, so these bytes must not
		// be. As no copy is in a log they can be replaced.
		c.requeue(false)
		return 0, true, true
	}
	if c.last != nil { // its outcome came a moment after its answer
		select {
		case <-c.last.AppliedC():
			c.last.Release()
		default:
		}
		c.last = nil
	}
	next, err := f.propose(cmd, c.cfg.Resubmit)
	c.settle(f.doubt())
	switch {
	case errors.Is(err, ErrClosed):
		c.fail(closedError(f.doubt()))
		return 0, true, false
	case err != nil && f.doubt():
		c.fail(fmt.Errorf("%w: %w", ErrOutcomeUnknown, err))
		return 0, true, true
	case err != nil:
		c.fail(err)
		return 0, true, true
	}
	return next, false, true
}

func closedError(doubt bool) error {
	if doubt {
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrClosed)
	}
	return ErrClosed
}

// abandon forgets an entry that nobody waits for. A copy that turns up later
// has a lower sequence than what comes next, and is dropped by the machine.
func (c *Combiner[O, R]) abandon() {
	for _, w := range c.flight {
		c.recycle(w)
	}
}

// answered handles being roused: an answer, or no caller left. True: the entry
// is over.
func (c *Combiner[O, R]) answered(f *courier) bool {
	kind, results, _ := c.answers.take()
	switch kind {
	case applied:
		c.hand(results)
		c.last = f.rs
		return true
	case unknownSession:
		c.session = 0
		if f.copies > 1 {
			// The other copy may have been applied while the session lived.
			c.fail(fmt.Errorf("%w: the session has expired", ErrOutcomeUnknown))
		} else {
			c.requeue(false)
		}
		return true
	}
	c.mu.Lock()
	live := c.live
	c.mu.Unlock()
	if live == 0 {
		c.abandon()
		return true
	}
	return false
}

// hand gives each caller its result.
func (c *Combiner[O, R]) hand(results []R) {
	if len(results) != len(c.flight) {
		c.fail(fmt.Errorf("%w: %w", ErrOutcomeUnknown, errUnanswered))
		return
	}
	for i, w := range c.flight {
		c.deliver(w, results[i], nil)
	}
}
