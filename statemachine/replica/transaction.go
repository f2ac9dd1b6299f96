package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// ErrLeaseLost says that a transaction does not hold its lease any more.
var ErrLeaseLost = errors.New("hiqlite: the write lease was lost")

// ErrRecordFull says that the recording of a transaction does not fit into an entry.
var ErrRecordFull = errors.New("hiqlite: the transaction is too large")

// ErrChanged says that rows have changed since a transaction's first read.
var ErrChanged = errors.New("hiqlite: rows have changed since the transaction's first read")

// ErrRolledBack says that a statement has ended its transaction: by OR ROLLBACK, or
// because a write was interrupted.
var ErrRolledBack = errors.New("hiqlite: the transaction was rolled back by an earlier statement")

var errSuperseded = fmt.Errorf("%w: a snapshot has replaced the database that the transaction worked on", ErrLeaseLost)

// A Transaction is the view on which an interactive transaction runs at this node: the
// rows as of one entry, and what the transaction itself has written.
//
// A Transaction that writes runs its statements inside a SQLite transaction that is
// never committed, and records them. All replicas execute the recording later, see
// execution.executeRecording. While the write lease is held no other entry changes rows, so
// the recording will be executed on the rows that the view has shown. When the lease
// ends, apply ends the Transaction before it writes itself, so an open Transaction never
// delays the replica.
//
// Only one goroutine at a time may call its methods; any may call End.
type Transaction struct {
	r      *SQL
	reader *Reader // not nil: the transaction only reads
	spec   *speculativeConn
	lease  uint64 // 0: it has not got a lease yet
	opts   TransactionOptions

	ending   atomic.Pointer[error] // not nil: why the transaction has to end
	connMu   sync.Mutex            // guards ownsConn
	ownsConn bool                  // the connection is not back in its pool

	mu             sync.Mutex // held while the connection is used; locked before connMu
	conn           *sqlite.Conn
	stmts          *stmtCache
	changed        uint64 // the last entry that may have changed the rows in view
	ended          error
	fatal          error // not nil: why the transaction has to end after the present statement
	failedStmtKept bool  // the last statement failed, but its changes were kept (OR FAIL)
	cursors        map[*Cursor]bool
	dirty          bool // the connection must not be used again
	deferred       bool // PRAGMA defer_foreign_keys is on

	rec        wire.Recorder
	sum        wire.Checksum
	stamp      int64  // of the first recorded statement
	last       int64  // of the last one
	ordinal    uint64 // statements that ran
	next       uint64 // the ordinal that a replica expects after the last recorded statement
	savepoints []savepointMark
	temp       tempUse
}

// A savepointMark is the state of a recording when a savepoint was set.
type savepointMark struct {
	name string
	mark recordMark
}

type recordMark struct {
	rec  wire.Mark
	sum  wire.Checksum
	last int64
	next uint64
}

// TransactionOptions are the options of a transaction.
type TransactionOptions struct {
	Seed     wire.Seed // for random numbers
	MaxSteps uint64
	MaxBytes int // of the recording; 0: no bound
	Settings wire.Settings
	// The connection's counters at the beginning of the transaction.
	Changes, TotalChanges, LastInsertID int64
	Temp                                []byte // the connection's TEMP objects, see sqlite.Conn.DumpTemp; nil: it has none
}

// Read returns a transaction that only reads the rows that have been applied.
func (r *SQL) Read(ctx context.Context, opts TransactionOptions) (*Transaction, error) {
	reader, err := r.AcquireUnder(ctx, opts.Settings)
	if err != nil {
		return nil, err
	}
	reader.conn.CopyArguments(true)
	t := &Transaction{r: r, reader: reader, conn: reader.conn, stmts: reader.stmts, opts: opts, ownsConn: true, cursors: map[*Cursor]bool{}}
	if err := t.conn.ExecAsOwner("BEGIN; " + verifySchema); err != nil {
		reader.Discard()
		reader.Release()
		return nil, err
	}
	t.conn.SetState(opts.Changes, opts.TotalChanges, opts.LastInsertID)
	reader.since.Store(int64(time.Since(processStart)))
	reader.mu.Lock()
	reader.tx = t
	reader.mu.Unlock()
	return t, nil
}

// Speculate returns a transaction that can write once Lease was called. The lease may
// have been granted before or after Speculate.
func (r *SQL) Speculate(opts TransactionOptions) (*Transaction, error) {
	if err := r.Err(); err != nil {
		return nil, err
	}
	spec, err := r.speculative.acquire(r.pool, opts.Settings)
	if err != nil {
		return nil, err
	}
	t := &Transaction{r: r, spec: spec, conn: spec.conn, stmts: spec.stmts, opts: opts, ownsConn: true, cursors: map[*Cursor]bool{}}
	t.mu.Lock() // from here on apply can end it
	defer t.mu.Unlock()
	if !r.speculative.register(t) {
		return nil, ErrReplicaClosed
	}
	t.conn.Begin(&wire.Operation{MaxSteps: opts.MaxSteps})
	t.conn.SetState(opts.Changes, opts.TotalChanges, opts.LastInsertID)
	if err = spec.stmts.switchSettings(opts.Settings); err == nil {
		err = t.conn.ExecAsOwner("BEGIN")
	}
	if err == nil {
		err = t.beginTemp()
	}
	if err == nil {
		t.changed, err = t.readLastChange()
	}
	if err != nil {
		err = t.reason(err)
		t.dirty = true
		t.endTransaction(err)
		return nil, err
	}
	return t, nil
}

// readLastChange returns the index of the last entry that changed the rows that the
// view shows. As the first read after BEGIN it also fixes which rows these are.
func (t *Transaction) readLastChange() (changed uint64, err error) {
	err = t.conn.QueryAsOwner("SELECT state FROM main."+sqlite.MetaTable+" WHERE id=0", func(s *sqlite.Stmt) error {
		state, err := wire.DecodeState(s.Bytes(0))
		if err == nil {
			changed = state.Changed
		}
		return err
	})
	return changed, err
}

// lockWait bounds the wait for a checkpoint, which holds SQLite's write lock for a
// moment.
const lockWait = 5 * time.Second

// Lease lets the transaction write under a lease that was granted when base was the
// last entry that had changed rows. The error is ErrChanged if the view shows other rows
// than those, and ErrLeaseLost if the lease has ended in the meantime.
func (t *Transaction) Lease(lease, base uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return err
	}
	if t.changed != base {
		if t.r.holder.Load() != lease {
			return ErrLeaseLost // and others have written since
		}
		return ErrChanged
	}
	if !t.r.registerWriter(t, lease) {
		return ErrLeaseLost
	}
	changes, total, id := t.conn.Changes(), t.conn.TotalChanges(), t.conn.LastInsertID()
	defer func() { t.conn.SetState(changes, total, id) }()
	// A write that changes nothing takes SQLite's write lock. SQLite does not wait
	// for it in a transaction that has read, so the loop does.
	for deadline := time.Now().Add(lockWait); ; time.Sleep(time.Millisecond) {
		err := t.conn.ExecAsOwner("DELETE FROM main." + sqlite.MetaTable + " WHERE 0")
		var e *sqlite.Error
		if !errors.As(err, &e) || t.ending.Load() != nil || time.Now().After(deadline) {
			return t.reason(err)
		}
		switch {
		case e.Code == sqlite.CodeBusy:
		case e.Code == sqlite.CodeBusySnapshot && len(t.cursors) == 0 && len(t.savepoints) == 0 && t.rec.Len() == 0:
			// A checkpoint has emptied the write-ahead log in the meantime. SQLite
			// cannot know that the rows are the same, so the view begins again.
			if err := t.restartView(); err != nil {
				return err
			}
			if t.changed != base {
				return ErrChanged
			}
		default:
			return err
		}
	}
}

// restartView rolls the view back and begins it again.
func (t *Transaction) restartView() (err error) {
	if err = t.conn.ExecAsOwner("ROLLBACK; BEGIN"); err == nil {
		err = t.beginTemp()
	}
	if err == nil {
		t.changed, err = t.readLastChange()
	}
	return err
}

// reason returns why the transaction has to end, if err only says that a statement was
// interrupted because of that; otherwise it returns err.
func (t *Transaction) reason(err error) error {
	var e *sqlite.Error
	if why := t.ending.Load(); why != nil && errors.As(err, &e) && e.Code == sqlite.CodeInterrupt {
		return *why
	}
	return err
}

// err returns why the transaction has ended, or nil. The caller holds mu.
func (t *Transaction) err() error {
	if t.ended != nil {
		return t.ended
	}
	if reason := t.ending.Load(); reason != nil {
		t.endTransaction(*reason)
	}
	return t.ended
}

// Err returns why the transaction has ended, or nil.
func (t *Transaction) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err()
}

// End rolls the transaction back, if it has not ended. Its methods return reason from
// then on. A running statement is interrupted.
func (t *Transaction) End(reason error) {
	t.ending.CompareAndSwap(nil, &reason)
	t.connMu.Lock()
	if t.ownsConn {
		t.conn.Stop(true)
	}
	t.connMu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.err()
}

var errFinished = errors.New("hiqlite: the transaction is over")

// Close rolls the transaction back, if it has not ended.
func (t *Transaction) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.endTransaction(errFinished)
}

// endTransaction rolls the view back and returns its connection to the pool. The caller
// holds mu.
func (t *Transaction) endTransaction(reason error) {
	if t.ended != nil {
		return
	}
	t.ended = reason
	for c := range t.cursors {
		c.close()
	}
	t.connMu.Lock()
	t.ownsConn = false
	t.connMu.Unlock()
	if t.conn.Autocommit() {
		// A statement has ended the SQLite transaction, such as one with OR ROLLBACK.
		// If it wrote an R-Tree, SQLite may have kept the snapshot, and the next
		// transaction on this connection would see old rows.
		t.dirty = true
	} else if err := t.conn.ExecAsOwner("ROLLBACK"); err != nil {
		t.r.log.Warn("hiqlite: rolling back a transaction", "error", err)
		t.dirty = true
	}
	t.conn.SetContext(context.Background(), false)
	if t.reader != nil {
		if t.dirty || t.ending.Load() != nil {
			t.reader.Discard()
		}
		t.conn.CopyArguments(false)
		t.reader.mu.Lock()
		t.reader.tx = nil
		t.reader.since.Store(0)
		t.reader.mu.Unlock()
		t.reader.Release()
		return
	}
	t.r.speculative.release(t, !t.dirty && t.ending.Load() == nil)
}

// DeferForeignKeys does what PRAGMA defer_foreign_keys does.
func (t *Transaction) DeferForeignKeys(on bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return err
	}
	t.deferred = on
	// A statement that was prepared under the other setting does not undo its changes
	// correctly when it fails.
	t.stmts.dropIdle()
	t.dirty = true
	return t.reason(t.conn.ExecAsOwner(deferForeignKeys(on)))
}

func deferForeignKeys(on bool) string {
	if on {
		return "PRAGMA defer_foreign_keys=ON"
	}
	return "PRAGMA defer_foreign_keys=OFF"
}

// Classify finds out what a text would do, given the schema of the view.
func (t *Transaction) Classify(text string) (sqlite.Class, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return sqlite.Class{}, err
	}
	class, err := t.conn.Classify(text)
	return class, t.reason(err)
}

// First classifies the first statement of a text and returns the rest of the text.
func (t *Transaction) First(text string) (sqlite.Part, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return sqlite.Part{}, "", err
	}
	part, rest, err := t.conn.ClassifyFirst(text)
	return part, rest, t.reason(err)
}

// prepare returns the statement of a text that has only one. kept is not nil if the
// statement belongs to the cache; otherwise the caller closes stmt.
func (t *Transaction) prepare(text string) (stmt *sqlite.Stmt, kept *cachedStmt, err error) {
	if p := t.stmts.get(text); p != nil && !p.busy {
		return p.Stmt, p, nil
	} else if p == nil {
		stmt, _, err := t.conn.Prepare(text, true)
		if err != nil || stmt == nil {
			return nil, nil, err
		}
		if !stmt.FollowsSchema() || stmt.Actions.ChangesSchema {
			return stmt, nil, nil
		}
		return stmt, t.stmts.keep(text, stmt), nil
	}
	stmt, _, err = t.conn.Prepare(text, false)
	return stmt, nil, err
}
