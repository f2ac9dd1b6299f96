package server

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/api/hiqlite/v1/hiqlitev1connect"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/ratelimit"
)

// admit returns once the rate of a client allows what it asks for. If refuse is set, it
// does not wait but returns ErrLimit. A request that may be a copy of an earlier one must
// not be refused: its client would conclude that nothing was applied.
func (s *Server) admit(ctx context.Context, address string, kind ratelimit.Kind, n int, refuse bool) error {
	if s.rates == nil {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	for {
		retry, ok := s.rates.Allow(host, kind, n)
		if ok {
			return nil
		}
		if refuse {
			s.counters.tooMany.Add(1)
			return fmt.Errorf("%w: the clients at %s send more than they may: try again after %v", protocol.ErrLimit, host, retry.Round(time.Millisecond))
		}
		turn := time.NewTimer(retry)
		select {
		case <-turn.C:
		case <-ctx.Done():
			turn.Stop()
			return ctx.Err()
		}
	}
}

// admitStatements is admit for a request of a session. What ends something, or
// continues it, is always admitted.
func (s *Server) admitStatements(ctx context.Context, address string, r *apiv1.SessionRequest) error {
	n := 0
	switch q := r.Request.(type) {
	case *apiv1.SessionRequest_Exec, *apiv1.SessionRequest_Query:
		n = 1
	case *apiv1.SessionRequest_Batch:
		n = len(q.Batch.Statements)
	}
	if n == 0 {
		return nil
	}
	return s.admit(ctx, address, ratelimit.SQL, n, false)
}

// limitRate is an interceptor that bounds the rate of unary calls, and of the calls that
// begin streams.
type limitRate struct{ server *Server }

// kindOf returns what a procedure asks for, and whether it is limited.
func kindOf(procedure string) (kind ratelimit.Kind, limited bool) {
	switch service, _, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/"); service {
	case hiqlitev1connect.DatabaseName:
		return ratelimit.SQL, procedure != hiqlitev1connect.DatabaseSessionProcedure
	case hiqlitev1connect.KVName, hiqlitev1connect.PubSubName:
		return ratelimit.Cache, true
	case hiqlitev1connect.ShardsName:
		// Locks are kept, awaited and released by these; only commands count.
		return ratelimit.Cache, procedure == hiqlitev1connect.ShardsDoProcedure
	}
	return 0, false
}

func (i *limitRate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		if kind, limited := kindOf(r.Spec().Procedure); limited {
			n := 1
			if e, ok := r.Any().(*apiv1.ExecuteRequest); ok {
				n = max(1, len(e.Statements))
			}
			refuse := r.Spec().Procedure != hiqlitev1connect.ShardsDoProcedure // which a driver calls
			if err := i.server.admit(ctx, r.Peer().Addr, kind, n, refuse); err != nil {
				return nil, connectError(err)
			}
		}
		return next(ctx, r)
	}
}

func (i *limitRate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i *limitRate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		if kind, limited := kindOf(c.Spec().Procedure); limited {
			if err := i.server.admit(ctx, c.Peer().Addr, kind, 1, true); err != nil {
				return connectError(err)
			}
		}
		return next(ctx, c)
	}
}
