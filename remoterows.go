package hiqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/remote"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// remoteRows are the rows of a query of a remote database. They are fetched in chunks,
// so that both sides need memory for one chunk only.
type remoteRows struct {
	typedRows
	ctx     context.Context // of the query
	c       *remoteConn
	session *remote.Session
	query   uint64 // id of the query's request

	cells   []byte // of the chunk, not yet returned
	err     error  // what Next returns after the cells: io.EOF or the error of the query; nil: there may be more
	lastSet bool   // there is no further result set
	open    bool   // the server has the query open
	nextErr error  // the error of the next result set
	opened  *apiv1.Rows
}

var _ driver.RowsNextResultSet = (*remoteRows)(nil)

// newRemoteRows returns the rows of a query whose first chunk is first. err is the error
// of the query after these rows, or nil.
func newRemoteRows(ctx context.Context, c *remoteConn, query uint64, first *apiv1.Rows, err error) (driver.Rows, error) {
	r := &remoteRows{typedRows: typedRows{conn: &c.cfg}, ctx: ctx, c: c, session: c.session, query: query, open: err == nil}
	if bad := r.setChunk(first, err); bad != nil {
		r.Close()
		return nil, bad
	}
	if len(r.cells) == 0 && r.err != nil && !errors.Is(r.err, io.EOF) {
		return nil, r.err
	}
	return r, nil
}

// setChunk makes a chunk the present one.
func (r *remoteRows) setChunk(chunk *apiv1.Rows, err error) error {
	if chunk.Columns != nil || r.columns == nil {
		columns := make([]wire.Column, len(chunk.Columns))
		for i, c := range chunk.Columns {
			columns[i] = wire.Column{Name: c.Name, DeclType: c.Type}
		}
		r.columns = newColumns(columns)
		r.kinds = make([]wire.Kind, len(columns))
	}
	r.cells, r.lastSet, r.err = chunk.Cells, chunk.LastSet, err
	if chunk.End && err == nil {
		r.err = io.EOF
	}
	if chunk.LastSet || err != nil {
		r.open = false
	}
	if len(r.cells) == 0 {
		return nil
	}
	if len(r.columns) == 0 {
		return protocol.RowWidthError(0)
	}
	// The types of the columns follow the first row before Next is called.
	rest := r.cells
	for i := range r.kinds {
		v, more, err := protocol.NextCell(rest)
		if err != nil {
			return err
		}
		r.kinds[i], rest = v.Kind, more
	}
	return nil
}

// Next fills in the next row.
func (r *remoteRows) Next(dest []driver.Value) error {
	for len(r.cells) == 0 {
		if r.err != nil {
			return r.err
		}
		if err := r.fetch(false); err != nil {
			return err
		}
	}
	rest := r.cells
	for i := range r.columns {
		v, more, err := protocol.NextCell(rest)
		if err != nil {
			return err
		}
		r.kinds[i], rest = v.Kind, more
		dest[i] = r.conn.wireCell(&r.columns[i], &v)
	}
	r.cells = rest
	return nil
}

// fetch gets the next chunk, or the first one of the next result set.
func (r *remoteRows) fetch(nextSet bool) error {
	answer, err := r.ask(nextSet)
	if err != nil && answer.GetRows() == nil {
		r.err, r.open = err, false
		return err
	}
	return r.setChunk(answer.GetRows(), err)
}

// ask asks the server for rows.
func (r *remoteRows) ask(nextSet bool) (*apiv1.SessionResponse, error) {
	c := r.c
	if c.session != r.session || r.session.Ended() {
		return nil, r.lost(nil)
	}
	answer, err := r.session.Do(r.ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Fetch{Fetch: &apiv1.Fetch{Query: r.query, NextSet: nextSet}}})
	var broken *remote.BrokenError
	if errors.As(err, &broken) {
		c.sessionBroke(broken)
		return nil, r.lost(broken)
	}
	if err != nil {
		return nil, err
	}
	c.setState(answer)
	return answer, remoteError(remote.Failure(r.ctx, answer))
}

// lost returns the error of rows whose session broke.
func (r *remoteRows) lost(broken *remote.BrokenError) error {
	switch {
	case r.ctx.Err() != nil:
		return r.ctx.Err()
	case r.c.lostTx != nil:
		r.c.reported = true
		return r.c.lostTx
	case broken != nil:
		return fmt.Errorf("hiqlite: while rows were read: %w", broken)
	}
	return fmt.Errorf("hiqlite: the connection to %s broke while rows were read", r.session.Address())
}

// HasNextResultSet reports whether there is another result set; see
// resultSets.HasNextResultSet.
func (r *remoteRows) HasNextResultSet() bool {
	switch {
	case r.opened != nil || r.nextErr != nil:
		return true
	case r.lastSet || !r.open:
		return false
	}
	answer, err := r.ask(true)
	switch {
	case err != nil && answer.GetRows() == nil, err != nil && len(answer.GetRows().GetCells()) == 0:
		r.nextErr, r.open = err, false
		return true
	case answer.GetRows().GetNoSet():
		r.lastSet, r.open = true, false
		return false
	}
	r.opened, r.err = answer.GetRows(), err
	return true
}

// NextResultSet makes the next result set the current one.
func (r *remoteRows) NextResultSet() error {
	if !r.HasNextResultSet() {
		return io.EOF
	}
	if err := r.nextErr; err != nil {
		r.nextErr, r.lastSet = nil, true
		return err
	}
	chunk := r.opened
	r.opened = nil
	r.columns = nil
	return r.setChunk(chunk, r.err)
}

// Close ends the query.
func (r *remoteRows) Close() error {
	if r.open && r.c.session == r.session {
		_ = r.session.Send(&apiv1.SessionRequest{Request: &apiv1.SessionRequest_CloseRows{CloseRows: &apiv1.CloseRows{Query: r.query}}}) // a broken session has closed it
	}
	r.open, r.cells, r.err, r.lastSet, r.opened, r.nextErr = false, nil, io.EOF, true, nil, nil
	return nil
}
