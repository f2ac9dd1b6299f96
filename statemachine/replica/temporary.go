package replica

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A Temporary holds the TEMP objects of one connection of database/sql, on a SQLite
// connection of their own. That connection also reads the database, but cannot write it. A
// statement that uses TEMP objects and writes the database runs on a Transaction, which
// gets a copy of their content.
//
// Only one goroutine at a time may call its methods. The replica may end it or its queries
// at any time.
type Temporary struct {
	r              *SQL
	oldest         atomic.Int64          // when the oldest open query began, as time since the process started; 0: none is open
	ending         atomic.Pointer[error] // not nil: why running statements have to end
	connMu         sync.Mutex            // guards conn, for goroutines that stop it without mu; locked after mu
	mu             sync.Mutex            // held while the connection is used
	conn           *sqlite.Conn
	file           string // which conn has open
	stmts          *stmtCache
	failedStmtKept bool // the last statement failed, but its changes were kept (OR FAIL)
	cursors        map[*TempCursor]bool
	ended          error
}

// Temporary returns a Temporary with TEMP objects of this content; nil: none yet.
func (r *SQL) Temporary(content []byte) (*Temporary, error) {
	if err := r.Err(); err != nil {
		return nil, err
	}
	t := &Temporary{r: r, cursors: map[*TempCursor]bool{}}
	if err := t.open(content); err != nil {
		return nil, err
	}
	if !r.temporaries.add(t) {
		t.End(ErrReplicaClosed)
		return nil, ErrReplicaClosed
	}
	return t, nil
}

// open opens the database of the generation in use, and creates the objects.
func (t *Temporary) open(content []byte) error {
	p := t.r.pool
	p.mu.Lock() // held while the file is opened, so that no snapshot replaces it
	if p.file == "" {
		p.mu.Unlock()
		return ErrReplicaClosed
	}
	file := p.file
	conn, err := p.connect(file, sqlite.Temp)
	if err == nil {
		if err = conn.Exec(verifySchema); err != nil { // this opens the write-ahead log
			conn.Close()
		}
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	if content != nil {
		if err := conn.LoadTemp(content); err != nil {
			conn.Close()
			return err
		}
	}
	t.connMu.Lock()
	t.conn, t.file, t.stmts = conn, file, newStmtCache(conn)
	t.connMu.Unlock()
	return nil
}

// makeCurrent connects to the generation in use, loads its schema, and switches to settings.
// Open queries finish on the old generation. The caller holds mu.
func (t *Temporary) makeCurrent(settings wire.Settings) error {
	if t.ended != nil {
		return t.ended
	}
	if err := t.r.Err(); err != nil {
		return err
	}
	if t.file != t.r.pool.path() && len(t.cursors) == 0 {
		content, err := t.conn.DumpTemp()
		if err != nil {
			return err
		}
		old, kept := t.conn, t.stmts
		if err := t.open(content); err != nil {
			return err
		}
		kept.clear()
		old.Close()
	}
	if err := t.stmts.switchSettings(settings); err != nil {
		return err
	}
	return t.conn.ExecAsOwner(verifySchema)
}

// Classify finds out what a text would do, given the TEMP objects.
func (t *Temporary) Classify(text string, settings wire.Settings) (sqlite.Class, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.makeCurrent(settings); err != nil {
		return sqlite.Class{}, err
	}
	return t.conn.Classify(text)
}

// First classifies the first statement of a text, and returns the rest of the text.
func (t *Temporary) First(text string, settings wire.Settings) (sqlite.Part, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.makeCurrent(settings); err != nil {
		return sqlite.Part{}, "", err
	}
	return t.conn.ClassifyFirst(text)
}

// prepare returns the statement of a text that has only one. The statement stays in the
// cache, unless it changes the schema.
func (t *Temporary) prepare(text string, state wire.ConnState, settings wire.Settings) (stmt *sqlite.Stmt, done func(), err error) {
	if err := t.makeCurrent(settings); err != nil {
		return nil, nil, err
	}
	t.conn.SetState(state.Changes, state.TotalChanges, state.LastInsertID)
	p := t.stmts.get(text)
	if p == nil {
		stmt, _, err := t.conn.Prepare(text, true)
		if err == nil && stmt == nil {
			err = sqlite.NoStatement()
		}
		if err != nil {
			return nil, nil, err
		}
		if stmt.Actions.Pragma != "" || stmt.Actions.ChangesSchema {
			return stmt, stmt.Close, nil
		}
		p = t.stmts.keep(text, stmt)
	} else if p.busy {
		stmt, _, err := t.conn.Prepare(text, false)
		return stmt, func() { stmt.Close() }, err
	}
	p.busy = true
	return p.Stmt, func() {
		p.Reset()
		p.busy = false
		if p.gone {
			p.Stmt.Close()
		}
	}, nil
}

// Exec runs a statement that is alone in its text and changes nothing but TEMP objects.
// One that fails changes nothing, except with OR FAIL.
func (t *Temporary) Exec(ctx context.Context, text string, args []wire.Argument, state wire.ConnState, settings wire.Settings) (out wire.StatementResult, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return out, err
	}
	stmt, done, err := t.prepare(text, state, settings)
	if err != nil {
		return out, err
	}
	defer done()
	if err := bind(stmt, args); err != nil {
		return out, err
	}
	if err := t.conn.ExecAsOwner("BEGIN"); err != nil {
		return out, err
	}
	out, err = t.run(ctx, stmt, state)
	var undone error
	if stmt.Actions.ChangesSchema && !t.conn.Autocommit() {
		stmt.Close() // the schema cannot be loaded while it runs
		if undone = t.reload(); err == nil {
			err = undone
		}
	}
	switch {
	case t.conn.Autocommit(): // OR ROLLBACK and the like
	case undone != nil, err != nil && !t.failedStmtKept:
		t.stmts.removeAll()
		err = errors.Join(err, t.conn.ExecAsOwner("ROLLBACK"), t.reload())
	default:
		if failed := t.conn.ExecAsOwner("COMMIT"); failed != nil { // a deferred key is violated
			t.stmts.removeAll()
			err = errors.Join(failed, t.conn.ExecAsOwner("ROLLBACK"), t.reload())
		}
	}
	return out, t.reason(ctx, firstOf(err))
}

// firstOf returns the first of several joined errors, which has caused the others.
func firstOf(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 0 {
		return joined.Unwrap()[0]
	}
	return err
}

// run steps a statement to its end and collects its rows.
func (t *Temporary) run(ctx context.Context, stmt *sqlite.Stmt, state wire.ConnState) (out wire.StatementResult, err error) {
	defer stmt.Reset()
	t.failedStmtKept = false
	count := stmt.Observe()
	defer func() { out.RowID = count.RowID() }()
	t.conn.SetContext(ctx, true)
	defer t.conn.SetContext(context.Background(), false)
	for bytes := 0; ; {
		more, err := stmt.Step()
		if err != nil {
			t.failedStmtKept = stmt.KeptChanges()
			explainFull(stmt, err)
			return out, err
		}
		if out.Rows == nil && stmt.ColumnCount() > 0 {
			out.Rows = &wire.Rows{Columns: stmt.Columns()}
		}
		if !more {
			break
		}
		if bytes += appendRow(out.Rows, stmt); bytes > maxResult {
			return out, tooManyRows()
		}
	}
	if t.conn.TookMaxRowid() {
		return out, tookMaxRowid()
	}
	out.RowsAffected, out.LastInsertID, out.TotalChanges = t.conn.Changes(), t.conn.LastInsertID(), t.conn.TotalChanges()-state.TotalChanges
	return out, nil
}

// reload makes the connection load the schema again, as the connections do that will get
// the objects. If that fails, the objects must not be created.
func (t *Temporary) reload() error {
	t.stmts.removeAll()
	if err := t.conn.ExecAsOwner("PRAGMA writable_schema=RESET"); err != nil {
		return err
	}
	return t.conn.LoadTempNames()
}

// reason returns why a statement was interrupted; other errors it returns as they are.
func (t *Temporary) reason(ctx context.Context, err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) || e.Code != sqlite.CodeInterrupt {
		return err
	}
	if why := t.ending.Load(); why != nil {
		return *why
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return err
}

// Content returns the TEMP objects as sqlite.Conn.DumpTemp writes them; nil: none.
func (t *Temporary) Content() ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		return nil, t.ended
	}
	return t.conn.DumpTemp()
}

// Unused reports whether there are neither TEMP objects nor open queries any more.
func (t *Temporary) Unused() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil || len(t.cursors) > 0 {
		return false
	}
	found, err := t.conn.HasTemp()
	return err == nil && !found
}

// End removes the TEMP objects. All methods return reason from then on.
func (t *Temporary) End(reason error) {
	t.stop(reason)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		return
	}
	t.ended = reason
	for c := range t.cursors {
		c.close(reason)
	}
	t.r.temporaries.remove(t)
	t.stmts.clear()
	t.conn.Close()
}

// Close is End for the owner of the Temporary.
func (t *Temporary) Close() { t.End(errFinished) }

// stop interrupts running statements.
func (t *Temporary) stop(reason error) {
	t.ending.CompareAndSwap(nil, &reason)
	t.connMu.Lock()
	defer t.connMu.Unlock()
	t.conn.Stop(true)
}

// endQueries ends the open queries; they return reason.
func (t *Temporary) endQueries(reason error) {
	t.stop(reason)
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.cursors {
		c.close(reason)
	}
	t.ending.Store(nil)
	if t.ended == nil {
		t.conn.Stop(false)
	}
}

// A TempCursor is a query of a Temporary.
type TempCursor struct {
	t       *Temporary
	ctx     context.Context
	stmt    *sqlite.Stmt
	done    func()
	columns []wire.Column
	ended   error
	closed  bool
}

// Query runs a statement that reads and is alone in its text. The end of ctx ends the
// query, at any of its rows.
func (t *Temporary) Query(ctx context.Context, text string, args []wire.Argument, state wire.ConnState, settings wire.Settings) (*TempCursor, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	stmt, done, err := t.prepare(text, state, settings)
	if err != nil {
		return nil, err
	}
	if err := stmt.Bind(args, nil); err != nil {
		done()
		return nil, err
	}
	c := &TempCursor{t: t, ctx: ctx, stmt: stmt, done: done, columns: stmt.Columns()}
	t.cursors[c] = true
	t.oldest.CompareAndSwap(0, int64(time.Since(processStart)))
	return c, nil
}

// Columns returns the query's columns; before the first Next they may be those
// of an earlier schema.
func (c *TempCursor) Columns() []wire.Column { return c.columns }

// Next steps to the next row, if there is one, and calls row with the statement
// to read it.
func (c *TempCursor) Next(row func(*sqlite.Stmt)) (bool, error) {
	t := c.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.closed {
		return false, c.ended
	}
	t.conn.SetContext(c.ctx, true)
	defer t.conn.SetContext(context.Background(), false)
	more, err := c.stmt.Step()
	if err != nil {
		return false, t.reason(c.ctx, err)
	}
	c.columns = c.stmt.Columns()
	if more && row != nil {
		row(c.stmt)
	}
	return more, nil
}

// Close ends the query.
func (c *TempCursor) Close() {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	c.close(nil)
}

func (c *TempCursor) close(reason error) {
	if c.closed {
		return
	}
	c.closed, c.ended = true, reason
	c.done()
	delete(c.t.cursors, c)
	if len(c.t.cursors) == 0 {
		c.t.oldest.Store(0)
	}
}

// temporaries are the open Temporaries of a machine.
type temporaries struct {
	mu     sync.Mutex
	all    map[*Temporary]bool
	closed bool
}

func (ts *temporaries) add(t *Temporary) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.closed {
		return false
	}
	if ts.all == nil {
		ts.all = map[*Temporary]bool{}
	}
	ts.all[t] = true
	return true
}

func (ts *temporaries) remove(t *Temporary) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	delete(ts.all, t)
}

func (ts *temporaries) list() (all []*Temporary) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for t := range ts.all {
		all = append(all, t)
	}
	return all
}

// close ends all of them, and those that are added later.
func (ts *temporaries) close() {
	ts.mu.Lock()
	ts.closed = true
	ts.mu.Unlock()
	for _, t := range ts.list() {
		t.End(ErrReplicaClosed)
	}
}

// endOldest ends the queries of every Temporary that has had one open for longer than
// patience.
func (ts *temporaries) endOldest(patience time.Duration, reason error) {
	limit := int64(time.Since(processStart) - patience)
	for _, t := range ts.list() {
		if oldest := t.oldest.Load(); oldest > 0 && oldest < limit {
			t.endQueries(reason)
		}
	}
}
