package transport

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/hiqlite/hiqlite/internal/identity"
)

const (
	// maxPending bounds the accepted connections that have not passed their handshake
	// yet. Each takes up to 50 KB.
	maxPending = 256
	// maxLogged bounds the peers whose refusal is remembered, so that it is logged
	// once. Further ones are only counted.
	maxLogged = 1024
)

var errTooMany = errors.New("hiqlite: the node has too many connections")

// Stats count connections that came to nothing.
type Stats struct {
	Refused uint64 // peers that did not pass the handshake
	Evicted uint64 // connections that were closed before, to make room for others
}

// A gate keeps accepted connections until they have passed their handshake. When
// there are too many, the oldest is closed, because a node of the cluster needs some
// milliseconds, and a stranger may never end.
type gate struct {
	log  *slog.Logger
	node uint64

	mu      sync.Mutex
	pending list.List // of *pendingConn, the oldest first; guarded by mu
	logged  map[refusedPeer]struct{}
	counts  Stats
}

type pendingConn struct {
	conn    net.Conn
	evicted bool // guarded by gate.mu
}

// refusedPeer is what is logged once.
type refusedPeer struct{ host, reason string }

func (g *gate) init(log *slog.Logger, node uint64) {
	g.log, g.node, g.logged = log, node, map[refusedPeer]struct{}{}
}

// enter adds a connection. leave has to be called when its handshake is over.
func (g *gate) enter(c net.Conn) (leave func() (evicted bool)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pending.Len() >= maxPending {
		oldest := g.pending.Remove(g.pending.Front()).(*pendingConn)
		oldest.evicted = true
		oldest.conn.Close()
		g.counts.Evicted++
	}
	p := &pendingConn{conn: c}
	e := g.pending.PushBack(p)
	return func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.pending.Remove(e) // does nothing if it was evicted
		return p.evicted
	}
}

// refused counts a peer that did not pass the handshake, and logs it if it is the
// first time for its host and the reason.
func (g *gate) refused(remote net.Addr, err error) {
	reason := reasonOf(err)
	host := hostOf(remote)
	key := refusedPeer{host, reason}
	g.mu.Lock()
	g.counts.Refused++
	_, known := g.logged[key]
	log := !known && len(g.logged) < maxLogged && reason != ""
	if log {
		g.logged[key] = struct{}{}
	}
	g.mu.Unlock()
	if log {
		g.log.Warn("hiqlite: refused a connection to the Raft port; further ones from this host for this reason are not logged",
			"node", g.node, "host", host, "reason", reason)
	}
}

// hostOf returns an address without its port, which differs between the connections of a
// node.
func hostOf(address net.Addr) string {
	host, _, err := net.SplitHostPort(address.String())
	if err != nil {
		return address.String()
	}
	return host
}

func (g *gate) stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counts
}

// reasonOf returns why a peer did not pass the handshake; "" if it just left, as
// probes of load balancers do.
func reasonOf(err error) string {
	var (
		refusal *Refusal
		record  tls.RecordHeaderError
		alert   tls.AlertError
		remote  *net.OpError
	)
	switch {
	case errors.As(err, &refusal):
		return refusal.Reason
	case errors.Is(err, identity.ErrOtherKey), errors.Is(err, identity.ErrOtherProtocol):
		return err.Error()
	case errors.As(err, &record):
		return "it speaks without TLS, and this node has a secret or certificates: give it the same"
	case errors.As(err, &alert), errors.As(err, &remote) && remote.Op == "remote error":
		return "it does not accept the secret or the certificate of this node (" + err.Error() + "): give all nodes the same secret"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "it did not finish its handshake in time"
	case errors.Is(err, errFrame):
		return "what it sends is not of this protocol; with TLS on one side only, give all nodes the same secret"
	case errors.Is(err, errTooMany):
		return err.Error()
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, context.Canceled):
		return ""
	case errors.As(err, &remote): // such as a reset
		return ""
	}
	return err.Error()
}

// peerAddr names a node that this one has dialled, in place of a host.
type peerAddr struct{ node uint64 }

func (peerAddr) Network() string  { return "node" }
func (a peerAddr) String() string { return fmt.Sprintf("node %d", a.node) }

// authentication reports whether an error of a handshake says that the other side is
// not of this cluster, or that it takes this node for a stranger.
func authentication(err error) bool {
	reason := reasonOf(err)
	return reason != "" && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) && !unresolved(err)
}
