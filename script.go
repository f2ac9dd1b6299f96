package hiqlite

import (
	"context"
	"slices"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// controlTransaction runs a text that begins or ends a transaction or sets a savepoint,
// or a script with such statements.
func (c *conn) controlTransaction(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	var err error
	switch {
	case class.Script && (c.tx != nil || class.Control == "BEGIN" || class.Control == "SAVEPOINT"):
		return c.runSteps(ctx, text, args)
	case class.Control == "BEGIN":
		err = c.begin(ctx, false, c.cfg.Deferred && !class.Immediate, false)
	case class.Control == "SAVEPOINT" && c.tx == nil:
		if err = c.begin(ctx, false, true, false); err == nil {
			c.tx.begunBySavepoint = true
			err = c.savepoint(ctx, text, class)
		}
	case c.tx == nil && class.Control == "COMMIT":
		err = errNoTransaction
	case c.tx == nil && class.Control == "ROLLBACK":
		err = errNoRollback
	case c.tx == nil:
		err = sqlError(sqlite.NoSavepoint(class.Savepoint))
	case class.Control == "COMMIT":
		err = c.commit(ctx)
	case class.Control == "ROLLBACK":
		c.tx.end()
	default:
		err = c.savepoint(ctx, text, class)
	}
	if err != nil {
		return nil, err
	}
	return newMemoryRows(&c.cfg, nil), nil
}

// commit runs COMMIT as a text. If a deferred foreign key is violated, the transaction
// stays open, as in SQLite.
func (c *conn) commit(ctx context.Context) error {
	t := c.tx
	err := t.commit(ctx)
	if err == nil || t.ending.Load() || t.view.Err() != nil {
		t.end()
	}
	return err
}

var savepoints = map[string]replica.Savepoint{
	"SAVEPOINT": replica.SetSavepoint, "RELEASE": replica.ReleaseSavepoint, "ROLLBACK TO": replica.RollbackToSavepoint,
}

// savepoint runs SAVEPOINT, RELEASE or ROLLBACK TO. Before the transaction has a view it
// only notes the savepoints, since a view would begin to read.
func (c *conn) savepoint(ctx context.Context, text string, class *sqlite.Class) error {
	t := c.tx
	command := savepoints[class.Control]
	if t.view == nil {
		if !t.noteSavepoint(command, class.Savepoint) {
			return sqlError(sqlite.NoSavepoint(class.Savepoint))
		}
		if t.begunBySavepoint && len(t.pendingSavepoints) == 0 {
			t.end()
		}
		return nil
	}
	if t.begunBySavepoint && command == replica.ReleaseSavepoint && t.view.Outermost(class.Savepoint) {
		return c.commit(ctx)
	}
	return t.viewError(t.view.Savepoint(command, class.Savepoint, text))
}

// noteSavepoint updates pendingSavepoints. It returns false if RELEASE or ROLLBACK TO
// names a savepoint that was not set.
func (t *tx) noteSavepoint(command replica.Savepoint, name string) bool {
	if command == replica.SetSavepoint {
		t.pendingSavepoints = append(t.pendingSavepoints, name)
		return true
	}
	for i := len(t.pendingSavepoints) - 1; i >= 0; i-- {
		if !sqlite.SameName(t.pendingSavepoints[i], name) {
			continue
		}
		keep := i + 1
		if command == replica.ReleaseSavepoint {
			keep = i
		}
		t.pendingSavepoints = t.pendingSavepoints[:keep]
		return true
	}
	return false
}

// runSteps runs a script that begins or ends transactions, one statement after the
// other. If the script fails, the transaction that it has begun is rolled back.
func (c *conn) runSteps(ctx context.Context, script string, args []wire.Argument) (_ resultSet, err error) {
	before := c.tx
	all := collector{conn: &c.cfg}
	used := make([]bool, len(args))
	defer func() {
		if err != nil {
			all.close()
		}
		if err != nil && c.tx != nil && c.tx != before {
			c.tx.end()
		}
	}()
	for rest := script; rest != ""; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var part sqlite.Part
		if part, rest, err = c.classifyFirst(ctx, rest); err != nil {
			return nil, err
		}
		if part.Kind == sqlite.Empty {
			continue
		}
		partArgs, err := argumentsFor(part.Params, args, used)
		if err != nil {
			return nil, err
		}
		next, err := c.runStep(ctx, &part, partArgs)
		if err != nil {
			return nil, err
		}
		if err := all.add(&part.Class, next, sqlite.IsBlank(rest)); err != nil {
			return nil, err
		}
	}
	if err := checkAllUsed(args, used); err != nil {
		return nil, err
	}
	return newListedSets(&c.cfg, all.sets, nil)
}

// classifyFirst classifies the first statement of a script, and returns the rest of the
// script.
func (c *conn) classifyFirst(ctx context.Context, script string) (part sqlite.Part, rest string, err error) {
	if c.temp != nil && c.tx != nil {
		if err := c.tx.beginView(ctx); err != nil {
			return part, rest, err
		}
	}
	if t := c.tx; t != nil && t.view != nil {
		part, rest, err = t.view.First(script)
		return part, rest, t.viewError(err)
	}
	if c.temp != nil {
		part, rest, err = c.temp.First(script, c.settings)
		return part, rest, sqlError(err)
	}
	part, rest, err = c.node.Machine().First(script, c.settings)
	return part, rest, sqlError(err)
}

// runStep runs one statement of runSteps.
func (c *conn) runStep(ctx context.Context, part *sqlite.Part, args []wire.Argument) (resultSet, error) {
	switch part.Kind {
	case sqlite.Write, sqlite.Vacuum:
		r, err := c.write(ctx, part.SQL, &part.Class, args)
		if err != nil {
			return nil, err
		}
		return newMemoryRows(&c.cfg, r.Statements[0].Rows), nil
	}
	return c.runLocal(ctx, part.SQL, &part.Class, args)
}

// checkAllUsed returns an error if no statement of a script uses one of the arguments
// without a name.
func checkAllUsed(args []wire.Argument, used []bool) error {
	if i := sqlite.FirstUnused(args, used); i >= 0 {
		return sqlError(sqlite.UnusedScriptArgument(i))
	}
	return nil
}

// argumentsFor returns those arguments of a script that a statement with these
// parameters uses, and marks them in used.
func argumentsFor(params []string, args []wire.Argument, used []bool) ([]wire.Argument, error) {
	usedHere := make([]bool, len(args))
	sqlite.MarkUsed(params, args, usedHere)
	out := args[:min(len(args), len(params))]
	if slices.ContainsFunc(args, func(a wire.Argument) bool { return a.Name != "" }) {
		out = nil
		for i := range args {
			if usedHere[i] {
				out = append(out, args[i])
			}
		}
	}
	for i := range usedHere {
		used[i] = used[i] || usedHere[i]
	}
	if missing := sqlite.MarkUsed(params, out, make([]bool, len(out))); missing >= 0 {
		return nil, sqlError(sqlite.MissingArgument("", missing))
	}
	return out, nil
}

// writeScript runs a script that writes. If a statement fails, it undoes the effects of
// all statements before it.
func (t *tx) writeScript(ctx context.Context, script string, args []wire.Argument) (*wire.Result, error) {
	var out wire.StatementResult
	bytes := 0 // size of all rows
	err := t.view.Atomic(func() error {
		used := make([]bool, len(args))
		for rest := script; rest != ""; {
			if err := ctx.Err(); err != nil {
				return err
			}
			part, tail, err := t.view.First(rest)
			if err != nil {
				return t.viewError(err)
			}
			rest = tail
			if part.Kind == sqlite.Empty {
				continue
			}
			partArgs, err := argumentsFor(part.Params, args, used)
			if err != nil {
				return err
			}
			next, err := t.runPart(ctx, &part, partArgs)
			if err != nil {
				return err
			}
			if bytes += next.Rows.Size(); replica.BoundRows(bytes) != nil {
				return sqlError(replica.BoundRows(bytes))
			}
			out.Append(next)
		}
		return checkAllUsed(args, used)
	})
	if err != nil {
		return nil, t.viewError(err)
	}
	return &wire.Result{Statements: []wire.StatementResult{out}}, nil
}

// runPart runs one statement of writeScript.
func (t *tx) runPart(ctx context.Context, part *sqlite.Part, args []wire.Argument) (out wire.StatementResult, err error) {
	c := t.c
	switch part.Kind {
	case sqlite.Write:
		if c.queryOnly() {
			return out, errReadOnly()
		}
		if !part.TempOnly {
			if t.readOnly {
				return out, errReadOnly()
			}
			if err := t.acquireLease(ctx); err != nil {
				return out, err
			}
		}
		if out, err = t.view.Exec(ctx, part.SQL, args); err != nil {
			return out, readError(ctx, t.viewError(err))
		}
		c.takeCounters(&part.Class, &out)
		return out, nil
	case sqlite.Read:
		if part.Pragma != "" {
			out.Rows = c.pragmaRows(part.Pragma)
		}
		if out.Rows != nil {
			break
		}
		out.Rows, err = t.view.Rows(ctx, part.SQL, args)
		err = readError(ctx, t.viewError(err))
	default:
		var rows resultSet
		if rows, err = c.runLocal(ctx, part.SQL, &part.Class, args); err == nil {
			if inMemory, ok := rows.(*memoryRows); ok && !hasNoRowsInScript(&part.Class) {
				out.Rows = inMemory.rows
			}
			rows.Close()
		}
	}
	out.RowsAffected, out.LastInsertID = c.changes, c.lastInsertID
	return out, err
}
