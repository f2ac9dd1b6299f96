package replica

import (
	"maps"
	"math"
	"slices"

	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// The sessions of nodes have a row each in the meta table. Remote clients can have many
// sessions, of which most change with each entry while the clients write. A row for each
// cost as much as the inserts of the clients. So sessions of clients share rows: those
// whose ids differ in the lowest groupBits only are a group, and have one row. The results
// of a session can be large; then it has a row of its own, so that the row of its group
// stays small.

const (
	// groupBits makes groups of up to 128 ids. Sessions that a client opens one after the
	// other are mostly in the same group.
	groupBits = 7
	// maxGrouped bounds, in bytes, a session that is in the row of its group.
	maxGrouped = 256
	// firstGroup is the id of the row of group 0. The ids of waiters are far from it.
	firstGroup = math.MinInt64
	// lastGroup is the highest id that a row of a group can have.
	lastGroup = firstGroup + 1<<(63-groupBits)
)

// sessionRows know which sessions of clients the rows of the meta table hold.
type sessionRows struct {
	alone  map[uint64]bool          // ids of sessions of clients that have a row of their own
	groups map[uint64]*sessionGroup // by number; none is empty
}

// A sessionGroup is the content of one row.
type sessionGroup struct {
	members []groupMember // in the order of their ids
}

// A groupMember is a session of a group, as an element of an encoded SessionGroup.
type groupMember struct {
	id      uint64
	encoded []byte
}

func newSessionRows() sessionRows {
	return sessionRows{alone: map[uint64]bool{}, groups: map[uint64]*sessionGroup{}}
}

// loaded notes that a row holds a session of a client.
func (r *sessionRows) loaded(s *wire.Session[wire.Result], grouped bool) {
	switch {
	case grouped:
		r.put(s.ID, wire.AppendGroupedSession(nil, s))
	case s.Node == 0:
		r.alone[s.ID] = true
	}
}

// put makes encoded the session of this id in its group.
func (r *sessionRows) put(id uint64, encoded []byte) {
	g := r.groups[id>>groupBits]
	if g == nil {
		g = new(sessionGroup)
		r.groups[id>>groupBits] = g
	}
	i, found := g.find(id)
	if !found {
		g.members = slices.Insert(g.members, i, groupMember{id: id})
	}
	g.members[i].encoded = append(g.members[i].encoded[:0], encoded...)
}

// remove removes a session from its group, and reports whether it was there.
func (r *sessionRows) remove(id uint64) bool {
	g := r.groups[id>>groupBits]
	if g == nil {
		return false
	}
	i, found := g.find(id)
	if found {
		g.members = slices.Delete(g.members, i, i+1)
	}
	return found
}

func (g *sessionGroup) find(id uint64) (int, bool) {
	return slices.BinarySearchFunc(g.members, id, func(m groupMember, id uint64) int {
		switch {
		case m.id < id:
			return -1
		case m.id > id:
			return 1
		}
		return 0
	})
}

// saveSessions writes the rows of the sessions that have changed.
func (m *metaStatements) saveSessions(s *statemachine.Sessions[wire.Result]) error {
	changed := map[uint64]bool{} // numbers of groups
	for _, id := range s.Unsaved() {
		session := s.Get(id)
		var err error
		switch {
		case session == nil:
			if err = m.run(m.remove, wire.IntegerValue(int64(id))); m.rows.remove(id) {
				changed[id>>groupBits] = true
			}
			delete(m.rows.alone, id)
		case session.Node != 0:
			m.buf = wire.AppendSession(m.buf[:0], session)
			err = m.write(int64(id), m.buf)
		default:
			err = m.saveClient(session, changed)
		}
		if err != nil {
			return err
		}
	}
	for _, number := range slices.Sorted(maps.Keys(changed)) {
		if err := m.saveGroup(number); err != nil {
			return err
		}
	}
	return nil
}

// saveClient writes the row of a session of a client, or puts the session into its group.
func (m *metaStatements) saveClient(s *wire.Session[wire.Result], changed map[uint64]bool) error {
	m.buf = wire.AppendGroupedSession(m.buf[:0], s)
	if len(m.buf) <= maxGrouped {
		m.rows.put(s.ID, m.buf)
		changed[s.ID>>groupBits] = true
		if !m.rows.alone[s.ID] {
			return nil
		}
		delete(m.rows.alone, s.ID)
		return m.run(m.remove, wire.IntegerValue(int64(s.ID)))
	}
	if m.rows.remove(s.ID) {
		changed[s.ID>>groupBits] = true
	}
	m.rows.alone[s.ID] = true
	m.buf = wire.AppendSession(m.buf[:0], s)
	return m.write(int64(s.ID), m.buf)
}

// saveGroup writes the row of a group, or removes it if the group is empty.
func (m *metaStatements) saveGroup(number uint64) error {
	id := firstGroup + int64(number)
	g := m.rows.groups[number]
	if len(g.members) == 0 {
		delete(m.rows.groups, number)
		return m.run(m.remove, wire.IntegerValue(id))
	}
	m.buf = m.buf[:0]
	for i := range g.members {
		m.buf = append(m.buf, g.members[i].encoded...)
	}
	return m.write(id, m.buf)
}
