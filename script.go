package hiqlite

import (
	"cmp"
	"context"
	"slices"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// control runs a text that begins or ends a transaction, or a script with such.
func (c *conn) control(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	var err error
	switch {
	case class.Script && (c.tx != nil || class.What == "BEGIN" || class.What == "SAVEPOINT"):
		return c.steps(ctx, text, args)
	case class.What == "BEGIN":
		err = c.begin(ctx, false, c.cfg.Deferred && !class.Immediate, false)
	case class.What == "SAVEPOINT" && c.tx == nil:
		if err = c.begin(ctx, false, true, false); err == nil {
			c.tx.bySave = true
			err = c.savepoint(ctx, text, class)
		}
	case c.tx == nil && class.What == "COMMIT":
		err = errNoTransaction
	case c.tx == nil && class.What == "ROLLBACK":
		err = errNoRollback
	case c.tx == nil:
		err = sqlError(sqlite.NoSavepoint(class.Savepoint))
	case class.What == "COMMIT":
		err = c.commit(ctx)
	case class.What == "ROLLBACK":
		c.tx.end()
	default:
		err = c.savepoint(ctx, text, class)
	}
	if err != nil {
		return nil, err
	}
	return newMemoryRows(&c.cfg, nil), nil
}

// commit is COMMIT as a text: a violated deferred foreign key leaves the
// transaction open, as SQLite has it.
func (c *conn) commit(ctx context.Context) error {
	t := c.tx
	err := t.commit(ctx)
	if err == nil || t.stage.Load() != txOpen || t.view.Err() != nil {
		t.end()
	}
	return err
}

var savepoints = map[string]replica.Savepoint{
	"SAVEPOINT": replica.SetSavepoint, "RELEASE": replica.ReleaseSavepoint, "ROLLBACK TO": replica.RollbackToSavepoint,
}

func (c *conn) savepoint(ctx context.Context, text string, class *sqlite.Class) error {
	t := c.tx
	what := savepoints[class.What]
	if t.view == nil {
		found := what == replica.SetSavepoint
		if found {
			t.pending = append(t.pending, class.Savepoint)
		}
		for i := len(t.pending) - 1; i >= 0 && !found; i-- {
			if found = sqlite.SameName(t.pending[i], class.Savepoint); !found {
				continue
			}
			if t.pending = t.pending[:i+1]; what == replica.ReleaseSavepoint {
				t.pending = t.pending[:i]
			}
		}
		switch {
		case !found:
			return sqlError(sqlite.NoSavepoint(class.Savepoint))
		case t.bySave && len(t.pending) == 0:
			t.end()
		}
		return nil
	}
	if t.bySave && what == replica.ReleaseSavepoint && t.view.Outermost(class.Savepoint) {
		return c.commit(ctx)
	}
	return t.explain(t.view.Savepoint(what, class.Savepoint, text))
}

// steps runs a script that begins or ends transactions, one statement after the
// other. A transaction that it began is rolled back if it fails.
func (c *conn) steps(ctx context.Context, script string, args []wire.Argument) (_ resultSet, err error) {
	open := c.tx
	all := collector{conn: &c.cfg}
	used := make([]bool, len(args))
	defer func() {
		if err != nil {
			all.close()
		}
		if err != nil && c.tx != nil && c.tx != open {
			c.tx.end()
		}
	}()
	for rest := script; rest != ""; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var part sqlite.Part
		if part, rest, err = c.first(ctx, rest); err != nil {
			return nil, err
		}
		if part.Kind == sqlite.Empty {
			continue
		}
		own, err := argumentsOf(part.Params, args, used)
		if err != nil {
			return nil, err
		}
		next, err := c.step(ctx, &part, own)
		if err != nil {
			return nil, err
		}
		if err := all.add(&part.Class, next, sqlite.Blank(rest)); err != nil {
			return nil, err
		}
	}
	if err := allUsed(args, used); err != nil {
		return nil, err
	}
	return newSets(&c.cfg, all.sets, nil)
}

// first classifies the first statement of a script.
func (c *conn) first(ctx context.Context, script string) (part sqlite.Part, rest string, err error) {
	if c.temp != nil && c.tx != nil {
		if err := c.tx.beginView(ctx); err != nil {
			return part, rest, err
		}
	}
	if t := c.tx; t != nil && t.view != nil {
		part, rest, err = t.view.First(script)
		return part, rest, t.explain(err)
	}
	if c.temp != nil {
		part, rest, err = c.temp.First(script, c.travels)
		return part, rest, sqlError(err)
	}
	part, rest, err = c.node.Machine().First(script, c.travels)
	return part, rest, sqlError(err)
}

// step runs one statement of a script.
func (c *conn) step(ctx context.Context, part *sqlite.Part, args []wire.Argument) (resultSet, error) {
	switch part.Kind {
	case sqlite.Write, sqlite.Vacuum:
		r, err := c.write(ctx, part.SQL, &part.Class, args)
		if err != nil {
			return nil, err
		}
		return newMemoryRows(&c.cfg, r.Statements[0].Rows), nil
	}
	return c.answer(ctx, part.SQL, &part.Class, args)
}

// allUsed reports an argument without a name that no statement of a script uses.
func allUsed(args []wire.Argument, used []bool) error {
	if i := sqlite.Surplus(args, used); i >= 0 {
		return sqlError(sqlite.UnusedScriptArgument(i))
	}
	return nil
}

// argumentsOf returns those of a script's arguments that a statement of it uses,
// and marks them as used.
func argumentsOf(params []string, args []wire.Argument, used []bool) ([]wire.Argument, error) {
	own := make([]bool, len(args))
	sqlite.Use(params, args, own)
	out := args[:min(len(args), len(params))]
	if slices.ContainsFunc(args, func(a wire.Argument) bool { return a.Name != "" }) {
		out = nil
		for i := range args {
			if own[i] {
				out = append(out, args[i])
			}
		}
	}
	for i := range own {
		used[i] = used[i] || own[i]
	}
	if missing := sqlite.Use(params, out, make([]bool, len(out))); missing >= 0 {
		return nil, sqlError(sqlite.MissingArgument("", missing))
	}
	return out, nil
}

// script runs a script that writes: all of its statements or, if one fails,
// none.
func (t *tx) script(ctx context.Context, script string, args []wire.Argument) (*wire.Result, error) {
	var out wire.StatementResult
	bytes := 0 // of all rows
	err := t.view.Atomic(func() error {
		used := make([]bool, len(args))
		for rest := script; rest != ""; {
			if err := ctx.Err(); err != nil {
				return err
			}
			part, tail, err := t.view.First(rest)
			if err != nil {
				return t.explain(err)
			}
			rest = tail
			if part.Kind == sqlite.Empty {
				continue
			}
			own, err := argumentsOf(part.Params, args, used)
			if err != nil {
				return err
			}
			next, err := t.part(ctx, &part, own)
			if err != nil {
				return err
			}
			rows := next.Rows
			if bytes += rows.Size(); replica.BoundRows(bytes) != nil {
				return sqlError(replica.BoundRows(bytes))
			}
			next.Rows, next.More = out.Rows, out.More
			next.AddRows(rows)
			next.TotalChanges += out.TotalChanges
			next.RowID = cmp.Or(next.RowID, out.RowID)
			out = next
		}
		return allUsed(args, used)
	})
	if err != nil {
		return nil, t.explain(err)
	}
	return &wire.Result{Statements: []wire.StatementResult{out}}, nil
}

// part runs one statement of a script.
func (t *tx) part(ctx context.Context, part *sqlite.Part, args []wire.Argument) (out wire.StatementResult, err error) {
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
			return out, readError(ctx, t.explain(err))
		}
		c.remember(&part.Class, &out)
		return out, nil
	case sqlite.Read:
		if part.Pragma != "" {
			out.Rows = c.setting(part.Pragma)
		}
		if out.Rows != nil {
			break
		}
		out.Rows, err = t.view.Rows(ctx, part.SQL, args)
		err = readError(ctx, t.explain(err))
	default:
		var rows resultSet
		if rows, err = c.answer(ctx, part.SQL, &part.Class, args); err == nil {
			if held, ok := rows.(*memoryRows); ok && !silent(&part.Class) {
				out.Rows = held.rows
			}
			rows.Close()
		}
	}
	out.RowsAffected, out.LastInsertID = c.changes, c.lastInsertID
	return out, err
}
