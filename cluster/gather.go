package cluster

import "time"

// maxGather bounds how long the combiner waits for remote callers, and gatherFactor how
// often it waits as long as the last entry took: with small entries in between, the
// operations of the others would not be done sooner, and would cost more.
const (
	maxGather    = 5 * time.Millisecond
	gatherFactor = 2
)

// gatherYields is how often the combiner yields the processor, without a new call, once
// most of the remote callers have come back. It is about the time that a server needs for
// the next request of those that it has received together.
const gatherYields = 64

// maxGatherSkips bounds how many entries are proposed without waiting after waits that
// were in vain.
const maxGatherSkips = 256

// A gathering decides whether the next entry waits for the operations of remote callers.
// The combiner's goroutine owns it.
//
// An entry of many operations costs hardly more than an entry of one, so it pays to have
// the operations of all callers in the same entry. Callers on this node come with their
// next operation as soon as the processor is theirs; see yieldToCallers. A remote caller
// needs a round trip. If the combiner proposed what is queued meanwhile, the callers would
// stay divided into two groups, which wait for each other's entries for ever. So the
// combiner waits until most of the callers have come back, but not much longer than the
// last entry took. Callers that do not come back, because they have other things to do,
// make the wait be in vain. The combiner then tries it ever less often.
type gathering struct {
	expected int           // callers that may be in the next entry: those just answered, and those queued then; 0: none was remote
	proposed time.Time     // when the last entry was proposed
	answered time.Time     // when its callers were answered
	took     time.Duration // the time between the two
	inVain   int           // how many waits have been in vain, one after the other
	skip     int           // how many entries do not wait
}

// begin is called before an entry is proposed.
func (g *gathering) begin() { g.proposed, g.expected = time.Now(), 0 }

// end is called when the callers of the entry have been answered. remote is how many of
// them are remote, and queued how many other calls wait.
func (g *gathering) end(remote, queued int) {
	if remote == 0 {
		return
	}
	g.answered = time.Now()
	g.took = g.answered.Sub(g.proposed)
	g.expected = remote + queued
}

// wanted returns how many calls are to be queued before the next entry is proposed, and
// how long to wait for them.
func (g *gathering) wanted() (calls int, wait time.Duration) {
	if g.expected < 2 {
		return 0, 0
	}
	if wait = min(gatherFactor*g.took, maxGather) - time.Since(g.answered); wait <= 0 {
		return 0, 0
	}
	if g.skip > 0 {
		g.skip--
		return 0, 0
	}
	return g.expected - g.expected/4, wait // the others may have stopped, or come while the first ones are collected
}

// waited is called after a wait.
func (g *gathering) waited(inVain bool) {
	if !inVain {
		g.inVain = 0
		return
	}
	g.skip = min(1<<min(g.inVain, 30), maxGatherSkips)
	g.inVain++
}

// gather waits for remote callers that are likely to come with their next operation. It
// returns false when the combiner or its shard is closed.
func (c *Combiner[O, R]) gather() bool {
	if c.pace.several() {
		return true // callers that come later need not wait for this entry
	}
	expected := c.gathering.expected
	wanted, wait := c.gathering.wanted()
	if wanted == 0 {
		if expected > 1 {
			c.yieldToCallers(expected, gatherYields)
		}
		return true
	}
	if !c.wakeAt(wanted) {
		c.gathering.waited(false)
		return true
	}
	defer c.wakeAt(0)
	c.timer.Reset(wait)
	for {
		select {
		case <-c.wake:
			if c.queued() < wanted { // the signal is an old one
				continue
			}
			c.gathering.waited(false)
			c.yieldToCallers(expected, gatherYields)
			return true
		case <-c.timer.C:
			c.gathering.waited(true)
			return true
		case <-c.stop:
			return false
		case <-c.raft.Done():
			return false
		}
	}
}

// wakeAt makes Do wake the goroutine once so many calls are queued; 0: not any more. It
// returns false if they are queued already.
func (c *Combiner[O, R]) wakeAt(calls int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gatherUntil = calls
	if calls != 0 && len(c.queue)-c.abandonedInQueue >= calls {
		c.gatherUntil = 0
		return false
	}
	return true
}

// queued returns how many calls are queued whose callers wait.
func (c *Combiner[O, R]) queued() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) - c.abandonedInQueue
}
