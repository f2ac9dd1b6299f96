package replica

import (
	"context"
	"errors"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A Cursor is a query of a transaction. A transaction may have several, and may write
// between their rows.
type Cursor struct {
	t       *Transaction
	ctx     context.Context
	stmt    *sqlite.Stmt
	kept    *cachedStmt
	columns []wire.Column
	closed  bool
}

// Query runs a statement that reads and is alone in its text. The end of ctx ends the
// query, at any of its rows.
func (t *Transaction) Query(ctx context.Context, text string, args []wire.Argument) (*Cursor, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	stmt, kept, err := t.prepare(text)
	if err != nil {
		return nil, t.reason(err)
	}
	if stmt == nil {
		return nil, sqlite.NoStatement()
	}
	c := &Cursor{t: t, ctx: ctx, stmt: stmt, kept: kept}
	if kept != nil {
		kept.busy = true
	}
	t.cursors[c] = true
	if err := stmt.Bind(args, nil); err != nil {
		c.close()
		return nil, err
	}
	t.conn.SetClock(time.Now().UnixMilli(), nil)
	c.columns = stmt.Columns()
	return c, nil
}

// Rows returns all rows of a query. They are bounded like those of a write.
func (t *Transaction) Rows(ctx context.Context, text string, args []wire.Argument) (*wire.Rows, error) {
	c, err := t.Query(ctx, text, args)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	rows, bytes := &wire.Rows{}, 0
	for {
		more, err := c.Next(func(s *sqlite.Stmt) { bytes += appendRow(rows, s) })
		if err == nil && bytes > maxResult {
			err = tooManyRows()
		}
		if err != nil {
			return nil, err
		}
		if !more {
			rows.Columns = c.Columns()
			return rows, nil
		}
	}
}

// Columns returns the query's columns; before the first Next they may be those
// of an earlier schema.
func (c *Cursor) Columns() []wire.Column { return c.columns }

// Next steps to the next row, if there is one, and calls row with the statement
// to read it.
func (c *Cursor) Next(row func(*sqlite.Stmt)) (bool, error) {
	t := c.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return false, err
	}
	if c.closed {
		return false, nil
	}
	t.conn.SetContext(c.ctx, true)
	defer t.conn.SetContext(context.Background(), false)
	more, err := c.stmt.Step()
	if err != nil {
		var e *sqlite.Error
		if errors.As(err, &e) && e.Code == sqlite.CodeInterrupt {
			err = t.interrupted(c.ctx, e)
		}
		if c.kept != nil { // see Query.uncacheStmt
			t.stmts.remove(c.kept)
			c.kept = nil
		}
		if t.conn.Autocommit() { // such as after a failed allocation
			t.endTransaction(rolledBack(err))
		}
		return false, err
	}
	c.columns = c.stmt.Columns()
	if more && row != nil {
		row(c.stmt)
	}
	return more, nil
}

// Close ends the query.
func (c *Cursor) Close() {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	c.close()
}

func (c *Cursor) close() {
	if c.closed {
		return
	}
	c.closed = true
	delete(c.t.cursors, c)
	if c.kept != nil {
		c.kept.busy = false
		if !c.kept.gone {
			c.stmt.Reset()
			return
		}
	}
	c.stmt.Close()
}
