package remote

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/api/hiqlite/v1/hiqlitev1connect"
	"github.com/hiqlite/hiqlite/internal/protocol"
)

// A carrier carries the messages of a link. Send and Receive may each be called from one
// goroutine.
type carrier interface {
	// Send sends a frame of protocol.Outbox.
	Send(frame []byte) error
	// Receive returns the next answers, an encoded SessionResponses. They are valid until
	// it is called again. The error is io.EOF if the server has ended without one, the
	// error that the server has sent, or one of connect.
	Receive() ([]byte, error)
	// Close ends the carrier. It may be called more than once.
	Close()
}

// writeTimeout is how long a server may take nothing of what is sent to it.
const writeTimeout = 30 * time.Second

// refusedFor is how long no upgrade is asked for after one was refused.
const refusedFor = time.Minute

var (
	// errFailed: a node was reached, and the connection could not be upgraded.
	errFailed = errors.New("hiqlite: the connection could not be upgraded")
	// errRefused: the server has answered that it does not upgrade the connection.
	errRefused = fmt.Errorf("%w: the server, or a proxy before it, refuses", errFailed)
)

// connect connects to a node. If the connection cannot be upgraded, the carrier is a stream
// of Database.Session: a proxy that knows only HTTP may refuse the upgrade, and of other
// failures the API tells the reason.
func (c *Client) connect(ctx context.Context, e *endpoint) (carrier, error) {
	if refused := e.refused.Load(); refused == nil || time.Since(*refused) > refusedFor {
		s, err := c.upgrade(ctx, e.address)
		if !errors.Is(err, errFailed) {
			return s, err
		}
		if errors.Is(err, errRefused) {
			now := time.Now()
			e.refused.Store(&now)
		}
	}
	return newRPC(ctx, e.database), nil
}

// upgrade dials a node and has the connection upgraded. The error is errFailed if a stream
// of the API may be tried.
func (c *Client) upgrade(ctx context.Context, address string) (carrier, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout) // to connect, and to be answered
	defer cancel()
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	s, err := c.handshake(ctx, conn, address)
	if !stop() && err == nil {
		err = connect.NewError(connect.CodeUnavailable, ctx.Err())
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return streamCarrier{s}, nil
}

// handshake encrypts a connection, and has it upgraded.
func (c *Client) handshake(ctx context.Context, conn net.Conn, address string) (*protocol.Stream, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+hiqlitev1connect.DatabaseSessionProcedure, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", protocol.UpgradeName)
	authorize(c.opts.Secret).set(request.Header)
	if c.opts.TLS != nil {
		own := c.opts.TLS.Clone()
		own.NextProtos = []string{"http/1.1"}
		if own.ServerName == "" {
			own.ServerName, _, _ = net.SplitHostPort(address)
		}
		encrypted := tls.Client(conn, own)
		if err := encrypted.HandshakeContext(ctx); err != nil {
			return nil, failed(ctx, err)
		}
		conn = encrypted
	}
	if err := request.Write(conn); err != nil {
		return nil, failed(ctx, err)
	}
	early := bufio.NewReader(conn)
	answer, err := http.ReadResponse(early, request)
	if err != nil {
		return nil, failed(ctx, err)
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusSwitchingProtocols:
	case http.StatusUnauthorized:
		return nil, protocol.ErrUnauthorized
	default:
		if answer.StatusCode >= http.StatusInternalServerError { // it may upgrade connections later
			return nil, fmt.Errorf("%w: %s", errFailed, answer.Status)
		}
		return nil, fmt.Errorf("%w: %s", errRefused, answer.Status)
	}
	limits := protocol.StreamLimits{MaxFrame: protocol.MaxMessage, PingAfter: pingAfter, PingTimeout: pingTimeout, WriteTimeout: writeTimeout}
	read := io.LimitReader(early, int64(early.Buffered())) // all else is read by the Stream, which notices silence
	return protocol.NewStream(conn, read, limits), nil
}

// failed returns the error of a handshake that failed with err.
func failed(ctx context.Context, err error) error {
	if ctx.Err() != nil { // the node is silent
		return connect.NewError(connect.CodeUnavailable, err)
	}
	return fmt.Errorf("%w: %w", errFailed, err)
}

// A streamCarrier is a carrier without HTTP.
type streamCarrier struct{ *protocol.Stream }

func (c streamCarrier) Receive() ([]byte, error) {
	b, err := c.Stream.Receive()
	var malformed *protocol.FrameError
	if err == nil || errors.As(err, &malformed) || isAnswer(err) {
		return b, err
	}
	return nil, connect.NewError(connect.CodeUnavailable, err)
}

func (c streamCarrier) Close() { _ = c.Stream.Close() }

// An rpc is a carrier that is a stream of the API.
type rpc struct {
	stream *connect.BidiStreamForClient[apiv1.SessionRequests, apiv1.SessionResponses]
	stop   func() bool
	buf    []byte
}

func newRPC(ctx context.Context, database hiqlitev1connect.DatabaseClient) *rpc {
	r := &rpc{stream: database.Session(ctx)}
	// net/http notices the end of a context only once the body of the request has ended.
	r.stop = context.AfterFunc(ctx, func() { _ = r.stream.CloseRequest() })
	return r
}

func (r *rpc) Send(frame []byte) error {
	m := new(apiv1.SessionRequests)
	if err := proto.Unmarshal(frame[protocol.HeadBytes:], m); err != nil {
		return err
	}
	return r.stream.Send(m)
}

func (r *rpc) Receive() ([]byte, error) {
	m, err := r.stream.Receive()
	if err != nil {
		return nil, fromConnect(err)
	}
	r.buf, err = proto.MarshalOptions{}.MarshalAppend(r.buf[:0], m)
	return r.buf, err
}

func (r *rpc) Close() {
	r.stop()
	_ = r.stream.CloseRequest() // which the server answers with the end of its side
}
