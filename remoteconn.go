package hiqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/remote"
	"github.com/hiqlite/hiqlite/internal/sqlite"
)

// A remoteConn is a connection of database/sql to a remote database: a session with a
// node, which has a conn. If the session breaks, the connection continues with its
// state in a session with another node, unless it was in a transaction or has TEMP
// objects. database/sql uses a remoteConn from one goroutine at a time.
type remoteConn struct {
	client  *Remote
	cfg     ConnConfig
	session *remote.Session // nil: none, because the last one broke

	state    connapi.State // as the server has told it last
	beforeTx connapi.State // the state before the open transaction

	closed   bool
	tx       *remoteTx // of BeginTx; nil: none
	lostTx   error     // why the open transaction is over: its session broke. nil: it is not
	reported bool      // a statement has returned lostTx
	lostTemp error     // why the connection cannot be used any more: its TEMP objects were lost
}

var (
	_ clientConn                = (*remoteConn)(nil)
	_ driver.ConnPrepareContext = (*remoteConn)(nil)
	_ driver.Validator          = (*remoteConn)(nil)
)

// dialConn opens a connection. With restore, it continues one that was open before.
func dialConn(ctx context.Context, client *Remote, cfg ConnConfig, restore *connapi.State) (*remoteConn, error) {
	c := &remoteConn{client: client, cfg: cfg}
	return c, c.open(ctx, restore)
}

// open opens a session, which begins with the state restore unless that is nil.
func (c *remoteConn) open(ctx context.Context, restore *connapi.State) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout())
		defer cancel()
	}
	open := c.cfg.apiConfig()
	open.Restore = restore
	session, answer, err := c.client.client.OpenSession(ctx, open)
	if err != nil {
		return remoteError(err)
	}
	c.session = session
	c.update(answer)
	return nil
}

func (c *remoteConn) timeout() time.Duration {
	if c.client.cfg.Timeout != 0 {
		return c.client.cfg.Timeout
	}
	return DefaultTimeout
}

// update takes over what an answer says of the connection's state.
func (c *remoteConn) update(answer *apiv1.SessionResponse) {
	if answer.State == nil {
		return
	}
	next := protocol.ConnState(answer.State)
	if next.InTransaction && !c.state.InTransaction {
		c.beforeTx = c.state
	}
	c.state = next
}

// call sends a request and returns the answer. If the session has broken before the
// request was executed, the request is sent in a new one. If it may have been executed,
// call asks repeatable, which is nil if it must not be sent again, and else returns an
// ErrOutcomeUnknown.
func (c *remoteConn) call(ctx context.Context, r *apiv1.SessionRequest, repeatable func(context.Context) bool) (*apiv1.SessionResponse, error) {
	for {
		if err := c.ensure(ctx); err != nil {
			return nil, err
		}
		answer, err := c.session.Do(ctx, r)
		var broken *remote.BrokenError
		if errors.As(err, &broken) {
			inTx := c.state.InTransaction
			c.sessionBroke(broken)
			switch {
			case inTx || c.lostTemp != nil:
				return nil, c.afterLoss(broken)
			case broken.NotExecuted, repeatable != nil && repeatable(ctx):
				continue
			}
			return nil, unknownAfter(ctx, broken)
		}
		if err != nil {
			return nil, err
		}
		c.update(answer)
		err = remoteError(remote.Failure(ctx, answer))
		if err != nil && errors.Is(err, ErrClosed) && !errors.Is(err, ErrOutcomeUnknown) && !c.state.InTransaction && !c.state.HasTemp && ctx.Err() == nil {
			// The node is closing. It has executed nothing.
			c.session.Close()
			c.session = nil
			continue
		}
		return answer, err
	}
}

// unknownAfter returns the error of a write that was sent, before its session broke.
// (A session of the replicated machines for the writes of remote clients will let it
// be sent again to another node, which then tells the outcome.)
func unknownAfter(ctx context.Context, broken *remote.BrokenError) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w: %w", ErrOutcomeUnknown, err, broken)
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, broken)
}

// ensure opens a session if the last one has broken.
func (c *remoteConn) ensure(ctx context.Context) error {
	switch {
	case c.closed || c.client.client.Closed():
		return ErrClosed
	case c.session != nil && c.session.Ended():
		c.sessionBroke(nil)
	}
	switch {
	case c.lostTemp != nil:
		return c.lostTemp
	case c.lostTx != nil:
		c.reported = true
		return c.lostTx
	case c.session != nil:
		return nil
	}
	return c.open(ctx, &c.state)
}

// sessionBroke notes that the session has ended, and what was lost with it.
func (c *remoteConn) sessionBroke(broken *remote.BrokenError) {
	address := c.session.Address()
	c.session.Close()
	c.session = nil
	if c.state.InTransaction {
		c.lostTx = fmt.Errorf("%w: the connection to %s, on which it ran, broke", ErrTxExpired, address)
		if broken != nil {
			c.lostTx = fmt.Errorf("%w: %w", c.lostTx, broken.Err)
		}
		c.state, c.reported = c.beforeTx, false
	}
	if c.state.HasTemp {
		c.lostTemp = fmt.Errorf("hiqlite: the connection's TEMP objects were lost with its session on %s: %w", address, driver.ErrBadConn)
	}
}

// afterLoss returns the error of a request whose session broke inside a transaction, or
// with TEMP objects.
func (c *remoteConn) afterLoss(*remote.BrokenError) error {
	if c.lostTx != nil {
		c.reported = true
		return c.lostTx
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, c.lostTemp)
}

// ExecContext runs a text and discards its rows.
func (c *remoteConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	values, err := c.cfg.arguments(args)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil && (!c.state.InTransaction && c.lostTx == nil) {
		return nil, err
	}
	r := &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Exec{Exec: protocol.Statement(query, values)}}
	answer, err := c.statement(ctx, query, r)
	if err != nil {
		return nil, err
	}
	got := answer.GetResult()
	return result{got.GetLastInsertId(), got.GetRowsAffected()}, nil
}

// QueryContext runs a text and returns rows.
func (c *remoteConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	values, err := c.cfg.arguments(args)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r := &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Query{Query: protocol.Statement(query, values)}}
	answer, err := c.statement(ctx, query, r)
	if answer.GetRows() == nil {
		return nil, err
	}
	return newRemoteRows(ctx, c, r.Id, answer.GetRows(), err)
}

// statement executes a text.
func (c *remoteConn) statement(ctx context.Context, text string, r *apiv1.SessionRequest) (*apiv1.SessionResponse, error) {
	inTx := c.state.InTransaction
	if ctx.Err() != nil {
		// Only a ROLLBACK runs now. The server finds out whether the text is one.
		return c.statementAfterEnd(ctx, r)
	}
	answer, err := c.call(ctx, r, func(ctx context.Context) bool {
		d, err := c.Describe(ctx, text, false)
		return err == nil && d.Kind != sqlite.Write && d.Kind != sqlite.Vacuum && !(d.Kind == sqlite.Transaction && (d.Script || d.Control == "COMMIT"))
	})
	if c.lostTx == nil {
		return answer, err
	}
	return c.statementAfterLoss(ctx, text, r, inTx, err)
}

// statementAfterEnd executes a text under a context that has ended.
func (c *remoteConn) statementAfterEnd(ended context.Context, r *apiv1.SessionRequest) (*apiv1.SessionResponse, error) {
	if c.lostTx != nil || c.session == nil {
		return nil, ended.Err()
	}
	wait, cancel := context.WithTimeout(context.WithoutCancel(ended), rollbackWait)
	defer cancel()
	answer, err := c.session.DoEnded(wait, r)
	if err != nil {
		return nil, ended.Err()
	}
	c.update(answer)
	return answer, remoteError(remote.Failure(ended, answer))
}

// statementAfterLoss finds out whether a text ends the transaction that was lost with
// its session. known is whether the session was known to be lost before the text was
// sent, and lost the error of the text.
func (c *remoteConn) statementAfterLoss(ctx context.Context, text string, r *apiv1.SessionRequest, sent bool, lost error) (*apiv1.SessionResponse, error) {
	if c.tx != nil { // sql.Tx ends it
		return nil, lost
	}
	before, reported := c.lostTx, c.reported
	c.lostTx = nil
	d, err := c.Describe(ctx, text, true)
	c.lostTx = before
	if err != nil || d.Kind != sqlite.Transaction || d.Script {
		return nil, lost
	}
	switch d.Control {
	case "ROLLBACK":
		c.lostTx = nil
		return &apiv1.SessionResponse{Response: &apiv1.SessionResponse_Result{Result: &apiv1.Result{}}}, nil
	case "COMMIT":
		c.lostTx = nil
		if sent {
			return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, errors.Unwrap(lost))
		}
	case "BEGIN":
		if !sent && reported {
			c.lostTx = nil
			return c.call(ctx, r, nil)
		}
	}
	return nil, lost
}

// rollbackWait bounds how long a rollback waits for the server. Without an answer the
// session is given up, which rolls back too.
const rollbackWait = 3 * time.Second

// Batch is the function Batch on a connection.
func (c *remoteConn) Batch(ctx context.Context, stmts []connapi.Statement) ([]driver.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	batch := &apiv1.Batch{Statements: make([]*apiv1.Statement, len(stmts))}
	for i := range stmts {
		values, err := c.cfg.arguments(stmts[i].Args)
		if err != nil {
			return nil, withStatementIndex(i, err)
		}
		batch.Statements[i] = protocol.Statement(stmts[i].SQL, values)
	}
	answer, err := c.call(ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Batch{Batch: batch}}, nil)
	if err != nil {
		return nil, err
	}
	var results []driver.Result
	for _, r := range answer.GetBatch().GetResults() {
		results = append(results, result{r.LastInsertId, r.RowsAffected})
	}
	return results, nil
}

// Describe classifies a text.
func (c *remoteConn) Describe(ctx context.Context, text string, local bool) (connapi.Description, error) {
	if err := ctx.Err(); err != nil {
		return connapi.Description{}, err
	}
	s := protocol.Statement(text, nil)
	prepare := &apiv1.Prepare{Sql: s.Sql, RawSql: s.RawSql, Local: local}
	answer, err := c.call(ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Prepare{Prepare: prepare}}, always)
	if err != nil {
		return connapi.Description{}, err
	}
	p := answer.GetPrepared()
	return connapi.Description{Kind: protocol.Kind(p.GetKind()), Control: p.GetControl(), Script: p.GetScript(), Missing: p.GetMissing()}, nil
}

// always says that a request may be sent again.
func always(context.Context) bool { return true }

// Prepare is PrepareContext without a context.
func (c *remoteConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext has a text classified, which finds its syntax errors.
func (c *remoteConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if _, err := c.Describe(ctx, query, false); err != nil {
		return nil, err
	}
	return &remoteStmt{c, query}, nil
}

// Ping fails if no node can be reached.
func (c *remoteConn) Ping(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := c.call(ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Ping{Ping: &apiv1.Ping{}}}, always)
	return err
}

// Close ends the session, and with it the open transaction.
func (c *remoteConn) Close() error {
	c.closed = true
	if c.session != nil {
		c.session.Close()
	}
	return nil
}

// ResetSession is called before database/sql uses a pooled connection again.
func (c *remoteConn) ResetSession(context.Context) error {
	if c.closed || c.lostTemp != nil {
		return driver.ErrBadConn
	}
	c.rollBackAbandoned()
	return nil
}

// IsValid keeps the connection in the pool. See conn.IsValid for why it rolls back.
func (c *remoteConn) IsValid() bool {
	c.rollBackAbandoned()
	return !c.closed && c.lostTemp == nil && !c.client.client.Closed()
}

// rollBackAbandoned rolls back a transaction that the last user of the connection left
// open.
func (c *remoteConn) rollBackAbandoned() {
	c.lostTx = nil
	if !c.state.InTransaction || c.closed {
		return
	}
	c.tx = nil
	ctx, cancel := context.WithTimeout(context.Background(), rollbackWait)
	defer cancel()
	if _, err := c.call(ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Reset_{Reset_: &apiv1.Reset{}}}, nil); err != nil && c.session != nil {
		c.session.Close() // which rolls back too
		c.sessionBroke(nil)
	}
	c.lostTx = nil
	c.client.logLeftOpen.Do(func() {
		c.client.cfg.Logger.Warn("hiqlite: a connection was returned to its pool inside a transaction, which was rolled back; run BEGIN and the statements after it on one sql.Conn, or use sql.DB.BeginTx (logged once)")
	})
}

// State returns what is known of the connection's state.
func (c *remoteConn) State() connapi.State {
	s := c.state
	s.InTransaction = s.InTransaction || c.lostTx != nil
	return s
}

// Client returns the Remote of the connection.
func (c *remoteConn) Client() Client { return c.client }

// connectorWith returns a connector to the same database.
func (c *remoteConn) connectorWith(change func(*ConnConfig)) driver.Connector {
	cfg := c.cfg
	change(&cfg)
	return &remoteConnector{c.client, cfg}
}

// A remoteStmt is a prepared statement of a remote database: a text.
type remoteStmt struct {
	c    *remoteConn
	text string
}

var (
	_ driver.StmtExecContext  = (*remoteStmt)(nil)
	_ driver.StmtQueryContext = (*remoteStmt)(nil)
)

// Close does nothing, since a remoteStmt holds only memory.
func (s *remoteStmt) Close() error { return nil }

// NumInput returns -1, so that the server checks the number of arguments.
func (s *remoteStmt) NumInput() int { return -1 }

// ExecContext runs the statement.
func (s *remoteStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.c.ExecContext(ctx, s.text, args)
}

// QueryContext runs the statement and returns rows.
func (s *remoteStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.c.QueryContext(ctx, s.text, args)
}

// Exec is ExecContext without a context.
func (s *remoteStmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.ExecContext(context.Background(), named(args))
}

// Query is QueryContext without a context.
func (s *remoteStmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.QueryContext(context.Background(), named(args))
}

// remoteError turns an error of the client into an error for the program: the same one
// that an embedded node returns.
func remoteError(err error) error {
	var e *protocol.Error
	if !errors.As(err, &e) {
		return sqlError(err)
	}
	out := &serverError{text: err.Error(), is: e.Is}
	if e.SQL != nil {
		own := toError(e.SQL)
		if len(e.Is) == 0 && e.Text == own.Error() {
			return own
		}
		out.is = append(out.is[:len(out.is):len(out.is)], own)
	}
	if errors.Is(e, ErrTxExpired) && !e.SafeToRetry {
		out.is = append(out.is[:len(out.is):len(out.is)], errTimedOut)
	}
	return out
}

// A serverError is an error of a server, with the errors that can be tested for.
type serverError struct {
	text string
	is   []error
}

func (e *serverError) Error() string   { return e.text }
func (e *serverError) Unwrap() []error { return e.is }
