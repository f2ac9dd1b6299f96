package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/protocol"
)

// cancelWait is how long a call whose context has ended waits for the answer of the
// server, which has been told to end it. Without an answer the session is given up.
const cancelWait = 3 * time.Second

// A Session is one connection to a node. Do is called from one goroutine at a time;
// the other methods may be called from any.
type Session struct {
	client  *Client
	address string
	stream  *connect.BidiStreamForClient[apiv1.SessionRequest, apiv1.SessionResponse]
	cancel  context.CancelFunc // ends the stream

	sending sync.Mutex // held while something is sent
	lastID  uint64     // guarded by sending

	waiting atomic.Pointer[waiter] // of the request that Do waits for; nil: none
	done    chan struct{}          // closed when nothing more is received
	// These are set before done is closed.
	err     error  // why the stream has ended
	closing bool   // the server has said that it executed nothing after executed
	last    uint64 // the last request that it has executed
}

// A waiter waits for the answer to a request.
type waiter struct {
	id     uint64
	answer chan *apiv1.SessionResponse // capacity 1
}

// A BrokenError says that a session has ended before the answer to a request.
type BrokenError struct {
	Address     string
	NotExecuted bool // the request was not executed, and will not be
	Err         error
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("hiqlite: the connection to %s broke: %v", e.Address, e.Err)
}
func (e *BrokenError) Unwrap() error { return e.Err }

// OpenSession opens a session with the leader or, if it cannot be reached, with another
// node. The errors are node.ErrNoLeader if no node could be reached, and those that the
// server returns.
func (c *Client) OpenSession(ctx context.Context, cfg connapi.Config) (*Session, *apiv1.SessionResponse, error) {
	c.refresh(ctx)
	var s *Session
	var opened *apiv1.SessionResponse
	err := c.onSomeNode(ctx, func(e *endpoint) error {
		attempt, cancel := context.WithTimeout(ctx, max(c.opts.ReconnectTimeout/4, dialTimeout))
		defer cancel()
		var err error
		s, opened, err = c.openOn(attempt, e, cfg)
		if err != nil && ctx.Err() == nil && attempt.Err() != nil {
			err = connect.NewError(connect.CodeUnavailable, err) // the node is silent: try another one
		}
		return err
	})
	return s, opened, err
}

func (c *Client) openOn(ctx context.Context, e *endpoint, cfg connapi.Config) (*Session, *apiv1.SessionResponse, error) {
	streamCtx, cancel := context.WithCancel(c.ctx)
	s := &Session{client: c, address: e.address, cancel: cancel, done: make(chan struct{})}
	s.stream = e.database.Session(streamCtx)
	if !c.begin(s.receive) {
		cancel()
		return nil, nil, node.ErrClosed
	}
	answer, err := s.Do(ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Open{Open: protocol.Open(cfg)}})
	if err == nil {
		return s, answer, nil
	}
	s.Close()
	if s.err != nil && isAnswer(fromConnect(s.err)) || errors.Is(fromConnect(s.err), protocol.ErrUnauthorized) {
		err = fromConnect(s.err)
	} else if s.err != nil && ctx.Err() == nil {
		err = s.err
	}
	return nil, nil, err
}

// Address returns the address of the node.
func (s *Session) Address() string { return s.address }

// Close ends the session, which rolls back its transaction. It returns when the
// goroutine of the session has ended.
func (s *Session) Close() {
	s.end()
	<-s.done
}

// end ends the stream. net/http notices the end of a context only once the body of the
// request has ended, too.
func (s *Session) end() {
	_ = s.stream.CloseRequest()
	s.cancel()
}

// Ended reports whether the session has ended.
func (s *Session) Ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// receive gives answers to those that wait for them, until the stream ends.
func (s *Session) receive() {
	defer close(s.done)
	defer s.end()
	defer context.AfterFunc(s.client.ctx, s.end)()
	for {
		answer, err := s.stream.Receive()
		if err != nil {
			s.err = err
			return
		}
		if c := answer.GetClosing(); c != nil {
			s.closing, s.last = true, c.LastRequest
			s.err = fmt.Errorf("the server ended the session: %s", c.Reason)
			return
		}
		if answer.Seen != nil {
			s.client.Saw(protocol.WireSeen(answer.Seen))
		}
		if w := s.waiting.Load(); w != nil && w.id == answer.Id {
			s.waiting.Store(nil)
			w.answer <- answer
		}
	}
}

// Send sends a request that has no answer.
func (s *Session) Send(r *apiv1.SessionRequest) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.lastID++
	r.Id = s.lastID
	return s.stream.Send(r)
}

// Cancel tells the server to end a request.
func (s *Session) Cancel(id uint64) {
	_ = s.Send(&apiv1.SessionRequest{Request: &apiv1.SessionRequest_Cancel{Cancel: &apiv1.Cancel{Request: id}}}) // if the stream is broken, the request ends with it
}

// Do sends a request and returns the answer. The deadline and the consistency of ctx
// are sent with it. When ctx ends, the server is told, and Do waits a little for the
// answer, which says what became of the request. The error is a *BrokenError or, if
// the request was too large to be sent, node.ErrTooLarge. The error that the server
// has sent is in the answer.
func (s *Session) Do(ctx context.Context, r *apiv1.SessionRequest) (*apiv1.SessionResponse, error) {
	setContext(ctx, r)
	return s.do(ctx, r)
}

// DoEnded is Do for a request whose own context has ended, of which the server is told.
// ctx bounds the wait for the answer.
func (s *Session) DoEnded(ctx context.Context, r *apiv1.SessionRequest) (*apiv1.SessionResponse, error) {
	setContext(ctx, r)
	r.TimeoutUs = -1
	return s.do(ctx, r)
}

func (s *Session) do(ctx context.Context, r *apiv1.SessionRequest) (*apiv1.SessionResponse, error) {
	if seen := s.client.Seen(); seen.SQL != 0 || seen.KV != 0 {
		r.Seen = protocol.Seen(seen)
	}
	if size := proto.Size(r); size > maxRequest {
		return nil, fmt.Errorf("%w: a request of %d bytes", node.ErrTooLarge, size)
	}
	w := &waiter{answer: make(chan *apiv1.SessionResponse, 1)}
	s.sending.Lock()
	if s.Ended() {
		s.sending.Unlock()
		return nil, &BrokenError{Address: s.address, NotExecuted: true, Err: s.err}
	}
	s.lastID++
	w.id, r.Id = s.lastID, s.lastID
	s.waiting.Store(w)
	_ = s.stream.Send(r) // if it fails, the stream has ended, and receive gets the error
	s.sending.Unlock()
	select {
	case answer := <-w.answer:
		return answer, nil
	case <-s.done:
		return s.broken(w)
	case <-ctx.Done():
	}
	s.Cancel(w.id)
	timer := time.NewTimer(cancelWait)
	defer timer.Stop()
	select {
	case answer := <-w.answer:
		return answer, nil
	case <-s.done:
		return s.broken(w)
	case <-timer.C:
		s.Close()
		if answer, err := s.broken(w); err == nil {
			return answer, nil
		}
		return nil, &BrokenError{Address: s.address, Err: ctx.Err()}
	}
}

// maxRequest bounds a request, in bytes. An operation has at most node.MaxOperation.
const maxRequest = node.MaxOperation + 1<<20

// broken returns the answer to a request if it has come before the stream ended.
func (s *Session) broken(w *waiter) (*apiv1.SessionResponse, error) {
	select {
	case answer := <-w.answer:
		return answer, nil
	default:
		return nil, &BrokenError{Address: s.address, NotExecuted: s.closing && w.id > s.last, Err: s.err}
	}
}

// setContext puts into a request what the server has to know of a context.
func setContext(ctx context.Context, r *apiv1.SessionRequest) {
	if deadline, ok := ctx.Deadline(); ok {
		r.TimeoutUs = max(time.Until(deadline).Microseconds(), 1)
	}
	if ctx.Err() != nil {
		r.TimeoutUs = -1
	}
	r.Consistency = consistency(ctx)
	r.NotDeferred = connapi.NotDeferred(ctx)
}

func consistency(ctx context.Context) apiv1.Consistency {
	linearizable, ok := node.Linearizable(ctx)
	switch {
	case !ok:
		return apiv1.Consistency_CONSISTENCY_UNSPECIFIED
	case linearizable:
		return apiv1.Consistency_CONSISTENCY_LINEARIZABLE
	}
	return apiv1.Consistency_CONSISTENCY_LOCAL
}

// Failure returns the error that the server has sent in an answer, or nil. If the
// context of the call has ended, that is the reason, whichever of the two sides has
// noticed it first.
func Failure(ctx context.Context, answer *apiv1.SessionResponse) error {
	err := protocol.DecodeError(answer.GetError())
	if err == nil || ctx.Err() == nil {
		return err
	}
	return withContext(ctx, err)
}

// withContext replaces in err the error of the server's context by that of the
// caller's context, which has ended.
func withContext(ctx context.Context, err error) error {
	ended := ctx.Err()
	var e *protocol.Error
	if !errors.As(err, &e) || !errors.Is(e, context.Canceled) && !errors.Is(e, context.DeadlineExceeded) {
		return err
	}
	changed := *e
	changed.Is = nil
	for _, is := range e.Is {
		if is == context.Canceled || is == context.DeadlineExceeded {
			is = ended
		}
		changed.Is = append(changed.Is, is)
	}
	for _, text := range []error{context.Canceled, context.DeadlineExceeded} {
		changed.Text = strings.ReplaceAll(changed.Text, text.Error(), ended.Error())
	}
	if changed.Text == ended.Error() && len(changed.Is) == 1 {
		return ended
	}
	return &changed
}

// traceSent returns a context that sets sent once the head of a request was written.
func traceSent(ctx context.Context, sent *atomic.Bool) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
}
