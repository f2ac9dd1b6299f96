package statemachine

import (
	"slices"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// maxSessions bounds the sessions of a shard; beyond it the one unused for
// longest goes. Far above the number of nodes and clients that write.
const maxSessions = 8192

// defaultSessionTTL is how long, in milliseconds of ticks, an unused session is
// kept: far longer than any caller waits.
const defaultSessionTTL = 3600_000

// keepResult is the size, in bytes, up to which a result is kept, rows and all,
// to answer an entry that comes again.
const keepResult = 4 << 10

// sessions makes entries apply once. An entry of a session is applied only if
// its sequence is higher than the last one's: copies of the last are answered
// from what is kept, older ones (kept back somewhere, delivered late) dropped.
// R is what an operation answers.
type sessions[R any] struct {
	byID  map[uint64]*wire.Session[R]
	dirty map[uint64]bool // changed since they were last written to SQLite
}

type verdict int

const (
	apply verdict = iota
	again         // the last entry once more
	stale         // older than the last entry
	unknown
)

// load takes over all.
func (s *sessions[R]) load(all []wire.Session[R]) {
	s.byID = make(map[uint64]*wire.Session[R], len(all))
	s.dirty = map[uint64]bool{}
	for i := range all {
		s.byID[all[i].ID] = &all[i]
	}
}

// all returns copies of the sessions, in order.
func (s *sessions[R]) all() []wire.Session[R] {
	out := make([]wire.Session[R], 0, len(s.byID))
	for _, session := range s.byID {
		out = append(out, *session)
	}
	slices.SortFunc(out, func(a, b wire.Session[R]) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return out
}

// open makes the entry at index a session. Those of the node's earlier
// incarnations end: nobody is left to use them.
func (s *sessions[R]) open(index, ticks, node, incarnation uint64) {
	if node != 0 {
		for id, other := range s.byID {
			if other.Node == node && other.Incarnation < incarnation {
				s.drop(id)
			}
		}
	}
	if len(s.byID) >= maxSessions {
		s.evict()
	}
	s.byID[index] = &wire.Session[R]{ID: index, Used: ticks, Node: node, Incarnation: incarnation}
	s.dirty[index] = true
}

func (s *sessions[R]) evict() {
	var oldest *wire.Session[R]
	for _, session := range s.byID {
		if oldest == nil || session.Used < oldest.Used || session.Used == oldest.Used && session.ID < oldest.ID {
			oldest = session
		}
	}
	s.drop(oldest.ID)
}

func (s *sessions[R]) drop(id uint64) {
	delete(s.byID, id)
	s.dirty[id] = true
}

// expire drops the sessions that were last used before the tick.
func (s *sessions[R]) expire(before uint64) {
	for id, session := range s.byID {
		if session.Used < before {
			s.drop(id)
		}
	}
}

// admit says what becomes of an entry, and counts it if it is to be applied.
func (s *sessions[R]) admit(id, sequence, ticks uint64) (*wire.Session[R], verdict) {
	session := s.byID[id]
	switch {
	case session == nil:
		return nil, unknown
	case sequence < session.Sequence, sequence == 0: // sequences begin at 1
		return session, stale
	case sequence == session.Sequence:
		return session, again
	}
	session.Sequence, session.Used = sequence, ticks
	session.Results = nil
	s.dirty[id] = true
	return session, apply
}

// kept returns of results what a session keeps. The rows of a large one are not.
func kept(results []wire.Result) []wire.Result {
	out := slices.Clone(results)
	for i := range out {
		if size(&out[i]) <= keepResult {
			continue
		}
		out[i].RowsDropped = true
		out[i].Statements = slices.Clone(out[i].Statements)
		for j := range out[i].Statements {
			out[i].Statements[j].Rows, out[i].Statements[j].More = nil, nil
		}
	}
	return out
}

// size is about how many bytes a result takes.
func size(r *wire.Result) int {
	n := 0
	for i := range r.Statements {
		for _, rows := range r.Statements[i].Sets() {
			for _, c := range rows.Columns {
				n += len(c.Name) + len(c.DeclType) + 4
			}
			n += rows.Size()
		}
	}
	return n
}
