package server

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/hiqlite/hiqlite"
	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/protocol"
)

// A session is one connection of a remote client. One goroutine executes its requests in
// their order. The goroutine of the link, which receives them, carries out cancellations
// at once.
type session struct {
	server *Server
	link   *link
	id     uint64
	conn   connapi.Conn

	requests chan *apiv1.SessionRequest
	ctx      context.Context // of the session
	end      context.CancelFunc

	// These belong to the executing goroutine.
	queries map[uint64]*query // those whose rows are not closed, by the ids of their requests
	tx      driver.Tx         // of a Begin; nil: none
	txID    uint64            // id of that request
	sent    connapi.State     // the state that the client knows
	reused  *reusedContext    // for the next request without a deadline; nil: there is none
	last    uint64            // the last request that was executed

	mu      sync.Mutex
	started uint64                        // the last request whose execution has begun; guarded by mu
	cancels map[uint64]context.CancelFunc // of requests that may be canceled; guarded by mu
	early   []uint64                      // requests that were canceled before their execution began; guarded by mu
}

// requestQueue bounds the requests of a session that wait. The driver sends at most
// three without waiting for an answer.
const requestQueue = 16

// serve executes the requests of a session. first is its Open.
func (x *session) serve(ctx context.Context, first *apiv1.SessionRequest) {
	err := x.open(ctx, first)
	if x.conn != nil {
		defer x.close()
	}
	if err == nil {
		err = x.run(ctx)
	}
	var malformed *connect.Error
	if errors.As(err, &malformed) {
		x.server.counters.malformed.Add(1)
	}
	if err != nil && ctx.Err() == nil {
		closing := &apiv1.SessionResponse_Closing{Closing: &apiv1.Closing{LastRequest: x.last, Reason: err.Error()}}
		_ = x.link.send(ctx, &apiv1.SessionResponse{Session: x.id, Error: sessionError(err), Response: closing}) // if it fails, the stream has ended
	}
}

// sessionError encodes the error that ended a session.
func sessionError(err error) *apiv1.Error {
	var malformed *connect.Error
	if errors.As(err, &malformed) {
		return &apiv1.Error{Message: malformed.Message()}
	}
	return encodeError(err)
}

// open executes the first request. An error that the client would not get from an
// embedded node, such as that of a node that is closing, ends the stream with it.
func (x *session) open(ctx context.Context, r *apiv1.SessionRequest) error {
	if x.server.isDraining() {
		return fmt.Errorf("%w: the server is shutting down", hiqlite.ErrClosed)
	}
	open := r.GetOpen()
	if r.Id == 0 {
		return connect.NewError(connect.CodeInvalidArgument, errors.New("the first request of a session is Open, with an id"))
	}
	ctx, cancel := x.requestContext(ctx, r)
	defer cancel()
	if err := x.server.follow(ctx, r.Seen); err != nil {
		return err
	}
	conn, err := x.server.connector.OpenConn(ctx, protocol.ConnConfig(open))
	if err != nil {
		return err
	}
	x.conn, x.last = conn, r.Id
	status, _ := x.server.backend.Status(ctx)
	answer := &apiv1.SessionResponse_Opened{Opened: &apiv1.Opened{Node: status.NodeID, Leader: x.server.leaderAddress(status), MaxRequest: uint64(x.server.limits.MaxBody)}}
	return x.send(&apiv1.SessionResponse{Id: r.Id, Response: answer})
}

func (x *session) close() {
	for id := range x.queries {
		x.closeQuery(id)
	}
	if x.tx != nil {
		x.endTx()
	}
	x.conn.Close()
}

// run executes requests until the stream or the session ends.
func (x *session) run(ctx context.Context) error {
	limit := x.server.limits.IdleSession
	idle := time.NewTimer(limit)
	defer idle.Stop()
	used := time.Now() // a Reset of the timer for each request would cost more
	draining := x.server.draining
	for {
		if x.server.isDraining() {
			draining = nil // checked after each request
			if x.restorable() {
				return x.sayClosing("the server is shutting down")
			}
		}
		select {
		case r := <-x.requests:
			if err := x.execute(ctx, r); err != nil {
				return err
			}
			used = time.Now()
		case <-draining:
		case <-idle.C:
			if left := limit - time.Since(used); left > 0 {
				idle.Reset(left)
				continue
			}
			if x.restorable() {
				x.server.counters.idleSessions.Add(1)
				return x.sayClosing("the session was idle")
			}
			x.expireQueries()
			idle.Reset(limit)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// restorable reports whether the client can continue in another session.
func (x *session) restorable() bool {
	s := x.conn.State()
	return !s.InTransaction && !s.HasTemp && len(x.queries) == 0 && x.tx == nil
}

func (x *session) sayClosing(reason string) error {
	x.link.forget(x) // later requests are answered by nobody, or executed by nobody
	return x.send(&apiv1.SessionResponse{Response: &apiv1.SessionResponse_Closing{
		Closing: &apiv1.Closing{LastRequest: x.last, Reason: reason},
	}})
}

// A reusedContext is the context of one request without a deadline after the other, until
// one is canceled, or keeps it for a query or a transaction. A context for each request
// would cost as much as decoding the request.
type reusedContext struct {
	context.Context
	cancel context.CancelFunc
}

// requestContext returns the context of a request.
func (x *session) requestContext(ctx context.Context, r *apiv1.SessionRequest) (context.Context, context.CancelFunc) {
	ctx = withConsistency(ctx, r.Consistency)
	if r.NotDeferred {
		ctx = connapi.WithoutDeferring(ctx)
	}
	var cancel context.CancelFunc
	switch {
	case r.TimeoutUs == 0 && r.Consistency == 0 && !r.NotDeferred:
		reused := x.reused
		if x.reused = nil; reused == nil {
			reused = new(reusedContext)
			reused.Context, reused.cancel = context.WithCancel(ctx)
		}
		ctx, cancel = reused, reused.cancel
	case r.TimeoutUs < 0:
		ctx, cancel = context.WithCancel(ctx)
		cancel()
	case r.TimeoutUs > 0:
		ctx, cancel = context.WithTimeout(ctx, protocol.Duration(r.TimeoutUs))
	default:
		ctx, cancel = context.WithCancel(ctx)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if i := slices.Index(x.early, r.Id); i >= 0 {
		x.early = slices.Delete(x.early, i, i+1)
		cancel()
	}
	x.cancels[r.Id] = cancel
	x.started = r.Id
	return ctx, func() {
		cancel()
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.cancels, r.Id)
	}
}

// endRequest ends a request that does not keep its context.
func (x *session) endRequest(id uint64, ctx context.Context, cancel context.CancelFunc) {
	reused, ok := ctx.(*reusedContext)
	if !ok {
		cancel()
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.cancels, id)
	if reused.Err() == nil {
		x.reused = reused
	}
}

// cancel ends the context of a request, if it still runs.
func (x *session) cancel(id uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if cancel := x.cancels[id]; cancel != nil {
		cancel()
	} else if id > x.started && len(x.early) < requestQueue {
		x.early = append(x.early, id)
	}
}

// execute executes a request and sends its answer. It returns an error if the session
// cannot continue.
func (x *session) execute(stream context.Context, r *apiv1.SessionRequest) error {
	if r.Id <= x.last {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the request %d follows the request %d", r.Id, x.last))
	}
	x.last = r.Id
	if c := r.GetCloseRows(); c != nil {
		x.closeQuery(c.Query)
		return nil
	}
	ctx, cancel := x.requestContext(stream, r)
	answer := &apiv1.SessionResponse{Id: r.Id}
	var err error
	failedOnReplicas := false
	keep := false // the context belongs to a query or a transaction
	if ctx.Err() == nil {
		err = x.server.follow(ctx, r.Seen)
	}
	if err == nil {
		err = x.server.admitStatements(ctx, x.link.address, r)
	}
	if err == nil {
		x.server.logRequest(x.link.address, r)
		x.conn.SetOrigin(protocol.WireOrigin(r.Origin))
		keep, err = x.dispatch(ctx, cancel, r, answer)
		failedOnReplicas = x.conn.FailedOnReplicas()
		x.conn.SetOrigin(nil)
	}
	if !keep {
		x.endRequest(r.Id, ctx, cancel)
	}
	if errors.Is(err, errProtocol) {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	if err != nil {
		answer.Error = encodeError(err)
		answer.Error.FailedOnReplicas = failedOnReplicas
	}
	return x.send(answer)
}

var errProtocol = errors.New("a malformed session request")

// dispatch executes a request. keep says that cancel will be called later.
func (x *session) dispatch(ctx context.Context, cancel func(), r *apiv1.SessionRequest, answer *apiv1.SessionResponse) (keep bool, err error) {
	switch q := r.Request.(type) {
	case *apiv1.SessionRequest_Exec:
		args, err := protocol.Arguments(q.Exec)
		if err != nil {
			return false, fmt.Errorf("%w: %w", errProtocol, err)
		}
		result, err := x.conn.ExecContext(ctx, protocol.SQL(q.Exec), args)
		if err == nil {
			answer.Response = &apiv1.SessionResponse_Result{Result: apiResult(result)}
		}
		return false, err
	case *apiv1.SessionRequest_Query:
		args, err := protocol.Arguments(q.Query)
		if err != nil {
			return false, fmt.Errorf("%w: %w", errProtocol, err)
		}
		rows, err := x.conn.QueryContext(ctx, protocol.SQL(q.Query), args)
		if err != nil {
			return false, err
		}
		x.queries[r.Id] = &query{rows: rows, cancel: cancel}
		return true, x.fetch(r.Id, false, answer)
	case *apiv1.SessionRequest_Fetch:
		if x.queries[q.Fetch.Query] == nil {
			return false, fmt.Errorf("%w: it fetches rows of the query %d, which is closed", errProtocol, q.Fetch.Query)
		}
		return false, x.fetch(q.Fetch.Query, q.Fetch.NextSet, answer)
	case *apiv1.SessionRequest_Prepare:
		d, err := x.conn.Describe(ctx, protocol.SQL(q.Prepare), q.Prepare.Local)
		if err == nil {
			answer.Response = &apiv1.SessionResponse_Prepared{Prepared: &apiv1.Prepared{Kind: protocol.PreparedKind(d.Kind), Control: d.Control, Script: d.Script, Missing: d.Missing}}
		}
		return false, err
	case *apiv1.SessionRequest_Begin:
		tx, err := x.conn.BeginTx(ctx, driver.TxOptions{Isolation: driver.IsolationLevel(q.Begin.Isolation), ReadOnly: q.Begin.ReadOnly})
		if err != nil {
			return false, err
		}
		x.tx, x.txID = tx, r.Id
		return true, nil
	case *apiv1.SessionRequest_Commit:
		return false, x.finishTx(driver.Tx.Commit)
	case *apiv1.SessionRequest_Rollback:
		return false, x.finishTx(driver.Tx.Rollback)
	case *apiv1.SessionRequest_Batch:
		all, err := statements(q.Batch.Statements)
		if err != nil {
			return false, fmt.Errorf("%w: %w", errProtocol, err)
		}
		results, err := x.conn.Batch(ctx, all)
		if err == nil {
			answer.Response = &apiv1.SessionResponse_Batch{Batch: apiResults(results)}
		}
		return false, err
	case *apiv1.SessionRequest_Ping:
		return false, x.conn.Ping(ctx)
	case *apiv1.SessionRequest_Reset_:
		x.tx = nil
		return false, x.conn.ResetSession(ctx)
	}
	return false, fmt.Errorf("%w: this server does not know the request, or it cannot be made now", errProtocol)
}

// finishTx commits or rolls back the transaction of a Begin.
func (x *session) finishTx(finish func(driver.Tx) error) error {
	if x.tx == nil {
		return fmt.Errorf("%w: there is no transaction of a Begin", errProtocol)
	}
	err := finish(x.tx)
	x.endTx()
	return err
}

// endTx ends the context of the transaction, which rolls it back if it is open.
func (x *session) endTx() {
	x.mu.Lock()
	cancel := x.cancels[x.txID]
	delete(x.cancels, x.txID)
	x.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	x.tx = nil
}

// send sends a response, and the state if it has changed.
func (x *session) send(answer *apiv1.SessionResponse) error {
	if state := x.conn.State(); !protocol.SameState(state, x.sent) {
		answer.State = protocol.NextState(state, x.sent)
		if answer.State.SamePragmas {
			state.Pragmas = x.sent.Pragmas
		} else {
			state.Pragmas = maps.Clone(state.Pragmas) // the connection changes its map in place
		}
		x.sent = state
	}
	answer.Session, answer.Seen = x.id, protocol.Seen(x.server.connector.Seen())
	return x.link.send(x.ctx, answer)
}

// A query is a query whose rows are not closed.
type query struct {
	rows    driver.Rows
	cancel  func()         // ends the query's context
	expired bool           // rows and context have ended, because the client fetched nothing
	dest    []driver.Value // for Next
	columns bool           // the client knows the columns of the current result set
}

// chunkTime bounds how long rows that are there wait for further rows of their chunk.
const chunkTime = 2 * time.Millisecond

// fetch adds the next rows of a query to an answer. It closes the query after its last
// row, and after an error. An error may come with the rows before it.
func (x *session) fetch(id uint64, nextSet bool, answer *apiv1.SessionResponse) error {
	q := x.queries[id]
	if q.expired {
		x.closeQuery(id)
		return fmt.Errorf("%w: the client has fetched no rows of the query for %v, so it was closed", protocol.ErrLimit, x.server.limits.IdleSession)
	}
	out := &apiv1.Rows{}
	answer.Response = &apiv1.SessionResponse_Rows{Rows: out}
	if nextSet {
		sets, ok := q.rows.(driver.RowsNextResultSet)
		if !ok || !sets.HasNextResultSet() {
			out.NoSet = true
			x.closeQuery(id)
			return nil
		}
		if err := sets.NextResultSet(); err != nil {
			x.closeQuery(id)
			return err
		}
		q.columns = false
	}
	if !q.columns {
		out.Columns = apiColumns(q.rows)
		q.columns, q.dest = true, make([]driver.Value, len(out.Columns))
	}
	err := q.fill(out)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		err = nil
		out.End = true
		if _, sets := q.rows.(driver.RowsNextResultSet); !sets {
			out.LastSet = true
			x.closeQuery(id)
		}
	default:
		x.closeQuery(id)
	}
	return err
}

// fill adds rows to a chunk until it is large enough. The error is io.EOF after the
// last row.
func (q *query) fill(out *apiv1.Rows) error {
	began := time.Now()
	for {
		if err := q.rows.Next(q.dest); err != nil {
			return err
		}
		for _, v := range q.dest {
			out.Cells = protocol.AppendCell(out.Cells, v)
		}
		if len(out.Cells) > protocol.MaxMessage-chunkSlack {
			return fmt.Errorf("%w: a row of more than %d MiB cannot be sent", hiqlite.ErrTooLarge, protocol.MaxMessage>>20)
		}
		if len(out.Cells) >= protocol.ChunkBytes || time.Since(began) > chunkTime {
			return nil
		}
	}
}

// chunkSlack is what a message of rows needs besides its cells, in bytes.
const chunkSlack = 1 << 20

func (x *session) closeQuery(id uint64) {
	if q := x.queries[id]; q != nil {
		delete(x.queries, id)
		q.end()
	}
}

// expireQueries ends the queries of an idle session. Each holds one of the node's readers,
// of which there are not many. A transaction, with its queries, is ended by tx_timeout.
func (x *session) expireQueries() {
	if x.conn.State().InTransaction || x.tx != nil {
		return
	}
	for _, q := range x.queries {
		if !q.expired {
			q.end()
			q.expired = true
			x.server.counters.idleQueries.Add(1)
		}
	}
}

// end ends a query, once.
func (q *query) end() {
	if !q.expired {
		q.rows.Close()
		q.cancel()
	}
}

// apiColumns returns the columns of rows.
func apiColumns(rows driver.Rows) []*apiv1.Column {
	types := rows.(driver.RowsColumnTypeDatabaseTypeName)
	names := rows.Columns()
	out := make([]*apiv1.Column, len(names))
	for i, name := range names {
		out[i] = &apiv1.Column{Name: strings.ToValidUTF8(name, "\ufffd"), Type: types.ColumnTypeDatabaseTypeName(i)}
	}
	return out
}

func apiResult(r driver.Result) *apiv1.Result {
	id, _ := r.LastInsertId() // results of this driver have no errors
	rows, _ := r.RowsAffected()
	return &apiv1.Result{LastInsertId: id, RowsAffected: rows}
}

func apiResults(results []driver.Result) *apiv1.ExecuteResponse {
	out := &apiv1.ExecuteResponse{}
	for _, r := range results {
		out.Results = append(out.Results, apiResult(r))
	}
	return out
}

// statements decodes the statements of a batch.
func statements(in []*apiv1.Statement) ([]connapi.Statement, error) {
	out := make([]connapi.Statement, len(in))
	for i, s := range in {
		args, err := protocol.Arguments(s)
		if err != nil {
			return nil, err
		}
		out[i] = connapi.Statement{SQL: protocol.SQL(s), Args: args}
	}
	return out, nil
}
