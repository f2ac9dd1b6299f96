package hiqlite

import (
	"math/rand/v2"
	"time"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

const (
	// fineTick is how often the clocks are looked at, and moved at most.
	fineTick = 100 * time.Millisecond
	// tickLives is when Raft forgets a tick.
	tickLives = 10 * time.Second
	// tickAgain is when a tick that was not applied is taken for lost.
	tickAgain = 500 * time.Millisecond
	// lastTick bounds how long a node that closes waits for its last ticks.
	lastTick = 250 * time.Millisecond
)

// A shardClock moves the clock of a shard, as long as this node leads it. What
// it counts is measured on this machine's monotonic clock, and no moment is
// counted twice, by whichever nodes: a tick counts only the time since its
// proposer saw the clock's present value in the log, or, if that is its own,
// since it proposed that. timers in package statemachine rely on it.
type shardClock struct {
	shard *cluster.Shard
	// state says where the clock stands and when it has to be moved. most
	// bounds a step, in milliseconds; 0: nothing does.
	state func() (c statemachine.Clock, most uint64)
	// history tells with the ticks what the machine has applied; nil: nothing is
	// told.
	history func() (index, sum uint64)

	value    uint64    // of the clock
	since    time.Time // what follows has not been counted yet
	proposed wire.Tick
	at       time.Time // when that was proposed
}

// next returns the tick that has to be proposed now, if one has. c was read
// before now was.
func (s *shardClock) next(c statemachine.Clock, most uint64, now time.Time, leads bool) (wire.Tick, bool) {
	if c.Now != s.value || s.since.IsZero() {
		s.value, s.since = c.Now, now
		if c.Tick != 0 && c.Tick == s.proposed.Nonce {
			s.since = s.at // it is its own
		}
	}
	if !c.Runs {
		s.since = now // nobody counts
		return wire.Tick{}, false
	}
	step := uint64(now.Sub(s.since).Milliseconds())
	switch {
	case !leads, step == 0, step < c.Wait:
		return wire.Tick{}, false
	case s.proposed.Expected == c.Now && !s.at.IsZero() && now.Sub(s.at) < tickAgain:
		return wire.Tick{}, false // on its way
	}
	if most > 0 {
		step = min(step, most)
	}
	s.proposed, s.at = wire.Tick{Expected: c.Now, Next: c.Now + step, Nonce: rand.Uint64()}, now
	if s.history != nil {
		s.proposed.Applied, s.proposed.History = s.history()
	}
	return s.proposed, true
}

// A teller tells the other replicas of the SQL shard what this one, that of the
// leader, has applied: soon after something was, and as soon as a replica has
// come back. One that has applied other entries stops.
type teller struct {
	told    uint64    // index
	at      time.Time // when it was told
	returns uint64
}

// tellEvery is the least time between two that are told because of new entries.
const tellEvery = time.Second

// due returns the entry that has to be proposed now, if one has: a tick that
// moves no clock.
func (t *teller) due(clock, index, sum, returns uint64, now time.Time) (wire.Tick, bool) {
	// The entry after the one that was told is the tick that told it.
	if returns == t.returns && (index <= t.told+1 || now.Sub(t.at) < tellEvery) {
		return wire.Tick{}, false
	}
	*t = teller{told: index, at: now, returns: returns}
	return wire.Tick{Expected: clock, Next: clock, Applied: index, History: sum}, true
}

// due returns the tick that this node has to propose now, if one has to be; last
// says that it will propose no other.
func (s *shardClock) due(node uint64, last bool) (wire.Tick, bool) {
	c, most := s.state()
	if last {
		c.Wait = 0
	}
	return s.next(c, most, time.Now(), s.shard.Leader().Node == node)
}

// tick moves the clocks of all shards, until the node closes: what it has counted
// by then it tells at last, since it is not known to the next leader if that
// starts later.
func (n *Node) tick() {
	clocks := []*shardClock{{shard: n.shard, state: n.sqlClock, history: n.replica.History}}
	for _, s := range n.memory.all {
		clocks = append(clocks, &shardClock{shard: s.shard, state: func() (statemachine.Clock, uint64) { return s.replica.Clock(), 0 }})
	}
	var tells teller
	for n.sleep(fineTick) {
		if n.pausedError() != nil {
			continue // nothing is proposed
		}
		if len(n.cfg.Nodes) > 1 && n.shard.Leader().Node == n.cfg.NodeID {
			index, sum := n.replica.History()
			if tick, due := tells.due(n.replica.Clock().Now, index, sum, n.shard.Returns(), time.Now()); due {
				_, _ = n.shard.Propose(wire.EncodeTick(tick), tickLives)
			}
		}
		for _, s := range clocks {
			if tick, due := s.due(n.cfg.NodeID, false); due {
				// Lost or late, it is of no use: the next one takes its place.
				_, _ = s.shard.Propose(wire.EncodeTick(tick), tickLives)
			}
		}
	}
	for _, s := range clocks {
		tick, due := s.due(n.cfg.NodeID, true)
		if !due {
			continue
		}
		if rs, err := s.shard.Propose(wire.EncodeTick(tick), lastTick); err == nil {
			n.lastTicks.Go(func() {
				timer := time.NewTimer(lastTick)
				defer timer.Stop()
				select {
				case <-rs.AppliedC():
				case <-timer.C:
				}
			})
		}
	}
}

// sqlClock is the SQL shard's. Its steps are bounded, since what expires there
// counts from the tick before.
func (n *Node) sqlClock() (c statemachine.Clock, most uint64) {
	c = n.replica.Clock()
	return c, 2 * max(c.Wait, uint64(fineTick.Milliseconds()))
}
