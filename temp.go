package hiqlite

import (
	"context"
	"database/sql"
	"errors"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// TEMP objects belong to their connection, and live until it is closed, as with
// SQLite. While it has some it holds a SQLite connection of its own
// (replica.Temporary), on which it reads, and writes what is TEMP: locally.
// What writes anything else and uses TEMP objects, or may, is a transaction: that
// brings them to the replicas.

// usesTemp reports that the connection has TEMP objects, or may: what a text does
// depends on them.
func (c *conn) usesTemp() bool {
	return c.temp != nil || c.tx != nil && c.tx.view != nil && c.tx.view.HasTemp()
}

func (c *conn) state() wire.ConnState {
	return wire.ConnState{Changes: c.changes, TotalChanges: c.totalChanges, LastInsertID: c.lastInsertID}
}

// classifyTemp is classify on a connection that has TEMP objects.
func (c *conn) classifyTemp(ctx context.Context, text string) (*sqlite.Class, error) {
	if c.tx != nil {
		// What ends a transaction means the same with and without TEMP objects,
		// and has to be understood when the transaction is over already.
		if class, err := c.node.ClassifyNow(text, c.travels); err == nil && class.Kind == sqlite.Transaction {
			return class, nil
		}
		return c.tx.classify(ctx, text)
	}
	class, err := c.node.ClassifyBy(ctx, text, func(text string) (*sqlite.Class, error) {
		class, err := c.temp.Classify(text, c.travels)
		return &class, err
	})
	return class, readError(ctx, err)
}

// current returns the class of a text that was classified earlier: TEMP objects
// may have come or gone since.
func (c *conn) current(ctx context.Context, text string, class *sqlite.Class) (*sqlite.Class, error) {
	if !class.Temp && !c.usesTemp() {
		return class, nil
	}
	return c.classify(ctx, text)
}

// readTemp runs a text that only reads, beside TEMP objects.
func (c *conn) readTemp(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	held := c.temp
	query := func(text string) (resultSet, error) {
		q, err := held.Query(ctx, text, args, c.state(), c.travels)
		if err != nil {
			return nil, readError(ctx, err)
		}
		return newLocalRows(ctx, &c.cfg, q, q.Close)
	}
	if class.Script {
		return c.inTurn(class, query, nil)
	}
	return query(text)
}

// writeTemp runs a text that writes and has to do with TEMP objects, or may.
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
	if c.consistency(ctx) == Linearizable { // it may read what is not TEMP
		if err := c.node.Linearize(ctx); err != nil {
			return nil, err
		}
	}
	if c.temp == nil {
		held, err := c.node.Machine().Temporary(nil)
		if err != nil {
			return nil, sqlError(err)
		}
		c.temp = held
	}
	delete(c.settings, "defer_foreign_keys")
	out, err := c.temp.Exec(ctx, text, args, c.state(), c.travels)
	if class.Schema && c.temp.Unused() {
		c.dropTemp(nil)
	}
	if err != nil {
		return nil, readError(ctx, err)
	}
	c.remember(class, &out)
	return &wire.Result{Statements: []wire.StatementResult{out}}, nil
}

// dropTemp makes what next holds the connection's TEMP objects; nil: it has none.
func (c *conn) dropTemp(next *replica.Temporary) {
	if c.temp != nil {
		c.temp.Close()
	}
	c.temp = next
}

// inTransaction calls f in a transaction of its own, which waits for the write
// lease only if f writes more than TEMP objects. If others have written in
// between, f is called again with the lease in hand.
func inTransaction[T any](ctx context.Context, c *conn, f func() (T, error)) (T, error) {
	result, err := within(ctx, c, true, f)
	var e *Error
	if errors.As(err, &e) && e.ExtendedCode == sqlite.CodeBusySnapshot {
		return inImmediate(ctx, c, f)
	}
	return result, err
}

// inImmediate calls f in a transaction of its own.
func inImmediate[T any](ctx context.Context, c *conn, f func() (T, error)) (T, error) {
	return within(ctx, c, false, f)
}

func within[T any](ctx context.Context, c *conn, deferred bool, f func() (T, error)) (result T, err error) {
	before := c.state()
	if err := c.begin(ctx, false, deferred, true); err != nil {
		return result, err
	}
	t := c.tx
	defer t.end()
	result, err = f()
	if err != nil && !t.left() {
		c.changes, c.totalChanges, c.lastInsertID = before.Changes, before.TotalChanges, before.LastInsertID
		return result, err
	}
	if failed := t.commit(ctx); failed != nil {
		c.changes, c.totalChanges, c.lastInsertID = before.Changes, before.TotalChanges, before.LastInsertID
		return result, failed
	}
	return result, err
}

// left reports that a statement which failed has left what it did, as OR FAIL
// does.
func (t *tx) left() bool { return t.view != nil && t.view.Err() == nil && t.view.Written() }

// nextTemp holds the TEMP objects as the transaction leaves them, if it has
// changed them. It is made before the transaction is applied: what fails has to
// fail before.
func (t *tx) nextTemp() (take func(), drop func(), err error) {
	nothing := func() {}
	if t.view == nil || !t.view.HasTemp() {
		return nothing, nothing, nil
	}
	content, changed, err := t.view.Temp()
	if err != nil || !changed {
		return nothing, nothing, err
	}
	var next *replica.Temporary
	if content != nil {
		if next, err = t.c.node.Machine().Temporary(content); err != nil {
			return nil, nil, err
		}
	}
	return func() { t.c.dropTemp(next) }, func() {
		if next != nil {
			next.Close()
		}
	}, nil
}

// batchTemp is batch for statements that have to do with TEMP objects, or may.
func (c *conn) batchTemp(ctx context.Context, stmts []Statement) ([]sql.Result, error) {
	if c.queryOnly() {
		return nil, errReadOnly()
	}
	return inTransaction(ctx, c, func() ([]sql.Result, error) {
		var results []sql.Result
		for i := range stmts {
			r, err := c.batchStep(ctx, &stmts[i])
			if err != nil {
				c.tx.end() // nothing of it, OR FAIL or not
				return nil, at(i, err)
			}
			results = append(results, r)
		}
		return results, nil
	})
}

func (c *conn) batchStep(ctx context.Context, s *Statement) (sql.Result, error) {
	class, err := c.batchClass(ctx, s.SQL, false)
	if err != nil {
		return nil, err
	}
	args, err := driverValues(s.Args)
	if err != nil {
		return nil, err
	}
	values, err := c.bind(class, args)
	if err != nil {
		return nil, err
	}
	r, err := c.tx.write(ctx, s.SQL, class, values)
	if err != nil {
		return nil, err
	}
	return resultOf(class, &r.Statements[0]), nil
}
