package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A transaction is recorded as it runs, and executed again from its record by
// every replica: both sides are here.

// Exec runs a statement that writes, alone in its text, to its end, and records
// it. A failed one leaves the transaction as it was, mostly: Err tells.
func (t *Transaction) Exec(ctx context.Context, text string, args []wire.Argument) (wire.StatementResult, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return wire.StatementResult{}, err
	}
	if err := ctx.Err(); err != nil {
		return wire.StatementResult{}, err
	}
	out, err := t.exec(ctx, text, args)
	if t.over != nil {
		t.finish(t.over)
	}
	return out, err
}

func (t *Transaction) exec(ctx context.Context, text string, args []wire.Argument) (out wire.StatementResult, err error) {
	stmt, kept, err := t.prepare(text)
	if err != nil || stmt == nil {
		return out, t.reason(err)
	}
	if kept != nil {
		kept.busy = true
		defer func() { kept.busy = false }()
	} else {
		defer stmt.Close()
	}
	if err := t.useTemp(stmt); err != nil {
		return out, err
	}
	if stmt.Actions.Schema || stmt.Actions.Statistics {
		t.dirty = true
		defer func() { err = errors.Join(err, t.reload()) }()
	}
	if err := bind(stmt, args); err != nil {
		return out, err
	}
	if err := stmt.RandomNames(false); err != nil {
		return out, t.reason(err)
	}
	before, s, err := t.record(stmt, text, args)
	if err != nil {
		return out, err
	}
	total := t.conn.TotalChanges()
	count := stmt.Count()
	var rows *wire.Rows
	var failed error
	if stmt.Actions.SchemaRows {
		failed = t.schemaRows(ctx, stmt)
	} else {
		rows, failed = t.step(ctx, stmt)
		explainFull(stmt, failed)
	}
	changes, rowid := count.End()
	row := count.Row()
	out = wire.StatementResult{RowsAffected: t.conn.Changes(), LastInsertID: t.conn.LastInsertID(), TotalChanges: t.conn.TotalChanges() - total, Rows: rows, RowID: row}
	return out, t.after(ctx, before, s, &out, changes, rowid, failed)
}

// reload makes the connection read schema and statistics anew, as replicas do at
// the same place: after ROLLBACK TO it does so by itself, and plans would differ.
func (t *Transaction) reload() error {
	t.programs.drop(t.programs.clock) // what they do may have changed
	if t.over != nil || t.conn.Autocommit() {
		return nil
	}
	err := t.owner(flushVirtual) // see SQL.reload
	if err == nil {
		err = t.owner("PRAGMA writable_schema=RESET")
	}
	if err == nil && t.temp.used {
		err = t.conn.NoteTemp()
	}
	if err != nil {
		t.over = err
		return t.reason(err)
	}
	return nil
}

// record adds a statement to the record before it runs, with what a replica
// needs to execute it alike.
func (t *Transaction) record(stmt *sqlite.Stmt, text string, args []wire.Argument) (recordMark, *wire.Statement, error) {
	now := time.Now().UnixMilli()
	if t.rec.Len() == 0 {
		t.stamp, t.last = now, now
	}
	before := t.mark()
	s := &wire.Statement{SQL: text, Args: args, LaterMS: now - t.last, Skipped: t.ordinal - t.next, Settings: t.conn.Settings() ^ t.opts.Settings}
	if s.Skipped > 0 || stmt.Actions.ConnState {
		s.State = &wire.ConnState{Changes: t.conn.Changes(), TotalChanges: t.conn.TotalChanges(), LastInsertID: t.conn.LastInsertID()}
		if err := t.owner(flushVirtual); err != nil { // a replica may hold more back, or less
			return before, nil, t.reason(err)
		}
		t.conn.SetState(s.State.Changes, s.State.TotalChanges, s.State.LastInsertID)
	}
	t.rec.Add(s)
	if size := t.rec.Size() + len(t.opts.Temp); t.opts.MaxBytes > 0 && size > t.opts.MaxBytes {
		t.back(before)
		return before, nil, fmt.Errorf("%w: with this statement it takes %d bytes, an entry of the log has at most %d", ErrRecordFull, size, t.opts.MaxBytes)
	}
	t.conn.ClockOf(now, &t.opts.Seed, t.ordinal)
	t.ordinal++
	t.last, t.next = now, t.ordinal
	return before, s, nil
}

// step runs a statement and collects its rows.
func (t *Transaction) step(ctx context.Context, stmt *sqlite.Stmt) (rows *wire.Rows, err error) {
	defer stmt.Reset()
	t.conn.Run(ctx, false)
	defer t.conn.Run(context.Background(), false)
	for bytes := 0; ; {
		row, err := stmt.Step()
		if err != nil {
			t.leaves = stmt.KeepsWhatItDid()
			return nil, err
		}
		if rows == nil && stmt.ColumnCount() > 0 {
			rows = &wire.Rows{Columns: stmt.Columns()}
		}
		if !row {
			if err := stmt.RandomNames(true); err != nil {
				t.over = err
			}
			return rows, t.over
		}
		bytes += appendRow(rows, stmt)
		if bytes > maxResult {
			t.over = tooManyRows() // what it wrote cannot be undone alone
			return nil, t.over
		}
	}
}

// after makes the record say how a statement ended.
func (t *Transaction) after(ctx context.Context, before recordMark, s *wire.Statement, out *wire.StatementResult, changes, rowid int64, failed error) error {
	if t.conn.TookMaxRowid() && (failed == nil || t.leaves) {
		failed = tookMaxRowid()
		t.over = failed
	}
	if err := t.conn.FileError(); err != nil && t.over == nil { // what was recorded is not what others would do
		failed = errors.Join(err, failed)
		t.over = failed
	}
	if failed == nil {
		t.sum.Add(0, changes, rowid)
		t.sum.AddRows(out.Rows)
		return nil
	}
	if t.over != nil {
		return failed
	}
	var e *sqlite.Error
	if errors.As(failed, &e) && e.Code == sqlite.CodeInterrupt {
		failed = t.interrupted(ctx, e)
	}
	if t.conn.Autocommit() || e != nil && e.Code == sqlite.CodeCorrupt {
		t.over = rolledBack(failed) // after the latter SQLite writes no more
		return failed
	}
	t.back(before)
	if t.leaves && e != nil {
		s.Fails = e.Code
		t.rec.Add(s)
		t.sum.Add(e.Code, changes, rowid)
		t.next, t.last = t.ordinal, t.last+s.LaterMS
	}
	return failed
}

func rolledBack(by error) error {
	return fmt.Errorf("%w: %w", ErrRolledBack, by)
}

// interrupted is the error of a statement that was given up.
func (t *Transaction) interrupted(ctx context.Context, e *sqlite.Error) error {
	if why := t.ending.Load(); why != nil {
		return *why
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if t.conn.OutOfSteps() {
		outOfSteps(e)
	}
	return e
}

func (t *Transaction) mark() recordMark { return recordMark{t.rec.Mark(), t.sum, t.last, t.next} }

// back forgets what was recorded since m; statements that run later have other
// random numbers nevertheless.
func (t *Transaction) back(m recordMark) {
	t.rec.Truncate(m.rec)
	t.sum, t.last, t.next = m.sum, m.last, m.next
}

// Record returns the transaction as an operation, to be applied under its
// lease, and rolls it back here. It is nil if nothing was written. A violated
// deferred foreign key is an error, and the transaction goes on.
func (t *Transaction) Record(op *wire.Operation) (*wire.EncodedOperation, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return nil, err
	}
	if t.conn.DeferredViolations() {
		return nil, sqlite.ForeignKeyViolated()
	}
	t.finish(errFinished)
	if t.rec.Len() == 0 || !t.temp.others {
		return nil, nil
	}
	op.StampMS, op.Seed, op.MaxSteps = t.stamp, t.opts.Seed, t.opts.MaxSteps
	op.Settings, op.Changes, op.LastInsertID = t.opts.Settings, t.opts.Changes, t.opts.LastInsertID
	op.Lease.Under, op.Lease.Transaction, op.Lease.Base, op.Lease.Checksum = t.lease, true, t.changed, t.sum
	op.Lease.DeferForeignKeys = t.deferred
	texts := t.rec.Texts()
	if t.temp.recorded {
		op.Temp = append([]byte{}, t.opts.Temp...)
		texts = append(slices.Clone(texts), string(op.Temp)) // what TEMP objects use is named there
	}
	op.Functions = t.r.cfg.Functions.Used(texts...)
	return t.rec.Encode(op), nil
}

// errDiffers is the result of a transaction whose statements answer otherwise
// than they did when they ran.
func errDiffers(i int) error {
	e := sqlite.Aborted("the transaction came out differently when it was applied; nothing of it was", "run it again")
	e.Statement = i
	return e
}

// transaction executes the statements that a Transaction recorded: each with
// its own clock and randomness, and to the same end.
func (x *execution) transaction() error {
	if x.op.Lease.DeferForeignKeys {
		x.deferred = true
		x.programs.clear() // SQLite would prepare them anew
		if err := x.owner("PRAGMA defer_foreign_keys=ON"); err != nil {
			return err
		}
	}
	var sum wire.Checksum
	now, n := x.op.StampMS, uint64(0)
	for i := range x.op.Statements {
		s := &x.op.Statements[i]
		if err := x.switchTo(x.op.Settings ^ s.Settings); err != nil {
			return err
		}
		now, n = now+s.LaterMS, n+s.Skipped
		x.conn.ClockOf(now, &x.op.Seed, n)
		n++
		if s.State != nil {
			if err := x.flush(); err != nil {
				return err
			}
			x.conn.SetState(s.State.Changes, s.State.TotalChanges, s.State.LastInsertID)
		}
		schema, stats := x.schema, x.stats
		x.schema, x.stats = false, false
		code, rows, err := x.again(s)
		reload := x.schema || x.stats
		x.schema, x.stats = x.schema || schema, x.stats || stats
		if err != nil {
			var e *sqlite.Error
			if errors.As(err, &e) {
				e.Statement = i
			}
			return err
		}
		if code != s.Fails {
			x.halfway = true
			return errDiffers(i)
		}
		sum.Add(code, x.changes, x.rowid)
		sum.AddRows(rows)
		if reload {
			if err := x.reload(); err != nil { // see Transaction.reload
				return err
			}
		}
	}
	if sum != x.op.Lease.Checksum {
		x.halfway = true
		return errDiffers(len(x.op.Statements) - 1)
	}
	return nil
}

// again executes a statement of a transaction and returns its rows, or the code
// with which it failed, if that is how it ended when it ran.
func (x *execution) again(s *wire.Statement) (code int, rows *wire.Rows, err error) {
	x.bytes = 0
	var out wire.StatementResult
	if p := x.programs.get(s.SQL); p != nil {
		out, err = x.single(p.Stmt, s.Args)
	} else {
		out, err = x.text(s)
	}
	if s.Fails == 0 || x.conn.Local(err) {
		return 0, out.Rows, err
	}
	var e *sqlite.Error
	if !errors.As(err, &e) || x.conn.Autocommit() {
		return 0, out.Rows, err
	}
	return e.Code, nil, nil
}
