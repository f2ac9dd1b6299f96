package hiqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/remote"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A remoteConn is a connection of database/sql to a remote database: a session with a
// node, which has a conn. If the session breaks, the connection continues with its
// state in a session with another node, unless it was in a transaction or has TEMP
// objects. database/sql uses a remoteConn from one goroutine at a time.
type remoteConn struct {
	client  *Remote
	cfg     ConnConfig
	session *remote.Session // nil: none, because the last one broke

	state    connapi.State // as the last answer of the server had it
	beforeTx connapi.State // the state before the open transaction

	closed   bool
	tx       *remoteTx    // of BeginTx; nil: none
	lostTx   error        // why the open transaction is over: its session broke. nil: it is not
	reported bool         // a statement has returned lostTx
	origin   *wire.Origin // of the next write; see SetOrigin

	failedOnReplicas bool  // the last error is the result of a write on the replicas
	lostTemp         error // why the connection cannot be used any more: its TEMP objects were lost
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
	c.setState(answer)
	return nil
}

func (c *remoteConn) timeout() time.Duration {
	if c.client.cfg.Timeout != 0 {
		return c.client.cfg.Timeout
	}
	return DefaultTimeout
}

// setState sets the state of the connection to that in an answer, if the answer has one.
func (c *remoteConn) setState(answer *apiv1.SessionResponse) {
	if answer.State == nil {
		return
	}
	next := protocol.ConnState(answer.State, c.state)
	if next.InTransaction && !c.state.InTransaction {
		c.beforeTx = c.state
	}
	c.state = next
}

// A retryRule says whether a request may be sent again, in another session, after its
// session broke before the answer.
type retryRule int

const (
	retryNever      retryRule = iota // the request may have had an effect, so its outcome is unknown
	retryAlways                      // the request has no effect on others, or has an origin and is applied once
	retryIfHarmless                  // the text is classified first: see retryRuleOf
)

// call sends a request and returns the answer. If the session breaks before the answer
// arrives, call opens a session with another node and sends the request again, as far as
// rule allows. If the request may have been executed and must not be sent again, the error
// is ErrOutcomeUnknown. text is the SQL text of the request; only retryIfHarmless uses it.
func (c *remoteConn) call(ctx context.Context, r *apiv1.SessionRequest, rule retryRule, text string) (*apiv1.SessionResponse, error) {
	var unanswered *remote.BrokenError // the request was sent, and may have been executed
	for {
		if err := c.ensureSession(ctx); err != nil {
			return nil, unknownAfter(unanswered, err)
		}
		inTx := c.state.InTransaction // a commit ends the transaction, even if its outcome is not known
		answer, err := c.session.Do(ctx, r)
		var broken *remote.BrokenError
		if errors.As(err, &broken) {
			c.sessionBroke(broken)
			if inTx || c.lostTemp != nil {
				return nil, c.afterLoss()
			}
			if broken.NotExecuted {
				continue
			}
			if rule == retryIfHarmless {
				rule = c.retryRuleOf(ctx, r, text)
			}
			unanswered = broken
			if rule == retryNever {
				return nil, unknownAfter(unanswered, ctx.Err())
			}
			if r.Origin == nil {
				unanswered = nil // it has no effect
			}
			continue
		}
		if err != nil {
			return nil, unknownAfter(unanswered, err)
		}
		c.setState(answer)
		failure := remote.Failure(ctx, answer)
		err = remoteError(failure)
		if !inTx && c.mayMoveToAnotherNode(ctx, r, failure) {
			if errors.Is(err, ErrOutcomeUnknown) {
				unanswered = &remote.BrokenError{Address: c.session.Address(), Err: err}
			}
			c.session.Close()
			c.session = nil
			continue
		}
		c.failedOnReplicas = answer.Error.GetFailedOnReplicas()
		if err == nil || unanswered == nil || c.failedOnReplicas { // now, or in the first attempt
			return answer, err
		}
		return answer, unknownAfter(unanswered, err)
	}
}

// mayMoveToAnotherNode reports whether a request failed because its node is closing, and
// may be sent to another node: because it was not executed, or because it has an origin and
// is applied once.
func (c *remoteConn) mayMoveToAnotherNode(ctx context.Context, r *apiv1.SessionRequest, failure error) bool {
	if failure == nil || c.state.InTransaction || c.state.HasTemp || c.tx != nil || !remote.GoingAway(ctx, failure) {
		return false
	}
	return !errors.Is(failure, ErrOutcomeUnknown) || r.Origin != nil && r.GetCommit() == nil && !isScript(r)
}

// isScript reports whether a request may be a script that commits, of which only the
// first commit has the origin.
func isScript(r *apiv1.SessionRequest) bool {
	text := protocol.SQL(r.GetExec())
	if r.GetQuery() != nil {
		text = protocol.SQL(r.GetQuery())
	}
	return strings.Contains(text, ";") && r.GetBatch() == nil
}

// retryRuleOf classifies the text of a request and returns whether it may be sent again.
func (c *remoteConn) retryRuleOf(ctx context.Context, r *apiv1.SessionRequest, text string) retryRule {
	d, err := c.Describe(ctx, text, false)
	switch {
	case err != nil:
		return retryNever
	case d.Kind == sqlite.Transaction && (d.Script || d.Control == "COMMIT"):
		return retryNever
	case d.Kind == sqlite.Write || d.Kind == sqlite.Vacuum:
		if r.Origin == nil {
			return retryNever
		}
	}
	return retryAlways
}

// unknownAfter returns err or, if the request may have been executed in a session that
// broke, ErrOutcomeUnknown.
func unknownAfter(unanswered *remote.BrokenError, err error) error {
	switch {
	case unanswered == nil || errors.Is(err, ErrOutcomeUnknown):
		return err
	case err == nil:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, unanswered)
	}
	return fmt.Errorf("%w: %w: %w", ErrOutcomeUnknown, unanswered, err)
}

// write is call for a request that may write. It gives the request an origin: outside of a
// transaction the cluster then applies the request once, even if several nodes receive it.
func (c *remoteConn) write(ctx context.Context, r *apiv1.SessionRequest, rule retryRule, text string) (*apiv1.SessionResponse, error) {
	if c.origin != nil { // this client is a proxy's
		r.Origin = protocol.Origin(c.origin)
		return c.call(ctx, r, rule, text)
	}
	if err := c.errLost(); err != nil { // TakeOrigins may wait for a node
		return nil, err
	}
	for inTx := c.state.InTransaction; ; {
		origins, err := c.client.client.TakeOrigins(ctx, "sql")
		if err != nil {
			return nil, remoteError(err)
		}
		r.Origin = protocol.Origin(origins.Next())
		answer, err := c.call(ctx, r, rule, text)
		switch {
		case errors.Is(err, ErrOutcomeUnknown):
			return answer, err
		case !errors.Is(err, node.ErrSessionUnknown):
			c.client.client.ReturnOrigins(origins)
			return answer, err
		case inTx:
			return answer, fmt.Errorf("%w: %w", ErrTxExpired, err)
		}
		// The session has been evicted, and nothing was applied.
	}
}

// SetOrigin makes the next write or commit one of a proxy's client.
func (c *remoteConn) SetOrigin(origin *wire.Origin) { c.origin, c.failedOnReplicas = origin, false }

// FailedOnReplicas reports whether the error of a write of a proxy's client is its result
// on the replicas.
func (c *remoteConn) FailedOnReplicas() bool { return c.failedOnReplicas }

// onlyReads reports whether a text certainly does not write, so that it needs no origin.
// The answer need not be right: if a write has no origin and its session breaks, the
// outcome is unknown; and a read that has an origin only uses up a sequence.
func onlyReads(text string) bool {
	word := strings.TrimLeft(text, " \t\r\n")
	if i := strings.IndexFunc(word, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') }); i >= 0 {
		word = word[:i]
	}
	switch strings.ToUpper(word) {
	case "SELECT", "PRAGMA", "EXPLAIN", "BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "VALUES":
		return true
	}
	return false
}

// ensureSession opens a session if the last one has broken. It returns an error if the
// connection cannot continue in another session.
func (c *remoteConn) ensureSession(ctx context.Context) error {
	if err := c.errLost(); err != nil || c.session != nil {
		return err
	}
	return c.open(ctx, &c.state)
}

// errLost returns an error if the connection is closed, or if a transaction or TEMP
// objects were lost with its session. It does not wait for a server.
func (c *remoteConn) errLost() error {
	switch {
	case c.closed || c.client.client.Closed():
		return ErrClosed
	case c.session != nil && c.session.Ended():
		c.sessionBroke(nil)
	}
	if c.lostTemp != nil {
		return c.lostTemp
	}
	if c.lostTx != nil {
		c.reported = true
	}
	return c.lostTx
}

// sessionBroke records that the session has ended, and that its transaction and its TEMP
// objects are lost.
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
func (c *remoteConn) afterLoss() error {
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
	r := protocol.ExecRequest(query, values)
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
	r := protocol.QueryRequest(query, values)
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
	// The writes of a transaction are applied with its commit.
	send := c.write
	if onlyReads(text) || inTx && !mayCommit(text) {
		send = c.call
	}
	answer, err := send(ctx, r, retryIfHarmless, text)
	if c.lostTx == nil {
		return answer, err
	}
	return c.statementAfterLoss(ctx, text, r, inTx, err)
}

// mayCommit reports whether a text may commit the open transaction. If it does so
// without an origin, and its session breaks, its outcome is unknown.
func mayCommit(text string) bool {
	word := strings.TrimLeft(text, " \t\r\n")
	return len(word) >= 3 && (strings.EqualFold(word[:3], "COM") || strings.EqualFold(word[:3], "END"))
}

// statementAfterEnd executes a text whose context has ended before it was sent. The server
// executes it only if it is a ROLLBACK.
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
	c.setState(answer)
	return answer, remoteError(remote.Failure(ended, answer))
}

// statementAfterLoss returns the result of a text after the session of its transaction
// broke: a ROLLBACK or COMMIT ends the transaction, and every other text fails with lost.
// sent says that the text was sent before the session broke, so that the outcome of a
// COMMIT has to be asked for.
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
			if err := c.commitOutcome(ctx, r.Origin, lost); err != nil {
				return nil, err
			}
			return &apiv1.SessionResponse{Response: &apiv1.SessionResponse_Result{Result: &apiv1.Result{}}}, nil
		}
	case "BEGIN":
		if !sent && reported {
			c.lostTx = nil
			return c.call(ctx, r, retryAlways, text)
		}
	}
	return nil, lost
}

// commitOutcome finds out what became of a commit whose session broke before the answer.
func (c *remoteConn) commitOutcome(ctx context.Context, origin *apiv1.Origin, lost error) error {
	if origin == nil {
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, errors.Unwrap(lost))
	}
	err := remoteError(c.client.client.CommitOutcome(ctx, *protocol.WireOrigin(origin)))
	if err == nil || errors.Is(err, ErrTxExpired) || errors.Is(err, ErrOutcomeUnknown) {
		return err
	}
	if _, ok := err.(*Error); ok { // of the commit
		return err
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
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
	answer, err := c.write(ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Batch{Batch: batch}}, retryAlways, "")
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
	answer, err := c.call(ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Prepare{Prepare: prepare}}, retryAlways, "")
	if err != nil {
		return connapi.Description{}, err
	}
	p := answer.GetPrepared()
	return connapi.Description{Kind: protocol.Kind(p.GetKind()), Control: p.GetControl(), Script: p.GetScript(), Missing: p.GetMissing()}, nil
}

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
	_, err := c.call(ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Ping{Ping: &apiv1.Ping{}}}, retryAlways, "")
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
	if _, err := c.call(ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Reset_{Reset_: &apiv1.Reset{}}}, retryNever, ""); err != nil && c.session != nil {
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
	if err == nil {
		return nil
	}
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
