package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// maxSessions bounds the sessions of a link. More links spread them over more connections.
const maxSessions = 64

// A link is a connection to a node, with the sessions of this client there. One goroutine
// (run) connects, and then receives answers and gives them to their sessions. Another one
// (send) sends the requests that wait together. The link ends with its last session, and
// all its sessions end with it.
type link struct {
	client  *Client
	address string
	out     *protocol.Outbox[*apiv1.SessionRequest]
	limit   atomic.Int64    // bytes of a request
	finish  chan struct{}   // closed when what is queued is to be sent, and the link to end
	ctx     context.Context // of the link
	cancel  context.CancelFunc

	mu       sync.Mutex
	sessions map[uint64]*Session // guarded by mu
	opened   uint64              // how many sessions there have been; guarded by mu
	err      error               // why the link has ended; nil: it has not; guarded by mu
}

// attach gives a session to a link to a node, and begins one if there is none that has
// room.
func (c *Client) attach(e *endpoint, s *Session) error {
	c.linking.Lock() // so that sessions that are opened at the same time share a link
	defer c.linking.Unlock()
	c.mu.Lock()
	links := c.links[e.address]
	c.mu.Unlock()
	for _, l := range links {
		if l.add(s) {
			return nil
		}
	}
	l := &link{client: c, address: e.address, finish: make(chan struct{}), sessions: map[uint64]*Session{}}
	l.limit.Store(maxRequest)
	l.out = protocol.NewOutbox(l.appendRequest)
	l.ctx, l.cancel = context.WithCancel(c.ctx)
	l.add(s)
	if !c.begin(func() { l.run(e) }) {
		l.cancel()
		return node.ErrClosed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.links[e.address] = append(links[:len(links):len(links)], l)
	return nil
}

// add adds a session, if the link has not ended and has room.
func (l *link) add(s *Session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil || len(l.sessions) == maxSessions {
		return false
	}
	l.opened++
	s.link, s.number = l, l.opened
	l.sessions[s.number] = s
	return true
}

var errUnused = errors.New("hiqlite: the last session has been closed")

// remove removes a session. The link ends with the last one.
func (l *link) remove(s *Session) {
	l.mu.Lock()
	delete(l.sessions, s.number)
	last := len(l.sessions) == 0 && l.err == nil
	if last {
		l.err = errUnused // so that no session is added
	}
	l.mu.Unlock()
	if last {
		l.drop()
		close(l.finish)
	}
}

// drop makes the client forget the link.
func (l *link) drop() {
	c := l.client
	c.mu.Lock()
	defer c.mu.Unlock()
	var others []*link
	for _, x := range c.links[l.address] {
		if x != l {
			others = append(others, x)
		}
	}
	c.links[l.address] = others
}

// appendRequest encodes a request, unless the server would end the link, with the sessions
// of others, because the request is too large.
func (l *link) appendRequest(b []byte, r *apiv1.SessionRequest) ([]byte, error) {
	before := len(b)
	b, err := protocol.AppendRequest(b, r)
	if size := int64(len(b) - before); err == nil && size > l.limit.Load() {
		return nil, fmt.Errorf("%w: the request has %d bytes, and the server accepts %d", node.ErrTooLarge, size, l.limit.Load())
	}
	return b, err
}

// send queues a request. It waits while the server does not read.
func (l *link) send(r *apiv1.SessionRequest) error { return l.out.Add(r, l.ctx.Done()) }

// run connects to the node, sends requests and receives answers, until the link ends.
func (l *link) run(e *endpoint) {
	defer l.cancel()
	carrier, err := l.client.connect(l.ctx, e)
	if err != nil {
		l.end(err)
		return
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		_ = l.out.Run(l.ctx.Done(), l.finish, carrier.Send) // receive gets the reason
		carrier.Close()
	})
	l.end(l.receive(carrier))
	l.cancel()
	sending.Wait()
}

// receive gives answers to their sessions until the link ends.
func (l *link) receive(c carrier) error {
	var decoder protocol.Decoder
	for {
		answers, err := c.Receive()
		if err != nil {
			return err
		}
		var seen wire.Seen
		due := 0
		l.out.Hold() // so that what the sessions send next is sent together
		err = decoder.Responses(answers, func(answer *apiv1.SessionResponse) {
			if answer.Seen != nil {
				// Before the session goes on, so that its next request has it.
				if now := protocol.WireSeen(answer.Seen); now != seen {
					l.client.RecordSeen(now)
					seen = now
				}
			}
			l.mu.Lock()
			s := l.sessions[answer.Session]
			l.mu.Unlock()
			if s != nil {
				s.deliver(answer)
				due++
			}
		})
		l.out.Release(due)
		if err != nil {
			return err
		}
	}
}

// end ends all sessions.
func (l *link) end(err error) {
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the server has ended the stream: %w", connect.NewError(connect.CodeUnavailable, io.ErrUnexpectedEOF))
	}
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	sessions := l.sessions
	l.sessions = map[uint64]*Session{}
	l.mu.Unlock()
	l.drop()
	for _, s := range sessions {
		s.end(err, nil)
	}
}
