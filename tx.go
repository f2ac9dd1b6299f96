package hiqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// tx is a transaction that is open on a connection. Its statements run on a
// view of this node's replica; what it writes is applied by all replicas at
// Commit, under the write lease that it has had since.
type tx struct {
	c        *conn
	ctx      context.Context      // of BeginTx: bounds Commit
	view     *replica.Transaction // nil: a deferred one that has not read yet
	lease    *node.Lease          // nil: it has not the write lease
	readOnly bool
	newest   bool     // it sees all that was acknowledged before it first reads
	watched  bool     // it is over when ctx is
	told     bool     // the program, that it is over
	bySave   bool     // begun by a SAVEPOINT, whose RELEASE commits
	pending  []string // savepoints set while there is no view, which would begin reading
	began    time.Time
	stop     func() bool // ends the watch over ctx; nil: there is none
	timer    *time.Timer
	limit    time.Time    // when the timer ends it
	stage    atomic.Int32 // so that the timer ends it only while it is open

	// outside are the connection's settings of which the transaction has others,
	// until it ends: see conn.set.
	outside, others wire.Settings
}

// Stages of a transaction.
const (
	txOpen int32 = iota
	txEnding
)

var _ driver.Tx = (*tx)(nil)

// Begin is BeginTx without a context.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx begins a transaction.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	level := sql.IsolationLevel(opts.Isolation)
	if level < sql.LevelDefault || level > sql.LevelLinearizable {
		return nil, misuse("it is none of database/sql's; leave it out: transactions are serializable", "isolation level %v is not known", level)
	}
	begin := ctx
	if level == sql.LevelLinearizable {
		begin = WithConsistency(ctx, Linearizable)
	}
	if err := c.begin(begin, opts.ReadOnly, c.cfg.Deferred, true); err != nil {
		return nil, err
	}
	c.tx.newest = level == sql.LevelLinearizable
	return c.tx, nil
}

// begin begins a transaction. Unless it is deferred or only reads it waits for
// the write lease. One that is watched is over when ctx is.
func (c *conn) begin(ctx context.Context, readOnly, deferred, watched bool) error {
	if c.tx != nil {
		if err := c.tx.inTheWay(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.node.WaitZone(ctx); err != nil {
		return err
	}
	t := &tx{c: c, ctx: ctx, readOnly: readOnly, watched: watched, began: time.Now()}
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

// inTheWay is why no transaction can begin while this one is there. One that is
// over, as the program has been told, is none any more, as in SQLite; but for one
// of database/sql's, which ends with its sql.Tx.
func (t *tx) inTheWay() error {
	if t.watched || t.view == nil || t.view.Err() == nil {
		return sqlError(sqlite.TransactionActive())
	}
	if !t.told {
		return t.explain(t.view.Err())
	}
	t.end()
	return nil
}

// beginView begins the view, without the lease.
func (t *tx) beginView(ctx context.Context) error {
	if t.view != nil {
		return nil
	}
	c := t.c
	if t.newest || c.consistency(ctx) == Linearizable {
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
	return t.opened()
}

func (t *tx) options() (opts replica.TransactionOptions, err error) {
	c := t.c
	opts = replica.TransactionOptions{
		Seed: wire.NewSeed(), MaxSteps: c.client.cfg.MaxSteps, MaxBytes: node.MaxOperation, Settings: c.travels,
		Changes: c.changes, TotalChanges: c.totalChanges, LastInsertID: c.lastInsertID,
	}
	if c.temp != nil {
		opts.Temp, err = c.temp.Content()
	}
	return opts, err
}

// acquireLease makes the transaction one that can write.
func (t *tx) acquireLease(ctx context.Context) error {
	if t.lease != nil {
		return nil
	}
	lease, err := t.c.node.AcquireLease(ctx, t.c.patience())
	if err != nil {
		return sqlError(err)
	}
	if err := t.writeUnder(lease); err != nil {
		lease.Release()
		return err
	}
	t.lease = lease
	lease.OnExpire(func(reason error) { t.expire(reason) })
	t.arm()
	if t.watched {
		// database/sql rolls back when ctx ends, but only after the statement that
		// runs has ended, even if that has another context.
		t.stop = context.AfterFunc(t.ctx, func() { t.expire(context.Cause(t.ctx)) })
	}
	return nil
}

// writeUnder makes the view, which begins now if it has not, one that writes.
func (t *tx) writeUnder(lease *node.Lease) error {
	if t.view == nil { // it sees what was applied before the lease was granted
		opts, err := t.options()
		if err != nil {
			return sqlError(err)
		}
		view, err := t.c.node.Machine().Speculate(opts)
		if err != nil {
			return sqlError(err)
		}
		t.view = view
		if err := t.opened(); err != nil {
			return err
		}
	}
	err := t.view.Lease(lease.ID, lease.Base)
	if errors.Is(err, replica.ErrChanged) {
		return sqlError(sqlite.BusySnapshot("rows have changed since the transaction's first read; roll it back and run it again, as RunTx does"))
	}
	return t.explain(err)
}

// arm starts the clock that ends a transaction which the program has forgotten.
func (t *tx) arm() {
	limit := t.c.cfg.TxTimeout
	if limit == 0 {
		limit = DefaultTxTimeout
	}
	var callers []uintptr
	if t.c.cfg.TxTrace {
		callers = make([]uintptr, 32)
		callers = callers[:runtime.Callers(2, callers)]
	}
	log := t.c.client.cfg.Logger
	t.limit = time.Now().Add(limit)
	t.timer = time.AfterFunc(limit, func() {
		if !t.expire(fmt.Errorf("%w: it was open for more than %v (tx_timeout): %w", ErrTxExpired, limit, errForgotten)) {
			return
		}
		args := []any{"after", limit}
		if where := origin(callers); where != "" {
			args = append(args, "begun", where)
		}
		log.Warn("hiqlite: a transaction was ended", args...)
	})
}

// errForgotten says that a transaction expired by its own fault.
var errForgotten = errors.New("keep transactions short, or set a longer one")

// origin names the place in the user's program.
func origin(callers []uintptr) string {
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

// expire ends the transaction from outside, unless it is ending already.
func (t *tx) expire(reason error) bool {
	if !t.stage.CompareAndSwap(txOpen, txEnding) {
		return false
	}
	t.view.End(reason)
	if t.lease != nil { // not needed for reads and for changes of TEMP objects alone
		t.lease.Release()
	}
	return true
}

// end gives back what the transaction has.
func (t *tx) end() {
	if t.stop != nil {
		t.stop()
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	first := t.stage.CompareAndSwap(txOpen, txEnding)
	if t.view != nil {
		t.view.Close()
	}
	if first && t.lease != nil {
		t.lease.Release()
	}
	if t.c.tx == t {
		t.c.tx = nil
		delete(t.c.settings, "defer_foreign_keys")
		t.c.travels = t.c.travels&^t.others | t.outside
	}
}

// explain turns an error of the view's into one for the program.
func (t *tx) explain(err error) error {
	if err != nil && t.view != nil && t.view.Err() != nil {
		t.told = true
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
		return &recordFull{err}
	}
	return sqlError(err)
}

// recordFull is ErrTooLarge in the words of replica.ErrRecordFull, which say
// what is too large.
type recordFull struct{ err error }

func (e *recordFull) Error() string   { return e.err.Error() + "; write in several smaller transactions" }
func (e *recordFull) Unwrap() []error { return []error{ErrTooLarge, e.err} }

var (
	errNoTransaction = sqlError(sqlite.NothingToCommit())
	errNoRollback    = sqlError(sqlite.NothingToRollBack())
)

// Commit has what was written applied. Its errors:
//   - ErrTxExpired: the lease was lost, nothing is applied.
//   - ErrOutcomeUnknown: the context of BeginTx or, without a deadline,
//     Config.Timeout ended, or the node was closed, while it was being applied.
//   - any other: nothing is applied.
func (t *tx) Commit() error {
	if t.c.tx != t {
		return errNoTransaction
	}
	err := t.commit(t.ctx)
	t.end()
	return err
}

// Rollback forgets what was written.
func (t *tx) Rollback() error {
	if t.c.tx != t {
		return errNoRollback
	}
	t.end()
	return nil
}

// commit is Commit. If it fails before anything was proposed, the transaction
// is still open.
func (t *tx) commit(ctx context.Context) error {
	take, drop, err := t.nextTemp()
	if err != nil {
		return t.explain(err)
	}
	if err := t.apply(ctx); err != nil {
		drop()
		return err
	}
	take()
	return nil
}

// apply has what was written applied.
func (t *tx) apply(ctx context.Context) error {
	if t.view == nil {
		return nil
	}
	if t.lease == nil {
		return t.explain(t.view.Err())
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.c.node.RefusesWrites(); err != nil {
		return err
	}
	if !t.stage.CompareAndSwap(txOpen, txEnding) {
		return t.explain(t.view.Err())
	}
	op := &wire.Operation{Lease: &wire.Lease{Keep: t.lease.Keep(t.began)}}
	recording, err := t.view.Record(op)
	if err != nil || recording == nil {
		t.stage.Store(txOpen)
		t.timer.Reset(max(0, time.Until(t.limit))) // the limit may have passed meanwhile
		return t.explain(err)
	}
	return sqlError(t.c.node.CommitUnder(ctx, t.lease, recording))
}

// classify finds out what a text does to what the transaction sees.
func (t *tx) classify(ctx context.Context, text string) (*sqlite.Class, error) {
	if err := t.beginView(ctx); err != nil {
		return nil, err
	}
	class, err := t.view.Classify(text)
	if err != nil {
		return nil, t.explain(err)
	}
	return &class, nil
}

// deferForeignKeys does what PRAGMA defer_foreign_keys does: until the end of the
// transaction.
func (t *tx) deferForeignKeys(ctx context.Context, on bool) error {
	if err := t.beginView(ctx); err != nil {
		return err
	}
	return t.explain(t.view.DeferForeignKeys(on))
}

// opened brings over what the connection was told before.
func (t *tx) opened() error {
	for _, name := range t.pending {
		err := t.view.Savepoint(replica.SetSavepoint, name, `SAVEPOINT "`+strings.ReplaceAll(name, `"`, `""`)+`"`)
		if err != nil {
			return t.explain(err)
		}
	}
	t.pending = nil
	if t.c.settings["defer_foreign_keys"] == 0 {
		return nil
	}
	return t.explain(t.view.DeferForeignKeys(true))
}

// read runs a text that only reads.
func (t *tx) read(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	if err := t.beginView(ctx); err != nil {
		return nil, err
	}
	query := func(text string) (resultSet, error) {
		q, err := t.view.Query(ctx, text, args)
		if err != nil {
			return nil, readError(ctx, t.explain(err))
		}
		return newLocalRows(ctx, &t.c.cfg, &txCursor{q, t}, q.Close)
	}
	if class.Script {
		return t.c.inTurn(class, query, nil)
	}
	return query(text)
}

// txCursor explains the errors of a transaction's query.
type txCursor struct {
	cursor
	t *tx
}

func (c *txCursor) Next(row func(*sqlite.Stmt)) (bool, error) {
	more, err := c.cursor.Next(row)
	return more, c.t.explain(err)
}

// write runs a text that writes.
func (t *tx) write(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (*wire.Result, error) {
	// What changes TEMP objects alone needs no lease. Of a script only its
	// statements show it.
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
		return t.script(ctx, text, args)
	}
	s, err := t.view.Exec(ctx, text, args)
	if err != nil {
		if over := t.view.Err(); over != nil {
			t.expire(over) // others need not wait for ROLLBACK
		}
		return nil, readError(ctx, t.explain(err))
	}
	t.c.remember(class, &s)
	return &wire.Result{Statements: []wire.StatementResult{s}}, nil
}
