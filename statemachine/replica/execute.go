package replica

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// maxResult bounds the rows that one operation returns, in bytes: every replica
// holds them in memory.
const maxResult = 64 << 20

const savepoint = "_hiqlite_operation"

// execution is one operation being executed.
type execution struct {
	*SQL
	op       *wire.Operation
	result   *wire.Result
	saved    bool  // a savepoint stands before it
	bytes    int   // of rows returned
	schema   bool  // it may have changed the schema
	stats    bool  // it may have changed the statistics
	deferred bool  // it said PRAGMA defer_foreign_keys
	halfway  bool  // it was given up, not by SQLite: which has undone nothing
	counted  int64 // of total_changes() by the statements before
	changes  int64 // that the last statement made itself
	rowid    int64 // that it gave
	own      int64 // of the row that it inserted or updated itself
}

// execute executes op and fills in its result. ended says that op must not
// have happened but cannot be undone alone: the transaction has to be rolled
// back and the others executed again. An error is this machine's.
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
		if err := x.save(); err != nil {
			return false, err
		}
	}
	run := x.statements
	if op.Lease != nil && op.Lease.Transaction {
		run = x.transaction
	}
	if op.Temp != nil {
		run = x.withTemp(run)
	}
	failed := run()
	if failed == nil {
		failed = x.check()
	}
	if failed == nil {
		if failed = x.finish(); failed != nil { // the savepoint may be gone
			x.saved, x.halfway = false, true
		}
	}
	if err := r.conn.FileError(); failed == nil && err != nil {
		// SQLite went on in spite of it, which others had no reason to do.
		return false, err
	}
	if failed == nil {
		return false, nil
	}
	return x.fail(failed)
}

// statements executes the operation's statements.
func (x *execution) statements() error {
	x.result.Statements = make([]wire.StatementResult, 0, len(x.op.Statements))
	for i := range x.op.Statements {
		s := &x.op.Statements[i]
		var out wire.StatementResult
		var err error
		if p := x.programs.get(s.SQL); p != nil {
			out, err = x.single(p.Stmt, s.Args)
		} else {
			out, err = x.text(s)
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
			x.programs.clear() // see programs
		}
	}
	return nil
}

// single executes a statement that stands alone in its text.
func (x *execution) single(s *sqlite.Stmt, args []wire.Argument) (wire.StatementResult, error) {
	if err := bind(s, args); err != nil {
		return wire.StatementResult{}, err
	}
	rows, err := x.step(s)
	return x.answer(rows), err
}

// bind binds the arguments of a statement that stands alone in its text.
func bind(s *sqlite.Stmt, args []wire.Argument) error {
	if err := s.Bind(args, nil); err != nil {
		return err
	}
	if params := s.Params(); len(args) > len(params) {
		if _, ok := sqlite.Match(params, args); ok {
			return nil // the others are names that it has not
		}
		return sqlite.TooManyArguments(len(params), len(args))
	}
	return nil
}

// answer is the result of a statement that has just run.
func (x *execution) answer(rows *wire.Rows) wire.StatementResult {
	total := x.conn.TotalChanges()
	out := wire.StatementResult{RowsAffected: x.conn.Changes(), LastInsertID: x.conn.LastInsertID(), TotalChanges: total - x.counted, Rows: rows, RowID: x.own}
	x.counted, x.own = total, 0
	return out
}

// step runs a bound statement to its end and collects its rows.
func (x *execution) step(s *sqlite.Stmt) (*wire.Rows, error) {
	if x.settings()&wire.QueryOnly != 0 && !s.ReadOnly() {
		return nil, queryOnly()
	}
	if s.Actions.SchemaRows {
		x.changes, x.rowid = 0, 0 // as Count has it of all that changes the schema
		return nil, x.schemaRows(s)
	}
	defer s.Reset()
	s.ResetSteps()
	x.note(s)
	if err := s.RandomNames(false); err != nil {
		return nil, err
	}
	n := s.Count()
	defer func() { x.changes, x.rowid = n.End(); x.own = n.Row() }()
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
			if err := s.RandomNames(true); err != nil {
				x.halfway = true
				return nil, err
			}
			return rows, nil
		}
		x.bytes += appendRow(rows, s)
		if x.bytes > maxResult {
			x.halfway = true
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

// BoundRows returns why an operation fails whose rows take so many bytes, in all
// of its result sets together.
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

// outOfSteps makes e say why the statement was interrupted.
func outOfSteps(e *sqlite.Error) {
	better := sqlite.Interrupted("the statement took more steps than one operation may",
		"is it endless? if not, write in smaller parts, or raise max_steps in the DSN (hiqlite.Config.MaxSteps)")
	e.Message, e.Hint = better.Message, better.Hint
}

// note remembers what running s may change.
func (x *execution) note(s *sqlite.Stmt) {
	a := &s.Actions
	x.schema = x.schema || a.Schema
	x.stats = x.stats || a.Statistics
	x.batch.stats = x.batch.stats || a.Statistics
	x.deferred = x.deferred || a.Pragma == "defer_foreign_keys"
}

// text executes a text that is not kept prepared: its statements one after the
// other, as modernc.org/sqlite does, each binding from the first argument.
func (x *execution) text(s *wire.Statement) (out wire.StatementResult, err error) {
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
		if first && sqlite.Blank(tail) {
			if stmt.Actions.Pragma == "" {
				return x.single(x.programs.keep(s.SQL, stmt).Stmt, s.Args)
			}
		} else if first {
			if err := x.save(); err != nil {
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
	if i := sqlite.Surplus(s.Args, used); i >= 0 {
		return out, sqlite.UnusedScriptArgument(i)
	}
	return out, nil
}

// scriptStatement executes one statement of a script, and adds its rows to what
// those before it answered.
func (x *execution) scriptStatement(stmt *sqlite.Stmt, args []wire.Argument, used []bool, out wire.StatementResult) (wire.StatementResult, error) {
	if travels(&stmt.Actions) {
		return out, x.switchSetting(&stmt.Actions)
	}
	if err := stmt.Bind(args, used); err != nil {
		return out, err
	}
	rows, err := x.step(stmt)
	if err != nil {
		return out, err
	}
	// The next statement may be one that this one makes possible. And what
	// SQLite would prepare anew on its own would count its steps differently.
	if x.schema || stmt.Actions.PragmaSet {
		x.programs.clear()
	}
	next := x.answer(out.Rows)
	next.More = out.More
	next.AddRows(rows)
	next.TotalChanges += out.TotalChanges
	next.RowID = cmp.Or(next.RowID, out.RowID)
	return next, nil
}

// check looks at what SQLite itself would only notice at COMMIT, or never.
func (x *execution) check() error {
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

// finish ends an operation that succeeded.
func (x *execution) finish() error {
	if x.saved {
		if err := x.owner("RELEASE " + savepoint); err != nil {
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
	return x.restore()
}

// reload makes the connection read schema and statistics anew, as a restarted
// replica does: what it has in memory must be a function of the database alone
// and not of how it came about. It decides plans, and the order of lists of
// tables. ANALYZE sqlite_schema would not do: it forgets no row count.
//
// Virtual tables begin anew as well: what the old ones hold back has to be
// written before, or both write.
//
// A schema that cannot be loaded is the error of the operation that made it.
func (r *SQL) reload() error {
	r.programs.clear()
	if err := r.flush(); err != nil {
		return err
	}
	r.virtualKnown = false
	r.batch.reloaded = true
	return r.owner("PRAGMA writable_schema=RESET; SELECT 1 FROM " + sqlite.MetaTable + " LIMIT 0")
}

const flushVirtual = "SAVEPOINT " + savepoint + "; RELEASE " + savepoint

// flush makes virtual tables write what they hold back until a transaction or
// savepoint ends: FTS5 divides its index as it was flushed, and how operations
// are grouped into transactions differs from replica to replica.
func (r *SQL) flush() error {
	if !r.virtual() {
		return nil
	}
	return r.owner(flushVirtual)
}

// restore takes back what the operation switched for itself.
func (x *execution) restore() error {
	if x.deferred {
		x.programs.clear() // SQLite would prepare them anew
		if err := x.owner("PRAGMA defer_foreign_keys=OFF"); err != nil {
			return err
		}
	}
	return nil
}

// fail ends an operation that failed: the error is its result, unless it is
// this machine's.
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
		e.Hint = "not the disk is: the table's AUTOINCREMENT has reached its end"
	case e.Code == sqlite.CodeNoMemory:
		e.Hint = "the statement makes a value of more than 2 GiB"
	}
	if e.Code == sqlite.CodeInterrupt {
		outOfSteps(e)
	}
	x.conn.TookMaxRowid() // forget
	x.result.Statements, x.result.Err = nil, e
	x.result.Settings = 0
	if x.conn.Autocommit() || x.stats || x.schema || e.Code == sqlite.CodeCorrupt ||
		!x.saved && (x.conn.DeferredViolations() || x.halfway || e.Code == sqlite.CodeFull || e.Code == sqlite.CodeInterrupt || e.Code == sqlite.CodeNoMemory || e.Code == sqlite.CodeTooBig) {
		// OR ROLLBACK and the like have ended the transaction; or there is no
		// savepoint to go back to; or going back to it would not be enough: a
		// virtual table that it undoes still takes part in the COMMIT, and what
		// SQLite calls corrupt it writes to no more.
		ended = true
		if err := x.rollback(); err != nil {
			return ended, err
		}
	} else if x.saved {
		x.settingsLoaded = false
		if err := x.owner("ROLLBACK TO " + savepoint + "; RELEASE " + savepoint); err != nil {
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
	return ended, x.restore()
}

// save sets the savepoint to which the operation is undone.
func (x *execution) save() error {
	if x.saved {
		return nil
	}
	x.saved = true
	return x.owner("SAVEPOINT " + savepoint)
}

// virtual reports that the database has virtual tables, which keep prepared
// statements of their own.
func (r *SQL) virtual() bool {
	if r.virtualKnown {
		return r.hasVirtual
	}
	r.settingsLoaded = false
	r.conn.Owner(true)
	defer r.conn.Owner(false)
	s, _, err := r.conn.Prepare("SELECT 1 FROM sqlite_schema WHERE rootpage=0 AND type='table' LIMIT 1", false)
	if err != nil {
		return true
	}
	defer s.Close()
	row, err := s.Step()
	r.hasVirtual, r.virtualKnown = row || err != nil, err == nil
	return r.hasVirtual
}
