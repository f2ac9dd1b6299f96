package wire

import (
	"cmp"
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// Size returns about how many bytes the cells need.
func (r *Rows) Size() (bytes int) {
	if r == nil {
		return 0
	}
	for i := range r.Cells {
		bytes += len(r.Cells[i].Data) + 10
	}
	return bytes
}

// AddRows adds the rows that a statement returned.
func (c *Checksum) AddRows(r *Rows) {
	if r == nil {
		return
	}
	for i := range r.Cells {
		v := &r.Cells[i]
		*c = (*c ^ Checksum(v.Kind) ^ Checksum(v.Num)) * fnvPrime
		for _, b := range v.Data {
			*c = (*c ^ Checksum(b)) * fnvPrime
		}
		*c ^= *c >> 32
	}
}

// A ClockAdvance moves the shard's clock. The leader proposes it.
type ClockAdvance struct {
	Expected uint64 // what the clock shows before, in milliseconds; if it does not, the entry has no effect
	Next     uint64 // what it shows after
	Nonce    uint64 // by which its proposer recognizes it: that of another node may have the same Next

	// In the SQL shard the leader also says what it has applied, so that replicas
	// with another history notice it.
	Applied uint64 // index of the last entry; 0: it does not say
	History uint64 // see State
}

// An Entry is one entry of a Raft log. It has operations or commands of a session,
// or one of the other fields.
type Entry struct {
	Session, Sequence uint64
	Operations        []Operation // of the SQL shard
	Commands          []Command   // of an in-memory shard

	// Oldest is the sequence of the oldest entry of the session whose results the
	// proposer did not have when it made this one; 0: there was none. If it is not 0,
	// the entry is applied only directly after the one with the sequence before its own.
	Oldest uint64

	// OpenSession says that the entry opens a session, for the node and incarnation
	// of its proposer, which recognizes the entry by the nonce.
	OpenSession       bool
	Nonce             uint64
	Node, Incarnation uint64

	ClockAdvance *ClockAdvance
	HoldMS       uint64 // proposers wait for so long, because the leader is about to hand over
}

// An Error is a statement's failure, as SQLite reported it.
type Error struct {
	Code      int    // extended result code
	Message   string // in the words and form of modernc.org/sqlite
	Statement int    // which of the operation's statements, from 0
	Hint      string
}

func (e *Error) Error() string { return e.Message }

// A Column of a result.
type Column struct{ Name, DeclType string }

// Rows are the rows that a statement returned. Cells has them one after the other.
type Rows struct {
	Columns []Column
	Cells   []Value
}

// Len returns the number of rows.
func (r *Rows) Len() int {
	if r == nil || len(r.Columns) == 0 {
		return 0
	}
	return len(r.Cells) / len(r.Columns)
}

// A StatementResult is the result of one statement, or of one script.
type StatementResult struct {
	RowsAffected, LastInsertID int64
	TotalChanges               int64   // by how much total_changes() grew
	RowID                      int64   // of the row that the statement itself inserted, or updated as an upsert
	Rows                       *Rows   // nil if it has no columns
	More                       []*Rows // the further result sets of a script
}

// AddRows adds the rows of one more statement, if it has columns.
func (s *StatementResult) AddRows(rows *Rows) {
	switch {
	case rows == nil || len(rows.Columns) == 0:
	case s.Rows == nil:
		s.Rows = rows
	default:
		s.More = append(s.More, rows)
	}
}

// Append makes s, the result of the first statements of a script, the result with one
// more statement. The number of changed rows and the like are those of the last
// statement; the result sets are those of all statements.
func (s *StatementResult) Append(next StatementResult) {
	rows := next.Rows
	next.Rows, next.More = s.Rows, s.More
	next.AddRows(rows)
	next.TotalChanges += s.TotalChanges
	next.RowID = cmp.Or(next.RowID, s.RowID)
	*s = next
}

// Sets returns all result sets, in their order.
func (s *StatementResult) Sets() []*Rows {
	if s.Rows == nil {
		return nil
	}
	return append([]*Rows{s.Rows}, s.More...)
}

func statementResult(b []byte) (s StatementResult, err error) {
	err = fields(b, func(f protowire.Number, n uint64, data []byte) error {
		switch f {
		case 1:
			s.RowsAffected = protowire.DecodeZigZag(n)
		case 2:
			s.LastInsertID = protowire.DecodeZigZag(n)
		case 5:
			s.TotalChanges = protowire.DecodeZigZag(n)
		case 6:
			s.RowID = protowire.DecodeZigZag(n)
		case 3:
			if s.Rows == nil {
				s.Rows = new(Rows)
			}
			return s.Rows.column(data)
		case 4:
			if s.Rows == nil {
				return errMalformed
			}
			return s.Rows.row(data)
		case 7:
			rows, err := resultSet(data)
			s.More = append(s.More, rows)
			return err
		}
		return nil
	})
	if s.Rows != nil {
		err = errors.Join(err, s.Rows.whole())
	} else if s.More != nil {
		err = errors.Join(err, errMalformed)
	}
	return s, err
}

func resultSet(b []byte) (*Rows, error) {
	rows := new(Rows)
	err := fields(b, func(f protowire.Number, _ uint64, data []byte) error {
		switch f {
		case 1:
			return rows.column(data)
		case 2:
			return rows.row(data)
		}
		return nil
	})
	return rows, errors.Join(err, rows.whole())
}

// column decodes one column.
func (r *Rows) column(b []byte) error {
	var c Column
	err := fields(b, func(f protowire.Number, _ uint64, data []byte) error {
		switch f {
		case 1:
			c.Name = string(data)
		case 2:
			c.DeclType = string(data)
		}
		return nil
	})
	r.Columns = append(r.Columns, c)
	return err
}

// row decodes one row.
func (r *Rows) row(b []byte) error {
	return fields(b, func(f protowire.Number, n uint64, data []byte) error {
		var a Argument
		if err := argument(data, &a); err != nil {
			return err
		}
		if a.Data != nil {
			a.Data = append(make([]byte, 0, len(a.Data)), a.Data...)
		}
		r.Cells = append(r.Cells, a.Value)
		return nil
	})
}

// whole returns an error if there are no columns, or if the last row lacks cells.
func (r *Rows) whole() error {
	if len(r.Columns) == 0 || len(r.Cells)%len(r.Columns) != 0 {
		return errMalformed
	}
	return nil
}
