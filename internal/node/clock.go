package node

import (
	"math/rand/v2"
	"time"

	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

const (
	// clockInterval is how often clocks are checked, and the least time between
	// two advances of one.
	clockInterval = 100 * time.Millisecond
	// advanceTimeout is when Raft forgets a proposed clock advance.
	advanceTimeout = 10 * time.Second
	// advanceLost is when a proposed clock advance that was not applied is taken
	// for lost.
	advanceLost = 500 * time.Millisecond
	// lastAdvanceWait bounds how long Close waits for the last clock advances.
	lastAdvanceWait = 250 * time.Millisecond
	// reportInterval is the least time between two history reports that new
	// entries cause.
	reportInterval = time.Second
)

// A shardClock proposes the entries that advance a shard's clock, while this node
// leads the shard. The time comes from this machine's monotonic clock. No moment
// is counted twice, even by different nodes: an advance covers only the time since
// its proposer saw the clock's present value in the log or, if the proposer set
// that value itself, since it proposed it. The timers of the in-memory machines
// rely on this.
type shardClock struct {
	shard *shard
	// state returns where the clock stands and when it has to advance.
	state func() statemachine.Clock
	// maxStep returns the most milliseconds that one entry may add; 0: no bound.
	maxStep func(statemachine.Clock) uint64
	// history returns what the machine has applied, which is added to each
	// advance; nil: nothing is added.
	history func() (index, sum uint64)

	value      uint64    // of the clock, when it was last checked
	since      time.Time // the time after this is not in value
	proposed   wire.ClockAdvance
	proposedAt time.Time
}

// next returns the clock advance that has to be proposed now, if any. c was read
// before now.
func (s *shardClock) next(c statemachine.Clock, now time.Time, leads bool) (wire.ClockAdvance, bool) {
	if c.Now != s.value || s.since.IsZero() {
		s.value, s.since = c.Now, now
		if c.Nonce != 0 && c.Nonce == s.proposed.Nonce { // this node has proposed it
			s.since = s.proposedAt
		}
	}
	if !c.Runs { // nothing in the machine depends on the time
		s.since = now
		return wire.ClockAdvance{}, false
	}
	step := uint64(now.Sub(s.since).Milliseconds())
	switch {
	case !leads, step == 0, step < c.Wait:
		return wire.ClockAdvance{}, false
	case s.proposed.Expected == c.Now && !s.proposedAt.IsZero() && now.Sub(s.proposedAt) < advanceLost:
		return wire.ClockAdvance{}, false // the last one is not applied yet
	}
	if s.maxStep != nil {
		step = min(step, s.maxStep(c))
	}
	s.proposed, s.proposedAt = wire.ClockAdvance{Expected: c.Now, Next: c.Now + step, Nonce: rand.Uint64()}, now
	if s.history != nil {
		s.proposed.Applied, s.proposed.History = s.history()
	}
	return s.proposed, true
}

// due is next for the present moment. If last is set, the node proposes no other
// one, so that the advance includes all time that was measured.
func (s *shardClock) due(last bool) (wire.ClockAdvance, bool) {
	c := s.state()
	if last {
		c.Wait = 0
	}
	return s.next(c, time.Now(), s.shard.leads())
}

// A historyReport tells the other machines of the SQL shard what the leader's has
// applied, soon after new entries and as soon as another node has come back. A
// machine that has applied other entries stops.
type historyReport struct {
	index   uint64 // that was reported last
	at      time.Time
	returns uint64 // of other nodes, as of the last report
}

// due returns the report that has to be proposed now, if any: an entry that
// advances no clock.
func (r *historyReport) due(clock, index, sum, returns uint64, now time.Time) (wire.ClockAdvance, bool) {
	// The entry after the reported one is the report itself.
	if returns == r.returns && (index <= r.index+1 || now.Sub(r.at) < reportInterval) {
		return wire.ClockAdvance{}, false
	}
	*r = historyReport{index: index, at: now, returns: returns}
	return wire.ClockAdvance{Expected: clock, Next: clock, Applied: index, History: sum}, true
}

// runClocks advances the clocks of all shards until the node closes. Then it
// proposes the time that it has measured but not yet logged, because a later
// leader could not know it.
func (n *Node) runClocks() {
	clocks := n.shardClocks()
	var report historyReport
	for n.sleep(clockInterval) {
		if n.pausedError() != nil { // this node proposes nothing
			continue
		}
		if !n.alone() && n.sql.leads() {
			index, sum := n.sql.machine.History()
			if t, due := report.due(n.sql.machine.Clock().Now, index, sum, n.sql.raft.Returns(), time.Now()); due {
				_, _ = n.sql.raft.Propose(wire.EncodeClockAdvance(t), advanceTimeout)
			}
		}
		for _, c := range clocks {
			if t, due := c.due(false); due {
				// If it is lost, the next one replaces it.
				_, _ = c.shard.raft.Propose(wire.EncodeClockAdvance(t), advanceTimeout)
			}
		}
	}
	for _, c := range clocks {
		t, due := c.due(true)
		if !due {
			continue
		}
		if request, err := c.shard.raft.Propose(wire.EncodeClockAdvance(t), lastAdvanceWait); err == nil {
			n.lastAdvances.Go(func() {
				timer := time.NewTimer(lastAdvanceWait)
				defer timer.Stop()
				select {
				case <-request.AppliedC():
				case <-timer.C:
				}
			})
		}
	}
}

func (n *Node) shardClocks() []*shardClock {
	clocks := []*shardClock{{
		shard: &n.sql.shard, state: n.sql.machine.Clock, history: n.sql.machine.History,
		// Leases expire by the time between two advances, so that is bounded.
		maxStep: func(c statemachine.Clock) uint64 {
			return 2 * max(c.Wait, uint64(clockInterval.Milliseconds()))
		},
	}}
	for _, s := range n.shards {
		if s.id != sqlID {
			clocks = append(clocks, &shardClock{shard: s, state: s.machine.Clock})
		}
	}
	return clocks
}
