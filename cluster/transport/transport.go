// Package transport carries Raft's messages and snapshots between the nodes of a
// cluster, for Dragonboat.
//
// A node dials each other node and sends only on the connections that it dialled, so
// between two nodes there are connections in both directions. link.go describes how
// a connection is kept; frame.go what it carries; hello.go and peers.go how two nodes
// make sure who the other one is; strangers.go what happens to everybody else.
//
// With an identity, connections are encrypted and authenticated by TLS 1.3. Without
// one they are in the clear, and whoever can connect can take part: this is for
// nodes that are all on one machine.
package transport

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"

	"github.com/hiqlite/hiqlite/internal/identity"
)

// Protocol is what both sides of a connection with TLS name as their protocol.
const Protocol = "hiqlite-raft/1"

const (
	listenTimeout    = 5 * time.Second // for resolving the own address
	listenRetryPause = time.Second
	acceptRetryPause = 50 * time.Millisecond
)

// Options describe the transport of a node.
type Options struct {
	Node    uint64            // id of this node, a key of Members
	Members map[uint64]string // node id -> host:port; not changed after New
	Listen  string            // host:port on which this node listens
	Storage string            // a random name of this node's data folder

	// Identity is that of the cluster; nil: connections are in the clear.
	Identity *identity.Identity

	// NodeOf returns the node of a replica.
	NodeOf func(replica uint64) uint64
	// Guard inspects messages.
	Guard Guard
	// SameStorage reports whether a node has the data folder whose name is remembered,
	// or none is. In that case it remembers the name, durably, if it is told to.
	SameStorage func(node uint64, storage string, remember bool) (bool, error)
	// TookPart reports whether this node may have voted, or acknowledged entries. From
	// then on the other nodes must not accept another data folder in its place.
	TookPart func() bool
	// Dialled is called when an attempt to connect to a node has ended.
	Dialled func(node uint64, err error)

	Log   *slog.Logger
	Hooks Hooks
}

// A Guard decides which messages are sent and received.
type Guard interface {
	// Sending returns those messages that may be sent, as copies.
	Sending(all []raftpb.Message) []raftpb.Message
	// Received removes from a batch what Raft must not see.
	Received(batch *raftpb.MessageBatch)
	// Paused reports whether no snapshot may be received.
	Paused() bool
}

// Hooks let tests change what a transport meets. The zero value changes nothing.
type Hooks struct {
	// Listen and Dial listen and dial instead of TCP.
	Listen ListenFunc
	Dial   func(ctx context.Context, dialer *net.Dialer, address string) (net.Conn, error)
	// Send is called for each message, with the sending and the receiving node, the
	// shard, and the name of the message's type in Raft. It returns after what time
	// each copy of the message is sent: nil drops it, {0} changes nothing, {0, 0}
	// sends it twice, and {time.Millisecond} lets later messages overtake it.
	Send func(from, to, shard uint64, kind string) []time.Duration
}

// A Transport is the transport of one node. Create makes it Dragonboat's.
type Transport struct {
	opts     Options
	instance string // of this process
	links    map[uint64]*link
	peers    peers
	gate     gate
	handle   raftio.MessageHandler
	chunk    raftio.ChunkHandler
	deploy   uint64 // Dragonboat's DeploymentId

	ctx  context.Context // ends with the transport
	stop context.CancelFunc

	mu     sync.Mutex
	closed bool           // guarded by mu
	work   sync.WaitGroup // Add only with mu held and closed false; see spawn
}

var (
	_ config.TransportFactory = (*Transport)(nil)
	_ raftio.ITransport       = (*Transport)(nil)
)

// New returns a transport that does nothing yet.
func New(opts Options) *Transport {
	if opts.Hooks.Listen == nil {
		opts.Hooks.Listen = listenTCP
	}
	if opts.Hooks.Dial == nil {
		opts.Hooks.Dial = dialTCP
	}
	opts.Members = maps.Clone(opts.Members)
	t := &Transport{opts: opts, instance: newInstance(), links: map[uint64]*link{}}
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.peers.init(t.sameStorage)
	t.gate.init(opts.Log, opts.Node)
	for node := range opts.Members {
		if node != opts.Node {
			t.links[node] = newLink(t, node)
		}
	}
	return t
}

// Create implements config.TransportFactory.
func (t *Transport) Create(cfg config.NodeHostConfig, handle raftio.MessageHandler, chunk raftio.ChunkHandler) raftio.ITransport {
	t.handle, t.chunk, t.deploy = handle, chunk, cfg.GetDeploymentID()
	return t
}

// Validate implements config.TransportFactory.
func (t *Transport) Validate(address string) bool { return CheckAddress(address) == nil }

// Name implements raftio.ITransport.
func (t *Transport) Name() string { return "hiqlite-tcp" }

// Start listens, and begins to connect to the other nodes. While the address does
// not resolve it tries again, and logs that once: the name of a container may be
// known only some time after its start.
func (t *Transport) Start() error {
	l, err := t.tryListen()
	if err != nil && !unresolved(err) {
		return err
	}
	t.spawn(func() {
		if l == nil {
			t.opts.Log.Info("hiqlite: the Raft address of this node does not resolve yet; trying again until it does", "address", t.opts.Listen, "error", err)
			if l = t.listenLater(); l == nil {
				return
			}
			t.opts.Log.Info("hiqlite: the Raft address of this node resolves now", "address", t.opts.Listen, "listening", l.Addr().String())
		}
		defer context.AfterFunc(t.ctx, func() { l.Close() })()
		defer l.Close()
		t.accept(l)
	})
	for _, link := range t.links {
		link.start()
	}
	return nil
}

// spawn runs f in a goroutine that Close waits for. It reports false, and does
// nothing, if the transport is closed.
func (t *Transport) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.work.Go(f)
	}
	return !t.closed
}

func (t *Transport) tryListen() (net.Listener, error) {
	ctx, cancel := context.WithTimeout(t.ctx, listenTimeout)
	defer cancel()
	return t.opts.Hooks.Listen(ctx, &net.ListenConfig{KeepAlive: keepAliveInterval, Control: tune}, t.opts.Listen)
}

// listenLater tries to listen until it succeeds, or until the transport is closed.
// Then it returns nil.
func (t *Transport) listenLater() net.Listener {
	for logged := false; sleepFor(t.ctx, listenRetryPause); {
		l, err := t.tryListen()
		if err == nil {
			return l
		}
		if !unresolved(err) && !logged {
			logged = true
			t.opts.Log.Error("hiqlite: cannot listen on the Raft address; trying again", "address", t.opts.Listen, "error", err)
		}
	}
	return nil
}

func (t *Transport) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if t.ctx.Err() != nil {
			if c != nil {
				c.Close()
			}
			return
		}
		if err != nil { // such as too many open files, or a connection that broke at once
			sleepFor(t.ctx, acceptRetryPause)
			continue
		}
		if !t.spawn(func() { t.serve(c) }) {
			c.Close()
			return
		}
	}
}

// Close returns once the handlers of Raft are not called any more.
func (t *Transport) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.stop()
	t.work.Wait()
	return nil
}

// Target returns what GetConnection takes to connect to a node.
func Target(node uint64) string { return fmt.Sprintf("node-%d", node) }

// link returns the link to a target.
func (t *Transport) link(target string) (*link, error) {
	var node uint64
	if _, err := fmt.Sscanf(target, "node-%d", &node); err != nil || t.links[node] == nil {
		return nil, fmt.Errorf("hiqlite: %q is not another node of this cluster", target)
	}
	return t.links[node], nil
}

// GetConnection implements raftio.ITransport. What it returns does not fail while
// the transport is open: if it did, Dragonboat would send the node nothing for up to
// a second.
func (t *Transport) GetConnection(_ context.Context, target string) (raftio.IConnection, error) {
	l, err := t.link(target)
	if err != nil {
		return nil, err
	}
	return handle{l}, nil
}

// handle lets Dragonboat send on a link.
type handle struct{ *link }

// Close implements raftio.IConnection. The link stays.
func (handle) Close() {}

// SendMessageBatch implements raftio.IConnection. It does not block.
func (h handle) SendMessageBatch(batch raftpb.MessageBatch) error {
	if h.t.ctx.Err() != nil {
		return net.ErrClosed
	}
	h.header.Store(&raftpb.MessageBatch{DeploymentId: batch.DeploymentId, SourceAddress: batch.SourceAddress, BinVer: batch.BinVer})
	h.send(h.t.opts.Guard.Sending(batch.Requests))
	return nil
}

// Reachable returns the other nodes that this one has exchanged something with
// within the last second, ordered by id.
func (t *Transport) Reachable() (nodes []uint64) {
	for _, node := range slices.Sorted(maps.Keys(t.links)) {
		if t.links[node].up() {
			nodes = append(nodes, node)
		}
	}
	return nodes
}

// Refused returns the nodes that refuse this one, and why. A refusal counts until
// the node that refuses accepts a connection. Each error wraps a *Refusal.
func (t *Transport) Refused() map[uint64]error {
	by := map[uint64]error{}
	for node, l := range t.links {
		if err := l.refusal.Load(); err != nil {
			by[node] = err
		}
	}
	return by
}

// Stats count what strangers did since the transport was made.
func (t *Transport) Stats() Stats { return t.gate.stats() }

// sleepFor waits for d and reports false when ctx ends first.
func sleepFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
