package replica

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// The meta table is written in the same transaction as the rows of a batch. Row 0 has the
// applied index, the clock and the lease; rows with positive ids have sessions, and rows
// with negative ids the waiters of the lease queue. Rows whose ids are below those of
// waiters have groups of sessions; see sessionrows.go.

// metaStatements writes the meta table.
type metaStatements struct {
	conn        *sqlite.Conn
	put, remove *sqlite.Stmt
	rows        sessionRows
	buf         []byte
}

func (m *metaStatements) prepare() (err error) {
	if m.put != nil {
		return nil
	}
	if m.put, _, err = m.conn.Prepare("INSERT OR REPLACE INTO "+sqlite.MetaTable+" VALUES(?,?)", true); err != nil {
		return err
	}
	m.remove, _, err = m.conn.Prepare("DELETE FROM "+sqlite.MetaTable+" WHERE id=?", true)
	return err
}

func (m *metaStatements) close() {
	for _, s := range []*sqlite.Stmt{m.put, m.remove} {
		if s != nil {
			s.Close()
		}
	}
	m.put, m.remove = nil, nil
}

// save writes row 0, and the rows of the sessions and waiters that have changed.
func (m *metaStatements) save(state *wire.State, s *statemachine.Sessions[wire.Result], l *leaseQueue) error {
	if err := m.prepare(); err != nil {
		return err
	}
	m.buf = wire.AppendState(m.buf[:0], state)
	if err := m.write(0, m.buf); err != nil {
		return err
	}
	if err := m.saveSessions(s); err != nil {
		return err
	}
	return m.saveWaiters(l)
}

// saveWaiters makes the table hold the present waiters and no others.
func (m *metaStatements) saveWaiters(l *leaseQueue) error {
	gone := maps.Clone(l.saved)
	for i := range l.waiters {
		w := &l.waiters[i]
		delete(gone, w.Number)
		if l.saved[w.Number] {
			continue
		}
		m.buf = wire.AppendWaiter(m.buf[:0], w)
		if err := m.write(-int64(w.Number), m.buf); err != nil {
			return err
		}
	}
	for _, number := range slices.Sorted(maps.Keys(gone)) {
		if err := m.run(m.remove, wire.IntegerValue(-int64(number))); err != nil {
			return err
		}
	}
	return nil
}

func (m *metaStatements) write(id int64, state []byte) error {
	return m.run(m.put, wire.IntegerValue(id), wire.BlobValue(state))
}

func (m *metaStatements) run(s *sqlite.Stmt, values ...wire.Value) error {
	args := make([]wire.Argument, len(values))
	for i, v := range values {
		args[i].Value = v
	}
	if err := s.Bind(args, nil); err != nil {
		return err
	}
	return s.Run()
}

// load reads the meta table.
func (m *metaStatements) load() (*wire.State, error) {
	m.rows = newSessionRows()
	defer m.conn.AsOwner(true)()
	s, _, err := m.conn.Prepare("SELECT id, state FROM "+sqlite.MetaTable+" ORDER BY id", false)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	state := new(wire.State)
	var waiters []wire.Waiter
	var sessions []wire.Session[wire.Result]
	for {
		row, err := s.Step()
		if err != nil {
			return nil, fmt.Errorf("hiqlite: read the meta table: %w", err)
		}
		if !row {
			slices.Reverse(waiters)
			state.Waiters, state.Sessions = waiters, sessions
			return state, nil
		}
		id := s.Int(0)
		switch {
		case id == 0:
			state, err = wire.DecodeState(s.Bytes(1))
		case id <= lastGroup:
			var group []wire.Session[wire.Result]
			group, err = wire.DecodeSessionGroup(s.Bytes(1))
			for i := range group {
				m.rows.loaded(&group[i], true)
			}
			sessions = append(sessions, group...)
		case id < 0: // the last waiter comes first
			var w *wire.Waiter
			if w, err = wire.DecodeWaiter(s.Bytes(1)); err == nil {
				waiters = append(waiters, *w)
			}
		default:
			var session *wire.Session[wire.Result]
			if session, err = wire.DecodeSession(s.Bytes(1)); err == nil {
				m.rows.loaded(session, false)
				sessions = append(sessions, *session)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%w: row %d of the meta table: %w", ErrDamaged, id, err)
		}
	}
}

// markUnsaved marks the sessions that differ from those that SQLite holds. The next
// transaction must write all of them: after it, the state file does not count any more.
func markUnsaved(s *statemachine.Sessions[wire.Result], inSQLite []wire.Session[wire.Result]) {
	written := make(map[uint64][]byte, len(inSQLite))
	for i := range inSQLite {
		written[inSQLite[i].ID] = wire.AppendSession(nil, &inSQLite[i])
	}
	for _, session := range s.All() {
		if !bytes.Equal(written[session.ID], wire.AppendSession(nil, &session)) {
			s.Changed(session.ID)
		}
		delete(written, session.ID)
	}
	for id := range written {
		s.Changed(id) // dropped since
	}
}
