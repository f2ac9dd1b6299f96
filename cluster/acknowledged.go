package cluster

import (
	"time"

	"github.com/lni/dragonboat/v4/raftpb"
)

// maxLateness is longer than any message is on its way: the transport ends a connection
// whose messages are not acknowledged, or not read, for some seconds.
const maxLateness = 30 * time.Second

// acknowledged is what a replica has acknowledged to this node, as the leader.
//
// A log that ends before the index has lost entries, unless the message that says so was
// sent before the replica acknowledged the entries: messages overtake each other, because
// there are two connections between two nodes, and they change.
//
//	what was acknowledged                               the message was sent
//	in a term before the one in which it was sent       after the acknowledgement
//	in the term in which it was sent, or a later one    before or after it; after it, if the
//	                                                      acknowledgement is old
type acknowledged struct {
	index   uint64    // of the last committed entry that the replica has acknowledged; never decreases
	term    uint64    // of this node as the leader to which it was acknowledged; 0: before this node was started
	earlier uint64    // what it had acknowledged in terms before that term
	at      time.Time // when index was set
}

// add records that a replica has acknowledged an entry to the leader of a term.
func (a acknowledged) add(index, term uint64, now time.Time) acknowledged {
	if index <= a.index {
		return a
	}
	if term > a.term {
		a.earlier = a.index
	}
	return acknowledged{index, term, a.earlier, now}
}

// provesLoss reports whether a message was certainly sent after its sender had
// acknowledged more than its log has, which ends at an index. Entries after the
// committed one do not count, because a log may replace them.
func (a acknowledged) provesLoss(m *raftpb.Message, end, committed uint64, now time.Time) bool {
	term := m.Term // in which the message was sent
	if m.Type == raftpb.RequestPreVote {
		term-- // it has the term in which its sender would be a candidate
	}
	switch {
	case end >= min(a.index, committed):
		return false
	case a.term < term, now.Sub(a.at) > maxLateness:
		return true
	}
	return a.term == term && end < min(a.earlier, committed)
}
