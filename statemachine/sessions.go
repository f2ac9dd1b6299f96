package statemachine

import (
	"maps"
	"slices"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// MaxSessions bounds the sessions of a shard. One more session takes the place of
// the one that has been unused for longest. The bound is far above the number of
// nodes and clients that write.
const MaxSessions = 8192

// DefaultSessionTTL is how long, in milliseconds of the shard's clock, an unused
// session is kept. It is far longer than any caller waits.
const DefaultSessionTTL = 3600_000

// maxEarlier bounds the entries before the last one whose results a session keeps.
// Proposers have fewer entries in flight.
const maxEarlier = 64

// Sessions make entries, and the operations of remote clients, apply once, and those of
// one session in the order of their sequences. R is the type of a result or an outcome.
// Where the last entry of the session has the sequence last:
//
//	sequence of an entry    in flight with others   verdict
//	higher than last        no                      Apply: what is missing in between was given up by its proposer
//	last+1                  yes                     Apply
//	higher than last+1      yes                     Early: the proposer sends what is missing and this entry again
//	last, or an earlier one whose results the       Repeat: it is a copy
//	  session keeps
//	any other               any                     Stale: it is a copy that was delivered late, or was given up
//
// An entry is in flight with others if Entry.Oldest is not 0: its proposer had no results
// yet of the entries from Oldest on. The session keeps those until an entry says that the
// proposer has them. So a proposer may send several entries without waiting; if one of
// them is lost, none of those after it is applied before it has been sent again, on any
// replica.
//
// Sessions are replicated state: all methods are called by the apply goroutine, or
// under the same mutex.
type Sessions[R any] struct {
	byID map[uint64]*wire.Session[R]
	// unsaved are the ids of sessions that were changed or dropped since the last
	// call of Saved.
	unsaved map[uint64]bool
}

// A Verdict says what a machine does with an entry.
type Verdict int

const (
	Apply   Verdict = iota // apply it
	Repeat                 // it is a copy of an entry whose results the session keeps: answer with these
	Stale                  // it is older than those: drop it
	Early                  // the entry that it has to follow has not been applied: drop it
	Unknown                // there is no such session: drop it and say so
)

// Load replaces all sessions.
func (s *Sessions[R]) Load(all []wire.Session[R]) {
	s.byID = make(map[uint64]*wire.Session[R], len(all))
	s.unsaved = map[uint64]bool{}
	for i := range all {
		s.byID[all[i].ID] = &all[i]
	}
}

// All returns copies of the sessions, ordered by id.
func (s *Sessions[R]) All() []wire.Session[R] {
	out := make([]wire.Session[R], 0, len(s.byID))
	for _, id := range slices.Sorted(maps.Keys(s.byID)) {
		out = append(out, *s.byID[id])
	}
	return out
}

// Len returns the number of sessions.
func (s *Sessions[R]) Len() int { return len(s.byID) }

// Get returns the session with this id, or nil.
func (s *Sessions[R]) Get(id uint64) *wire.Session[R] { return s.byID[id] }

// Open makes the entry at index a new session, last used at now. It ends the
// sessions of earlier incarnations of the node, since nobody can use them any more.
func (s *Sessions[R]) Open(index, now, node, incarnation uint64) {
	if node != 0 {
		for id, other := range s.byID {
			if other.Node == node && other.Incarnation < incarnation {
				s.drop(id)
			}
		}
	}
	if len(s.byID) >= MaxSessions {
		s.evict()
	}
	s.byID[index] = &wire.Session[R]{ID: index, LastUsed: now, Node: node, Incarnation: incarnation}
	s.unsaved[index] = true
}

// evict drops the session that has been unused for longest: one of a remote client if
// there is any, because these can become many.
func (s *Sessions[R]) evict() {
	var oldest *wire.Session[R]
	for _, session := range s.byID {
		if oldest == nil || evictBefore(session, oldest) {
			oldest = session
		}
	}
	s.drop(oldest.ID)
}

func evictBefore[R any](a, b *wire.Session[R]) bool {
	switch {
	case (a.Node == 0) != (b.Node == 0):
		return a.Node == 0
	case a.LastUsed != b.LastUsed:
		return a.LastUsed < b.LastUsed
	}
	return a.ID < b.ID
}

func (s *Sessions[R]) drop(id uint64) {
	delete(s.byID, id)
	s.unsaved[id] = true
}

// Expire drops the sessions that were last used before a time of the clock.
func (s *Sessions[R]) Expire(before uint64) {
	for id, session := range s.byID {
		if session.LastUsed < before {
			s.drop(id)
		}
	}
}

// Admit decides what to do with an entry. If the entry is to be applied, the session's
// sequence is set to that of the entry, and of the kept results only those of the entries
// from oldest on remain. oldest is Entry.Oldest.
func (s *Sessions[R]) Admit(id, sequence, oldest, now uint64) (*wire.Session[R], Verdict) {
	session := s.byID[id]
	switch {
	case session == nil:
		return nil, Unknown
	case sequence == 0: // sequences begin at 1
		return session, Stale
	case sequence <= session.Sequence && session.Sequence-sequence <= uint64(len(session.Earlier)):
		return session, Repeat
	case sequence < session.Sequence:
		return session, Stale
	case oldest != 0 && sequence != session.Sequence+1:
		return session, Early
	}
	session.Earlier = earlierFrom(session, oldest)
	session.Sequence, session.LastUsed = sequence, now
	session.Results = nil
	s.unsaved[id] = true
	return session, Apply
}

// earlierFrom returns the kept results of the session's entries from oldest on, when
// another entry is about to be applied. If oldest is 0, there are none.
func earlierFrom[R any](session *wire.Session[R], oldest uint64) [][]R {
	if oldest == 0 || oldest > session.Sequence {
		return nil
	}
	keep := min(session.Sequence-oldest, uint64(len(session.Earlier)), maxEarlier-1)
	// A copy: what All has returned must not change.
	return append(slices.Clone(session.Earlier[uint64(len(session.Earlier))-keep:]), session.Results)
}

// AdmitClient decides what to do with an operation or command of a remote client, as
// Admit does with an entry. If it is applied, the result is passed to Keep.
func (s *Sessions[R]) AdmitClient(o *wire.Origin, now uint64) (*wire.Session[R], Verdict) {
	if session := s.byID[o.Session]; session == nil || session.Node != 0 {
		return nil, Unknown // a client has no say in the sessions of nodes
	}
	session, verdict := s.Admit(o.Session, o.Sequence, 0, now)
	if verdict == Repeat && len(session.Results) != 1 {
		verdict = Stale // a client does not use its session for entries
	}
	return session, verdict
}

// Keep sets the result that a copy of a remote client's operation gets. It does nothing
// if the client has sent a later operation.
func (s *Sessions[R]) Keep(o *wire.Origin, kept R) {
	if session := s.byID[o.Session]; session != nil && session.Sequence == o.Sequence {
		session.Results = []R{kept}
		s.unsaved[o.Session] = true
	}
}

// Changed records that a session has to be saved: because the caller changed it,
// or because what is saved of it is out of date.
func (s *Sessions[R]) Changed(id uint64) { s.unsaved[id] = true }

// Unsaved returns, in order, the ids of sessions that were changed or dropped
// since the last call of Saved.
func (s *Sessions[R]) Unsaved() []uint64 { return slices.Sorted(maps.Keys(s.unsaved)) }

// Saved records that all sessions were saved as they are now.
func (s *Sessions[R]) Saved() { clear(s.unsaved) }
