package hiqlite

import (
	"context"
	"database/sql/driver"
	"errors"

	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// TEMP objects belong to their connection and live until it is closed, as in SQLite.
// A connection that has some holds a SQLite connection (replica.Temporary). It reads
// there, and there it runs the statements that change nothing but TEMP objects.
// A statement that uses TEMP objects, or may use them, and writes ordinary tables runs
// in a transaction, whose operation carries the TEMP objects to all replicas.

// usesTemp reports whether the connection has TEMP objects, or its transaction may have
// made some. What a text does then depends on them.
func (c *conn) usesTemp() bool {
	return c.temp != nil || c.tx != nil && c.tx.view != nil && c.tx.view.HasTemp()
}

// counters returns the values of changes(), total_changes() and last_insert_rowid().
func (c *conn) counters() wire.ConnState {
	return wire.ConnState{Changes: c.changes, TotalChanges: c.totalChanges, LastInsertID: c.lastInsertID}
}

func (c *conn) restoreCounters(s wire.ConnState) {
	c.changes, c.totalChanges, c.lastInsertID = s.Changes, s.TotalChanges, s.LastInsertID
}

// classifyTemp is classify on a connection that has TEMP objects.
func (c *conn) classifyTemp(ctx context.Context, text string) (*sqlite.Class, error) {
	if c.tx != nil {
		// The statements that end a transaction do not depend on TEMP objects, and
		// they must be classified even if the view has ended.
		if class, err := c.node.ClassifyNow(text, c.settings); err == nil && class.Kind == sqlite.Transaction {
			return class, nil
		}
		return c.tx.classify(ctx, text)
	}
	class, err := c.node.ClassifyBy(ctx, text, func(text string) (*sqlite.Class, error) {
		class, err := c.temp.Classify(text, c.settings)
		return &class, err
	})
	return class, readError(ctx, err)
}

// reclassify returns the class of a text that was classified earlier. The class may
// have changed if TEMP objects were created or dropped in between.
func (c *conn) reclassify(ctx context.Context, text string, class *sqlite.Class) (*sqlite.Class, error) {
	if !class.Temp && !c.usesTemp() {
		return class, nil
	}
	return c.classify(ctx, text)
}

// readTemp runs a text that only reads, on a connection that has TEMP objects.
func (c *conn) readTemp(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	temp := c.temp
	query := func(text string) (resultSet, error) {
		q, err := temp.Query(ctx, text, args, c.counters(), c.settings)
		if err != nil {
			return nil, readError(ctx, err)
		}
		return newLocalRows(ctx, &c.cfg, q, q.Close)
	}
	if class.Script {
		return c.queryParts(class, query, nil)
	}
	return query(text)
}

// writeTemp runs a text that writes and uses TEMP objects, or may use them.
func (c *conn) writeTemp(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (*wire.Result, error) {
	if c.queryOnly() {
		return nil, errReadOnly()
	}
	if class.TempOnly {
		return c.writeTempOnly(ctx, text, class, args)
	}
	write := func() (*wire.Result, error) { return c.tx.write(ctx, text, class, args) }
	if class.Script {
		return inTransaction(ctx, c, write)
	}
	return inImmediate(ctx, c, write)
}

// writeTempOnly runs a statement that changes TEMP objects and nothing else.
func (c *conn) writeTempOnly(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (*wire.Result, error) {
	if c.consistency(ctx) == Linearizable { // the statement may read ordinary tables
		if err := c.node.Linearize(ctx); err != nil {
			return nil, err
		}
	}
	if c.temp == nil {
		temp, err := c.node.Machine().Temporary(nil)
		if err != nil {
			return nil, sqlError(err)
		}
		c.temp = temp
	}
	delete(c.pragmas, "defer_foreign_keys")
	out, err := c.temp.Exec(ctx, text, args, c.counters(), c.settings)
	if class.Schema && c.temp.Unused() {
		c.replaceTemp(nil)
	}
	if err != nil {
		return nil, readError(ctx, err)
	}
	c.takeCounters(class, &out)
	return &wire.Result{Statements: []wire.StatementResult{out}}, nil
}

// replaceTemp closes the connection's TEMP objects and makes next the new ones. If next
// is nil, the connection has none.
func (c *conn) replaceTemp(next *replica.Temporary) {
	if c.temp != nil {
		c.temp.Close()
	}
	c.temp = next
}

// inTransaction calls f in a transaction that is begun and committed for it. The
// transaction waits for the write lease only when f writes something other than TEMP
// objects. If rows have changed by then, f is called again in a transaction that has
// the lease from its beginning.
func inTransaction[T any](ctx context.Context, c *conn, f func() (T, error)) (T, error) {
	result, err := inOwnTransaction(ctx, c, true, f)
	var e *Error
	if errors.As(err, &e) && e.ExtendedCode == sqlite.CodeBusySnapshot {
		return inImmediate(ctx, c, f)
	}
	return result, err
}

// inImmediate calls f in a transaction that is begun and committed for it, and that has
// the write lease from its beginning.
func inImmediate[T any](ctx context.Context, c *conn, f func() (T, error)) (T, error) {
	return inOwnTransaction(ctx, c, false, f)
}

// inOwnTransaction begins a transaction, calls f, and commits. It rolls back if f fails,
// unless a failed statement of f has left changes.
func inOwnTransaction[T any](ctx context.Context, c *conn, deferred bool, f func() (T, error)) (result T, err error) {
	before := c.counters()
	if err := c.begin(ctx, false, deferred, true); err != nil {
		return result, err
	}
	t := c.tx
	defer t.end()
	result, err = f()
	if err != nil && !t.keepsFailedStatement() {
		c.restoreCounters(before)
		return result, err
	}
	if commitErr := t.commit(ctx); commitErr != nil {
		c.restoreCounters(before)
		return result, commitErr
	}
	return result, err
}

// keepsFailedStatement reports whether a failed statement has left changes behind, as
// INSERT OR FAIL does.
func (t *tx) keepsFailedStatement() bool {
	return t.view != nil && t.view.Err() == nil && t.view.Written()
}

// tempChange is the change of a connection's TEMP objects by a transaction. It is
// either adopted or discarded.
type tempChange struct {
	c       *conn
	changed bool
	temp    *replica.Temporary // nil: the transaction leaves none
}

// nextTemp makes the TEMP objects as the transaction leaves them. It is called before
// the transaction is proposed, since an error after that could not undo the commit.
func (t *tx) nextTemp() (next tempChange, err error) {
	next.c = t.c
	if t.view == nil || !t.view.HasTemp() {
		return next, nil
	}
	content, changed, err := t.view.Temp()
	if err != nil || !changed {
		return next, err
	}
	next.changed = true
	if content != nil {
		next.temp, err = t.c.node.Machine().Temporary(content)
	}
	return next, err
}

// adopt gives the connection the TEMP objects that the transaction leaves.
func (n tempChange) adopt() {
	if n.changed {
		n.c.replaceTemp(n.temp)
	}
}

// discard leaves the connection's TEMP objects as they are.
func (n tempChange) discard() {
	if n.temp != nil {
		n.temp.Close()
	}
}

// batchTemp is batch for statements that use TEMP objects, or may use them.
func (c *conn) batchTemp(ctx context.Context, stmts []connapi.Statement) ([]driver.Result, error) {
	if c.queryOnly() {
		return nil, errReadOnly()
	}
	return inTransaction(ctx, c, func() ([]driver.Result, error) {
		var results []driver.Result
		for i := range stmts {
			r, err := c.batchStep(ctx, &stmts[i])
			if err != nil {
				c.tx.end() // a batch keeps nothing, even if the statement says OR FAIL
				return nil, withStatementIndex(i, err)
			}
			results = append(results, r)
		}
		return results, nil
	})
}

// batchStep runs one statement of batchTemp.
func (c *conn) batchStep(ctx context.Context, s *connapi.Statement) (driver.Result, error) {
	class, err := c.batchClass(ctx, s.SQL, false)
	if err != nil {
		return nil, err
	}
	values, err := c.bind(class, s.Args)
	if err != nil {
		return nil, err
	}
	r, err := c.tx.write(ctx, s.SQL, class, values)
	if err != nil {
		return nil, err
	}
	return resultOf(class, &r.Statements[0]), nil
}
