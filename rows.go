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

// typedRows is what all rows have in common: their columns and the storage
// classes of the current row, which column types follow.
type typedRows struct {
	conn    *ConnConfig
	columns []column
	kinds   []wire.Kind
}

// columnTypes are the optional interfaces that all rows have.
type columnTypes interface {
	driver.RowsColumnTypeDatabaseTypeName
	driver.RowsColumnTypeLength
	driver.RowsColumnTypeNullable
	driver.RowsColumnTypePrecisionScale
	driver.RowsColumnTypeScanType
}

// resultSet is the rows of one statement, or resultSets.
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

// ColumnTypeLength follows the current row.
func (r *typedRows) ColumnTypeLength(i int) (int64, bool) { return length(r.kind(i)) }

// ColumnTypeNullable is not known: a column that is NOT NULL in its table can be
// NULL in a row, by an outer join, and SQLite does not tell.
func (r *typedRows) ColumnTypeNullable(int) (nullable, ok bool) { return true, false }

// ColumnTypePrecisionScale is not known of SQLite's types.
func (r *typedRows) ColumnTypePrecisionScale(int) (precision, scale int64, ok bool) {
	return 0, 0, false
}

// ColumnTypeScanType follows the current row, and the declared type where that
// has NULL, or there is none. It is never nil.
func (r *typedRows) ColumnTypeScanType(i int) reflect.Type {
	return r.conn.scanType(&r.columns[i], r.kind(i))
}

// A cursor steps through the rows of a query.
type cursor interface {
	Columns() []wire.Column
	Next(row func(*sqlite.Stmt)) (more bool, err error)
	Close()
}

// localRows are rows of a query on this node. The first has been stepped to
// when they are made, so that a query's error is that of Query.
type localRows struct {
	typedRows
	ctx     context.Context // of the query, as database/sql has no other way
	query   cursor
	release func() // called once, when there are no more rows
	first   []driver.Value
	done    bool
}

// newLocalRows steps to the first row. It owns query and what release gives
// back from then on.
func newLocalRows(ctx context.Context, conn *ConnConfig, query cursor, release func()) (resultSet, error) {
	r := &localRows{typedRows: typedRows{conn: conn}, ctx: ctx, query: query, release: release}
	more, err := query.Next(func(s *sqlite.Stmt) {
		r.columns = newColumns(s.Columns())
		r.kinds = make([]wire.Kind, len(r.columns))
		r.first = make([]driver.Value, len(r.columns))
		r.fill(s, r.first)
	})
	if err != nil {
		r.Close()
		return nil, readError(ctx, err)
	}
	if !more {
		r.columns = newColumns(query.Columns())
		r.finish()
	}
	return r, nil
}

func (r *localRows) fill(s *sqlite.Stmt, dest []driver.Value) {
	for i := range dest {
		r.kinds[i] = s.Kind(i)
		dest[i] = r.conn.cell(&r.columns[i], s, i)
	}
}

// Next fills in the next row.
func (r *localRows) Next(dest []driver.Value) error {
	if r.first != nil {
		copy(dest, r.first)
		r.first = nil
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
		r.finish()
		return io.EOF
	}
	return nil
}

// finish gives the reader back as soon as there are no more rows.
func (r *localRows) finish() {
	if r.done {
		return
	}
	r.done = true
	r.release()
}

// Close ends the query.
func (r *localRows) Close() error {
	r.finish()
	return nil
}

// A watch ends what a reader runs when a context ends.
type watch struct {
	stop func() bool
	over atomic.Bool
	work sync.WaitGroup
}

// again is how often a reader is interrupted until it notices: SQLite forgets an
// interrupt that comes before a statement's first step.
const again = time.Millisecond

func watchOver(ctx context.Context, reader *replica.Reader) *watch {
	if ctx.Done() == nil {
		return nil
	}
	w := &watch{}
	w.work.Add(1)
	w.stop = context.AfterFunc(ctx, func() {
		defer w.work.Done()
		for !w.over.Load() {
			reader.Interrupt()
			time.Sleep(again)
		}
	})
	return w
}

// end returns when no interrupt can come any more: the next query on the reader
// is another's.
func (w *watch) end() {
	if w == nil || w.stop() {
		return
	}
	w.over.Store(true)
	w.work.Wait()
}

// memoryRows are rows that a write returned, or a setting's answer.
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
		r.see(0)
	}
	return r
}

func (r *memoryRows) see(row int) []wire.Value {
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
	for i, cells := 0, r.see(r.next); i < len(cells); i++ {
		dest[i] = r.conn.value(&r.columns[i], &cells[i])
	}
	r.next++
	return nil
}

// Close does nothing: nothing is held.
func (r *memoryRows) Close() error { return nil }
