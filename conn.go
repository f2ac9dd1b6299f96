package hiqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// conn is a connection of database/sql: what SQLite keeps per connection, and a
// way to the node. It holds no SQLite connection of its own; each read borrows
// one of the node's. database/sql uses it from one goroutine at a time.
type conn struct {
	client   *Node
	node     *node.Node // of client
	cfg      ConnConfig
	settings settings

	// What changes(), total_changes() and last_insert_rowid() answer.
	changes, totalChanges, lastInsertID int64

	travels wire.Settings // the settings that its operations take along
	closed  bool

	tx   *tx                // that is open; nil: none
	temp *replica.Temporary // its TEMP objects; nil: it has none
}

var (
	_ driver.Conn               = (*conn)(nil)
	_ driver.ConnBeginTx        = (*conn)(nil)
	_ driver.ConnPrepareContext = (*conn)(nil)
	_ driver.ExecerContext      = (*conn)(nil)
	_ driver.QueryerContext     = (*conn)(nil)
	_ driver.Pinger             = (*conn)(nil)
	_ driver.SessionResetter    = (*conn)(nil)
	_ driver.Validator          = (*conn)(nil)
)

func connect(ctx context.Context, client *Node, cfg ConnConfig) (driver.Conn, error) {
	if err := client.node.Err(); err != nil {
		return nil, err
	}
	c := &conn{client: client, node: client.node, cfg: cfg}
	if cfg.ForeignKeysOff {
		c.travels = wire.ForeignKeysOff
	}
	patience := cfg.BusyTimeout
	if patience == 0 {
		patience = DefaultBusyTimeout
	}
	c.settings.set("busy_timeout", patience.Milliseconds())
	for _, pragma := range cfg.Pragmas {
		if _, err := c.ExecContext(ctx, "PRAGMA "+pragma, nil); err != nil {
			return nil, fmt.Errorf("hiqlite: _pragma=%s: %w", pragma, err)
		}
	}
	if cfg.QueryOnly { // last: a PRAGMA may write
		c.travels |= wire.QueryOnly
	}
	return c, nil
}

// patience is how long the connection waits for transactions of others.
func (c *conn) patience() time.Duration {
	return time.Duration(c.settings["busy_timeout"]) * time.Millisecond
}

// Close ends the connection, and rolls back what is open. The node goes on.
func (c *conn) Close() error {
	if c.tx != nil {
		c.tx.end()
	}
	c.dropTemp(nil)
	c.closed = true
	return nil
}

// Ping fails if the node is closed or has stopped. It does not ask for a leader:
// without one reads go on, and a probe that ends a program for that would only
// make it later. See Node.Ready.
func (c *conn) Ping(ctx context.Context) error {
	return c.usable(ctx)
}

// ResetSession is called before the connection is used again.
func (c *conn) ResetSession(context.Context) error {
	if c.closed {
		return driver.ErrBadConn
	}
	c.abandon()
	return nil
}

// IsValid keeps the connection in the pool while the node runs. database/sql asks
// when a caller has given the connection back: what it left open is rolled back
// at once, so that others need not wait until the connection is used again.
func (c *conn) IsValid() bool {
	c.abandon()
	return !c.closed && !c.node.Closed()
}

// abandon rolls back a transaction that the connection's last caller has left
// open, and that nobody could know of who gets the connection next.
func (c *conn) abandon() {
	if c.tx == nil {
		return
	}
	c.tx.end()
	c.client.leftOpen.Do(func() {
		c.client.cfg.Logger.Warn("hiqlite: a connection was given back to its pool inside a transaction, which was rolled back; run BEGIN and what follows on one sql.Conn, or use sql.DB.BeginTx (said once)",
			"node", c.client.cfg.NodeID)
	})
}

// usable returns why nothing is to be begun: a statement under a context that has
// ended does not start, wherever it comes from. (database/sql looks at the context
// of a sql.DB's and a sql.Tx's statements, not at those of a sql.Conn.)
func (c *conn) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.node.Err(); err != nil {
		return err
	}
	if c.closed {
		return ErrClosed
	}
	return nil
}

// Prepare is PrepareContext without a context.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext finds out what a text does; its errors of syntax are found now.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	class, err := c.classify(ctx, query)
	if err != nil {
		return nil, err
	}
	return &stmt{c: c, text: query, class: class}, nil
}

// ExecContext runs a text whose rows, if any, nobody wants.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.usable(ctx); err != nil {
		return c.rollBack(query, err)
	}
	class, err := c.classify(ctx, query)
	if err != nil {
		return nil, err
	}
	return c.exec(ctx, query, class, args)
}

// rollBack runs ROLLBACK, which nobody's context holds back, or returns why no
// other text is run.
func (c *conn) rollBack(text string, why error) (driver.Result, error) {
	if c.tx == nil {
		return nil, why
	}
	if class, err := c.node.ClassifyNow(text, c.travels); err != nil || class.What != "ROLLBACK" || class.Script {
		return nil, why
	}
	c.tx.end()
	return result{}, nil
}

// QueryContext runs a text and returns rows.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	class, err := c.classify(ctx, query)
	if err != nil {
		return nil, err
	}
	return c.query(ctx, query, class, args)
}

// classify finds out which way a text goes: in a transaction, of which only the
// transaction itself sees what it made, by what that sees.
func (c *conn) classify(ctx context.Context, text string) (*sqlite.Class, error) {
	if err := c.node.WaitZone(ctx); err != nil {
		return nil, err
	}
	if c.usesTemp() {
		return c.classifyTemp(ctx, text)
	}
	if c.tx == nil {
		class, err := c.node.Classify(ctx, text, c.travels)
		return class, readError(ctx, err)
	}
	class, err := c.node.ClassifyNow(text, c.travels)
	if node.MayBeStale(err) {
		return c.tx.classify(ctx, text)
	}
	return class, readError(ctx, err)
}

func (c *conn) exec(ctx context.Context, text string, class *sqlite.Class, args []driver.NamedValue) (_ driver.Result, err error) {
	restore := c.restoring(class.Script)
	defer func() { restore(err) }()
	values, err := c.bind(class, args)
	if err != nil {
		return nil, err
	}
	switch class.Kind {
	case sqlite.Empty:
		return result{}, nil
	case sqlite.Write, sqlite.Vacuum:
		r, err := c.write(ctx, text, class, values)
		if err != nil {
			return nil, err
		}
		return resultOf(class, &r.Statements[0]), nil
	}
	rows, err := c.answer(ctx, text, class, values)
	if err != nil {
		return nil, err
	}
	if err := drain(rows); err != nil {
		return nil, err
	}
	return result{c.lastInsertID, c.changes}, nil
}

func (c *conn) query(ctx context.Context, text string, class *sqlite.Class, args []driver.NamedValue) (_ driver.Rows, err error) {
	restore := c.restoring(class.Script)
	defer func() { restore(err) }()
	values, err := c.bind(class, args)
	if err != nil {
		return nil, err
	}
	switch class.Kind {
	case sqlite.Empty:
		return newMemoryRows(&c.cfg, nil), nil
	case sqlite.Write, sqlite.Vacuum:
		r, err := c.write(ctx, text, class, values)
		if err != nil {
			return nil, err
		}
		if r.RowsDropped {
			// Not "unknown", but to be treated alike: it must not be repeated.
			return nil, fmt.Errorf("%w: the write was applied, but the rows it returned were lost on the way", ErrOutcomeUnknown)
		}
		return newSets(&c.cfg, memorySets(&c.cfg, &r.Statements[0]), nil)
	}
	return c.answer(ctx, text, class, values)
}

// answer runs what is no write.
func (c *conn) answer(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	switch class.Kind {
	case sqlite.Transaction:
		return c.control(ctx, text, class, args)
	case sqlite.Setting:
		return c.configure(ctx, text, class, args)
	}
	if class.Pragma != "" {
		if rows := c.setting(class.Pragma); rows != nil {
			return newMemoryRows(&c.cfg, rows), nil
		}
	}
	return c.read(ctx, text, class, args)
}

// bind converts arguments, and checks their number where that is known: in a
// script only the replicas can tell.
func (c *conn) bind(class *sqlite.Class, args []driver.NamedValue) ([]wire.Argument, error) {
	values, err := c.cfg.arguments(args)
	if err != nil {
		return nil, err
	}
	if class.Script {
		return values, scriptArguments(class, values)
	}
	if n, ok := sqlite.Match(class.Params, values); !ok {
		if n >= 0 {
			return nil, sqlError(sqlite.MissingArgument(class.Params[n], n))
		}
		used := make([]bool, len(values))
		sqlite.Use(class.Params, values, used)
		return nil, sqlError(sqlite.UnusedArgument(sqlite.Surplus(values, used), len(class.Params), len(args)))
	}
	return values, nil
}

// scriptArguments looks for arguments that are missing, or that no statement of
// a script uses, if all of its statements are known: each binds from the first
// argument.
func scriptArguments(class *sqlite.Class, args []wire.Argument) error {
	if len(class.Parts) == 0 {
		return nil
	}
	used := make([]bool, len(args))
	for i := range class.Parts {
		if n := sqlite.Use(class.Parts[i].Params, args, used); n >= 0 {
			return sqlError(sqlite.MissingArgument(class.Parts[i].Params[n], n))
		}
	}
	return allUsed(args, used)
}

// write has a text applied and takes over what it did to the connection.
func (c *conn) write(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (*wire.Result, error) {
	if c.tx != nil {
		return c.tx.write(ctx, text, class, args)
	}
	if class.Temp || class.Script && c.temp != nil {
		return c.writeTemp(ctx, text, class, args)
	}
	op := &wire.Operation{
		Settings:     c.travels,
		LastInsertID: c.lastInsertID,
		Changes:      c.changes,
		Vacuum:       class.Kind == sqlite.Vacuum,
		Statements:   []wire.Statement{{SQL: text, Args: args}},
	}
	return c.propose(ctx, op, class)
}

// propose has an operation applied, whose statements are of these classes.
func (c *conn) propose(ctx context.Context, op *wire.Operation, classes ...*sqlite.Class) (*wire.Result, error) {
	if c.queryOnly() {
		return nil, errReadOnly()
	}
	delete(c.settings, "defer_foreign_keys") // it lasts until the end of a transaction
	r, err := c.node.Write(ctx, op, c.patience())
	if err != nil {
		return nil, sqlError(err)
	}
	for i, class := range classes {
		c.remember(class, &r.Statements[i])
	}
	c.travels ^= r.Settings // a script has changed them
	return r, nil
}

// remember takes over what a statement did to the connection.
func (c *conn) remember(class *sqlite.Class, s *wire.StatementResult) {
	c.totalChanges += s.TotalChanges
	if class.Schema || class.Kind == sqlite.Vacuum {
		return // it repeats what an earlier one did
	}
	c.changes, c.lastInsertID = s.RowsAffected, s.LastInsertID
}

func errReadOnly() error { return sqlError(sqlite.ReadOnlyDatabase("")) }

// read runs a text that only reads on this node's replica.
func (c *conn) read(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	if c.tx != nil {
		return c.tx.read(ctx, text, class, args)
	}
	if c.consistency(ctx) == Linearizable {
		if err := c.node.Linearize(ctx); err != nil {
			return nil, err
		}
	}
	if c.temp != nil {
		return c.readTemp(ctx, text, class, args)
	}
	if class.Script {
		return c.readScript(ctx, class, args)
	}
	reader, err := c.node.Machine().AcquireUnder(ctx, c.travels)
	if err != nil {
		return nil, sqlError(err)
	}
	reader.SetState(c.changes, c.totalChanges, c.lastInsertID)
	return c.run(ctx, reader, text, args)
}

// run runs a statement on a reader, which it gives back.
func (c *conn) run(ctx context.Context, reader *replica.Reader, text string, args []wire.Argument) (resultSet, error) {
	watch := watchOver(ctx, reader)
	var q *replica.Query
	err := ctx.Err()
	if err == nil {
		q, _, err = reader.Query(text, args)
	}
	if err != nil {
		watch.end()
		reader.Release()
		return nil, readError(ctx, err)
	}
	return newLocalRows(ctx, &c.cfg, q, func() {
		watch.end()
		q.Close()
		reader.Release()
	})
}

func (c *conn) consistency(ctx context.Context) Consistency {
	return consistencyOf(ctx, c.cfg.Consistency)
}
