package cluster

import "time"

const (
	// maxWindow bounds the entries of a combiner that are in flight. It is smaller than
	// the number of entries whose results a session keeps.
	maxWindow = 16

	// defaultLongRound is the round from which on several entries are in flight. See
	// docs/DECISIONS.md for the measurements.
	defaultLongRound = 5 * time.Millisecond

	// roundsPerPeriod is the number of rounds of a period of pace.
	roundsPerPeriod = 4
)

// A pace decides when the next entry may be made while others are in flight. A round is
// the time from proposing an entry to its answer. If rounds are short, an operation that
// waits for the present round loses little, and is combined with others into the next
// entry, which costs less than an entry for each. If even the shortest of the last rounds
// was long, nodes are far apart, and waiting for the present round would cost half a
// round more. Then entries are made at even intervals: maxWindow of them in a round, but
// not more than two in the time of a round that is just not long. So the longest wait for
// an entry is a small part of a round, and entries of several operations stay the rule
// when many operations come.
//
// The shortest round counts, because a round also takes longer when a copy is lost, when
// the machine is busy, or when an operation is slow, and more entries in flight would not
// help then.
type pace struct {
	long time.Duration // from here on rounds are long; negative: none is

	shortest, before time.Duration // the shortest rounds of this period and the one before; 0: none
	rounds           int           // of this period
	last             time.Time     // when the last entry was made
}

// add records a round.
func (p *pace) add(round time.Duration) {
	round = max(round, 1)
	if p.shortest == 0 || round < p.shortest {
		p.shortest = round
	}
	if p.rounds++; p.rounds == roundsPerPeriod {
		p.shortest, p.before, p.rounds = 0, p.shortest, 0
	}
}

// round returns the shortest of the last rounds; 0: none is known.
func (p *pace) round() time.Duration {
	if p.shortest == 0 || p.before != 0 && p.before < p.shortest {
		return p.before
	}
	return p.shortest
}

// several reports whether several entries may be in flight.
func (p *pace) several() bool { return p.long >= 0 && p.round() > p.long }

// wait returns how long to wait for the next entry while others are in flight.
func (p *pace) wait(now time.Time) time.Duration {
	return max(p.round()/maxWindow, p.long/2) - now.Sub(p.last)
}
