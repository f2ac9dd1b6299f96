package transport

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite/internal/identity"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A recorder is a transport that keeps what it receives.
type recorder struct {
	*Transport
	t   testing.TB
	got chan struct{} // a batch was received
	log *logLines

	mu      sync.Mutex // guards what follows
	batches []raftpb.MessageBatch
	chunks  []raftpb.Chunk
	told    []raftpb.Message // of type Unreachable
	known   map[uint64]string
	dials   map[uint64]error
}

// freeAddress returns an address of a host on which nobody listens.
func freeAddress(t testing.TB, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skipf("this machine has no %s: %v", host, err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newMembers returns so many members on a host.
func newMembers(t testing.TB, host string, n uint64) map[uint64]string {
	members := map[uint64]string{}
	for id := uint64(1); id <= n; id++ {
		members[id] = freeAddress(t, host)
	}
	return members
}

// newIdentity returns the identity of a secret.
func newIdentity(t testing.TB, secret string) *identity.Identity {
	t.Helper()
	s, err := identity.NewSecret([]byte(strings.Repeat(secret, identity.MinSecret)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.FromSecret(s, identity.RaftLabel, Protocol)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// start starts the transport of a node, which ends with the test.
func start(t testing.TB, node uint64, members map[uint64]string, change ...func(*Options)) *recorder {
	t.Helper()
	r := &recorder{t: t, got: make(chan struct{}, 10000), log: &logLines{}, known: map[uint64]string{}, dials: map[uint64]error{}}
	opts := Options{
		Node: node, Members: members, Listen: members[node], Storage: fmt.Sprintf("folder-%d", node),
		NodeOf: func(replica uint64) uint64 { return replica }, Guard: letAllPass{}, Log: slog.New(slog.NewTextHandler(r.log, nil)),
		SameStorage: r.sameStorage, TookPart: func() bool { return true }, Dialled: r.dialled,
	}
	for _, f := range change {
		f(&opts)
	}
	r.Transport = New(opts)
	r.Create(config.NodeHostConfig{}, r.receive, r.receiveChunk)
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func (r *recorder) receive(b raftpb.MessageBatch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b.Requests[0].Type == raftpb.Unreachable {
		r.told = append(r.told, b.Requests...)
		return
	}
	r.batches = append(r.batches, b)
	r.got <- struct{}{}
}

func (r *recorder) receiveChunk(c raftpb.Chunk) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.chunks = append(r.chunks, c)
	return c.ChunkId < 2
}

func (r *recorder) sameStorage(node uint64, name string, remember bool) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, ok := r.known[node]; ok {
		return known == name, nil
	}
	if remember {
		r.known[node] = name
	}
	return true, nil
}

func (r *recorder) dialled(node uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dials[node] = err
}

// dialError returns how the last attempt to connect to a node ended.
func (r *recorder) dialError(node uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dials[node]
}

// messages returns how many messages of a type were received.
func (r *recorder) messages(kind raftpb.MessageType) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.batches {
		for _, m := range b.Requests {
			if m.Type == kind {
				n++
			}
		}
	}
	return n
}

// batchCount returns how many batches were received.
func (r *recorder) batchCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.batches)
}

// send sends messages to a node, over a connection of its own.
func (r *recorder) send(node uint64, all ...raftpb.Message) {
	r.t.Helper()
	c, err := r.GetConnection(context.Background(), r.Address(node))
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	for i := range all {
		all[i].From, all[i].To = r.opts.Node, node
		if exchanged[all[i].Type] {
			all[i].Term = 1
		}
	}
	if err := c.SendMessageBatch(raftpb.MessageBatch{BinVer: raftio.TransportBinVersion, Requests: all}); err != nil {
		r.t.Fatal(err)
	}
}

// waitFor sends heartbeats to a node until it has received one.
func (r *recorder) waitFor(other *recorder) {
	r.t.Helper()
	before := other.messages(raftpb.Heartbeat)
	testrun.WaitFor(r.t, "a heartbeat to arrive", func() bool {
		r.send(other.opts.Node, raftpb.Message{Type: raftpb.Heartbeat, ShardID: 1})
		return other.messages(raftpb.Heartbeat) > before
	})
}

// waitUp waits until both lanes to a node are connected.
func (r *recorder) waitUp(node uint64) {
	r.t.Helper()
	testrun.WaitFor(r.t, "both lanes to be connected", func() bool { return r.links[node].bulk.isUp() && r.links[node].urgent.isUp() })
}

// letAllPass is a Guard that changes nothing.
type letAllPass struct{}

func (letAllPass) Sending(all []raftpb.Message) []raftpb.Message {
	return append([]raftpb.Message(nil), all...)
}
func (letAllPass) Received(*raftpb.MessageBatch) {}
func (letAllPass) Paused() bool                  { return false }

// logLines keeps what is logged.
type logLines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logLines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// count returns how many lines contain a text.
func (l *logLines) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// withSecret gives a transport the identity of a secret.
func withSecret(t testing.TB, secret string) func(*Options) {
	id := newIdentity(t, secret)
	return func(o *Options) { o.Identity = id }
}

// closes waits until the other side closes a connection.
func closes(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(testrun.Patience))
	for buffer := make([]byte, 4096); ; {
		if _, err := c.Read(buffer); err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Error("the connection stays open")
			}
			return
		}
	}
}
