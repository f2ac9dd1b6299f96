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
	client *Client
	link   *link
	number uint64 // of the session in the link

	sending sync.Mutex // held while something is queued, so that the ids ascend
	lastID  uint64     // guarded by sending

	waiting atomic.Pointer[waiter] // of the request that Do waits for; nil: none
	unused  *waiter                // for the next request; only the goroutine that calls Do uses it
	finish  sync.Once
	done    chan struct{} // closed when nothing more is received
	// These are set before done is closed.
	err     error  // why the session has ended
	closing bool   // the server has said that it executed nothing after last
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
	s := &Session{client: c, done: make(chan struct{})}
	if err := c.attach(e, s); err != nil {
		return nil, nil, err
	}
	answer, err := s.Do(ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Open{Open: protocol.Open(cfg)}})
	if err == nil {
		if n := answer.GetOpened().GetMaxRequest(); n > 0 {
			s.link.limit.Store(int64(min(n, maxRequest)))
		}
		return s, answer, nil
	}
	s.Close()
	var broken *BrokenError
	if errors.As(err, &broken) && ctx.Err() == nil {
		err = fromConnect(broken.Err)
	}
	return nil, nil, err
}

// Address returns the address of the node.
func (s *Session) Address() string { return s.link.address }

var errSessionClosed = errors.New("hiqlite: the session is closed")

// Close ends the session, which rolls back its transaction.
func (s *Session) Close() {
	if !s.Ended() {
		_ = s.Send(&apiv1.SessionRequest{Request: &apiv1.SessionRequest_CloseSession{CloseSession: &apiv1.CloseSession{}}}) // if the link is broken, the session has ended with it
	}
	s.end(errSessionClosed, nil)
}

// end marks the session as ended, once.
func (s *Session) end(err error, closing *apiv1.Closing) {
	s.finish.Do(func() {
		s.err = err
		if closing != nil {
			s.closing, s.last = true, closing.LastRequest
		}
		close(s.done)
		s.link.remove(s)
	})
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

// deliver gives an answer to the one who waits for it.
func (s *Session) deliver(answer *apiv1.SessionResponse) {
	if c := answer.GetClosing(); c != nil {
		err := protocol.DecodeError(answer.Error)
		if err == nil {
			err = fmt.Errorf("the server ended the session: %s", c.Reason)
		}
		s.end(err, c)
		return
	}
	if w := s.waiting.Load(); w != nil && w.id == answer.Id {
		s.waiting.Store(nil)
		w.answer <- answer
	}
}

// Send sends a request that has no answer.
func (s *Session) Send(r *apiv1.SessionRequest) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.lastID++
	r.Session, r.Id = s.number, s.lastID
	return s.link.send(r)
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
	protocol.SetSeen(r, s.client.Seen())
	w := s.unused
	if s.unused = nil; w == nil {
		w = &waiter{answer: make(chan *apiv1.SessionResponse, 1)}
	}
	s.sending.Lock()
	if s.Ended() {
		s.sending.Unlock()
		return nil, &BrokenError{Address: s.link.address, NotExecuted: true, Err: s.err}
	}
	s.lastID++
	w.id, r.Session, r.Id = s.lastID, s.number, s.lastID
	s.waiting.Store(w)
	err := s.link.send(r)
	s.sending.Unlock()
	if err != nil && !errors.Is(err, protocol.ErrOutboxEnded) { // otherwise the session ends with the link
		s.waiting.Store(nil)
		return nil, err
	}
	select {
	case answer := <-w.answer:
		s.unused = w // nobody else has it any more
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
		return nil, &BrokenError{Address: s.link.address, Err: ctx.Err()}
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
		return nil, &BrokenError{Address: s.link.address, NotExecuted: s.closing && w.id > s.last, Err: s.err}
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
