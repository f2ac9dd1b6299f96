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

// resultSets are the rows of a script: one result set for each statement that has
// columns, in the order of the statements. At most two result sets are open, the
// current one and the next one.
type resultSets struct {
	resultSet                           // the current one
	open      func() (resultSet, error) // opens the next one; io.EOF: there is none
	release   func()                    // called once, when no more result sets will be opened

	nextOpened bool      // open was called for the set after the current one
	nextSet    resultSet // what open returned then
	nextErr    error
	released   bool
}

var _ driver.RowsNextResultSet = (*resultSets)(nil)

// newLazySets returns the result sets that open opens, of which it opens the first. It
// calls release, which may be nil, even if it fails.
func newLazySets(conn *ConnConfig, open func() (resultSet, error), release func()) (resultSet, error) {
	r := &resultSets{open: open, release: release}
	first, err := open()
	switch {
	case errors.Is(err, io.EOF):
		r.releaseOnce()
		return newMemoryRows(conn, nil), nil
	case err != nil:
		r.releaseOnce()
		return nil, err
	}
	r.resultSet = first
	return r, nil
}

// newListedSets returns result sets that are open already. It calls release when they are
// closed.
func newListedSets(conn *ConnConfig, sets []resultSet, release func()) (resultSet, error) {
	if len(sets) == 1 && release == nil {
		return sets[0], nil
	}
	r := &listedSets{sets}
	return newLazySets(conn, r.next, r.close)
}

type listedSets struct{ remaining []resultSet }

func (l *listedSets) next() (resultSet, error) {
	if len(l.remaining) == 0 {
		return nil, io.EOF
	}
	first := l.remaining[0]
	l.remaining = l.remaining[1:]
	return first, nil
}

func (l *listedSets) close() {
	for _, rows := range l.remaining {
		rows.Close()
	}
	l.remaining = nil
}

// memorySets returns the result sets of a write.
func memorySets(conn *ConnConfig, s *wire.StatementResult) (sets []resultSet) {
	for _, rows := range s.Sets() {
		sets = append(sets, newMemoryRows(conn, rows))
	}
	return sets
}

// HasNextResultSet reports whether there is another result set. It closes the current
// one and opens the next one, because only that shows whether a statement has columns.
// database/sql calls it at the end of the current one.
func (r *resultSets) HasNextResultSet() bool {
	if r.released && !r.nextOpened {
		return false
	}
	if !r.nextOpened {
		r.resultSet.Close()
		r.nextSet, r.nextErr = r.open()
		r.nextOpened = true
	}
	if errors.Is(r.nextErr, io.EOF) {
		r.releaseOnce()
		return false
	}
	return true
}

// NextResultSet makes the next result set the current one. It returns the error of the
// statement, or io.EOF.
func (r *resultSets) NextResultSet() error {
	if !r.HasNextResultSet() {
		return io.EOF
	}
	if r.nextErr != nil {
		err := r.nextErr
		r.nextErr = io.EOF // because a script ends at its first error
		r.releaseOnce()
		return err
	}
	r.resultSet, r.nextSet, r.nextOpened = r.nextSet, nil, false
	return nil
}

// releaseOnce calls release, unless that was done.
func (r *resultSets) releaseOnce() {
	if r.released {
		return
	}
	r.released = true
	if r.release != nil {
		r.release()
	}
}

// Close ends the script. The statements that were not opened yet do not run.
func (r *resultSets) Close() error {
	err := r.resultSet.Close()
	if r.nextSet != nil {
		err = errors.Join(err, r.nextSet.Close())
	}
	r.releaseOnce()
	return err
}

// drain runs a query or script to its end, discards its rows and closes it.
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

// queryParts runs a script that reads. Each statement runs when its result set is opened.
func (c *conn) queryParts(class *sqlite.Class, query func(text string) (resultSet, error), release func()) (resultSet, error) {
	parts := class.Parts
	return newLazySets(&c.cfg, func() (resultSet, error) {
		for len(parts) > 0 {
			part := &parts[0]
			parts = parts[1:]
			rows, err := c.queryPart(part, query)
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

// queryPart runs one statement of a script that reads.
func (c *conn) queryPart(part *sqlite.Part, query func(text string) (resultSet, error)) (resultSet, error) {
	if part.Pragma != "" {
		if rows := c.pragmaRows(part.Pragma); rows != nil {
			return newMemoryRows(&c.cfg, rows), nil
		}
	}
	return query(part.SQL)
}

// readScript runs a script that reads, in one read transaction, so that all of its
// statements see the same rows.
func (c *conn) readScript(ctx context.Context, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	view, err := c.node.Machine().Read(ctx, replica.TransactionOptions{
		Settings: c.settings, Changes: c.changes, TotalChanges: c.totalChanges, LastInsertID: c.lastInsertID,
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
	return c.queryParts(class, query, view.Close)
}

// A collector collects the result sets of a script that does more than read. Such a
// script runs to its end before its caller gets the first row, so that it is complete
// even if the caller reads no rows.
type collector struct {
	conn  *ConnConfig
	sets  []resultSet
	bytes int // size of all rows
}

// hasNoRowsInScript reports whether a statement is a PRAGMA that sets or does
// something. In a script such a PRAGMA has no result set, whether the script reads or
// writes: the replicas, which execute a script that writes, do not know the values
// that the connection and its node keep.
func hasNoRowsInScript(class *sqlite.Class) bool {
	return class.Kind == sqlite.ConnPragma
}

// add adds the result set of one statement, if it has columns. It buffers the rows of a
// local query, because the statements after it could change what the query sees. The
// last statement has none after it, so its query stays open.
func (c *collector) add(class *sqlite.Class, rows resultSet, last bool) error {
	if hasNoRowsInScript(class) || len(rows.Columns()) == 0 {
		return rows.Close()
	}
	switch local := rows.(type) {
	case *memoryRows:
		c.bytes += local.rows.Size()
	case *localRows:
		if last {
			break
		}
		buffered, err := c.readAll(local)
		if err != nil {
			return err
		}
		rows = buffered
	}
	if err := replica.BoundRows(c.bytes); err != nil {
		rows.Close()
		return sqlError(err)
	}
	c.sets = append(c.sets, rows)
	return nil
}

// close closes all result sets.
func (c *collector) close() {
	for _, rows := range c.sets {
		rows.Close()
	}
}

// readAll reads a query to its end and buffers its rows.
func (c *collector) readAll(local *localRows) (*bufferedRows, error) {
	defer local.Close()
	buffered := &bufferedRows{typedRows: typedRows{conn: c.conn, columns: local.columns, kinds: make([]wire.Kind, len(local.columns))}}
	for {
		row := bufferedRow{make([]driver.Value, len(local.columns)), make([]wire.Kind, len(local.columns))}
		err := local.Next(row.values)
		if errors.Is(err, io.EOF) {
			buffered.columns = local.columns
			buffered.setKinds(0)
			return buffered, nil
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
		buffered.rows = append(buffered.rows, row)
	}
}

// bufferedRows are the rows of a local query that has ended.
type bufferedRows struct {
	typedRows
	rows []bufferedRow
	next int
}

type bufferedRow struct {
	values []driver.Value
	kinds  []wire.Kind
}

// setKinds makes the column types follow a row.
func (r *bufferedRows) setKinds(row int) {
	if row < len(r.rows) {
		copy(r.kinds, r.rows[row].kinds)
	}
}

// Next fills in the next row.
func (r *bufferedRows) Next(dest []driver.Value) error {
	if r.next >= len(r.rows) {
		clear(r.kinds)
		return io.EOF
	}
	r.setKinds(r.next)
	copy(dest, r.rows[r.next].values)
	r.rows[r.next] = bufferedRow{} // free its memory: it is not read again
	r.next++
	return nil
}

// Close does nothing, since bufferedRows hold only memory.
func (r *bufferedRows) Close() error { return nil }
