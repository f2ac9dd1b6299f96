package statemachine

import (
	"fmt"
	"maps"
	"slices"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// The meta table holds, written in the same transaction as the rows of a batch,
// a row 0 with the replica's index and clock, and a row for each session.

// metaStatements writes the meta table.
type metaStatements struct {
	conn        *sqlite.Conn
	put, remove *sqlite.Stmt
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

// save writes the row of the replica and those of the sessions that changed.
func (m *metaStatements) save(state *wire.State, s *sessions) error {
	if err := m.prepare(); err != nil {
		return err
	}
	m.buf = wire.AppendState(m.buf[:0], state)
	if err := m.write(0, m.buf); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(s.dirty)) {
		session := s.byID[id]
		if session == nil {
			if err := m.run(m.remove, wire.IntegerValue(int64(id))); err != nil {
				return err
			}
			continue
		}
		m.buf = wire.AppendSession(m.buf[:0], session)
		if err := m.write(id, m.buf); err != nil {
			return err
		}
	}
	return nil
}

func (m *metaStatements) write(id uint64, state []byte) error {
	return m.run(m.put, wire.IntegerValue(int64(id)), wire.BlobValue(state))
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

// loadState reads the meta table.
func loadState(conn *sqlite.Conn) (*wire.State, error) {
	conn.Owner(true)
	defer conn.Owner(false)
	s, _, err := conn.Prepare("SELECT id, state FROM "+sqlite.MetaTable+" ORDER BY id", false)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	state := new(wire.State)
	for {
		row, err := s.Step()
		if err != nil {
			return nil, fmt.Errorf("hiqlite: read the meta table: %w", err)
		}
		if !row {
			return state, nil
		}
		if s.Int(0) == 0 {
			if state, err = wire.DecodeState(s.Bytes(1)); err != nil {
				return nil, fmt.Errorf("%w: the meta table: %w", ErrDamaged, err)
			}
			continue
		}
		session, err := wire.DecodeSession(s.Bytes(1))
		if err != nil {
			return nil, fmt.Errorf("%w: session %d in the meta table: %w", ErrDamaged, s.Int(0), err)
		}
		state.Sessions = append(state.Sessions, *session)
	}
}
