// Package remote is the client of the API: it finds the nodes of a cluster, keeps
// sessions with them, and has the in-memory shards over the API. The root package
// puts database/sql in front of it.
//
// # Guarantees
//
//   - From any address of the cluster, the client learns the others. New sessions go
//     to the leader. If a node cannot be reached, the others are tried at once, for up
//     to ReconnectTimeout.
//   - A call that could not be sent, or of which the server says that it was not
//     executed, is made again on another node. A write that may have been executed is
//     not: it fails with node.ErrOutcomeUnknown.
//   - Reads on any node see what earlier calls of the same client have written or seen
//     on other nodes.
package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/api/hiqlite/v1/hiqlitev1connect"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// Options describe a client. The caller has checked them and filled in defaults.
type Options struct {
	Addresses        []string // host:port of at least one node
	Secret           string
	TLS              *tls.Config   // nil: without TLS
	Timeout          time.Duration // bounds calls whose context has no deadline
	ReconnectTimeout time.Duration // how long a node is looked for
}

const (
	// dialTimeout bounds an attempt to reach one node.
	dialTimeout = 2 * time.Second
	// pingAfter and pingTimeout are how long a connection may be silent before the
	// client asks whether the node is there, and how long it waits for the answer.
	pingAfter   = 2 * time.Second
	pingTimeout = 3 * time.Second
	// minPause and maxPause are the waits between two rounds over all nodes.
	minPause = 20 * time.Millisecond
	maxPause = 250 * time.Millisecond
	// refreshAfter is how old the list of nodes may be when a session is opened.
	refreshAfter = 2 * time.Second
)

// A Client knows the nodes of a cluster. Its methods may be called from any goroutine.
type Client struct {
	opts      Options
	transport *http.Transport
	http      *http.Client

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // goroutines of sessions and streams

	linking sync.Mutex // held while a session is given to a link

	mu        sync.Mutex
	nodes     map[string]*endpoint  // by address; guarded by mu
	learned   []string              // addresses of the members that a node has returned; guarded by mu
	leader    string                // its address; "": not known; guarded by mu
	refreshed time.Time             // when learned and leader were last set; guarded by mu
	links     map[string][]*link    // to the nodes, by address; the slices are not changed; guarded by mu
	origins   map[string][]*Origins // those that are free, by the names of their shards; guarded by mu
	seen      wire.Seen             // the highest indexes that nodes have returned; guarded by mu
}

// An endpoint has the services of one node.
type endpoint struct {
	address  string
	refused  atomic.Pointer[time.Time] // when an upgrade was last refused; nil: never
	mismatch atomic.Pointer[error]     // of the last connection without TLS; nil, or points to nil: none
	database hiqlitev1connect.DatabaseClient
	kv       hiqlitev1connect.KVClient
	pubsub   hiqlitev1connect.PubSubClient
	shards   hiqlitev1connect.ShardsClient
	cluster  hiqlitev1connect.ClusterClient
}

// New makes a client. It connects to no node yet. The caller must Close it.
func New(opts Options) *Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(opts.TLS != nil)
	protocols.SetUnencryptedHTTP2(opts.TLS == nil)
	c := &Client{opts: opts, nodes: map[string]*endpoint{}, origins: map[string][]*Origins{}, links: map[string][]*link{}}
	c.transport = &http.Transport{
		DialContext:         c.dial,
		TLSClientConfig:     opts.TLS,
		TLSHandshakeTimeout: dialTimeout,
		Protocols:           protocols,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		DisableCompression:  true,
	}
	c.http = &http.Client{Transport: c.transport}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close ends all sessions and streams, and waits for their goroutines.
func (c *Client) Close() {
	c.mu.Lock()
	c.cancel() // under mu, so that no goroutine is added afterwards; see begin
	c.mu.Unlock()
	c.work.Wait()
	c.transport.CloseIdleConnections()
}

// Closed reports whether Close has been called.
func (c *Client) Closed() bool { return c.ctx.Err() != nil }

// begin runs f in a goroutine for which Close waits. It returns false if the client is
// closed.
func (c *Client) begin(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Closed() {
		return false
	}
	c.work.Go(f)
	return true
}

// Seen returns the highest indexes that nodes have returned.
func (c *Client) Seen() wire.Seen {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

// RecordSeen records how far a node has applied the logs, or what the caller has seen
// elsewhere. Later requests make their nodes wait until they have applied as much.
func (c *Client) RecordSeen(s wire.Seen) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = c.seen.Max(s)
}

func (c *Client) endpoint(address string) *endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.nodes[address]
	if e == nil {
		url := "http://" + address
		if c.opts.TLS != nil {
			url = "https://" + address
		}
		options := []connect.ClientOption{
			connect.WithReadMaxBytes(protocol.MaxMessage), connect.WithAcceptCompression("gzip", nil, nil),
			connect.WithInterceptors(authorize(c.opts.Secret)),
		}
		e = &endpoint{
			address:  address,
			database: hiqlitev1connect.NewDatabaseClient(c.http, url, options...),
			kv:       hiqlitev1connect.NewKVClient(c.http, url, options...),
			pubsub:   hiqlitev1connect.NewPubSubClient(c.http, url, options...),
			shards:   hiqlitev1connect.NewShardsClient(c.http, url, options...),
			cluster:  hiqlitev1connect.NewClusterClient(c.http, url, options...),
		}
		c.nodes[address] = e
	}
	return e
}

// authorize is an interceptor that sends the secret.
type authorize string

func (a authorize) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		a.set(r.Header())
		return next(ctx, r)
	}
}

func (a authorize) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		a.set(conn.RequestHeader())
		return conn
	}
}

func (a authorize) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (a authorize) set(h http.Header) {
	if a != "" {
		h.Set("Authorization", "Bearer "+string(a))
	}
}

// addressesToTry returns the addresses in the order in which they are tried: the leader,
// the configured ones, and those that were learned.
func (c *Client) addressesToTry() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	if c.leader != "" {
		out = append(out, c.leader)
	}
	for _, a := range slices.Concat(c.opts.Addresses, c.learned) {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// recordFailure records that a node could not be reached, so that it does not count as the
// leader and the state of the cluster is asked for again.
func (c *Client) recordFailure(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leader == address {
		c.leader = ""
	}
	c.refreshed = time.Time{}
}

// onSomeNode calls f with one node after the other until it reaches one. f returns an
// error of connect. An error other than that the node could not be reached, or does
// not serve, is returned at once. Between rounds over all nodes onSomeNode waits, for
// up to ReconnectTimeout altogether; then the error is node.ErrNoLeader. It does not wait
// if no node can be reached because of how client and servers are configured.
func (c *Client) onSomeNode(ctx context.Context, f func(*endpoint) error) error {
	began := time.Now()
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		var last error
		hopeless := true
		for _, address := range c.addressesToTry() {
			if err := c.endError(ctx); err != nil {
				return noNode(last, err)
			}
			err := f(c.endpoint(address))
			if err == nil || !unreachable(err) {
				if errors.Is(err, protocol.ErrUnauthorized) {
					err = fmt.Errorf("%w: %s", err, address)
				}
				return err
			}
			c.recordFailure(address)
			err = explain(c.endpoint(address), err)
			last = fmt.Errorf("%s: %w", address, err)
			hopeless = hopeless && misconfigured(err)
		}
		if hopeless || time.Since(began) > c.opts.ReconnectTimeout {
			return noNode(last, nil)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return noNode(last, ctx.Err())
		case <-c.ctx.Done():
			return node.ErrClosed
		}
	}
}

// endError returns the reason for which no further call is made, or nil.
func (c *Client) endError(ctx context.Context) error {
	if c.Closed() {
		return node.ErrClosed
	}
	return ctx.Err()
}

// noNode returns the error of a call that has reached no node. ended is the error of
// the caller's context, or nil.
func noNode(last, ended error) error {
	switch {
	case last == nil:
		return ended
	case ended == nil:
		return fmt.Errorf("%w: no node could be reached; the last error is that of %w", node.ErrNoLeader, last)
	}
	return fmt.Errorf("%w: no node could be reached: %w; the last error is that of %w", node.ErrNoLeader, ended, last)
}

// unreachable reports whether a call did not reach a node, or reached one that is
// starting or closing, so that nothing was executed.
func unreachable(err error) bool {
	var e *protocol.Error
	if errors.As(err, &e) {
		return errors.Is(err, node.ErrClosed) && !errors.Is(err, node.ErrOutcomeUnknown)
	}
	var ce *connect.Error
	return errors.As(err, &ce) && !connect.IsWireError(ce) && ce.Code() != connect.CodeCanceled
}

// GoingAway reports whether a server has answered with err because it, or its node, is
// closing, and not because the context of the call has ended. Another node can then be
// asked; if the outcome is unknown, only for what is applied once.
func GoingAway(ctx context.Context, err error) bool {
	var e *protocol.Error
	return ctx.Err() == nil && errors.As(err, &e) && (errors.Is(e, node.ErrClosed) || errors.Is(e, context.Canceled))
}

// fromConnect turns an error of a call into the error that the server has sent, if it
// has sent one.
func fromConnect(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	for _, d := range ce.Details() {
		if m, err := d.Value(); err == nil {
			if e, ok := m.(*apiv1.Error); ok {
				return protocol.DecodeError(e)
			}
		}
	}
	switch ce.Code() {
	case connect.CodeUnauthenticated:
		return protocol.ErrUnauthorized
	case connect.CodeResourceExhausted:
		return fmt.Errorf("%w: %s", node.ErrTooLarge, ce.Message())
	}
	return err
}

// call makes a unary call to some node. write says that the call applies something that
// has an origin. Once it was sent to a node that did not answer, every error but a
// result is node.ErrOutcomeUnknown.
func call[Req, Res any](ctx context.Context, c *Client, write bool, method func(*endpoint) func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), request *Req) (out *Res, err error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	var unanswered error // the first node to which the call was sent and that did not answer
	err = c.onSomeNode(ctx, func(e *endpoint) error {
		var sent atomic.Bool
		answer, err := method(e)(traceSent(ctx, &sent), connect.NewRequest(request))
		if err != nil {
			err = fromConnect(err)
			if GoingAway(ctx, err) && (write || !errors.Is(err, node.ErrOutcomeUnknown)) {
				// Another node has, or finds out, the outcome.
				if unanswered == nil && errors.Is(err, node.ErrOutcomeUnknown) {
					unanswered = err
				}
				return connect.NewError(connect.CodeUnavailable, err)
			}
			if sent.Load() && unanswered == nil && !isAnswer(err) {
				unanswered = fmt.Errorf("the connection to %s broke before the answer: %w", e.address, err)
			}
			return err
		}
		out = answer.Msg
		return nil
	})
	if err != nil && ctx.Err() != nil {
		err = withContext(ctx, err)
	}
	if err != nil && write && unanswered != nil && !errors.Is(err, node.ErrOutcomeUnknown) {
		err = fmt.Errorf("%w: %w: %w", node.ErrOutcomeUnknown, unanswered, err)
	}
	return out, err
}

// isAnswer reports whether a server has answered with err.
func isAnswer(err error) bool {
	var e *protocol.Error
	return errors.As(err, &e)
}

// within bounds ctx by Options.Timeout, unless it has a deadline.
func (c *Client) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.opts.Timeout)
}

// refresh asks some node for the others and for the leader, unless that was done a
// moment ago.
func (c *Client) refresh(ctx context.Context) {
	c.mu.Lock()
	recent := time.Since(c.refreshed) < refreshAfter
	c.mu.Unlock()
	if recent {
		return
	}
	for _, address := range c.addressesToTry() {
		attempt, cancel := context.WithTimeout(ctx, dialTimeout)
		answer, err := c.endpoint(address).cluster.Status(attempt, connect.NewRequest(&apiv1.StatusRequest{}))
		cancel()
		if err != nil {
			c.recordFailure(address)
			continue
		}
		c.recordStatus(answer.Msg)
		if answer.Msg.Leader != 0 || answer.Msg.Proxy {
			return
		}
	}
}

// recordStatus records the members and the leader that a node has returned. It ignores the
// members that a proxy returns, because they may not be reachable from here.
func (c *Client) recordStatus(s *apiv1.StatusResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refreshed = time.Now()
	if s.Proxy {
		return
	}
	c.learned, c.leader = nil, ""
	for _, m := range s.Members {
		if m.ApiAddr == "" {
			continue
		}
		c.learned = append(c.learned, m.ApiAddr)
		if m.Id == s.Leader {
			c.leader = m.ApiAddr
		}
	}
}

// Status returns the state of a node: of the leader, if it is known.
func (c *Client) Status(ctx context.Context) (*apiv1.StatusResponse, error) {
	out, err := call(ctx, c, false, func(e *endpoint) func(context.Context, *connect.Request[apiv1.StatusRequest]) (*connect.Response[apiv1.StatusResponse], error) {
		return e.cluster.Status
	}, &apiv1.StatusRequest{})
	if err == nil {
		c.recordStatus(out)
	}
	return out, err
}

// Hash returns the hash of a node's database.
func (c *Client) Hash(ctx context.Context) (*apiv1.HashResponse, error) {
	return call(ctx, c, false, func(e *endpoint) func(context.Context, *connect.Request[apiv1.HashRequest]) (*connect.Response[apiv1.HashResponse], error) {
		return e.cluster.Hash
	}, &apiv1.HashRequest{})
}

// Ready returns once a node is ready.
func (c *Client) Ready(ctx context.Context) error {
	out, err := call(ctx, c, false, func(e *endpoint) func(context.Context, *connect.Request[apiv1.ReadyRequest]) (*connect.Response[apiv1.ReadyResponse], error) {
		return e.cluster.Ready
	}, &apiv1.ReadyRequest{})
	if err == nil {
		c.RecordSeen(protocol.WireSeen(out.Seen))
	}
	return err
}
