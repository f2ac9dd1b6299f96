package server

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"

	"github.com/hiqlite/hiqlite"
	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// databaseService implements the service Database.
type databaseService struct{ *Server }

// errNotUnary is the error of a statement that has an effect on its connection only.
var errNotUnary = connect.NewError(connect.CodeInvalidArgument, errors.New("hiqlite: a unary call cannot begin a transaction: send all statements in one Execute, or use a driver"))

// withConn calls f with a new connection.
func (s *Server) withConn(ctx context.Context, f func(connapi.Conn) error) error {
	conn, err := s.connector.OpenConn(ctx, connapi.Config{})
	if err != nil {
		return connectError(err)
	}
	defer conn.Close()
	if err := f(conn); err != nil {
		return connectError(err)
	}
	if conn.State().InTransaction {
		return errNotUnary
	}
	return nil
}

// Execute implements the API.
func (s *databaseService) Execute(ctx context.Context, r *connect.Request[apiv1.ExecuteRequest]) (*connect.Response[apiv1.ExecuteResponse], error) {
	stmts, err := statements(r.Msg.Statements)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	out := &apiv1.ExecuteResponse{}
	if len(stmts) == 0 {
		return connect.NewResponse(out), nil
	}
	err = s.withConn(ctx, func(conn connapi.Conn) error {
		results, err := executeAll(ctx, conn, stmts, protocol.WireOrigin(r.Msg.Origin))
		if err == nil {
			out = apiResults(results)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// executeAll executes the statements of a unary call. With an origin they are always one
// operation, since a script may have several commits, of which only one has the origin.
func executeAll(ctx context.Context, conn connapi.Conn, stmts []connapi.Statement, origin *wire.Origin) ([]driver.Result, error) {
	if len(stmts) == 1 && origin == nil {
		result, err := conn.ExecContext(ctx, stmts[0].SQL, stmts[0].Args)
		return []driver.Result{result}, err
	}
	conn.SetOrigin(origin)
	results, err := conn.Batch(ctx, stmts)
	if err != nil && origin != nil {
		e := encodeError(err)
		e.FailedOnReplicas = conn.FailedOnReplicas()
		return nil, protocol.ConnectError(e)
	}
	return results, err
}

// Query implements the API.
func (s *databaseService) Query(ctx context.Context, r *connect.Request[apiv1.QueryRequest]) (*connect.Response[apiv1.QueryResponse], error) {
	out := &apiv1.QueryResponse{}
	q := r.Msg.GetStatement()
	args, err := protocol.Arguments(q)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	err = s.withConn(ctx, func(conn connapi.Conn) error {
		rows, err := conn.QueryContext(withConsistency(ctx, r.Msg.Consistency), protocol.SQL(q), args)
		if err != nil {
			return err
		}
		defer rows.Close()
		return s.readAll(rows, out)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// readAll reads the rows of a unary query. The limits may end a query that has written
// something; the error then says so.
func (s *Server) readAll(rows driver.Rows, out *apiv1.QueryResponse) error {
	out.Columns = apiColumns(rows)
	dest := make([]driver.Value, len(out.Columns))
	for bytes := 0; ; {
		err := rows.Next(dest)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(out.Rows) == s.limits.MaxRows {
			return fmt.Errorf("%w: the query has more than %d rows: add a LIMIT, or use a driver; if it wrote something, that was done", protocol.ErrLimit, s.limits.MaxRows)
		}
		row := &apiv1.Row{Values: make([]*apiv1.Value, len(dest))}
		for i, v := range dest {
			row.Values[i] = protocol.APIValue(v)
			bytes += 16
			switch v := v.(type) {
			case string:
				bytes += len(v)
			case []byte:
				bytes += len(v)
			}
		}
		if bytes > s.limits.MaxResult {
			return fmt.Errorf("%w: the rows of the query take more than %d bytes: add a LIMIT, or use a driver; if it wrote something, that was done", protocol.ErrLimit, s.limits.MaxResult)
		}
		out.Rows = append(out.Rows, row)
	}
}

// clusterService implements the service Cluster.
type clusterService struct{ *Server }

// Status implements the API.
func (s *clusterService) Status(ctx context.Context, _ *connect.Request[apiv1.StatusRequest]) (*connect.Response[apiv1.StatusResponse], error) {
	if s.isDraining() {
		return nil, connectError(fmt.Errorf("%w: the server is shutting down", hiqlite.ErrClosed))
	}
	status, err := s.backend.Status(ctx)
	if err != nil {
		return nil, connectError(err)
	}
	out := &apiv1.StatusResponse{
		NodeId: status.NodeID, Leader: status.Leader, Term: status.Term, Applied: status.Applied, Commit: status.Commit,
		DatabaseBytes: status.DatabaseBytes, WalBytes: status.WALBytes, Proxy: s.isProxy(),
	}
	for _, m := range status.Members {
		out.Members = append(out.Members, &apiv1.Member{Id: m.ID, RaftAddr: m.RaftAddr, ApiAddr: m.APIAddr})
	}
	for _, x := range status.Shards {
		out.Shards = append(out.Shards, &apiv1.ShardStatus{Name: x.Name, Leader: x.Leader, Term: x.Term, Applied: x.Applied, Error: x.Error})
	}
	return connect.NewResponse(out), nil
}

// Hash implements the API.
func (s *clusterService) Hash(ctx context.Context, _ *connect.Request[apiv1.HashRequest]) (*connect.Response[apiv1.HashResponse], error) {
	hash, index, err := s.backend.Hash(ctx)
	if err != nil {
		return nil, connectError(err)
	}
	return connect.NewResponse(&apiv1.HashResponse{Hash: hash[:], Index: index}), nil
}

// Ready implements the API.
func (s *clusterService) Ready(ctx context.Context, _ *connect.Request[apiv1.ReadyRequest]) (*connect.Response[apiv1.ReadyResponse], error) {
	if s.isDraining() {
		return nil, connectError(fmt.Errorf("%w: the server is shutting down", hiqlite.ErrClosed))
	}
	if err := s.backend.Ready(ctx); err != nil {
		return nil, connectError(err)
	}
	return connect.NewResponse(&apiv1.ReadyResponse{Seen: protocol.Seen(s.connector.Seen())}), nil
}
