package transport

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// handshakeTimeout bounds the handshake of TLS and the exchange of hellos, which
	// take two round trips.
	handshakeTimeout = 5 * time.Second
	// connectTimeout bounds an attempt to connect. The kernel would repeat a lost
	// packet of it after a second; another attempt has been made by then.
	connectTimeout = time.Second
	// unacknowledgedTimeout ends a connection when nothing that was sent is
	// acknowledged for so long.
	unacknowledgedTimeout = 3 * time.Second
	keepAliveInterval     = 10 * time.Second
)

// A conn is a connection to another node, or to a stranger until both have said
// hello.
type conn struct {
	raw  net.Conn // TCP
	in   *frameReader
	out  *frameWriter
	peer hello // set once it is known
	// bound: the name of the peer's data folder is remembered. Only the goroutine that
	// reads the connection uses it.
	bound bool
	done  chan struct{} // closed by close
	once  sync.Once
}

// close ends the connection at once: what was not sent is lost.
func (c *conn) close() {
	c.once.Do(func() {
		close(c.done)
		c.raw.Close() // not tls.Conn.Close, which may wait for the peer to read
	})
}

// received returns when bytes were received last, see sinceStart.
func (c *conn) received() int64 { return c.in.received.Load() }

// newConn makes a conn of a TCP connection, after the handshake of TLS if this node
// has an identity.
func (t *Transport) newConn(ctx context.Context, raw net.Conn, accepted bool) (*conn, error) {
	over := raw
	if id := t.opts.Identity; id != nil {
		ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
		defer cancel()
		buffered := bufferedConn{raw, bufio.NewReaderSize(raw, readBuffer)}
		encrypted := tls.Client(buffered, id.Client())
		if accepted {
			encrypted = tls.Server(buffered, id.Server())
		}
		if err := encrypted.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		over = encrypted
	}
	return &conn{raw: raw, in: newFrameReader(over), out: &frameWriter{conn: over}, done: make(chan struct{})}, nil
}

// bufferedConn reads from a connection in large pieces. Package tls reads only some
// bytes first, to learn how long a record is, which would be a system call more for
// each message.
type bufferedConn struct {
	net.Conn
	in *bufio.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.in.Read(p) }

// hello returns what this node says of itself.
func (t *Transport) hello(l lane) hello {
	return hello{Version: protocolVersion, Node: t.opts.Node, Instance: t.instance, Storage: t.opts.Storage, Address: t.opts.Members[t.opts.Node], Lane: l}
}

// dial connects to a node at an address. The caller has to close the connection, and
// to remove it from peers.
func (t *Transport) dial(ctx context.Context, node uint64, address string, l lane) (*conn, error) {
	dialer := &net.Dialer{Timeout: connectTimeout, KeepAlive: keepAliveInterval, Control: tune}
	raw, err := t.opts.Hooks.Dial(ctx, dialer, address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := raw.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	defer context.AfterFunc(ctx, func() { raw.Close() })() // the hellos below do not know ctx
	c, err := t.greetAs(ctx, raw, node, l)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// greetAs exchanges hellos over a connection that was dialled.
func (t *Transport) greetAs(ctx context.Context, raw net.Conn, node uint64, l lane) (*conn, error) {
	c, err := t.newConn(ctx, raw, false)
	if err != nil {
		return nil, err
	}
	if err := c.greet(t.hello(l)); err != nil {
		return nil, err
	}
	peer, err := c.expectHello()
	if refused, ok := err.(*refusedError); ok {
		refused.by.Node = node
	}
	if err != nil {
		return nil, err
	}
	if peer.Node != node {
		return nil, fmt.Errorf("hiqlite: the address of node %d leads to node %d", node, peer.Node)
	}
	c.peer = peer
	if err := t.admit(ctx, c); err != nil {
		c.refuse(err)
		return nil, err
	}
	return c, nil
}

// sameStorage reports whether a node has the same data folder as before; see
// Options.SameStorage. Without an identity, everybody could take any node's place, so
// nothing is remembered.
func (t *Transport) sameStorage(node uint64, storage string, remember bool) (bool, error) {
	if t.opts.Identity == nil {
		return true, nil
	}
	return t.opts.SameStorage(node, storage, remember)
}

// admit checks what a peer says of itself, and registers the connection with peers.
func (t *Transport) admit(ctx context.Context, c *conn) error {
	peer := c.peer
	switch _, known := t.opts.Members[peer.Node]; {
	case peer.Version != protocolVersion:
		return refuse(RefusedVersion, "node %d speaks version %d of the protocol, and node %d version %d: run the same version of the program on all nodes", peer.Node, peer.Version, t.opts.Node, protocolVersion)
	case !known:
		return refuse(RefusedNode, "node %d is not among the nodes %v of the cluster: list the same nodes everywhere", peer.Node, slicesSorted(t.opts.Members))
	case peer.Node == t.opts.Node:
		return refuse(RefusedNode, "node %d is this node's own id: give each node an id of its own, and check the addresses", peer.Node)
	}
	return t.peers.add(ctx, c)
}
