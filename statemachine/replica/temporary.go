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

// A Temporary holds the TEMP objects of one connection of database/sql, while
// there are some: on a SQLite connection of their own, which reads the database
// beside them and cannot write it. What writes both is a Transaction, which gets
// their content.
//
// Its methods may be called by one goroutine at a time; the replica may end it,
// or its queries, beside that.
type Temporary struct {
	r       *SQL
	oldest  atomic.Int64          // when the oldest open query began, since the process did; 0: none is open
	ending  atomic.Pointer[error] // why what runs now has to end
	hold    sync.Mutex            // guards conn against being exchanged; locked after mu
	mu      sync.Mutex            // held while the connection is used
	conn    *sqlite.Conn
	file    string // which it has open
	kept    *programs
	leaves  bool // the statement that failed has left what it did
	cursors map[*TempCursor]bool
	ended   error
}

// Temporary returns what holds the TEMP objects of this content; nil: none yet.
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

// open opens the database in use, and makes the objects.
func (t *Temporary) open(content []byte) error {
	p := t.r.pool
	p.mu.Lock() // held while it is opened: the file stays where it is
	if p.file == "" {
		p.mu.Unlock()
		return ErrReplicaClosed
	}
	file := p.file
	conn, err := p.connect(file, sqlite.Temp)
	if err == nil {
		if err = conn.Exec(verifySchema); err != nil { // which opens the write-ahead log
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
	t.hold.Lock()
	t.conn, t.file, t.kept = conn, file, newPrograms(conn)
	t.hold.Unlock()
	return nil
}

// current makes the connection one to the generation in use, which knows its
// schema and prepares under settings. Queries that are open finish on what they began. The caller holds mu.
func (t *Temporary) current(settings wire.Settings) error {
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
		old, kept := t.conn, t.kept
		if err := t.open(content); err != nil {
			return err
		}
		kept.clear()
		old.Close()
	}
	if err := t.kept.use(settings); err != nil {
		return err
	}
	return t.owner(verifySchema)
}

func (t *Temporary) owner(sql string) error {
	t.conn.Owner(true)
	defer t.conn.Owner(false)
	return t.conn.Exec(sql)
}

// Classify finds out which way a text goes, with the TEMP objects in mind.
func (t *Temporary) Classify(text string, settings wire.Settings) (sqlite.Class, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.current(settings); err != nil {
		return sqlite.Class{}, err
	}
	return t.conn.Classify(text)
}

// First classifies the first statement of a text, and returns what is behind it.
func (t *Temporary) First(text string, settings wire.Settings) (sqlite.Part, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.current(settings); err != nil {
		return sqlite.Part{}, "", err
	}
	return t.conn.First(text)
}

// prepare returns a statement that is alone in its text, which is kept unless it
// changes the schema.
func (t *Temporary) prepare(text string, state wire.ConnState, settings wire.Settings) (stmt *sqlite.Stmt, done func(), err error) {
	if err := t.current(settings); err != nil {
		return nil, nil, err
	}
	t.conn.SetState(state.Changes, state.TotalChanges, state.LastInsertID)
	p := t.kept.get(text)
	if p == nil {
		stmt, _, err := t.conn.Prepare(text, true)
		if err == nil && stmt == nil {
			err = sqlite.NoStatement()
		}
		if err != nil {
			return nil, nil, err
		}
		if stmt.Actions.Pragma != "" || stmt.Actions.Schema {
			return stmt, stmt.Close, nil
		}
		p = t.kept.keep(text, stmt)
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

// Exec runs a statement, alone in its text, that changes TEMP objects and nothing
// else. A failed one leaves them as they were, but for OR FAIL and the like.
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
	if err := t.owner("BEGIN"); err != nil {
		return out, err
	}
	out, err = t.run(ctx, stmt, state)
	var undone error
	if stmt.Actions.Schema && !t.conn.Autocommit() {
		stmt.Close() // the schema cannot be loaded while it runs
		if undone = t.reload(); err == nil {
			err = undone
		}
	}
	switch {
	case t.conn.Autocommit(): // OR ROLLBACK and the like
	case undone != nil, err != nil && !t.leaves:
		t.kept.forget()
		err = errors.Join(err, t.owner("ROLLBACK"), t.reload())
	default:
		if failed := t.owner("COMMIT"); failed != nil { // a deferred key is violated
			t.kept.forget()
			err = errors.Join(failed, t.owner("ROLLBACK"), t.reload())
		}
	}
	return out, t.reason(ctx, firstOf(err))
}

// firstOf returns the first error of those that were joined: it explains the others.
func firstOf(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 0 {
		return joined.Unwrap()[0]
	}
	return err
}

// run steps a statement to its end and collects its rows.
func (t *Temporary) run(ctx context.Context, stmt *sqlite.Stmt, state wire.ConnState) (out wire.StatementResult, err error) {
	defer stmt.Reset()
	t.leaves = false
	count := stmt.Count()
	defer func() { out.RowID = count.Row() }()
	t.conn.Run(ctx, true)
	defer t.conn.Run(context.Background(), false)
	for bytes := 0; ; {
		more, err := stmt.Step()
		if err != nil {
			t.leaves = stmt.KeepsWhatItDid()
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

// reload makes the connection read the schema anew, as those will to which the
// objects travel: what they could not read must not be.
func (t *Temporary) reload() error {
	t.kept.forget()
	if err := t.owner("PRAGMA writable_schema=RESET"); err != nil {
		return err
	}
	return t.conn.NoteTemp()
}

// reason returns why a statement ended that was interrupted.
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

// Content returns the TEMP objects, written down; nil: there are none.
func (t *Temporary) Content() ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		return nil, t.ended
	}
	return t.conn.DumpTemp()
}

// Unused reports that there are no TEMP objects any more, and no open queries.
func (t *Temporary) Unused() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil || len(t.cursors) > 0 {
		return false
	}
	found, err := t.conn.HasTemp()
	return err == nil && !found
}

// End removes the TEMP objects. The methods return reason from then on.
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
	t.kept.clear()
	t.conn.Close()
}

// Close is End, when its owner is closed.
func (t *Temporary) Close() { t.End(errFinished) }

// stop makes what runs end.
func (t *Temporary) stop(reason error) {
	t.ending.CompareAndSwap(nil, &reason)
	t.hold.Lock()
	defer t.hold.Unlock()
	t.conn.Stop(true)
}

// endQueries ends what is open, for a reason.
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

// A TempCursor is a query that sees TEMP objects.
type TempCursor struct {
	t       *Temporary
	ctx     context.Context
	stmt    *sqlite.Stmt
	done    func()
	columns []wire.Column
	ended   error
	closed  bool
}

// Query binds args to a statement that reads, alone in its text. ctx is good for
// all of its rows.
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
	t.conn.Run(c.ctx, true)
	defer t.conn.Run(context.Background(), false)
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

// temporaries are those of a replica that are open.
type temporaries struct {
	mu   sync.Mutex
	all  map[*Temporary]bool
	shut bool
}

func (ts *temporaries) add(t *Temporary) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.shut {
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

// close ends all.
func (ts *temporaries) close() {
	ts.mu.Lock()
	ts.shut = true
	ts.mu.Unlock()
	for _, t := range ts.list() {
		t.End(ErrReplicaClosed)
	}
}

// endOldest ends the queries of those that have one which is open for longer
// than patience.
func (ts *temporaries) endOldest(patience time.Duration, reason error) {
	limit := int64(time.Since(processStart) - patience)
	for _, t := range ts.list() {
		if oldest := t.oldest.Load(); oldest > 0 && oldest < limit {
			t.endQueries(reason)
		}
	}
}
