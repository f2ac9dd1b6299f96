package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/protocol"
)

// A carrier carries the messages of a link. Send and Receive may each be called from one
// goroutine.
type carrier interface {
	// Send sends a frame of protocol.Outbox.
	Send(frame []byte) error
	// Receive returns the next requests, an encoded SessionRequests. They are valid until
	// it is called again. The error is io.EOF if the client has ended its side.
	Receive() ([]byte, error)
}

// A link is a carrier with sessions. One goroutine receives requests and gives them to
// their sessions. Another one sends the responses that wait together.
type link struct {
	server  *Server
	carrier carrier
	address string // of the client
	out     *protocol.Outbox[*apiv1.SessionResponse]

	mu       sync.Mutex
	sessions map[uint64]*session // guarded by mu
	opened   bool                // there has been a session; guarded by mu
	finish   chan struct{}       // closed when the sender is to send what is queued, and to end

	work sync.WaitGroup // goroutines of sessions
}

// serveLink serves the sessions of a link until the client ends it, or is gone, or the
// server shuts down. end is called once nothing is sent or executed any more: it makes
// Receive return. The error is to be told to the client.
func (s *Server) serveLink(ctx context.Context, c carrier, address string, end func(error)) {
	ctx, cancel := context.WithCancel(ctx)
	l := &link{
		server: s, carrier: c, address: address, out: protocol.NewOutbox(protocol.AppendResponse),
		sessions: map[uint64]*session{}, finish: make(chan struct{}),
	}
	var sender sync.WaitGroup
	sender.Go(func() {
		_ = l.out.Run(ctx.Done(), l.finish, c.Send) // if it fails, the client is gone
		cancel()
	})
	received := make(chan error, 1)
	go func() { received <- l.receive(ctx) }() // ends by end
	err, drained := l.wait(ctx, received)
	l.mu.Lock()
	for _, x := range l.sessions {
		x.end()
	}
	l.mu.Unlock()
	l.work.Wait()
	if drained {
		close(l.finish)
		sender.Wait()
	}
	cancel()
	sender.Wait()
	end(err)
}

// drainInterval is how often a link checks whether its sessions have ended, once the server
// shuts down.
const drainInterval = 10 * time.Millisecond

// wait returns when the client has ended the link, or is gone; or when the server
// shuts down and all sessions have ended.
func (l *link) wait(ctx context.Context, received <-chan error) (err error, drained bool) {
	draining := l.server.draining
	var check <-chan time.Time
	for {
		select {
		case err := <-received:
			return err, false
		case <-ctx.Done():
			return nil, false
		case <-draining:
			draining = nil
			ticker := time.NewTicker(drainInterval)
			defer ticker.Stop()
			check = ticker.C
		case <-check:
			l.mu.Lock()
			left := len(l.sessions)
			l.mu.Unlock()
			if left == 0 {
				return nil, true
			}
		}
	}
}

// receive gives requests to their sessions until the link ends.
func (l *link) receive(ctx context.Context) error {
	var decoder protocol.Decoder
	for {
		requests, err := l.carrier.Receive()
		if errors.Is(err, io.EOF) {
			return nil // the client has ended the link
		}
		if err != nil {
			return err // the client is gone, or the message is too large or malformed
		}
		due := 0
		err = decoder.Requests(requests, func(r *apiv1.SessionRequest) error {
			due++
			return l.route(ctx, r)
		})
		l.out.Expect(due)
		var known *connect.Error
		if err != nil && !errors.As(err, &known) {
			err = connect.NewError(connect.CodeInvalidArgument, err)
		}
		if err != nil {
			l.server.counters.malformed.Add(1)
			return err
		}
	}
}

// route gives a request to its session. An error ends the link.
func (l *link) route(ctx context.Context, r *apiv1.SessionRequest) error {
	if r.GetOpen() != nil {
		return l.open(ctx, r)
	}
	l.mu.Lock()
	x := l.sessions[r.Session]
	opened := l.opened
	l.mu.Unlock()
	switch {
	case x == nil && !opened:
		return connect.NewError(connect.CodeInvalidArgument, errors.New("hiqlite: the first request of a session is Open, with an id"))
	case x == nil: // it has ended, and the client has been told
	case r.GetCancel() != nil:
		x.cancel(r.GetCancel().Request)
	case r.GetCloseSession() != nil:
		l.forget(x)
		x.end()
	default:
		select {
		case x.requests <- r:
		default:
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("hiqlite: more than %d requests of a session wait: read the answers", requestQueue))
		}
	}
	return nil
}

// open begins a session. Beyond the limit of sessions it is refused, and the others of
// the link go on.
func (l *link) open(ctx context.Context, r *apiv1.SessionRequest) error {
	s := l.server
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[r.Session] != nil {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("hiqlite: the session %d is open already", r.Session))
	}
	l.opened = true
	if !s.sessions.add(s.limits.MaxSessions) {
		s.counters.refusedSessions.Add(1)
		return l.refuse(r.Session, fmt.Errorf("%w: it has %d sessions already", protocol.ErrLimit, s.limits.MaxSessions))
	}
	x := &session{
		server: s, link: l, id: r.Session, requests: make(chan *apiv1.SessionRequest, requestQueue),
		queries: map[uint64]*query{}, cancels: map[uint64]context.CancelFunc{},
	}
	x.ctx, x.end = context.WithCancel(ctx)
	l.sessions[r.Session] = x
	l.work.Go(func() {
		defer s.sessions.remove()
		defer l.forget(x)
		defer x.end()
		x.serve(x.ctx, r)
	})
	return nil
}

var errNoReader = errors.New("hiqlite: the client does not read its answers")

// refuse refuses to begin a session. It does not wait, because the receiving goroutine
// calls it.
func (l *link) refuse(session uint64, err error) error {
	closing := &apiv1.SessionResponse_Closing{Closing: &apiv1.Closing{Reason: err.Error()}}
	added, err := l.out.TryAdd(&apiv1.SessionResponse{Session: session, Error: encodeError(err), Response: closing})
	if err == nil && !added {
		return connect.NewError(connect.CodeResourceExhausted, errNoReader)
	}
	return err
}

// forget removes a session.
func (l *link) forget(x *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[x.id] == x {
		delete(l.sessions, x.id)
	}
}

// send queues a response. It waits while the client does not read.
func (l *link) send(ctx context.Context, r *apiv1.SessionResponse) error {
	return l.out.Add(r, ctx.Done())
}
