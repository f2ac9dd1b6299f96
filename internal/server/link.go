package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/protocol"
)

// A link is a stream with sessions. One goroutine receives requests and gives them to
// their sessions. Another one sends the responses: it sends together those that wait,
// because a message costs more than what is in it.
type link struct {
	server *Server
	stream *connect.BidiStream[apiv1.SessionRequests, apiv1.SessionResponses]
	out    chan *apiv1.SessionResponse

	mu       sync.Mutex
	sessions map[uint64]*session // guarded by mu
	opened   bool                // there has been a session; guarded by mu
	finish   chan struct{}       // closed when the sender is to send what is queued, and to end

	work sync.WaitGroup // goroutines of sessions
}

// Session implements the API.
func (s *databaseService) Session(ctx context.Context, stream *connect.BidiStream[apiv1.SessionRequests, apiv1.SessionResponses]) error {
	ctx, cancel := context.WithCancel(ctx)
	l := &link{server: s.Server, stream: stream, out: make(chan *apiv1.SessionResponse, protocol.LinkQueue), sessions: map[uint64]*session{}, finish: make(chan struct{})}
	var sender sync.WaitGroup
	sender.Go(func() {
		l.sendAll(ctx)
		cancel()
	})
	defer sender.Wait()
	defer cancel()
	received := make(chan error, 1)
	go func() { received <- l.receive(ctx) }() // ends with the stream, which ends when this method returns
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
	return err
}

// drainInterval is how often a link looks whether its sessions have ended, once the
// server shuts down.
const drainInterval = 10 * time.Millisecond

// wait returns when the client has ended the stream, or is gone; or when the server
// shuts down and all sessions have ended.
func (l *link) wait(ctx context.Context, received <-chan error) (err error, drained bool) {
	draining := l.server.draining
	var look <-chan time.Time
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
			look = ticker.C
		case <-look:
			l.mu.Lock()
			left := len(l.sessions)
			l.mu.Unlock()
			if left == 0 {
				return nil, true
			}
		}
	}
}

// receive gives requests to their sessions until the stream ends.
func (l *link) receive(ctx context.Context) error {
	for {
		m, err := l.stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil // the client has ended the stream
		}
		if err != nil {
			return err // the client is gone, or the message is too large or malformed
		}
		for _, r := range m.Requests {
			if err := l.take(ctx, r); err != nil {
				return err
			}
		}
	}
}

// take gives a request to its session. The error ends the stream.
func (l *link) take(ctx context.Context, r *apiv1.SessionRequest) error {
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
// the stream go on.
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
		err := fmt.Errorf("%w: it has %d sessions already", protocol.ErrLimit, s.limits.MaxSessions)
		return connectErrorOrNil(l.trySend(&apiv1.SessionResponse{Session: r.Session, Error: encodeError(err), Response: &apiv1.SessionResponse_Closing{Closing: &apiv1.Closing{Reason: err.Error()}}}))
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
	select {
	case l.out <- r:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errNoReader = errors.New("hiqlite: the client does not read its answers")

// trySend is send for the receiving goroutine, which must not wait.
func (l *link) trySend(r *apiv1.SessionResponse) error {
	select {
	case l.out <- r:
		return nil
	default:
		return errNoReader
	}
}

func connectErrorOrNil(err error) error {
	if err == nil {
		return nil
	}
	return connect.NewError(connect.CodeResourceExhausted, err)
}

// sendAll sends responses until ctx ends or the stream is broken. What is queued when
// ctx ends is not sent, since its client is gone.
func (l *link) sendAll(ctx context.Context) {
	var next *apiv1.SessionResponse // did not fit into the last message
	for {
		if next == nil {
			select {
			case next = <-l.out:
			case <-ctx.Done():
				return
			case <-l.finish:
				select {
				case next = <-l.out:
				default:
					return
				}
			}
		}
		runtime.Gosched() // let sessions that have answers queue them
		m := &apiv1.SessionResponses{}
		size := 0
		for next != nil && (size == 0 || size+len(next.GetRows().GetCells()) <= protocol.LinkBytes) && len(m.Responses) < protocol.LinkQueue {
			size += proto.Size(next)
			m.Responses = append(m.Responses, next)
			select {
			case next = <-l.out:
			default:
				next = nil
			}
		}
		if l.stream.Send(m) != nil {
			return
		}
	}
}
