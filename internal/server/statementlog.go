package server

import (
	"context"

	"connectrpc.com/connect"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/protocol"
)

// logStatement logs the text of a statement that a client sends. It leaves the arguments
// out, which may be secret.
func (s *Server) logStatement(address, text string) {
	s.logger.Info("hiqlite: statement", "client", address, "sql", text)
}

// logRequest logs the statements of a request of a session.
func (s *Server) logRequest(address string, r *apiv1.SessionRequest) {
	if !s.logStatements {
		return
	}
	switch q := r.Request.(type) {
	case *apiv1.SessionRequest_Exec:
		s.logStatement(address, protocol.SQL(q.Exec))
	case *apiv1.SessionRequest_Query:
		s.logStatement(address, protocol.SQL(q.Query))
	case *apiv1.SessionRequest_Batch:
		for _, statement := range q.Batch.Statements {
			s.logStatement(address, protocol.SQL(statement))
		}
	}
}

// logCalls is an interceptor that logs the statements of unary calls.
func (s *Server) logCalls(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		if s.logStatements {
			switch q := r.Any().(type) {
			case *apiv1.ExecuteRequest:
				for _, statement := range q.Statements {
					s.logStatement(r.Peer().Addr, protocol.SQL(statement))
				}
			case *apiv1.QueryRequest:
				s.logStatement(r.Peer().Addr, protocol.SQL(q.GetStatement()))
			}
		}
		return next(ctx, r)
	}
}
