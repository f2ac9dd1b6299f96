package process

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/hiqlite/hiqlite"
)

// A Network has a link from each node of a cluster to each other one. A node gets the
// address of the link as the address of the other node. Since a node sends messages
// only on connections that it has made, each direction can be cut on its own.
type Network struct {
	t     testing.TB
	links []*link
}

// NewNetwork returns a network without links. Its links end with the test.
func NewNetwork(t testing.TB) *Network { return &Network{t: t} }

// A link forwards connections from one node to another.
type link struct {
	from, to uint64
	target   string
	listener net.Listener
	work     sync.WaitGroup

	mu      sync.Mutex
	state   LinkState
	changed chan struct{} // closed when state changes
	conns   map[net.Conn]bool
}

// A LinkState is what a link does with bytes.
type LinkState int

const (
	LinkUp    LinkState = iota // delivers what is sent
	LinkHeld                   // keeps what is sent, and delivers all of it when it is up again
	LinkDown                   // closes connections
	linkEnded                  // LinkDown, for good
)

// Route replaces, in the configuration of a node that has not started yet, the
// addresses of the other nodes by those of new links. The node does not tell the
// other ones its own address, at which they could reach it without a link.
func (nw *Network) Route(cfg *hiqlite.Config) {
	nw.t.Helper()
	cfg.Nodes = slices.Clone(cfg.Nodes)
	for i := range cfg.Nodes {
		to := &cfg.Nodes[i]
		if to.ID == cfg.NodeID {
			if cfg.ListenAddr == "" {
				cfg.ListenAddr = to.RaftAddr
			}
			to.RaftAddr = fmt.Sprintf("127.0.0.1:%d", cfg.NodeID) // nobody listens there
		} else {
			l := newLink(nw.t, cfg.NodeID, to.ID, to.RaftAddr)
			nw.links = append(nw.links, l)
			to.RaftAddr = l.listener.Addr().String()
		}
	}
}

// A Direction selects links of a node.
type Direction int

const (
	BothWays Direction = iota
	Outbound
	Inbound
)

// Cut sets the state of a node's links in a direction.
func (nw *Network) Cut(nodeID uint64, d Direction, to LinkState) {
	for _, l := range nw.links {
		if d != Inbound && l.from == nodeID || d != Outbound && l.to == nodeID {
			l.set(to)
		}
	}
}

// CutBetween sets the state of the links between two nodes.
func (nw *Network) CutBetween(one, other uint64, to LinkState) {
	for _, l := range nw.links {
		if l.from == one && l.to == other || l.from == other && l.to == one {
			l.set(to)
		}
	}
}

// Heal sets all links to LinkUp.
func (nw *Network) Heal() {
	for _, l := range nw.links {
		l.set(LinkUp)
	}
}

func newLink(t testing.TB, from, to uint64, target string) *link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{from: from, to: to, target: target, listener: listener, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
	l.work.Go(l.accept)
	t.Cleanup(func() {
		l.set(linkEnded)
		listener.Close()
		l.work.Wait()
	})
	return l
}

func (l *link) set(to LinkState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = to
	close(l.changed)
	l.changed = make(chan struct{})
	if to == LinkDown || to == linkEnded {
		for c := range l.conns {
			c.Close()
		}
	}
}

// pass waits until bytes may pass, and returns false if the link is down.
func (l *link) pass() bool {
	for {
		l.mu.Lock()
		state, changed := l.state, l.changed
		l.mu.Unlock()
		if state != LinkHeld {
			return state == LinkUp
		}
		<-changed
	}
}

func (l *link) accept() {
	for {
		c, err := l.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			l.work.Go(func() { l.carry(c) })
		}
	}
}

// add registers a connection, which set closes. It returns false if the link is
// down: then the caller closes the connection.
func (l *link) add(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == LinkDown || l.state == linkEnded {
		return false
	}
	l.conns[c] = true
	return true
}

func (l *link) remove(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	c.Close()
}

// carry forwards a connection to the target until one side closes it.
func (l *link) carry(in net.Conn) {
	defer l.remove(in)
	if !l.add(in) || !l.pass() {
		return
	}
	out, err := net.Dial("tcp", l.target)
	if err != nil {
		return // the node does not run
	}
	defer l.remove(out)
	if !l.add(out) {
		return
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		l.pump(in, out)
	}()
	l.pump(out, in)
	<-back
}

// pump copies bytes while the link lets them pass, and then closes both connections.
func (l *link) pump(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil || !l.pass() {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}
