package hiqlite

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// tx is a transaction that is open on a connection. Its statements run on a view of
// this node's database, and what they write is recorded. Commit has the recording
// applied by all replicas, under the write lease. A transaction without a lease
// commits nothing but TEMP objects.
//
//	state    view  lease  the transaction
//	new      nil   nil    is deferred and has not read yet
//	reading  set   nil    has read, or changed TEMP objects
//	writing  set   set    may write everything
//
// It begins as new if it is deferred, as reading if it is read-only, and otherwise as
// writing. Its first read leads from new to reading, its first write of an ordinary
// table from both to writing, and end leads out of all states. A transaction that has
// expired is still the tx of its connection until end is called, but its view refuses
// all statements.
type tx struct {
	c            *conn
	ctx          context.Context      // of BeginTx; it bounds Commit
	view         *replica.Transaction // nil: the transaction has not read yet
	lease        *node.Lease          // nil: the transaction does not have the write lease
	readOnly     bool
	linearizable bool // the first read sees everything that was acknowledged before it
	began        time.Time

	endsWithContext   bool     // the transaction expires when ctx ends
	endReported       bool     // the program has got an error that says that the view has ended
	begunBySavepoint  bool     // a SAVEPOINT began it, so RELEASE of that savepoint commits
	pendingSavepoints []string // set before there was a view, since a view would begin to read

	stopContextWatch func() bool // ends the wait for the end of ctx; nil: nothing waits
	timer            *time.Timer // expires the transaction at deadline
	deadline         time.Time

	// ending is set by whoever ends the transaction: the program, which commits or
	// rolls back, or expire, which other goroutines call. Only the one that has set
	// it may release or use the lease.
	ending atomic.Bool

	// changedSettings is the set of the connection's settings that the transaction
	// has changed until it ends, and settingsBefore is what they were. See
	// conn.setSettings.
	changedSettings, settingsBefore wire.Settings
}

var _ driver.Tx = (*tx)(nil)

// Begin is BeginTx without a context.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx begins a transaction.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.checkUsable(ctx); err != nil {
		return nil, err
	}
	level := sql.IsolationLevel(opts.Isolation)
	if level < sql.LevelDefault || level > sql.LevelLinearizable {
		return nil, misuse("use one of the levels of database/sql, or none: all transactions are serializable", "isolation level %v is not known", level)
	}
	begin := ctx
	if level == sql.LevelLinearizable {
		begin = WithConsistency(ctx, Linearizable)
	}
	if err := c.begin(begin, opts.ReadOnly, c.cfg.Deferred && !connapi.NotDeferred(ctx), true); err != nil {
		return nil, err
	}
	c.tx.linearizable = level == sql.LevelLinearizable
	return c.tx, nil
}

// begin begins a transaction. It waits for the write lease, unless the transaction is
// deferred or only reads. With endsWithContext the transaction expires when ctx ends.
func (c *conn) begin(ctx context.Context, readOnly, deferred, endsWithContext bool) error {
	if c.tx != nil {
		if err := c.tx.endBeforeBegin(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.node.WaitZone(ctx); err != nil {
		return err
	}
	t := &tx{c: c, ctx: ctx, readOnly: readOnly, endsWithContext: endsWithContext, began: time.Now()}
	var err error
	switch {
	case readOnly:
		err = t.beginView(ctx)
	case !deferred && !c.queryOnly():
		err = t.acquireLease(ctx)
	}
	if err != nil {
		t.end()
		return err
	}
	c.tx = t
	return nil
}

// endBeforeBegin is called on the open transaction when another one is to begin. It
// returns an error, unless this transaction is over already and one of its statements
// has returned that as an error. Then it ends this transaction, so that BEGIN works as
// in SQLite. A transaction of sql.DB.BeginTx ends only with its sql.Tx.
func (t *tx) endBeforeBegin() error {
	if t.endsWithContext || t.view == nil || t.view.Err() == nil {
		return sqlError(sqlite.TransactionActive())
	}
	if !t.endReported {
		return t.viewError(t.view.Err())
	}
	t.end()
	return nil
}

// beginView begins the view if there is none, without the lease.
func (t *tx) beginView(ctx context.Context) error {
	if t.view != nil {
		return nil
	}
	c := t.c
	if t.linearizable || c.consistency(ctx) == Linearizable {
		if err := c.node.Linearize(ctx); err != nil {
			return err
		}
	}
	opts, err := t.options()
	switch {
	case err != nil:
	case t.readOnly && opts.Temp == nil:
		t.view, err = c.node.Machine().Read(ctx, opts)
	default:
		t.view, err = c.node.Machine().Speculate(opts)
	}
	if err != nil {
		return sqlError(err)
	}
	return t.applyPending()
}

func (t *tx) options() (opts replica.TransactionOptions, err error) {
	c := t.c
	opts = replica.TransactionOptions{
		Seed: wire.NewSeed(), MaxSteps: c.client.cfg.MaxSteps, MaxBytes: node.MaxOperation, Settings: c.settings,
		Changes: c.changes, TotalChanges: c.totalChanges, LastInsertID: c.lastInsertID,
	}
	if c.temp != nil {
		opts.Temp, err = c.temp.Content()
	}
	return opts, err
}

// acquireLease acquires the write lease if the transaction does not have it, so that
// the transaction can write.
func (t *tx) acquireLease(ctx context.Context) error {
	if t.lease != nil {
		return nil
	}
	lease, err := t.c.node.AcquireLease(ctx, t.c.busyTimeout())
	if err != nil {
		return sqlError(err)
	}
	if err := t.attachLease(lease); err != nil {
		lease.Release()
		return err
	}
	t.lease = lease
	lease.OnExpire(func(reason error) { t.expire(reason) })
	t.startTimeout()
	if t.endsWithContext {
		// When ctx ends, database/sql rolls back too, but only after the running
		// statement has ended, and that may have another context.
		t.stopContextWatch = context.AfterFunc(t.ctx, func() { t.expire(context.Cause(t.ctx)) })
	}
	return nil
}

// attachLease lets the view write under a lease. It begins the view if there is none.
func (t *tx) attachLease(lease *node.Lease) error {
	if t.view == nil { // the view sees everything that was applied before the lease was granted
		opts, err := t.options()
		if err != nil {
			return sqlError(err)
		}
		view, err := t.c.node.Machine().Speculate(opts)
		if err != nil {
			return sqlError(err)
		}
		t.view = view
		if err := t.applyPending(); err != nil {
			return err
		}
	}
	err := t.view.Lease(lease.ID, lease.Base)
	if errors.Is(err, replica.ErrChanged) {
		return sqlError(sqlite.BusySnapshot("rows have changed since the transaction's first read; roll it back and run it again, as RunTx does"))
	}
	return t.viewError(err)
}

// startTimeout starts the timer that expires the transaction if the program does not
// end it within tx_timeout.
func (t *tx) startTimeout() {
	limit := cmp.Or(t.c.cfg.TxTimeout, DefaultTxTimeout)
	var callers []uintptr
	if t.c.cfg.TxTrace {
		callers = make([]uintptr, 32)
		callers = callers[:runtime.Callers(2, callers)]
	}
	log := t.c.client.cfg.Logger
	t.deadline = time.Now().Add(limit)
	t.timer = time.AfterFunc(limit, func() {
		if !t.expire(fmt.Errorf("%w: it was open for more than %v (tx_timeout): %w", ErrTxExpired, limit, errTimedOut)) {
			return
		}
		args := []any{"after", limit}
		if where := firstUserFrame(callers); where != "" {
			args = append(args, "begun", where)
		}
		log.Warn("hiqlite: a transaction was ended because it was open for too long", args...)
	})
}

// errTimedOut is part of the error of a transaction that has reached tx_timeout. It
// would do so again, so the error is not repeatable.
var errTimedOut = errors.New("keep transactions short, or set a longer tx_timeout")

// firstUserFrame returns the innermost function outside of this package and
// database/sql, or "".
func firstUserFrame(callers []uintptr) string {
	if len(callers) == 0 {
		return ""
	}
	frames := runtime.CallersFrames(callers)
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, "database/sql.") && !strings.HasPrefix(f.Function, "github.com/hiqlite/hiqlite.") {
			return fmt.Sprintf("%s:%d (%s)", f.File, f.Line, f.Function)
		}
		if !more {
			return ""
		}
	}
}

// expire ends the view and releases the lease, from any goroutine. It does nothing and
// returns false if the transaction is ending already.
func (t *tx) expire(reason error) bool {
	if !t.ending.CompareAndSwap(false, true) {
		return false
	}
	t.view.End(reason)
	if t.lease != nil { // nil: the transaction has only read, or changed TEMP objects
		t.lease.Release()
	}
	return true
}

// end closes the view, releases the lease unless Commit has used it, and makes the
// connection one without a transaction. It may be called more than once.
func (t *tx) end() {
	if t.stopContextWatch != nil {
		t.stopContextWatch()
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	mayRelease := t.ending.CompareAndSwap(false, true)
	if t.view != nil {
		t.view.Close()
	}
	if mayRelease && t.lease != nil {
		t.lease.Release()
	}
	if t.c.tx == t {
		t.c.tx = nil
		delete(t.c.pragmas, "defer_foreign_keys")
		t.c.settings = t.settingsAfterEnd()
	}
}

// settingsAfterEnd returns the connection's settings as they are once the transaction
// has ended.
func (t *tx) settingsAfterEnd() wire.Settings {
	return t.c.settings&^t.changedSettings | t.settingsBefore
}

// viewError turns an error of the view into an error for the program.
func (t *tx) viewError(err error) error {
	if err != nil && t.view != nil && t.view.Err() != nil {
		t.endReported = true
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, replica.ErrLeaseLost):
		return fmt.Errorf("%w: %w", ErrTxExpired, err)
	case errors.Is(err, replica.ErrRolledBack):
		return sqlError(sqlite.RolledBack(fmt.Sprintf("nothing of it will be applied; that statement's error was: %s",
			strings.TrimPrefix(err.Error(), replica.ErrRolledBack.Error()+": "))))
	case errors.Is(err, replica.ErrRecordFull):
		return &recordingFullError{err}
	}
	return sqlError(err)
}

// recordingFullError is an ErrTooLarge with the text of replica.ErrRecordFull, which
// says what is too large.
type recordingFullError struct{ err error }

func (e *recordingFullError) Error() string {
	return e.err.Error() + "; write in several smaller transactions"
}
func (e *recordingFullError) Unwrap() []error { return []error{ErrTooLarge, e.err} }

var (
	errNoTransaction = sqlError(sqlite.NothingToCommit())
	errNoRollback    = sqlError(sqlite.NothingToRollBack())
)

// Commit has everything that was written applied. Its errors:
//   - ErrTxExpired: the lease was lost, and nothing is applied.
//   - ErrOutcomeUnknown: the recording was proposed, and then the context of BeginTx
//     ended, Config.Timeout was over (if the context has no deadline), or the node
//     was closed.
//   - any other: nothing is applied.
func (t *tx) Commit() error {
	if t.c.tx != t {
		return errNoTransaction
	}
	err := t.commit(t.ctx)
	t.end()
	return err
}

// Rollback discards everything that was written.
func (t *tx) Rollback() error {
	if t.c.tx != t {
		return errNoRollback
	}
	t.end()
	return nil
}

// commit is Commit without end. If it fails before anything was proposed, the
// transaction is still open.
func (t *tx) commit(ctx context.Context) error {
	next, err := t.nextTemp()
	if err != nil {
		return t.viewError(err)
	}
	if err := t.proposeRecording(ctx); err != nil {
		next.discard()
		return err
	}
	next.adopt()
	return nil
}

// proposeRecording has the recording applied by all replicas, if there is one.
func (t *tx) proposeRecording(ctx context.Context) error {
	if t.view == nil {
		return nil
	}
	if t.lease == nil { // it has changed nothing but TEMP objects
		return t.viewError(t.view.CheckDeferred())
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.c.node.RefusesWrites(); err != nil {
		return err
	}
	if !t.ending.CompareAndSwap(false, true) {
		return t.viewError(t.view.Err())
	}
	op := &wire.Operation{Lease: &wire.Lease{Keep: t.lease.Keep(t.began)}, Origin: t.c.origin}
	recording, err := t.view.Record(op)
	if err != nil || recording == nil {
		t.ending.Store(false)
		t.timer.Reset(max(0, time.Until(t.deadline))) // the timer may have fired in between
		return t.viewError(err)
	}
	t.c.origin = nil // it is used
	return sqlError(t.c.node.CommitUnder(ctx, t.lease, recording))
}

// classify classifies a text by the schema that the transaction sees.
func (t *tx) classify(ctx context.Context, text string) (*sqlite.Class, error) {
	if err := t.beginView(ctx); err != nil {
		return nil, err
	}
	class, err := t.view.Classify(text)
	if err != nil {
		return nil, t.viewError(err)
	}
	return &class, nil
}

// deferForeignKeys executes PRAGMA defer_foreign_keys, which has an effect until the
// end of the transaction.
func (t *tx) deferForeignKeys(ctx context.Context, on bool) error {
	if err := t.beginView(ctx); err != nil {
		return err
	}
	return t.viewError(t.view.DeferForeignKeys(on))
}

// applyPending executes on a new view the savepoints and the PRAGMA
// defer_foreign_keys that were executed before there was a view.
func (t *tx) applyPending() error {
	for _, name := range t.pendingSavepoints {
		err := t.view.Savepoint(replica.SetSavepoint, name, `SAVEPOINT "`+strings.ReplaceAll(name, `"`, `""`)+`"`)
		if err != nil {
			return t.viewError(err)
		}
	}
	t.pendingSavepoints = nil
	if t.c.pragmas["defer_foreign_keys"] == 0 {
		return nil
	}
	return t.viewError(t.view.DeferForeignKeys(true))
}

// read runs a text that only reads.
func (t *tx) read(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	if err := t.beginView(ctx); err != nil {
		return nil, err
	}
	query := func(text string) (resultSet, error) {
		q, err := t.view.Query(ctx, text, args)
		if err != nil {
			return nil, readError(ctx, t.viewError(err))
		}
		return newLocalRows(ctx, &t.c.cfg, &txCursor{q, t}, q.Close)
	}
	if class.Script {
		return t.c.queryParts(class, query, nil)
	}
	return query(text)
}

// txCursor is the cursor of a transaction's query. It returns errors for the program.
type txCursor struct {
	cursor
	t *tx
}

func (c *txCursor) Next(row func(*sqlite.Stmt)) (bool, error) {
	more, err := c.cursor.Next(row)
	return more, c.t.viewError(err)
}

// write runs a text that writes.
func (t *tx) write(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (*wire.Result, error) {
	// A statement that changes only TEMP objects needs no lease. Whether a script
	// does so is known only when its statements run.
	local := class.TempOnly || class.Script && (class.Temp || t.c.usesTemp())
	switch {
	case t.c.queryOnly(), t.readOnly && (!local || t.c.temp == nil):
		return nil, errReadOnly()
	case class.Kind == sqlite.Vacuum:
		return nil, sqlError(sqlite.VacuumInTransaction())
	}
	begin := t.acquireLease
	if local {
		begin = t.beginView
	}
	if err := begin(ctx); err != nil {
		return nil, err
	}
	if class.Script {
		return t.writeScript(ctx, text, args)
	}
	s, err := t.view.Exec(ctx, text, args)
	if err != nil {
		if ended := t.view.Err(); ended != nil {
			t.expire(ended) // release the lease now, so that others need not wait for ROLLBACK
		}
		return nil, readError(ctx, t.viewError(err))
	}
	t.c.takeCounters(class, &s)
	return &wire.Result{Statements: []wire.StatementResult{s}}, nil
}
