package hiqlite

import (
	"context"
	"database/sql/driver"
	"io"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// typedRows is what all kinds of rows have in common: the columns, and the storage
// classes of the current row, which the column types depend on.
type typedRows struct {
	conn    *ConnConfig
	columns []column
	kinds   []wire.Kind
}

// columnTypes are the optional interfaces of database/sql that all kinds of rows
// implement.
type columnTypes interface {
	driver.RowsColumnTypeDatabaseTypeName
	driver.RowsColumnTypeLength
	driver.RowsColumnTypeNullable
	driver.RowsColumnTypePrecisionScale
	driver.RowsColumnTypeScanType
}

// A resultSet has the rows of one statement or, if it is a *resultSets, those of a
// script.
type resultSet interface {
	driver.Rows
	columnTypes
}

func (r *typedRows) Columns() []string {
	names := make([]string, len(r.columns))
	for i := range r.columns {
		names[i] = r.columns[i].name
	}
	return names
}

func (r *typedRows) kind(i int) wire.Kind {
	if i < len(r.kinds) {
		return r.kinds[i]
	}
	return wire.Null
}

// ColumnTypeDatabaseTypeName returns the declared type, in upper case.
func (r *typedRows) ColumnTypeDatabaseTypeName(i int) string { return r.columns[i].declType }

// ColumnTypeLength depends on the cell of the current row.
func (r *typedRows) ColumnTypeLength(i int) (int64, bool) { return cellLength(r.kind(i)) }

// ColumnTypeNullable reports that it is not known: a column that is NOT NULL in its table
// can be NULL after an outer join, and SQLite does not say so.
func (r *typedRows) ColumnTypeNullable(int) (nullable, ok bool) { return true, false }

// ColumnTypePrecisionScale reports that SQLite's types have none.
func (r *typedRows) ColumnTypePrecisionScale(int) (precision, scale int64, ok bool) {
	return 0, 0, false
}

// ColumnTypeScanType depends on the cell of the current row. If the cell is NULL, or there
// is no current row, it depends on the declared type. It is never nil.
func (r *typedRows) ColumnTypeScanType(i int) reflect.Type {
	return r.conn.scanType(&r.columns[i], r.kind(i))
}

// A cursor steps through the rows of a query.
type cursor interface {
	Columns() []wire.Column
	Next(row func(*sqlite.Stmt)) (more bool, err error)
	Close()
}

// localRows are the rows of a query on this node. The first row is read before Query
// returns, so that an error of the query is an error of Query.
type localRows struct {
	typedRows
	ctx      context.Context // of the query; Next has no context of its own
	query    cursor
	release  func()         // called once, as soon as there are no more rows
	firstRow []driver.Value // read by newLocalRows, not yet returned by Next
	done     bool
}

// newLocalRows reads the first row. It calls release, which has to close query, even if
// it fails.
func newLocalRows(ctx context.Context, conn *ConnConfig, query cursor, release func()) (resultSet, error) {
	r := &localRows{typedRows: typedRows{conn: conn}, ctx: ctx, query: query, release: release}
	more, err := query.Next(func(s *sqlite.Stmt) {
		r.columns = newColumns(s.Columns())
		r.kinds = make([]wire.Kind, len(r.columns))
		r.firstRow = make([]driver.Value, len(r.columns))
		r.fill(s, r.firstRow)
	})
	if err != nil {
		r.Close()
		return nil, readError(ctx, err)
	}
	if !more {
		r.columns = newColumns(query.Columns())
		r.releaseOnce()
	}
	return r, nil
}

// fill converts the current row.
func (r *localRows) fill(s *sqlite.Stmt, dest []driver.Value) {
	for i := range dest {
		r.kinds[i] = s.Kind(i)
		dest[i] = r.conn.stmtCell(&r.columns[i], s, i)
	}
}

// Next fills in the next row.
func (r *localRows) Next(dest []driver.Value) error {
	if r.firstRow != nil {
		copy(dest, r.firstRow)
		r.firstRow = nil
		return nil
	}
	if r.done {
		return io.EOF
	}
	more, err := r.query.Next(func(s *sqlite.Stmt) { r.fill(s, dest) })
	if err != nil {
		return readError(r.ctx, err)
	}
	if !more {
		r.releaseOnce()
		return io.EOF
	}
	return nil
}

// releaseOnce calls release, unless that was done.
func (r *localRows) releaseOnce() {
	if r.done {
		return
	}
	r.done = true
	r.release()
}

// Close ends the query.
func (r *localRows) Close() error {
	r.releaseOnce()
	return nil
}

// An interrupter interrupts a query when a context ends.
type interrupter struct {
	stop    func() bool    // see context.AfterFunc
	ended   atomic.Bool    // end was called
	running sync.WaitGroup // the goroutine that interrupts
}

// interruptInterval is the time between two interrupts of a query. One may not suffice,
// because SQLite forgets an interrupt that comes before a statement's first step.
const interruptInterval = time.Millisecond

// interruptWhenDone interrupts what a reader runs when ctx ends. The caller must call end.
func interruptWhenDone(ctx context.Context, reader *replica.Reader) *interrupter {
	if ctx.Done() == nil {
		return nil
	}
	w := &interrupter{}
	w.running.Add(1)
	w.stop = context.AfterFunc(ctx, func() {
		defer w.running.Done()
		for !w.ended.Load() {
			reader.Interrupt()
			time.Sleep(interruptInterval)
		}
	})
	return w
}

// end ends the interrupts. When it returns, no interrupt can hit the next query on the
// reader, which another connection may run.
func (w *interrupter) end() {
	if w == nil || w.stop() {
		return
	}
	w.ended.Store(true)
	w.running.Wait()
}

// memoryRows are the rows that a write returned, or those of a PRAGMA.
type memoryRows struct {
	typedRows
	rows *wire.Rows
	next int
}

func newMemoryRows(conn *ConnConfig, rows *wire.Rows) *memoryRows {
	if rows == nil {
		rows = &wire.Rows{}
	}
	r := &memoryRows{typedRows: typedRows{conn: conn, columns: newColumns(rows.Columns)}, rows: rows}
	r.kinds = make([]wire.Kind, len(r.columns))
	if rows.Len() > 0 {
		r.setKinds(0)
	}
	return r
}

// setKinds makes the column types follow a row, and returns its cells.
func (r *memoryRows) setKinds(row int) []wire.Value {
	width := len(r.columns)
	cells := r.rows.Cells[row*width : (row+1)*width]
	for i := range cells {
		r.kinds[i] = cells[i].Kind
	}
	return cells
}

// Next fills in the next row.
func (r *memoryRows) Next(dest []driver.Value) error {
	if r.next >= r.rows.Len() {
		clear(r.kinds)
		return io.EOF
	}
	for i, cells := 0, r.setKinds(r.next); i < len(cells); i++ {
		dest[i] = r.conn.wireCell(&r.columns[i], &cells[i])
	}
	r.next++
	return nil
}

// Close does nothing, since memoryRows hold only memory.
func (r *memoryRows) Close() error { return nil }
