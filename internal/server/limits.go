package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"connectrpc.com/connect"

	"github.com/hiqlite/hiqlite/api/hiqlite/v1/hiqlitev1connect"
	"github.com/hiqlite/hiqlite/internal/protocol"
)

// A limitedListener closes connections beyond MaxConns at once, before they cost a
// handshake.
type limitedListener struct {
	net.Listener
	server *Server
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.server.conns.now() < l.server.limits.MaxConns {
			return &firstRead{Conn: c, server: l.server}, nil
		}
		l.server.counters.refusedConns.Add(1)
		c.Close()
	}
}

func (s *Server) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.conns.n.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.conns.remove()
	}
}

// limitBody refuses requests that say that they are too large, before they are read.
// connect refuses those that do not say so, and tells nobody; they are counted here.
func (s *Server) limitBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength < 0 && r.URL.Path != hiqlitev1connect.DatabaseSessionProcedure {
			r.Body = &countedBody{ReadCloser: r.Body, left: s.limits.MaxBody + envelopeBytes, server: s}
		}
		if r.ContentLength <= int64(s.limits.MaxBody) {
			next.ServeHTTP(w, r)
			return
		}
		s.counters.tooLarge.Add(1)
		s.auth.refuse(w, r, fmt.Errorf("%w: the request has %d bytes, which is larger than the %d that it may have", protocol.ErrLimit, r.ContentLength, s.limits.MaxBody), http.StatusRequestEntityTooLarge)
	})
}

// envelopeBytes is what gRPC adds to a message.
const envelopeBytes = 5

// A countedBody is the body of a request of one message. It counts the request if it is
// too large.
type countedBody struct {
	io.ReadCloser
	left   int // bytes that the message may still have; negative: it was counted
	server *Server
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left >= 0 && n > b.left {
		b.server.counters.tooLarge.Add(1)
	}
	b.left = max(b.left-n, -1)
	return n, err
}

// limitCalls is an interceptor that bounds the time of unary calls and the number of
// streams, and counts requests that are too large.
type limitCalls struct{ server *Server }

func (i *limitCalls) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, i.server.limits.MaxTime)
		defer cancel()
		answer, err := next(ctx, r)
		i.count(err)
		return answer, err
	}
}

func (i *limitCalls) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i *limitCalls) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		s := i.server
		if !s.streams.add(s.limits.MaxSessions) {
			s.counters.refusedSessions.Add(1)
			return connectError(fmt.Errorf("%w: it has %d streams already", protocol.ErrLimit, s.limits.MaxSessions))
		}
		defer s.streams.remove()
		err := next(ctx, c)
		i.count(err)
		return err
	}
}

func (i *limitCalls) count(err error) {
	var e *connect.Error
	if errors.As(err, &e) && e.Code() == connect.CodeResourceExhausted {
		i.server.counters.tooLarge.Add(1)
	}
}
