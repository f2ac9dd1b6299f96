package hiqlite

import (
	"cmp"
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// conn is a connection of database/sql. It keeps the state that SQLite keeps for
// a connection, but no SQLite connection: each read borrows a reader of the node.
// database/sql uses a conn from one goroutine at a time.
type conn struct {
	client   *Node
	node     *node.Node // of client
	cfg      ConnConfig
	pragmas  localPragmas
	settings wire.Settings // PRAGMAs that change what statements mean; each operation carries them

	// The values of changes(), total_changes() and last_insert_rowid().
	changes, totalChanges, lastInsertID int64

	closed bool
	tx     *tx                // the open transaction; nil: none
	temp   *replica.Temporary // the connection's TEMP objects; nil: it has none
	origin *wire.Origin       // of the next write or commit, see SetOrigin

	// failedOnReplicas says that the error of the last write is its result on the
	// replicas. An error can also come before that, such as from classification.
	failedOnReplicas bool
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

func connect(ctx context.Context, client *Node, cfg ConnConfig) (*conn, error) {
	if err := client.node.Err(); err != nil {
		return nil, err
	}
	c := &conn{client: client, node: client.node, cfg: cfg}
	if cfg.ForeignKeysOff {
		c.settings = wire.ForeignKeysOff
	}
	c.pragmas.set("busy_timeout", cmp.Or(cfg.BusyTimeout, DefaultBusyTimeout).Milliseconds())
	for _, pragma := range cfg.Pragmas {
		if _, err := c.ExecContext(ctx, "PRAGMA "+pragma, nil); err != nil {
			return nil, fmt.Errorf("hiqlite: _pragma=%s: %w", pragma, err)
		}
	}
	if cfg.QueryOnly { // set it last, because one of the PRAGMAs may write
		c.settings |= wire.QueryOnly
	}
	return c, nil
}

// busyTimeout is how long the connection waits for other transactions.
func (c *conn) busyTimeout() time.Duration {
	return time.Duration(c.pragmas["busy_timeout"]) * time.Millisecond
}

// Close closes the connection and rolls back its open transaction. The node keeps
// running.
func (c *conn) Close() error {
	if c.tx != nil {
		c.tx.end()
	}
	c.replaceTemp(nil)
	c.closed = true
	return nil
}

// Ping fails if the node is closed or has stopped. It does not ask for a leader,
// because reads work without one, and a health probe that restarted the program
// for a missing leader would only delay the next election. Node.Ready asks for one.
func (c *conn) Ping(ctx context.Context) error {
	return c.checkUsable(ctx)
}

// ResetSession is called before database/sql uses a pooled connection again.
func (c *conn) ResetSession(context.Context) error {
	if c.closed {
		return driver.ErrBadConn
	}
	c.rollBackAbandoned()
	return nil
}

// IsValid keeps the connection in the pool while the node runs. database/sql calls
// it when a caller has returned the connection to the pool. A transaction that the
// caller left open is rolled back here, so that other writers need not wait until
// the connection is used again.
func (c *conn) IsValid() bool {
	c.rollBackAbandoned()
	return !c.closed && !c.node.Closed()
}

// rollBackAbandoned rolls back a transaction that the last user of the connection
// left open. The next user could not know about it.
func (c *conn) rollBackAbandoned() {
	if c.tx == nil {
		return
	}
	c.tx.end()
	c.client.logLeftOpen.Do(func() {
		c.client.cfg.Logger.Warn("hiqlite: a connection was returned to its pool inside a transaction, which was rolled back; run BEGIN and the statements after it on one sql.Conn, or use sql.DB.BeginTx (logged once)",
			"node", c.client.cfg.NodeID)
	})
}

// checkUsable returns why no statement can start on the connection, or nil. No
// statement starts under a context that has ended. (database/sql checks the context
// for statements of a sql.DB and a sql.Tx, but not for those of a sql.Conn.)
func (c *conn) checkUsable(ctx context.Context) error {
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

// PrepareContext classifies a text, which finds its syntax errors.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if err := c.checkUsable(ctx); err != nil {
		return nil, err
	}
	class, err := c.classify(ctx, query)
	if err != nil {
		return nil, err
	}
	return &stmt{c: c, text: query, class: class}, nil
}

// ExecContext runs a text and discards its rows.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.checkUsable(ctx); err != nil {
		return c.execRollback(query, err)
	}
	class, err := c.classify(ctx, query)
	if err != nil {
		return nil, err
	}
	return c.exec(ctx, query, class, args)
}

// execRollback runs a text on a connection on which no statement can start because
// of reason. A ROLLBACK runs nevertheless, even under a context that has ended. Any
// other text returns reason.
func (c *conn) execRollback(text string, reason error) (driver.Result, error) {
	if c.tx == nil {
		return nil, reason
	}
	if class, err := c.node.ClassifyNow(text, c.settings); err != nil || class.Control != "ROLLBACK" || class.Script {
		return nil, reason
	}
	c.tx.end()
	return result{}, nil
}

// QueryContext runs a text and returns rows.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.checkUsable(ctx); err != nil {
		return nil, err
	}
	class, err := c.classify(ctx, query)
	if err != nil {
		return nil, err
	}
	return c.query(ctx, query, class, args)
}

// classify finds out how a text has to be run. If the connection has an open
// transaction or TEMP objects, only these may see the tables that the text names,
// so the text is classified there.
func (c *conn) classify(ctx context.Context, text string) (*sqlite.Class, error) {
	if err := c.node.WaitZone(ctx); err != nil {
		return nil, err
	}
	if c.usesTemp() {
		return c.classifyTemp(ctx, text)
	}
	if c.tx == nil {
		class, err := c.node.Classify(ctx, text, c.settings)
		return class, readError(ctx, err)
	}
	class, err := c.node.ClassifyNow(text, c.settings)
	if node.MayBeStale(err) {
		return c.tx.classify(ctx, text)
	}
	return class, readError(ctx, err)
}

func (c *conn) exec(ctx context.Context, text string, class *sqlite.Class, args []driver.NamedValue) (_ driver.Result, err error) {
	restoreSettings := c.settingsRestorer(class.Script)
	defer func() { restoreSettings(err) }()
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
	rows, err := c.runLocal(ctx, text, class, values)
	if err != nil {
		return nil, err
	}
	if err := drain(rows); err != nil {
		return nil, err
	}
	return result{c.lastInsertID, c.changes}, nil
}

func (c *conn) query(ctx context.Context, text string, class *sqlite.Class, args []driver.NamedValue) (_ driver.Rows, err error) {
	restoreSettings := c.settingsRestorer(class.Script)
	defer func() { restoreSettings(err) }()
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
			// The outcome is known, but the caller must treat it as an unknown one
			// and must not repeat the write.
			return nil, fmt.Errorf("%w: the write was applied, but the rows that it returned were lost; do not repeat it", ErrOutcomeUnknown)
		}
		return newListedSets(&c.cfg, memorySets(&c.cfg, &r.Statements[0]), nil)
	}
	return c.runLocal(ctx, text, class, values)
}

// runLocal runs a text that is not a write: it begins or ends a transaction, sets
// or reads a PRAGMA, or reads rows. Its work is done on this node, except for the
// lease and commit of a transaction.
func (c *conn) runLocal(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	switch class.Kind {
	case sqlite.Transaction:
		return c.controlTransaction(ctx, text, class, args)
	case sqlite.ConnPragma:
		return c.runPragmas(ctx, text, class, args)
	}
	if class.Pragma != "" {
		if rows := c.pragmaRows(class.Pragma); rows != nil {
			return newMemoryRows(&c.cfg, rows), nil
		}
	}
	return c.read(ctx, text, class, args)
}

// bind converts arguments and checks their number. In a script the number is
// checked only as far as the statements are known.
func (c *conn) bind(class *sqlite.Class, args []driver.NamedValue) ([]wire.Argument, error) {
	values, err := c.cfg.arguments(args)
	if err != nil {
		return nil, err
	}
	if class.Script {
		return values, checkScriptArguments(class, values)
	}
	if n, ok := sqlite.MatchArguments(class.Params, values); !ok {
		if n >= 0 {
			return nil, sqlError(sqlite.MissingArgument(class.Params[n], n))
		}
		used := make([]bool, len(values))
		sqlite.MarkUsed(class.Params, values, used)
		return nil, sqlError(sqlite.UnusedArgument(sqlite.FirstUnused(values, used), len(class.Params), len(args)))
	}
	return values, nil
}

// checkScriptArguments reports an argument of a script that is missing, or that no
// statement uses. Each statement of a script binds from the first argument on. Only
// the statements of a script of reads and settings are known here. The arguments of
// another script are checked when its statements run.
func checkScriptArguments(class *sqlite.Class, args []wire.Argument) error {
	if len(class.Parts) == 0 {
		return nil
	}
	used := make([]bool, len(args))
	for i := range class.Parts {
		if n := sqlite.MarkUsed(class.Parts[i].Params, args, used); n >= 0 {
			return sqlError(sqlite.MissingArgument(class.Parts[i].Params[n], n))
		}
	}
	return checkAllUsed(args, used)
}

// write has a text applied by all replicas, and takes over its effects on the
// connection.
func (c *conn) write(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (*wire.Result, error) {
	if c.tx != nil {
		return c.tx.write(ctx, text, class, args)
	}
	if class.Temp || class.Script && c.temp != nil {
		return c.writeTemp(ctx, text, class, args)
	}
	op := &wire.Operation{
		Settings:     c.settings,
		LastInsertID: c.lastInsertID,
		Changes:      c.changes,
		Vacuum:       class.Kind == sqlite.Vacuum,
		Statements:   []wire.Statement{{SQL: text, Args: args}},
	}
	return c.propose(ctx, op, class)
}

// propose has an operation applied. classes are those of its statements.
func (c *conn) propose(ctx context.Context, op *wire.Operation, classes ...*sqlite.Class) (*wire.Result, error) {
	if c.queryOnly() {
		return nil, errReadOnly()
	}
	delete(c.pragmas, "defer_foreign_keys") // it ends with the transaction, here with the operation
	op.Origin = c.takeOrigin()
	r, err := c.node.Write(ctx, op, c.busyTimeout())
	c.failedOnReplicas = r != nil && err != nil
	if err != nil {
		return nil, sqlError(err)
	}
	for i, class := range classes {
		c.takeCounters(class, &r.Statements[i])
	}
	c.settings ^= r.ChangedSettings // the bits that a script has changed
	return r, nil
}

// SetOrigin makes the next write, or the next commit, one of a remote client; nil: of
// this node. The server calls it, which has the connection from its Connector.
func (c *conn) SetOrigin(origin *wire.Origin) { c.origin, c.failedOnReplicas = origin, false }

// OpenSession opens a session for the origins of a remote client, in the shard of this
// name.
func (c *conn) OpenSession(ctx context.Context, shard string) (uint64, error) {
	return c.node.OpenSession(ctx, shard)
}

// CommitOutcome finds out what became of a commit of a remote client, which was sent
// through any node; see node.CommitOutcome.
func (c *conn) CommitOutcome(ctx context.Context, origin wire.Origin) error {
	return sqlError(c.node.CommitOutcome(ctx, origin))
}

// takeOrigin returns the origin that was set, for one operation.
func (c *conn) takeOrigin() *wire.Origin {
	origin := c.origin
	c.origin = nil
	return origin
}

// FailedOnReplicas reports whether the error of a write, since SetOrigin was called, is
// its result on the replicas, which copies of the write get too.
func (c *conn) FailedOnReplicas() bool { return c.failedOnReplicas }

// takeCounters takes over what a statement did to the values of changes(),
// total_changes() and last_insert_rowid().
func (c *conn) takeCounters(class *sqlite.Class, s *wire.StatementResult) {
	c.totalChanges += s.TotalChanges
	if class.Schema || class.Kind == sqlite.Vacuum {
		return // s repeats the values of an earlier statement
	}
	c.changes, c.lastInsertID = s.RowsAffected, s.LastInsertID
}

func errReadOnly() error { return sqlError(sqlite.ReadOnlyDatabase("")) }

// read runs a text that only reads. It reads from this node's database.
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
	reader, err := c.node.Machine().AcquireUnder(ctx, c.settings)
	if err != nil {
		return nil, sqlError(err)
	}
	reader.SetState(wire.ConnState{Changes: c.changes, TotalChanges: c.totalChanges, LastInsertID: c.lastInsertID})
	return c.queryOn(ctx, reader, text, args)
}

// queryOn runs a statement on a reader, and returns the reader when the rows end.
func (c *conn) queryOn(ctx context.Context, reader *replica.Reader, text string, args []wire.Argument) (resultSet, error) {
	interrupts := interruptWhenDone(ctx, reader)
	var q *replica.Query
	err := ctx.Err()
	if err == nil {
		q, _, err = reader.Query(text, args)
	}
	if err != nil {
		interrupts.end()
		reader.Release()
		return nil, readError(ctx, err)
	}
	return newLocalRows(ctx, &c.cfg, q, func() {
		interrupts.end()
		q.Close()
		reader.Release()
	})
}

func (c *conn) consistency(ctx context.Context) Consistency {
	return consistencyOf(ctx, c.cfg.Consistency)
}
