package consistency_test

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/hiqlite/hiqlite"
)

// A network is what the nodes of a cluster reach each other through: each node
// is told, as the address of another, that of a link to it. So it can be cut,
// in each direction on its own, as a node sends on connections that it has made.
type network struct {
	t     testing.TB
	links []*link
}

// A link passes connections on from one node to another.
type link struct {
	from, to uint64
	target   string
	listener net.Listener
	work     sync.WaitGroup

	mu      sync.Mutex
	state   linkState
	changed chan struct{} // closed when state changes
	conns   map[net.Conn]bool
}

type linkState int

const (
	whole  linkState = iota
	frozen           // keeps what is sent, and delivers it later
	broken           // closes connections
	ended
)

// route makes a node's configuration one of links, which end with the test.
// Clusters of such nodes must be started with it.
func (nw *network) route(cfg *hiqlite.Config) {
	nw.t.Helper()
	cfg.Nodes = slices.Clone(cfg.Nodes)
	for i := range cfg.Nodes {
		if to := &cfg.Nodes[i]; to.ID != cfg.NodeID {
			l := newLink(nw.t, cfg.NodeID, to.ID, to.RaftAddr)
			nw.links = append(nw.links, l)
			to.RaftAddr = l.listener.Addr().String()
		}
	}
}

// A direction is which of a node's links are meant.
type direction int

const (
	bothWays direction = iota
	outbound
	inbound
)

// cut puts a node's links into a state.
func (nw *network) cut(n *node, d direction, to linkState) {
	for _, l := range nw.links {
		if d != inbound && l.from == n.cfg.NodeID || d != outbound && l.to == n.cfg.NodeID {
			l.set(to)
		}
	}
}

// heal makes all links whole.
func (nw *network) heal() {
	for _, l := range nw.links {
		l.set(whole)
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
		l.set(ended)
		listener.Close()
		l.work.Wait()
	})
	return l
}

func (l *link) set(to linkState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = to
	close(l.changed)
	l.changed = make(chan struct{})
	if to == broken || to == ended {
		for c := range l.conns {
			c.Close()
		}
	}
}

// pass waits until bytes may pass; false: they never will.
func (l *link) pass() bool {
	for {
		l.mu.Lock()
		state, changed := l.state, l.changed
		l.mu.Unlock()
		if state != frozen {
			return state == whole
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

// enter has set close a connection; false: it has to be closed now.
func (l *link) enter(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == broken || l.state == ended {
		return false
	}
	l.conns[c] = true
	return true
}

func (l *link) leave(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	c.Close()
}

// carry connects a connection with the target, until one side closes it.
func (l *link) carry(in net.Conn) {
	defer l.leave(in)
	if !l.enter(in) || !l.pass() {
		return
	}
	out, err := net.Dial("tcp", l.target)
	if err != nil {
		return // the node is dead
	}
	defer l.leave(out)
	if !l.enter(out) {
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

// pump copies what may pass, and ends both connections.
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

// The links do what the faults rely on.
func TestLinks(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	dial := func(l *link) net.Conn {
		c, err := net.Dial("tcp", l.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	send := func(c net.Conn, text string) {
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	l := newLink(t, 1, 2, target.Addr().String())
	here := dial(l)
	defer here.Close()
	there, err := target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	got := make(chan string)
	go func() {
		defer close(got)
		for buffer := make([]byte, 1); ; {
			if _, err := io.ReadFull(there, buffer); err != nil {
				return
			}
			got <- string(buffer)
		}
	}()
	send(here, "a")
	if text := <-got; text != "a" {
		t.Errorf("got %q through a whole link, want a", text)
	}
	l.set(frozen)
	send(here, "b")
	select {
	case text := <-got:
		t.Errorf("got %q through a frozen link", text)
	default:
	}
	l.set(whole)
	if text := <-got; text != "b" {
		t.Errorf("got %q after the thaw, want b", text)
	}
	l.set(broken)
	if text, ok := <-got; ok {
		t.Errorf("got %q through a broken link", text)
	}
	late := dial(l)
	defer late.Close()
	if n, err := late.Read(make([]byte, 1)); err == nil {
		t.Errorf("got %d bytes through a link that was broken before", n)
	}
	l.set(whole)
	again := dial(l)
	defer again.Close()
	there, err = target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	send(again, "c")
	buffer := make([]byte, 1)
	if _, err := io.ReadFull(there, buffer); err != nil || string(buffer) != "c" {
		t.Errorf("got %q, %v through a link that is whole again, want c", buffer, err)
	}
}
