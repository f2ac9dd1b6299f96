package statemachine

import "sync/atomic"

// MaxAdvanceInterval is the longest time, in milliseconds, between two advances of a
// shard's clock while the shard counts a duration. After an election the shard
// has lost at most this much time.
const MaxAdvanceInterval = 10_000

// A Clock is the state of a shard's clock on this node.
type Clock struct {
	Now   uint64 // milliseconds
	Nonce uint64 // of the clock advance that set Now; 0: unknown
	Runs  bool   // the shard counts a duration, so the clock has to be moved
	Wait  uint64 // milliseconds until the clock has to be moved
}

// A PublishedClock is the clock as the apply goroutine last published it. Other
// goroutines read it without a lock.
type PublishedClock struct{ clock atomic.Pointer[Clock] }

// Publish makes Clock return c.
func (p *PublishedClock) Publish(c Clock) {
	if old := p.clock.Load(); old == nil || *old != c {
		p.clock.Store(&c)
	}
}

// Clock returns the clock as last published. Publish must have been called.
func (p *PublishedClock) Clock() Clock { return *p.clock.Load() }
