package hiqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// resultSets are the rows of a script: a result set for each of its statements
// that has columns, in their order. One is open at a time.
type resultSets struct {
	resultSet                           // the current one
	next      func() (resultSet, error) // opens the one after it; io.EOF: there is none
	release   func()                    // called once, when no more will be opened

	looked bool // for the one after the current one
	ahead  resultSet
	failed error // with which it was not opened; io.EOF: there is none
	done   bool
}

var _ driver.RowsNextResultSet = (*resultSets)(nil)

// openSets opens the first result set. It owns what release gives back from then
// on; release may be nil.
func openSets(conn *ConnConfig, next func() (resultSet, error), release func()) (resultSet, error) {
	r := &resultSets{next: next, release: release}
	first, err := next()
	switch {
	case errors.Is(err, io.EOF):
		r.finish()
		return newMemoryRows(conn, nil), nil
	case err != nil:
		r.finish()
		return nil, err
	}
	r.resultSet = first
	return r, nil
}

// newSets are result sets that are there already.
func newSets(conn *ConnConfig, sets []resultSet, release func()) (resultSet, error) {
	if len(sets) == 1 && release == nil {
		return sets[0], nil
	}
	r := &listedSets{sets}
	return openSets(conn, r.next, r.close)
}

type listedSets struct{ left []resultSet }

func (l *listedSets) next() (resultSet, error) {
	if len(l.left) == 0 {
		return nil, io.EOF
	}
	first := l.left[0]
	l.left = l.left[1:]
	return first, nil
}

func (l *listedSets) close() {
	for _, rows := range l.left {
		rows.Close()
	}
	l.left = nil
}

// memorySets are the result sets that a write returned.
func memorySets(conn *ConnConfig, s *wire.StatementResult) (sets []resultSet) {
	for _, rows := range s.Sets() {
		sets = append(sets, newMemoryRows(conn, rows))
	}
	return sets
}

// HasNextResultSet opens the next result set if there is one: whether a statement
// has columns is not known before. database/sql asks when the current one is at
// its end.
func (r *resultSets) HasNextResultSet() bool {
	if r.done && !r.looked {
		return false
	}
	if !r.looked {
		r.resultSet.Close()
		r.ahead, r.failed = r.next()
		r.looked = true
	}
	if errors.Is(r.failed, io.EOF) {
		r.finish()
		return false
	}
	return true
}

// NextResultSet moves on to the next result set. Its error is that of the
// statement, or io.EOF.
func (r *resultSets) NextResultSet() error {
	if !r.HasNextResultSet() {
		return io.EOF
	}
	if r.failed != nil {
		err := r.failed
		r.failed = io.EOF // a script ends at its first error
		r.finish()
		return err
	}
	r.resultSet, r.ahead, r.looked = r.ahead, nil, false
	return nil
}

// finish gives back what the script holds.
func (r *resultSets) finish() {
	if r.done {
		return
	}
	r.done = true
	if r.release != nil {
		r.release()
	}
}

// Close ends the script: statements whose turn has not come do not run.
func (r *resultSets) Close() error {
	err := r.resultSet.Close()
	if r.ahead != nil {
		err = errors.Join(err, r.ahead.Close())
	}
	r.finish()
	return err
}

// drain steps through all result sets, which nobody wants, and closes them.
func drain(rows resultSet) error {
	defer rows.Close()
	for {
		dest := make([]driver.Value, len(rows.Columns()))
		var err error
		for err == nil {
			err = rows.Next(dest)
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		sets, ok := rows.(*resultSets)
		if !ok {
			return nil
		}
		if err := sets.NextResultSet(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// inTurn runs a script that reads, each statement when its turn comes.
func (c *conn) inTurn(class *sqlite.Class, query func(text string) (resultSet, error), release func()) (resultSet, error) {
	parts := class.Parts
	return openSets(&c.cfg, func() (resultSet, error) {
		for len(parts) > 0 {
			part := &parts[0]
			parts = parts[1:]
			rows, err := c.ask(part, query)
			if err != nil {
				return nil, err
			}
			if len(rows.Columns()) > 0 {
				return rows, nil
			}
			rows.Close()
		}
		return nil, io.EOF
	}, release)
}

// ask runs one statement of a script that reads.
func (c *conn) ask(part *sqlite.Part, query func(text string) (resultSet, error)) (resultSet, error) {
	if part.Pragma != "" {
		if rows := c.setting(part.Pragma); rows != nil {
			return newMemoryRows(&c.cfg, rows), nil
		}
	}
	return query(part.SQL)
}

// readScript runs a script that reads. All of its statements see the same rows.
func (c *conn) readScript(ctx context.Context, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	view, err := c.node.Machine().Read(ctx, replica.TransactionOptions{
		Settings: c.travels, Changes: c.changes, TotalChanges: c.totalChanges, LastInsertID: c.lastInsertID,
	})
	if err != nil {
		return nil, sqlError(err)
	}
	query := func(text string) (resultSet, error) {
		q, err := view.Query(ctx, text, args)
		if err != nil {
			return nil, readError(ctx, err)
		}
		return newLocalRows(ctx, &c.cfg, q, q.Close)
	}
	return c.inTurn(class, query, view.Close)
}

// A collector keeps the result sets of a script that does more than read: such
// a script has run to its end before its first row is read, whether that is
// wanted or not.
type collector struct {
	conn  *ConnConfig
	sets  []resultSet
	bytes int // that the rows take
}

// silent reports a PRAGMA that sets or does something: in a script it answers
// nothing. Where the script writes it is replicas that execute it, and what it
// concerns is the connection or its node.
func silent(class *sqlite.Class) bool {
	return class.Kind == sqlite.Setting && (class.PragmaSet || class.Pragma == "wal_checkpoint" || class.Pragma == "optimize")
}

// add adds the rows of one statement, if it has columns. The rows of the last
// one need not be kept: nothing comes after them that could disturb their query.
func (c *collector) add(class *sqlite.Class, rows resultSet, last bool) error {
	if silent(class) || len(rows.Columns()) == 0 {
		return rows.Close()
	}
	switch local := rows.(type) {
	case *memoryRows:
		c.bytes += local.rows.Size()
	case *localRows:
		if last {
			break
		}
		held, err := c.hold(local)
		if err != nil {
			return err
		}
		rows = held
	}
	if err := replica.BoundRows(c.bytes); err != nil {
		rows.Close()
		return sqlError(err)
	}
	c.sets = append(c.sets, rows)
	return nil
}

func (c *collector) close() {
	for _, rows := range c.sets {
		rows.Close()
	}
}

// hold reads a query to its end.
func (c *collector) hold(local *localRows) (*heldRows, error) {
	defer local.Close()
	held := &heldRows{typedRows: typedRows{conn: c.conn, columns: local.columns, kinds: make([]wire.Kind, len(local.columns))}}
	for {
		row := heldRow{make([]driver.Value, len(local.columns)), make([]wire.Kind, len(local.columns))}
		err := local.Next(row.values)
		if errors.Is(err, io.EOF) {
			held.columns = local.columns
			held.see(0)
			return held, nil
		}
		if err != nil {
			return nil, err
		}
		copy(row.kinds, local.kinds)
		for _, v := range row.values {
			c.bytes += 10
			switch v := v.(type) {
			case string:
				c.bytes += len(v)
			case []byte:
				c.bytes += len(v)
			}
		}
		if err := replica.BoundRows(c.bytes); err != nil {
			return nil, sqlError(err)
		}
		held.rows = append(held.rows, row)
	}
}

// heldRows are rows of a query on this node that has ended.
type heldRows struct {
	typedRows
	rows []heldRow
	next int
}

type heldRow struct {
	values []driver.Value
	kinds  []wire.Kind
}

func (r *heldRows) see(row int) {
	if row < len(r.rows) {
		copy(r.kinds, r.rows[row].kinds)
	}
}

// Next fills in the next row.
func (r *heldRows) Next(dest []driver.Value) error {
	if r.next >= len(r.rows) {
		clear(r.kinds)
		return io.EOF
	}
	r.see(r.next)
	copy(dest, r.rows[r.next].values)
	r.rows[r.next] = heldRow{} // it is read once
	r.next++
	return nil
}

// Close does nothing: nothing is held but memory.
func (r *heldRows) Close() error { return nil }
