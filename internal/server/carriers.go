package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/hiqlite/hiqlite"
	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/protocol"
)

// Session implements the API.
func (s *databaseService) Session(ctx context.Context, stream *connect.BidiStream[apiv1.SessionRequests, apiv1.SessionResponses]) (err error) {
	s.serveLink(ctx, &rpc{stream: stream}, stream.Peer().Addr, func(reason error) { err = reason })
	return err // the stream ends, and Receive with it
}

// An rpc is a carrier that is a stream of the API.
type rpc struct {
	stream *connect.BidiStream[apiv1.SessionRequests, apiv1.SessionResponses]
	buf    []byte // of the last requests
}

func (r *rpc) Send(frame []byte) error {
	m := new(apiv1.SessionResponses)
	if err := proto.Unmarshal(frame[protocol.HeadBytes:], m); err != nil {
		return err
	}
	return r.stream.Send(m)
}

func (r *rpc) Receive() ([]byte, error) {
	m, err := r.stream.Receive()
	if err != nil {
		return nil, err
	}
	r.buf, err = proto.MarshalOptions{}.MarshalAppend(r.buf[:0], m)
	return r.buf, err
}

// upgraded are the connections that were upgraded, which net/http does not know any more.
type upgraded struct {
	mu      sync.Mutex
	closed  bool                      // guarded by mu
	streams map[*protocol.Stream]bool // guarded by mu
	changed chan struct{}             // closed, and replaced, when a stream is removed; guarded by mu
}

// add adds a stream. It returns false if the server is closed.
func (u *upgraded) add(s *protocol.Stream) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return false
	}
	u.streams[s] = true
	return true
}

func (u *upgraded) remove(s *protocol.Stream) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.streams, s)
	close(u.changed)
	u.changed = make(chan struct{})
}

// wait returns when all streams have ended, or with the error of ctx.
func (u *upgraded) wait(ctx context.Context) error {
	for {
		u.mu.Lock()
		left, changed := len(u.streams), u.changed
		u.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// close ends all streams, and those that are added later.
func (u *upgraded) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	for s := range u.streams {
		_ = s.Close() // it is gone in any case
	}
}

// upgrade serves the sessions of a driver without HTTP; see protocol.Stream.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 1 || !strings.EqualFold(r.Header.Get("Upgrade"), protocol.UpgradeName) {
		w.Header().Set("Upgrade", protocol.UpgradeName)
		http.Error(w, "hiqlite: a session without HTTP begins with an upgrade of HTTP/1.1 to "+protocol.UpgradeName, http.StatusUpgradeRequired)
		return
	}
	if s.isDraining() {
		http.Error(w, "hiqlite: the server is shutting down", http.StatusServiceUnavailable)
		return
	}
	if !s.streams.add(s.limits.MaxSessions) {
		s.counters.refusedSessions.Add(1)
		http.Error(w, fmt.Sprintf("%v: it has %d streams already", protocol.ErrLimit, s.limits.MaxSessions), http.StatusServiceUnavailable)
		return
	}
	defer s.streams.remove()
	conn, early, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	s.conns.n.Add(1) // net/http has counted it as ended
	defer s.conns.remove()
	if err := acceptUpgrade(conn); err != nil {
		return // the client is gone
	}
	limits := protocol.StreamLimits{MaxFrame: max(s.limits.MaxBody, protocol.LinkBytes) + messageSlack, PingAfter: pingAfter, PingTimeout: pingTimeout, WriteTimeout: writeTimeout}
	stream := protocol.NewStream(conn, io.LimitReader(early.Reader, int64(early.Reader.Buffered())), limits)
	if !s.upgraded.add(stream) {
		return
	}
	defer s.upgraded.remove(stream)
	s.serveLink(r.Context(), stream, r.RemoteAddr, func(reason error) { s.endStream(stream, reason) })
}

// acceptUpgrade tells a client that its connection is upgraded.
func acceptUpgrade(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(headerTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol.UpgradeName+"\r\n\r\n"); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

// endStream tells a client why its stream ends, and closes it.
func (s *Server) endStream(stream *protocol.Stream, reason error) {
	var end *apiv1.Error
	var malformed *protocol.FrameError
	var refused *connect.Error
	switch {
	case reason == nil:
	case errors.As(reason, &malformed) && malformed.TooLarge:
		s.counters.tooLarge.Add(1)
		end = encodeError(fmt.Errorf("%w: %w", hiqlite.ErrTooLarge, reason))
	case errors.As(reason, &malformed):
		s.counters.malformed.Add(1)
		end = sessionError(reason)
	case errors.As(reason, &refused):
		end = sessionError(reason)
	default: // the client is gone
		return
	}
	if stream.SendEnd(end) == nil {
		_ = stream.Finish() // it is gone in any case
	}
}
