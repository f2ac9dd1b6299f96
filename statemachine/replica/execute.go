package replica

import (
	"errors"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// maxResult bounds, in bytes, the rows that one operation returns. Every replica holds
// them in memory.
const maxResult = 64 << 20

const savepoint = "_hiqlite_operation"

// execution is one operation being executed.
type execution struct {
	*SQL
	op            *wire.Operation
	result        *wire.Result
	saved         bool  // a savepoint was set before the operation
	bytes         int   // of the rows returned so far
	schema        bool  // a statement may have changed the schema
	stats         bool  // a statement may have changed the statistics
	deferred      bool  // a statement ran PRAGMA defer_foreign_keys
	partial       bool  // we aborted a statement ourselves, so SQLite has not undone its changes
	totalBefore   int64 // total_changes() before the present statement
	stmtChanges   int64 // rows that the last statement itself changed
	assignedRowID int64 // the rowid that the last statement itself assigned
	insertedRowID int64 // the rowid of the row that the statement itself inserted or updated
}

// execute executes op and sets its result. ended: the operation failed and could not be
// undone alone, so the whole transaction was rolled back. The caller executes the other
// operations again. An error is a failure of this machine.
func (r *SQL) execute(op *wire.Operation, result *wire.Result) (ended bool, err error) {
	if err := r.checkFunctions(op.Functions); err != nil {
		return false, err
	}
	if result.Err = r.setZone(op.Zone); result.Err != nil {
		return false, nil
	}
	if err := r.useSettings(op.Settings); err != nil {
		return false, err
	}
	x := &execution{SQL: r, op: op, result: result}
	if r.virtual() {
		if err := r.loadSettings(); err != nil {
			return false, err
		}
		r.conn.ResetAllSteps()
	}
	r.conn.Begin(op)
	if len(op.Statements) > 1 || op.Temp != nil {
		if err := x.setSavepoint(); err != nil {
			return false, err
		}
	}
	run := x.executeStatements
	if op.Lease != nil && op.Lease.Transaction {
		run = x.executeRecording
	}
	if op.Temp != nil {
		run = x.withTemp(run)
	}
	failed := run()
	if failed == nil {
		failed = x.checkDeferred()
	}
	if failed == nil {
		if failed = x.finishOperation(); failed != nil { // the savepoint may be gone
			x.saved, x.partial = false, true
		}
	}
	if err := r.conn.FileError(); failed == nil && err != nil {
		// SQLite has ignored an error of this machine's disk, which other replicas did
		// not have.
		return false, err
	}
	if failed == nil {
		return false, nil
	}
	return x.fail(failed)
}

// executeStatements executes the operation's statements.
func (x *execution) executeStatements() error {
	x.result.Statements = make([]wire.StatementResult, 0, len(x.op.Statements))
	for i := range x.op.Statements {
		s := &x.op.Statements[i]
		var out wire.StatementResult
		var err error
		if p := x.stmts.get(s.SQL); p != nil {
			out, err = x.executeSingle(p.Stmt, s.Args)
		} else {
			out, err = x.executeText(s)
		}
		if err != nil {
			var e *sqlite.Error
			if errors.As(err, &e) {
				e.Statement = i
			}
			return err
		}
		x.result.Statements = append(x.result.Statements, out)
		if x.schema {
			x.stmts.clear() // see stmtCache
		}
	}
	return nil
}

// executeSingle executes a statement that is alone in its text.
func (x *execution) executeSingle(s *sqlite.Stmt, args []wire.Argument) (wire.StatementResult, error) {
	if err := bind(s, args); err != nil {
		return wire.StatementResult{}, err
	}
	rows, err := x.step(s)
	return x.resultOf(rows), err
}

// bind binds the arguments of a statement that is alone in its text.
func bind(s *sqlite.Stmt, args []wire.Argument) error {
	if err := s.Bind(args, nil); err != nil {
		return err
	}
	if params := s.Params(); len(args) > len(params) {
		if _, ok := sqlite.MatchArguments(params, args); ok {
			return nil // the surplus arguments have names that the statement does not use
		}
		return sqlite.TooManyArguments(len(params), len(args))
	}
	return nil
}

// resultOf returns the result of the statement that has just run.
func (x *execution) resultOf(rows *wire.Rows) wire.StatementResult {
	total := x.conn.TotalChanges()
	out := wire.StatementResult{RowsAffected: x.conn.Changes(), LastInsertID: x.conn.LastInsertID(), TotalChanges: total - x.totalBefore, Rows: rows, RowID: x.insertedRowID}
	x.totalBefore, x.insertedRowID = total, 0
	return out
}

// step runs a bound statement to its end and collects its rows.
func (x *execution) step(s *sqlite.Stmt) (*wire.Rows, error) {
	if x.settings()&wire.QueryOnly != 0 && !s.ReadOnly() {
		return nil, queryOnly()
	}
	if s.Actions.InsertsSchemaRows {
		x.stmtChanges, x.assignedRowID = 0, 0 // as Count reports them for every statement that changes the schema
		return nil, x.schemaRows(s)
	}
	defer s.Reset()
	s.ResetSteps()
	x.noteChanges(s)
	if err := s.CheckColumnNames(false); err != nil {
		return nil, err
	}
	n := s.Observe()
	defer func() { x.stmtChanges, x.assignedRowID = n.Counters(); x.insertedRowID = n.RowID() }()
	var rows *wire.Rows
	for {
		row, err := s.Step()
		if err != nil {
			return nil, err
		}
		if rows == nil && s.ColumnCount() > 0 {
			rows = &wire.Rows{Columns: s.Columns()}
		}
		if !row {
			if err := s.CheckColumnNames(true); err != nil {
				x.partial = true
				return nil, err
			}
			return rows, nil
		}
		x.bytes += appendRow(rows, s)
		if x.bytes > maxResult {
			x.partial = true
			return nil, tooManyRows()
		}
	}
}

// appendRow appends the current row of s to rows, and returns about how many
// bytes it takes.
func appendRow(rows *wire.Rows, s *sqlite.Stmt) (bytes int) {
	for i := range s.ColumnCount() {
		v := s.Value(i)
		bytes += len(v.Data) + 10
		rows.Cells = append(rows.Cells, v)
	}
	return bytes
}

// BoundRows returns the error of an operation if the rows of all of its result sets take
// too many bytes, and nil otherwise.
func BoundRows(bytes int) error {
	if bytes > maxResult {
		return tooManyRows()
	}
	return nil
}

func tooManyRows() error {
	return sqlite.TooBig("the rows returned by a write are too large",
		fmt.Sprintf("a write returns at most %d MiB; read the rows with a SELECT of their own", maxResult>>20))
}

func tookMaxRowid() error {
	return sqlite.Full("the largest rowid, 9223372036854775807, cannot be used",
		"SQLite would choose the next rowids at random, which replicas cannot do alike")
}

// outOfSteps explains in e that the statement was interrupted because of max_steps.
func outOfSteps(e *sqlite.Error) {
	better := sqlite.Interrupted("the statement took more steps than one operation may",
		"is it endless? if not, write in smaller parts, or raise max_steps in the DSN (hiqlite.Config.MaxSteps)")
	e.Message, e.Hint = better.Message, better.Hint
}

// noteChanges records what running s may change.
func (x *execution) noteChanges(s *sqlite.Stmt) {
	a := &s.Actions
	x.schema = x.schema || a.ChangesSchema
	x.stats = x.stats || a.ChangesStatistics
	x.batch.stats = x.batch.stats || a.ChangesStatistics
	x.deferred = x.deferred || a.Pragma == "defer_foreign_keys"
}

// executeText executes a text that is not in the cache. It may have several statements, which
// run one after the other. As with modernc.org/sqlite, each of them binds its parameters
// from the first argument on.
func (x *execution) executeText(s *wire.Statement) (out wire.StatementResult, err error) {
	used := make([]bool, len(s.Args))
	script, err := x.conn.Script(s.SQL)
	if err != nil {
		return out, err
	}
	defer script.Close()
	for first := true; script.Rest() != ""; {
		stmt, err := script.Next(first)
		if err != nil {
			return out, err
		}
		if stmt == nil {
			continue
		}
		tail := script.Rest()
		if first && sqlite.IsBlank(tail) {
			if stmt.Actions.Pragma == "" {
				return x.executeSingle(x.stmts.keep(s.SQL, stmt).Stmt, s.Args)
			}
		} else if first {
			if err := x.setSavepoint(); err != nil {
				stmt.Close()
				return out, err
			}
		}
		first = false
		out, err = x.scriptStatement(stmt, s.Args, used, out)
		stmt.Close()
		if err != nil {
			return out, err
		}
	}
	if i := sqlite.FirstUnused(s.Args, used); i >= 0 {
		return out, sqlite.UnusedScriptArgument(i)
	}
	return out, nil
}

// scriptStatement executes one statement of a script, and adds its result to out, that
// of the statements before.
func (x *execution) scriptStatement(stmt *sqlite.Stmt, args []wire.Argument, used []bool, out wire.StatementResult) (wire.StatementResult, error) {
	if changesSettings(&stmt.Actions) {
		return out, x.runSettingPragma(&stmt.Actions)
	}
	if err := stmt.Bind(args, used); err != nil {
		return out, err
	}
	rows, err := x.step(stmt)
	if err != nil {
		return out, err
	}
	// The next statement may depend on what this one has changed. A statement that
	// SQLite prepares again by itself would count its steps differently.
	if x.schema || stmt.Actions.PragmaSet {
		x.stmts.clear()
	}
	out.Append(x.resultOf(rows))
	return out, nil
}

// checkDeferred finds errors that SQLite itself would report only at COMMIT, or never.
func (x *execution) checkDeferred() error {
	if x.conn.DeferredViolations() {
		return sqlite.ForeignKeyViolated()
	}
	if x.conn.TookMaxRowid() {
		return tookMaxRowid()
	}
	if x.schema {
		return x.leftTemp()
	}
	return nil
}

// finishOperation ends an operation that succeeded.
func (x *execution) finishOperation() error {
	if x.saved {
		if err := x.conn.ExecAsOwner("RELEASE " + savepoint); err != nil {
			return err
		}
	}
	if x.schema || x.stats {
		if err := x.reload(); err != nil {
			return err
		}
	}
	if x.schema {
		if err := x.noteFunctions(x.op); err != nil {
			return err
		}
	}
	if err := x.flush(); err != nil {
		return err
	}
	return x.restoreSettings()
}

// reload makes the apply connection load the schema and the statistics again, as a
// restarted replica does. What the connection has cached decides about query plans and
// about the order of lists of tables, so it must depend only on the database, and not on
// how the database came about. ANALYZE sqlite_schema is not enough, because it does not
// forget old row counts.
//
// Virtual tables are connected again, too. What they have buffered has to be written
// before, or both the old and the new ones would write it.
//
// If the schema cannot be loaded, the operation that has changed it fails.
func (r *SQL) reload() error {
	r.stmts.clear()
	if err := r.flush(); err != nil {
		return err
	}
	r.virtualKnown = false
	r.batch.reloaded = true
	return r.conn.ExecAsOwner("PRAGMA writable_schema=RESET; SELECT 1 FROM " + sqlite.MetaTable + " LIMIT 0")
}

const flushVirtual = "SAVEPOINT " + savepoint + "; RELEASE " + savepoint

// flush makes virtual tables write what they buffer until the end of a transaction or
// savepoint. The segments of an FTS5 index depend on when it was flushed, and replicas
// group operations into transactions differently.
func (r *SQL) flush() error {
	if !r.virtual() {
		return nil
	}
	return r.conn.ExecAsOwner(flushVirtual)
}

// restoreSettings resets the settings of the connection that the operation has changed.
func (x *execution) restoreSettings() error {
	if x.deferred {
		return x.deferForeignKeys(false)
	}
	return nil
}

// deferForeignKeys executes PRAGMA defer_foreign_keys.
func (x *execution) deferForeignKeys(on bool) error {
	x.deferred = on
	x.stmts.clear() // SQLite would prepare them again
	return x.conn.ExecAsOwner(deferForeignKeys(on))
}

// fail ends an operation that has failed. The error becomes its result, unless it is a
// failure of this machine.
func (x *execution) fail(failed error) (ended bool, err error) {
	if x.conn.Local(failed) {
		return false, failed
	}
	var e *sqlite.Error
	if !errors.As(failed, &e) {
		return false, failed
	}
	switch {
	case e.Hint != "":
	case e.Code == sqlite.CodeFull:
		e.Hint = "the disk is not full: the table's AUTOINCREMENT has reached its end"
	case e.Code == sqlite.CodeNoMemory:
		e.Hint = "the statement creates a value of more than 2 GiB"
	}
	if e.Code == sqlite.CodeInterrupt {
		outOfSteps(e)
	}
	x.conn.TookMaxRowid() // reset it
	x.result.Statements, x.result.Err = nil, e
	x.result.ChangedSettings = 0
	if x.conn.Autocommit() || x.stats || x.schema || e.Code == sqlite.CodeCorrupt ||
		!x.saved && (x.conn.DeferredViolations() || x.partial || e.Code == sqlite.CodeFull || e.Code == sqlite.CodeInterrupt || e.Code == sqlite.CodeNoMemory || e.Code == sqlite.CodeTooBig) {
		// The whole transaction has to be rolled back: OR ROLLBACK or the like has
		// ended it; or there is no savepoint to return to; or that would not be
		// enough, because a virtual table whose creation is undone would still take
		// part in the COMMIT, or SQLite does not write to a database any more that
		// it has found corrupt.
		ended = true
		if err := x.rollback(); err != nil {
			return ended, err
		}
	} else if x.saved {
		x.settingsLoaded = false
		if err := x.conn.ExecAsOwner("ROLLBACK TO " + savepoint + "; RELEASE " + savepoint); err != nil {
			return false, err
		}
	}
	if !ended {
		if err := x.flush(); x.conn.Local(err) {
			return false, err
		} else if err != nil {
			ended = true
			if err := x.rollback(); err != nil {
				return ended, err
			}
		}
	}
	return ended, x.restoreSettings()
}

// setSavepoint sets the savepoint to which a failed operation is rolled back.
func (x *execution) setSavepoint() error {
	if x.saved {
		return nil
	}
	x.saved = true
	return x.conn.ExecAsOwner("SAVEPOINT " + savepoint)
}

// virtual reports whether the database has virtual tables, which have prepared
// statements of their own.
func (r *SQL) virtual() bool {
	if r.virtualKnown {
		return r.hasVirtual
	}
	r.settingsLoaded = false
	found := false
	err := r.conn.QueryAsOwner("SELECT 1 FROM sqlite_schema WHERE rootpage=0 AND type='table' LIMIT 1", func(*sqlite.Stmt) error {
		found = true
		return nil
	})
	r.hasVirtual, r.virtualKnown = found || err != nil, err == nil
	return r.hasVirtual
}
