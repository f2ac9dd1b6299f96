package cluster

import (
	"runtime"
	"time"
)

// run is the goroutine. All that it calls as a condition returns false when the
// combiner or its shard is closed.
func (c *Combiner[O, R]) run() {
	defer close(c.done)
	defer c.timer.Stop()
	defer c.paceTimer.Stop()
	for (c.cfg.Eager && c.session == 0 || c.waitQueue()) && c.waitLeader() {
		if c.session == 0 {
			if !c.openSession() {
				break
			}
			continue // callers may have left meanwhile
		}
		if !c.waitHold() || !c.gather() {
			break
		}
		c.gathering.begin()
		if !c.runWindow() {
			break
		}
		c.gathering.end(c.remote, c.queued())
		c.yieldToCallers(c.lastAnswered, c.cfg.Yields)
	}
	c.failQueue()
}

// yieldToCallers yields the processor to the callers just answered, most of whom
// come with their next operation at once. It returns when as many calls wait as
// there were in the last entry, or when so many yields have brought no new call. An entry
// of many operations costs hardly more than an entry of one.
func (c *Combiner[O, R]) yieldToCallers(want, yields int) {
	last := 0
	for inVain := 0; inVain < yields; inVain++ {
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
		c.wakeOnDo = len(c.queue) == c.abandonedInQueue
		c.checkInvariants()
		empty, closed := c.wakeOnDo, c.closed
		c.mu.Unlock()
		if closed {
			return false
		}
		if !empty {
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

// Hold keeps the combiner from making new entries for d, or until the leader
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
