package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/protocol"
)

// maxSessions bounds the sessions of a link. More links spread them over more streams.
const maxSessions = 64

// A link is a stream to a node, with the sessions of this client there. One goroutine
// receives answers and gives them to their sessions. Another one sends the requests: it
// sends together those that wait, because a message costs more than what is in it. The
// link ends with its last session, and all its sessions end with it.
type link struct {
	client  *Client
	address string
	stream  *connect.BidiStreamForClient[apiv1.SessionRequests, apiv1.SessionResponses]
	out     chan *apiv1.SessionRequest
	finish  chan struct{}   // closed when the sender is to send what is queued, and to end the stream
	ctx     context.Context // of the stream
	cancel  context.CancelFunc

	mu       sync.Mutex
	sessions map[uint64]*Session // guarded by mu
	opened   uint64              // how many sessions there have been; guarded by mu
	err      error               // why the link has ended; nil: it has not; guarded by mu
}

// attach gives a session to a link to a node, and begins one if there is none that has
// room.
func (c *Client) attach(e *endpoint, s *Session) error {
	c.mu.Lock()
	links := c.links[e.address]
	c.mu.Unlock()
	for _, l := range links {
		if l.add(s) {
			return nil
		}
	}
	l := &link{client: c, address: e.address, out: make(chan *apiv1.SessionRequest, protocol.LinkQueue), finish: make(chan struct{}), sessions: map[uint64]*Session{}}
	l.ctx, l.cancel = context.WithCancel(c.ctx)
	l.stream = e.database.Session(l.ctx)
	l.add(s)
	if !c.begin(l.sendAll) || !c.begin(l.receive) {
		l.cancel()
		_ = l.stream.CloseRequest() // nothing was sent
		return node.ErrClosed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.links[e.address] = append(c.links[e.address][:len(c.links[e.address]):len(c.links[e.address])], l)
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

// send queues a request. It waits while the server does not read.
func (l *link) send(r *apiv1.SessionRequest) error {
	select {
	case l.out <- r:
		return nil
	case <-l.ctx.Done():
		return l.ctx.Err()
	}
}

// sendAll sends requests until the link ends.
func (l *link) sendAll() {
	// net/http notices the end of a context only once the body of the request has ended.
	defer context.AfterFunc(l.ctx, func() { _ = l.stream.CloseRequest() })()
	defer func() { _ = l.stream.CloseRequest() }()
	var next *apiv1.SessionRequest // did not fit into the last message
	for {
		if next == nil {
			select {
			case next = <-l.out:
			case <-l.ctx.Done():
				return
			case <-l.finish:
				select {
				case next = <-l.out:
				default:
					return
				}
			}
		}
		runtime.Gosched() // let others that have requests queue them
		m := &apiv1.SessionRequests{}
		size := 0
		for next != nil && len(m.Requests) < protocol.LinkQueue {
			own := proto.Size(next)
			if size > 0 && size+own > protocol.LinkBytes {
				break
			}
			size += own
			m.Requests = append(m.Requests, next)
			select {
			case next = <-l.out:
			default:
				next = nil
			}
		}
		if l.stream.Send(m) != nil {
			return // receive gets the reason
		}
	}
}

// receive gives answers to their sessions until the stream ends.
func (l *link) receive() {
	defer l.cancel()
	for {
		m, err := l.stream.Receive()
		if err != nil {
			l.end(err)
			return
		}
		for _, answer := range m.Responses {
			if answer.Seen != nil {
				l.client.Saw(protocol.WireSeen(answer.Seen))
			}
			l.mu.Lock()
			s := l.sessions[answer.Session]
			l.mu.Unlock()
			if s != nil {
				s.deliver(answer)
			}
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
