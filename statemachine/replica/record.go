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

// An interactive transaction is recorded as it runs on its view, and every replica
// executes the recording. This file has both sides.

// Exec runs and records a statement that writes and is alone in its text. A statement
// that fails usually leaves the transaction as it was; if it has ended the transaction,
// Err says so.
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
	if t.fatal != nil {
		t.endTransaction(t.fatal)
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
	if stmt.Actions.ChangesSchema || stmt.Actions.ChangesStatistics {
		t.dirty = true
		defer func() { err = errors.Join(err, t.reload()) }()
	}
	if err := bind(stmt, args); err != nil {
		return out, err
	}
	if err := stmt.CheckColumnNames(false); err != nil {
		return out, t.reason(err)
	}
	before, s, err := t.record(stmt, text, args)
	if err != nil {
		return out, err
	}
	total := t.conn.TotalChanges()
	count := stmt.Observe()
	var rows *wire.Rows
	var failed error
	if stmt.Actions.InsertsSchemaRows {
		failed = t.schemaRows(ctx, stmt)
	} else {
		rows, failed = t.step(ctx, stmt)
		explainFull(stmt, failed)
	}
	changes, rowid := count.Counters()
	row := count.RowID()
	out = wire.StatementResult{RowsAffected: t.conn.Changes(), LastInsertID: t.conn.LastInsertID(), TotalChanges: t.conn.TotalChanges() - total, Rows: rows, RowID: row}
	return out, t.recordOutcome(ctx, before, s, &out, changes, rowid, failed)
}

// reload makes the connection load the schema and the statistics again, as replicas do
// at the same place of the recording. Otherwise the view would load them at other places
// than they do, such as after ROLLBACK TO, and choose other query plans.
func (t *Transaction) reload() error {
	t.stmts.dropIdle() // their meaning may have changed
	if t.fatal != nil || t.conn.Autocommit() {
		return nil
	}
	err := t.conn.ExecAsOwner(flushVirtual) // see SQL.reload
	if err == nil {
		err = t.conn.ExecAsOwner("PRAGMA writable_schema=RESET")
	}
	if err == nil && t.temp.used {
		err = t.conn.LoadTempNames()
	}
	if err != nil {
		t.fatal = err
		return t.reason(err)
	}
	return nil
}

// record adds a statement to the recording before it runs, with everything that a
// replica needs to execute it with the same result.
func (t *Transaction) record(stmt *sqlite.Stmt, text string, args []wire.Argument) (recordMark, *wire.Statement, error) {
	now := time.Now().UnixMilli()
	if t.rec.Len() == 0 {
		t.stamp, t.last = now, now
	}
	before := t.mark()
	s := &wire.Statement{SQL: text, Args: args, LaterMS: now - t.last, Skipped: t.ordinal - t.next, ChangedSettings: t.conn.Settings() ^ t.opts.Settings, DeferForeignKeys: t.deferred}
	if s.Skipped > 0 || stmt.Actions.ReadsCounters {
		s.State = &wire.ConnState{Changes: t.conn.Changes(), TotalChanges: t.conn.TotalChanges(), LastInsertID: t.conn.LastInsertID()}
		if err := t.conn.ExecAsOwner(flushVirtual); err != nil { // virtual tables of a replica may have buffered more, or less
			return before, nil, t.reason(err)
		}
		t.conn.SetState(s.State.Changes, s.State.TotalChanges, s.State.LastInsertID)
	}
	t.rec.Add(s)
	if size := t.rec.Size() + len(t.opts.Temp); t.opts.MaxBytes > 0 && size > t.opts.MaxBytes {
		t.truncateRecording(before)
		return before, nil, fmt.Errorf("%w: with this statement it takes %d bytes, an entry of the log has at most %d", ErrRecordFull, size, t.opts.MaxBytes)
	}
	t.conn.SetStatementClock(now, &t.opts.Seed, t.ordinal)
	t.ordinal++
	t.last, t.next = now, t.ordinal
	return before, s, nil
}

// step runs a statement and collects its rows.
func (t *Transaction) step(ctx context.Context, stmt *sqlite.Stmt) (rows *wire.Rows, err error) {
	defer stmt.Reset()
	t.conn.SetContext(ctx, false)
	defer t.conn.SetContext(context.Background(), false)
	for bytes := 0; ; {
		row, err := stmt.Step()
		if err != nil {
			t.failedStmtKept = stmt.KeptChanges()
			return nil, err
		}
		if rows == nil && stmt.ColumnCount() > 0 {
			rows = &wire.Rows{Columns: stmt.Columns()}
		}
		if !row {
			if err := stmt.CheckColumnNames(true); err != nil {
				t.fatal = err
			}
			return rows, t.fatal
		}
		bytes += appendRow(rows, stmt)
		if bytes > maxResult {
			t.fatal = tooManyRows() // the statement's changes cannot be undone alone
			return nil, t.fatal
		}
	}
}

// recordOutcome records how a statement has ended.
func (t *Transaction) recordOutcome(ctx context.Context, before recordMark, s *wire.Statement, out *wire.StatementResult, changes, rowid int64, failed error) error {
	if t.conn.TookMaxRowid() && (failed == nil || t.failedStmtKept) {
		failed = tookMaxRowid()
		t.fatal = failed
	}
	if err := t.conn.FileError(); err != nil && t.fatal == nil { // replicas without this disk error would compute other rows
		failed = errors.Join(err, failed)
		t.fatal = failed
	}
	if failed == nil {
		t.sum.Add(0, changes, rowid)
		t.sum.AddRows(out.Rows)
		return nil
	}
	if t.fatal != nil {
		return failed
	}
	var e *sqlite.Error
	if errors.As(failed, &e) && e.Code == sqlite.CodeInterrupt {
		failed = t.interrupted(ctx, e)
	}
	if t.conn.Autocommit() || e != nil && e.Code == sqlite.CodeCorrupt {
		t.fatal = rolledBack(failed) // SQLite does not write any more once it has found corruption
		return failed
	}
	t.truncateRecording(before)
	if t.failedStmtKept && e != nil {
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

// interrupted returns the error of a statement that was interrupted.
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

// truncateRecording removes what was recorded since m. The ordinal does not go back, so later
// statements draw other random numbers.
func (t *Transaction) truncateRecording(m recordMark) {
	t.rec.Truncate(m.rec)
	t.sum, t.last, t.next = m.sum, m.last, m.next
}

// CheckDeferred returns an error if the transaction has ended, or if a deferred foreign
// key is violated. In the second case the transaction goes on.
func (t *Transaction) CheckDeferred() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.checkDeferred()
}

func (t *Transaction) checkDeferred() error {
	if err := t.err(); err != nil {
		return err
	}
	if t.conn.DeferredViolations() {
		return sqlite.ForeignKeyViolated()
	}
	return nil
}

// Record returns the recording as an operation to be applied under the transaction's
// lease, and rolls the view back. It returns nil if nothing was written. If a deferred
// foreign key is violated it returns an error, and the transaction goes on.
func (t *Transaction) Record(op *wire.Operation) (*wire.EncodedOperation, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.checkDeferred(); err != nil {
		return nil, err
	}
	t.endTransaction(errFinished)
	if t.rec.Len() == 0 || !t.temp.others {
		return nil, nil
	}
	op.StampMS, op.Seed, op.MaxSteps = t.stamp, t.opts.Seed, t.opts.MaxSteps
	op.Settings, op.Changes, op.LastInsertID = t.opts.Settings, t.opts.Changes, t.opts.LastInsertID
	op.Lease.Under, op.Lease.Transaction, op.Lease.Base, op.Lease.Checksum = t.lease, true, t.changed, t.sum
	texts := t.rec.Texts()
	if t.temp.recorded {
		op.Temp = append([]byte{}, t.opts.Temp...)
		texts = append(slices.Clone(texts), string(op.Temp)) // the TEMP objects name the functions that they use
	}
	op.Functions = t.r.cfg.Functions.Used(texts...)
	return t.rec.Encode(op), nil
}

// errDiffers returns the result of a transaction whose recording came to other results
// on a replica than in its view.
func errDiffers(i int) error {
	e := sqlite.Aborted("the transaction came out differently when it was applied; nothing of it was", "run it again")
	e.Statement = i
	return e
}

// executeRecording executes a recording: each statement with its recorded clock and
// randomness. All must end as they did in the view, or nothing is applied.
func (x *execution) executeRecording() error {
	var sum wire.Checksum
	now, n, deferred := x.op.StampMS, uint64(0), false
	for i := range x.op.Statements {
		s := &x.op.Statements[i]
		if err := x.changeSettings(x.op.Settings ^ s.ChangedSettings); err != nil {
			return err
		}
		if s.DeferForeignKeys != deferred {
			deferred = s.DeferForeignKeys
			if err := x.deferForeignKeys(deferred); err != nil {
				return err
			}
		}
		now, n = now+s.LaterMS, n+s.Skipped
		x.conn.SetStatementClock(now, &x.op.Seed, n)
		n++
		if s.State != nil {
			if err := x.flush(); err != nil {
				return err
			}
			x.conn.SetState(s.State.Changes, s.State.TotalChanges, s.State.LastInsertID)
		}
		schema, stats := x.schema, x.stats
		x.schema, x.stats = false, false
		code, rows, err := x.executeRecorded(s)
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
			x.partial = true
			return errDiffers(i)
		}
		sum.Add(code, x.stmtChanges, x.assignedRowID)
		sum.AddRows(rows)
		if reload {
			if err := x.reload(); err != nil { // see Transaction.reload
				return err
			}
		}
	}
	if sum != x.op.Lease.Checksum {
		x.partial = true
		return errDiffers(len(x.op.Statements) - 1)
	}
	return nil
}

// executeRecorded executes a statement of a recording and returns its rows. If the
// statement had failed in the view, it returns the code with which it fails now.
func (x *execution) executeRecorded(s *wire.Statement) (code int, rows *wire.Rows, err error) {
	x.bytes = 0
	var out wire.StatementResult
	if p := x.stmts.get(s.SQL); p != nil {
		out, err = x.executeSingle(p.Stmt, s.Args)
	} else {
		out, err = x.executeText(s)
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
