// Package server serves the API of a node, or as a proxy that of a remote database.
//
// # Guarantees
//
//   - A session executes statements on a connection of the driver, so that rows,
//     types and errors are those of an embedded node.
//   - No request is executed without the secret, if there is one.
//   - Whatever a client sends, or does not read, holds bounded memory. Limits are
//     reported as errors that name them, and are counted.
//   - When a client vanishes, what it had open ends: its transaction is rolled back,
//     and its watches and queries are closed.
package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/hiqlite/hiqlite"
	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/api/hiqlite/v1/hiqlitev1connect"
	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/ratelimit"
)

// A Backend is what a server serves: a *hiqlite.Node, or a *hiqlite.Remote for a proxy.
type Backend interface {
	hiqlite.Client
	Connector() driver.Connector
}

// Config describes a server. Only Backend is required.
type Config struct {
	Backend Backend
	// Secret is what clients have to send as a bearer token; "": none is needed, which
	// Serve allows only on loopback.
	Secret string
	// TLS is the configuration of the listener; nil: HTTP/1.1 and HTTP/2 without TLS.
	TLS    *tls.Config
	Limits Limits
	// Rates bound what the clients of one address may send. A request of a driver waits
	// for its turn; other requests are refused.
	Rates ratelimit.Limits
	// HealthDelay is how long after New the server reports that it is healthy in any
	// case, so that it is not restarted while it starts.
	HealthDelay time.Duration
	// LogStatements logs the text of each statement, without its arguments.
	LogStatements bool
	Logger        *slog.Logger // nil: slog.Default()
}

// Limits bound what clients may use. A zero field has the default that it names.
type Limits struct {
	MaxBody     int           // bytes of a request; 16 MiB
	MaxRows     int           // rows of a unary Query; 10,000
	MaxResult   int           // bytes of the rows of a unary Query; 8 MiB
	MaxTime     time.Duration // of a unary call; 60 s
	MaxSessions int           // open at the same time; and streams: of sessions, watches and subscriptions; 20,000
	MaxConns    int           // TCP connections; 20,000
	IdleSession time.Duration // after which a session without transaction, or its open query, is closed; 10 min
}

func (l *Limits) setDefaults() {
	for _, d := range []struct {
		field    *int
		default_ int
	}{{&l.MaxBody, 16 << 20}, {&l.MaxRows, 10_000}, {&l.MaxResult, 8 << 20}, {&l.MaxSessions, 20_000}, {&l.MaxConns, 20_000}} {
		if *d.field == 0 {
			*d.field = d.default_
		}
	}
	if l.MaxTime == 0 {
		l.MaxTime = time.Minute
	}
	if l.IdleSession == 0 {
		l.IdleSession = 10 * time.Minute
	}
}

// A Server serves the API. Its methods may be called from any goroutine.
type Server struct {
	backend   Backend
	connector connapi.Connector
	limits    Limits
	rates     *ratelimit.Limiter
	healthy   time.Time // until then the server is healthy in any case
	logger    *slog.Logger

	logStatements bool

	tls  *tls.Config
	auth *authenticator
	http *http.Server

	upgraded upgraded

	sessions gauge
	streams  gauge
	conns    gauge
	counters counters

	draining  chan struct{} // closed when Shutdown begins
	drainOnce sync.Once
}

// New makes a server, which serves once Serve is called. It does not close the backend.
func New(cfg Config) (*Server, error) {
	if cfg.Backend == nil {
		return nil, errors.New("hiqlite: a server needs a backend")
	}
	connector, ok := cfg.Backend.Connector().(connapi.Connector)
	if !ok {
		return nil, fmt.Errorf("hiqlite: a server cannot serve a %T", cfg.Backend)
	}
	cfg.Limits.setDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{
		backend: cfg.Backend, connector: connector, limits: cfg.Limits, logger: cfg.Logger,
		tls: cfg.TLS, draining: make(chan struct{}),
		upgraded: upgraded{streams: map[*protocol.Stream]bool{}, changed: make(chan struct{})},
	}
	s.rates, s.healthy, s.logStatements = ratelimit.New(cfg.Rates), time.Now().Add(cfg.HealthDelay), cfg.LogStatements
	s.auth = newAuthenticator(cfg.Secret, &s.counters)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(cfg.TLS == nil)
	s.http = &http.Server{
		Handler:           s.Handler(),
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       s.limits.IdleSession,
		MaxHeaderBytes:    64 << 10,
		TLSConfig:         cfg.TLS,
		ErrorLog:          log.New(logWriter{s.logger, &s.counters}, "", 0),
		ConnState:         s.connState,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: s.limits.MaxSessions,
			MaxReadFrameSize:     frameBytes,
			SendPingTimeout:      pingAfter,
			PingTimeout:          pingTimeout,
			WriteByteTimeout:     writeTimeout,
		},
	}
	return s, nil
}

const (
	// headerTimeout bounds how long a client may take to send the head of a request.
	headerTimeout = 10 * time.Second
	// pingAfter is how long a connection may be silent before the server asks whether
	// the client is still there, and pingTimeout how long it waits for the answer. A
	// client that has vanished thus keeps a transaction open for at most 8 s, which is
	// less than the 10 s of busy_timeout for which the writes of others wait by default.
	pingAfter   = 3 * time.Second
	pingTimeout = 5 * time.Second
	// frameBytes bounds a frame of HTTP/2. A client of Go's net/http keeps a buffer of
	// this size for each session.
	frameBytes = 32 << 10
	// messageSlack is what a message of several requests has beside them.
	messageSlack = 4 << 10
	// writeTimeout is how long a client may take none of what the server sends.
	writeTimeout = 30 * time.Second
)

// Handler returns the handler of all requests, for tests and for other listeners.
func (s *Server) Handler() http.Handler {
	services := http.NewServeMux()
	options := []connect.HandlerOption{
		connect.WithReadMaxBytes(s.limits.MaxBody),
		connect.WithConditionalHandlerOptions(func(spec connect.Spec) []connect.HandlerOption {
			if spec.Procedure != hiqlitev1connect.DatabaseSessionProcedure {
				return nil
			}
			// A message of a session's stream has one request, or several that are small.
			return []connect.HandlerOption{connect.WithReadMaxBytes(max(s.limits.MaxBody, protocol.LinkBytes) + messageSlack)}
		}),
		connect.WithRecover(s.recovered),
		connect.WithInterceptors(&limitCalls{s}, &limitRate{s}, connect.UnaryInterceptorFunc(s.logCalls)),
		connect.WithCodec(strictJSON{"json", &s.counters}), connect.WithCodec(strictJSON{"json; charset=utf-8", &s.counters}),
		connect.WithCompression("gzip", nil, nil), // it would let a small request take much memory and time
	}
	services.Handle(hiqlitev1connect.NewDatabaseHandler(&databaseService{s}, options...))
	services.Handle(hiqlitev1connect.NewKVHandler(&kvService{s}, options...))
	services.Handle(hiqlitev1connect.NewPubSubHandler(&pubsubService{s}, options...))
	services.Handle(hiqlitev1connect.NewShardsHandler(&shardsService{s}, options...))
	services.Handle(hiqlitev1connect.NewClusterHandler(&clusterService{s}, options...))
	all := http.NewServeMux()
	all.HandleFunc("GET /ping", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "pong") })
	all.HandleFunc("GET /health", s.health)
	all.HandleFunc("GET /ready", s.ready)
	all.Handle("GET "+hiqlitev1connect.DatabaseSessionProcedure, s.auth.wrap(http.HandlerFunc(s.upgrade)))
	all.Handle("/", s.auth.wrap(s.limitBody(services)))
	return all
}

// Serve serves the connections of a listener until Shutdown or Close. It then returns
// http.ErrServerClosed. It refuses a listener that others can reach if there is no
// secret.
func (s *Server) Serve(l net.Listener) error {
	if s.auth.open && !isLoopback(l.Addr()) {
		return fmt.Errorf("hiqlite: the API at %v has no secret: others could read and write everything; give a secret, or listen on loopback", l.Addr())
	}
	ctx, end := context.WithCancel(context.Background())
	var reports sync.WaitGroup
	reports.Go(func() { s.report(ctx) })
	defer reports.Wait()
	defer end()
	l = &limitedListener{l, s}
	if s.tls != nil {
		return s.http.ServeTLS(l, "", "")
	}
	return s.http.Serve(l)
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback() || a.Network() == "unix"
}

// Shutdown ends the server without breaking what runs: it reports that it is not
// ready, refuses new sessions, lets requests in flight and open transactions end, and
// closes each session as soon as its client can continue on another node. When ctx
// ends, it closes what is still open, and returns the error of ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	s.drainOnce.Do(func() { close(s.draining) })
	err := s.http.Shutdown(ctx)
	if err == nil {
		err = s.upgraded.wait(ctx)
	}
	if err != nil {
		s.http.Close()
	}
	s.upgraded.close()
	return err
}

// Close ends the server at once.
func (s *Server) Close() error {
	s.drainOnce.Do(func() { close(s.draining) })
	s.upgraded.close()
	return s.http.Close()
}

func (s *Server) isDraining() bool {
	select {
	case <-s.draining:
		return true
	default:
		return false
	}
}

// recovered is called when a handler panics, which would be a fault of this package.
// The other requests go on.
func (s *Server) recovered(_ context.Context, spec connect.Spec, _ http.Header, p any) error {
	s.logger.Error("hiqlite: a request made the server panic", "procedure", spec.Procedure, "panic", p)
	return connect.NewError(connect.CodeInternal, errors.New("hiqlite: the server failed, see its log"))
}

// follow waits until reads see what a client has seen on other nodes. A node that is cut
// off from the others would wait for long, so MaxTime bounds the wait.
func (s *Server) follow(ctx context.Context, seen *apiv1.Seen) error {
	if now := s.connector.Seen(); now.SQL >= seen.GetSql() && now.KV >= seen.GetKv() {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, s.limits.MaxTime)
	defer cancel()
	err := s.connector.Follow(bounded, protocol.WireSeen(seen))
	if err != nil && ctx.Err() == nil && bounded.Err() != nil {
		return fmt.Errorf("%w: this node has not applied what the client has seen on another one: %w", hiqlite.ErrNoLeader, err)
	}
	return err
}

// withConsistency returns the context of a read.
func withConsistency(ctx context.Context, c apiv1.Consistency) context.Context {
	switch c {
	case apiv1.Consistency_CONSISTENCY_LOCAL:
		return hiqlite.WithConsistency(ctx, hiqlite.Local)
	case apiv1.Consistency_CONSISTENCY_LINEARIZABLE:
		return hiqlite.WithConsistency(ctx, hiqlite.Linearizable)
	}
	return ctx
}

// encodeError encodes an error, which is not nil.
func encodeError(err error) *apiv1.Error {
	var sql *apiv1.SQLError
	var e *hiqlite.Error
	if errors.As(err, &e) {
		valid := func(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
		sql = &apiv1.SQLError{Code: int32(e.ExtendedCode), Message: valid(e.Message), Hint: valid(e.Hint), Statement: int32(e.Statement)}
	}
	return protocol.EncodeError(err, sql, hiqlite.SafeToRetry(err))
}

// connectError returns the error of a call that failed with err, which is not nil.
func connectError(err error) *connect.Error {
	var known *connect.Error
	if errors.As(err, &known) {
		return known
	}
	return protocol.ConnectError(encodeError(err))
}

// logWriter logs what net/http reports, which is about connections that fail. Package
// net/http tells failed handshakes only to its log, so they are counted here.
type logWriter struct {
	logger   *slog.Logger
	counters *counters
}

func (w logWriter) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("TLS handshake error")) {
		w.counters.failedTLS.Add(1)
	}
	w.logger.Debug("hiqlite: the API's listener", "message", strings.TrimSpace(string(p)))
	return len(p), nil
}
