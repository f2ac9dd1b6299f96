package hiqlite

import (
	"context"
	"slices"
	"strings"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// control runs a text that begins or ends a transaction, or a script with such.
func (c *conn) control(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (seenRows, error) {
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
		err = misuse("", "SQL logic error: no such savepoint: %s (1)", class.Savepoint)
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

var savepoints = map[string]statemachine.Savepoint{
	"SAVEPOINT": statemachine.SetSavepoint, "RELEASE": statemachine.ReleaseSavepoint, "ROLLBACK TO": statemachine.RollbackToSavepoint,
}

func (c *conn) savepoint(ctx context.Context, text string, class *sqlite.Class) error {
	t := c.tx
	what := savepoints[class.What]
	if t.view == nil {
		found := what == statemachine.SetSavepoint
		if found {
			t.pending = append(t.pending, class.Savepoint)
		}
		for i := len(t.pending) - 1; i >= 0 && !found; i-- {
			if found = strings.EqualFold(t.pending[i], class.Savepoint); !found {
				continue
			}
			if t.pending = t.pending[:i+1]; what == statemachine.ReleaseSavepoint {
				t.pending = t.pending[:i]
			}
		}
		switch {
		case !found:
			return misuse("", "SQL logic error: no such savepoint: %s (1)", class.Savepoint)
		case t.bySave && len(t.pending) == 0:
			t.end()
		}
		return nil
	}
	if t.bySave && what == statemachine.ReleaseSavepoint && t.view.Outermost(class.Savepoint) {
		return c.commit(ctx)
	}
	return t.explain(t.view.Savepoint(what, class.Savepoint, text))
}

// steps runs a script that begins or ends transactions, one statement after the
// other. A transaction that it began is rolled back if it fails.
func (c *conn) steps(ctx context.Context, script string, args []wire.Argument) (rows seenRows, err error) {
	open := c.tx
	used := make([]bool, len(args))
	defer func() {
		if err != nil && c.tx != nil && c.tx != open {
			c.tx.end()
		}
	}()
	for rest := script; rest != ""; {
		var part sqlite.Part
		if part, rest, err = c.first(rest); err != nil {
			return nil, err
		}
		if part.Kind == sqlite.Empty {
			continue
		}
		sqlite.Use(part.Params, args, used)
		next, err := c.step(ctx, &part, argumentsOf(part.Params, args))
		if err != nil {
			if rows != nil {
				rows.Close()
			}
			return nil, err
		}
		if rows == nil {
			rows = next
		} else if next.more() || sqlite.Blank(rest) {
			rows.Close()
			rows = next
		} else {
			next.Close()
		}
	}
	if i := slices.Index(used, false); i >= 0 {
		return nil, unusedArgument(i)
	}
	if rows == nil {
		rows = newMemoryRows(&c.cfg, nil)
	}
	return rows, nil
}

// first classifies the first statement of a script.
func (c *conn) first(script string) (part sqlite.Part, rest string, err error) {
	if t := c.tx; t != nil && t.view != nil {
		part, rest, err = t.view.First(script)
		return part, rest, t.explain(err)
	}
	part, rest, err = c.node.replica.First(script)
	return part, rest, sqlError(err)
}

// step runs one statement of a script.
func (c *conn) step(ctx context.Context, part *sqlite.Part, args []wire.Argument) (seenRows, error) {
	if missing := sqlite.Use(part.Params, args, make([]bool, len(args))); missing >= 0 {
		return nil, misuse("", "missing argument with index %d", missing+1)
	}
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

func unusedArgument(i int) error {
	return misuse("each statement of a script binds from the first argument", "argument %d is used by no statement of the script", i+1)
}

// argumentsOf returns those of a script's arguments that a statement of it uses.
func argumentsOf(params []string, args []wire.Argument) []wire.Argument {
	named := slices.ContainsFunc(args, func(a wire.Argument) bool { return a.Name != "" })
	if !named {
		return args[:min(len(args), len(params))]
	}
	used := make([]bool, len(args))
	sqlite.Use(params, args, used)
	var out []wire.Argument
	for i := range args {
		if used[i] {
			out = append(out, args[i])
		}
	}
	return out
}

// script runs a script that writes: all of its statements or, if one fails,
// none.
func (t *tx) script(ctx context.Context, script string, args []wire.Argument) (*wire.Result, error) {
	var out wire.StatementResult
	err := t.view.Atomic(func() error {
		used := make([]bool, len(args))
		for rest := script; rest != ""; {
			part, tail, err := t.view.First(rest)
			if err != nil {
				return t.explain(err)
			}
			rest = tail
			if part.Kind == sqlite.Empty {
				continue
			}
			sqlite.Use(part.Params, args, used)
			next, err := t.part(ctx, &part, argumentsOf(part.Params, args))
			if err != nil {
				return err
			}
			if next.Rows == nil && !sqlite.Blank(rest) {
				next.Rows = out.Rows
			}
			next.TotalChanges += out.TotalChanges
			out = next
		}
		if i := slices.Index(used, false); i >= 0 {
			return unusedArgument(i)
		}
		return nil
	})
	if err != nil {
		return nil, t.explain(err)
	}
	return &wire.Result{Statements: []wire.StatementResult{out}}, nil
}

// part runs one statement of a script.
func (t *tx) part(ctx context.Context, part *sqlite.Part, args []wire.Argument) (out wire.StatementResult, err error) {
	c := t.c
	if missing := sqlite.Use(part.Params, args, make([]bool, len(args))); missing >= 0 {
		return out, misuse("", "missing argument with index %d", missing+1)
	}
	switch part.Kind {
	case sqlite.Write:
		if out, err = t.view.Exec(ctx, part.SQL, args); err != nil {
			return out, readError(ctx, t.explain(err))
		}
		c.remember(&part.Class, &out)
		return out, nil
	case sqlite.Read:
		out.Rows, err = t.view.Rows(ctx, part.SQL, args)
		err = readError(ctx, t.explain(err))
	default:
		var rows seenRows
		if rows, err = c.answer(ctx, part.SQL, &part.Class, args); err == nil {
			rows.Close()
		}
	}
	out.RowsAffected, out.LastInsertID = c.changes, c.lastInsertID
	return out, err
}
