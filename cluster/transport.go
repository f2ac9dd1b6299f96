package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// A frame is what goes over a connection: a header of frameHeader bytes (the
// magic, a kind, the length and the CRC-32C of the payload) and the payload.
// Only the node that dialled sends frames; the other one answers endFrame with
// a byte.
const (
	frameMagic  = "hiq1"
	frameHeader = len(frameMagic) + 1 + 4 + 4

	batchFrame byte = 1 // a raftpb.MessageBatch
	chunkFrame byte = 2 // a raftpb.Chunk of a snapshot
	endFrame   byte = 3 // the snapshot is complete

	// maxFrame bounds, in bytes, the payload that is believed: a proposal
	// forwarded to the leader is the largest message.
	maxFrame = 128 << 20
	// splitFrame is the size, in bytes, from which the messages of a batch are
	// sent in several frames, so that no large buffer is needed.
	splitFrame = 1 << 20
	// keepBuffer is the largest buffer, in bytes, that a connection keeps.
	keepBuffer = 2 << 20

	dialTimeout    = 5 * time.Second
	redialFor      = time.Second           // after which Dragonboat sends nothing for up to a second
	redialEvery    = 20 * time.Millisecond // a refused connection costs some 0.1 ms
	ioTimeout      = 5 * time.Second       // for a part of a frame of at most ioPart bytes
	ioPart         = 1 << 20
	ackTimeout     = 10 * time.Second
	keepAliveEvery = 10 * time.Second
	acceptAgain    = 50 * time.Millisecond
	listenAgain    = time.Second
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// transport carries Raft's messages over TCP, in the clear. Unlike Dragonboat's
// own it takes every address that Go can listen on and dial, does not end the
// process because of what a stranger sends or because accepting fails, and
// waits for a listen address that does not resolve yet.
type transport struct {
	listenOn string
	log      *slog.Logger
	guard    *guard
	handle   raftio.MessageHandler
	chunk    raftio.ChunkHandler

	ctx  context.Context // ends with the transport
	stop context.CancelFunc
	work sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // accepted ones; nil: closed
}

var _ raftio.ITransport = (*transport)(nil)

// transportFactory makes the transport of a node with peers.
type transportFactory struct {
	listenOn string
	log      *slog.Logger
	guard    *guard
}

var _ config.TransportFactory = transportFactory{}

func (f transportFactory) Create(_ config.NodeHostConfig, handle raftio.MessageHandler, chunk raftio.ChunkHandler) raftio.ITransport {
	t := &transport{listenOn: f.listenOn, log: f.log, guard: f.guard, handle: handle, chunk: chunk, conns: map[net.Conn]struct{}{}}
	t.ctx, t.stop = context.WithCancel(context.Background())
	return t
}

// Validate accepts what Config.validate has accepted.
func (transportFactory) Validate(address string) bool { return checkAddress(address) == nil }

// checkAddress reports why an address is not host:port. The host may be a name
// of any form, or an IP address; IPv6 ones stand in brackets.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if host == "" {
		return errors.New("it has no host")
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
		return errors.New("it has no port between 1 and 65535")
	}
	return nil
}

func (t *transport) Name() string { return "hiqlite-tcp" }

// Start listens. While the address does not resolve it tries again, and says so
// once: a container's name may be known later than it runs.
func (t *transport) Start() error {
	l, err := t.listen()
	if err != nil && !unresolved(err) {
		return err
	}
	t.work.Go(func() {
		if l == nil {
			t.log.Info("hiqlite: the Raft address of this node does not resolve yet; trying again until it does", "address", t.listenOn, "error", err)
			if l = t.listenLater(); l == nil {
				return
			}
			t.log.Info("hiqlite: the Raft address of this node resolves now", "address", t.listenOn, "listening", l.Addr().String())
		}
		defer context.AfterFunc(t.ctx, func() { l.Close() })()
		defer l.Close()
		t.accept(l)
	})
	return nil
}

func (t *transport) listen() (net.Listener, error) {
	ctx, cancel := context.WithTimeout(t.ctx, dialTimeout)
	defer cancel()
	return resolveListen(ctx, &net.ListenConfig{KeepAlive: keepAliveEvery}, t.listenOn)
}

// resolveListen is exchanged by tests.
var resolveListen = func(ctx context.Context, cfg *net.ListenConfig, on string) (net.Listener, error) {
	return cfg.Listen(ctx, "tcp", on)
}

// listenLater tries to listen until it can, or the transport is closed.
func (t *transport) listenLater() net.Listener {
	for said := false; sleepFor(t.ctx, listenAgain); {
		l, err := t.listen()
		if err == nil {
			return l
		}
		if !unresolved(err) && !said {
			said = true
			t.log.Error("hiqlite: cannot listen on the Raft address; trying again", "address", t.listenOn, "error", err)
		}
	}
	return nil
}

// unresolved reports whether an error says that a name has no address yet.
func unresolved(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns)
}

// sleepFor waits for d and reports false when ctx ends first.
func sleepFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (t *transport) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if t.ctx.Err() != nil {
			if c != nil {
				c.Close()
			}
			return
		}
		if err != nil { // too many open files, or a connection that broke at once
			sleepFor(t.ctx, acceptAgain)
			continue
		}
		t.mu.Lock()
		open := t.conns != nil
		if open {
			t.conns[c] = struct{}{}
			t.work.Go(func() { t.serve(c) })
		}
		t.mu.Unlock()
		if !open {
			c.Close()
			return
		}
	}
}

// Close returns once no handler is called any more.
func (t *transport) Close() error {
	t.stop()
	t.mu.Lock()
	for c := range t.conns {
		c.Close()
	}
	t.conns = nil
	t.mu.Unlock()
	t.work.Wait()
	return nil
}

// serve reads the frames of a peer until the connection ends, or one is wrong.
func (t *transport) serve(c net.Conn) {
	defer func() {
		c.Close()
		t.mu.Lock()
		delete(t.conns, c)
		t.mu.Unlock()
	}()
	r := frameReader{conn: c}
	for {
		kind, payload, err := r.next()
		if err != nil {
			return
		}
		switch kind {
		case batchFrame:
			var batch raftpb.MessageBatch
			if batch.Unmarshal(payload) != nil {
				return
			}
			t.guard.received(&batch)
			if len(batch.Requests) > 0 {
				t.handle(batch)
			}
		case chunkFrame:
			var chunk raftpb.Chunk
			if t.guard.paused.Load() || chunk.Unmarshal(payload) != nil || !t.chunk(chunk) {
				return
			}
		case endFrame:
			c.SetWriteDeadline(time.Now().Add(ioTimeout))
			c.Write([]byte{0})
			return
		default:
			return
		}
	}
}

// frameReader reads frames. What it returns is valid until the next call, but
// for a large payload, which is the caller's.
type frameReader struct {
	conn net.Conn
	head [frameHeader]byte
	buf  []byte
}

var errFrame = errors.New("hiqlite: not a frame of this transport")

func (r *frameReader) next() (kind byte, payload []byte, err error) {
	r.conn.SetReadDeadline(time.Time{}) // keep-alive notices a dead peer
	if _, err := io.ReadFull(r.conn, r.head[:1]); err != nil {
		return 0, nil, err
	}
	r.conn.SetReadDeadline(time.Now().Add(ioTimeout))
	if _, err := io.ReadFull(r.conn, r.head[1:]); err != nil {
		return 0, nil, err
	}
	size := binary.LittleEndian.Uint32(r.head[5:])
	if string(r.head[:4]) != frameMagic || size > maxFrame {
		return 0, nil, errFrame
	}
	// Memory is taken as the bytes arrive: a length alone costs nothing.
	buf := r.buf[:0]
	for uint32(len(buf)) < size {
		n := min(int(size)-len(buf), ioPart)
		from := len(buf)
		if cap(buf)-from < n {
			buf = append(make([]byte, 0, min(int(size), max(2*cap(buf), from+n))), buf...)
		}
		buf = buf[:from+n]
		r.conn.SetReadDeadline(time.Now().Add(ioTimeout))
		if _, err := io.ReadFull(r.conn, buf[from:]); err != nil {
			return 0, nil, err
		}
	}
	if crc32.Checksum(buf, castagnoli) != binary.LittleEndian.Uint32(r.head[9:]) {
		return 0, nil, errFrame
	}
	if r.buf = buf; cap(buf) > keepBuffer {
		r.buf = nil
	}
	return r.head[4], buf, nil
}

func (t *transport) dial(ctx context.Context, target string) (*frameWriter, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := (&net.Dialer{KeepAlive: keepAliveEvery}).DialContext(ctx, "tcp", target)
	t.guard.peers.dial(target, err)
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	return &frameWriter{conn: c}, nil
}

// frameWriter writes frames.
type frameWriter struct {
	conn net.Conn
	buf  []byte
}

type marshaler interface {
	Size() int
	MarshalTo([]byte) (int, error)
}

func (w *frameWriter) write(kind byte, m marshaler) error {
	size := 0
	if m != nil {
		size = m.Size()
	}
	if size > maxFrame {
		return fmt.Errorf("hiqlite: a message of %d bytes is too large for the transport", size)
	}
	buf := w.buf
	if cap(buf) < frameHeader+size {
		buf = make([]byte, frameHeader+size)
	}
	buf = buf[:frameHeader+size]
	if m != nil {
		n, err := m.MarshalTo(buf[frameHeader:])
		if err != nil {
			return err
		}
		buf = buf[:frameHeader+n]
	}
	copy(buf, frameMagic)
	buf[4] = kind
	binary.LittleEndian.PutUint32(buf[5:], uint32(len(buf)-frameHeader))
	binary.LittleEndian.PutUint32(buf[9:], crc32.Checksum(buf[frameHeader:], castagnoli))
	if w.buf = buf; cap(buf) > keepBuffer {
		w.buf = nil
	}
	for len(buf) > 0 {
		part := buf[:min(len(buf), ioPart)]
		w.conn.SetWriteDeadline(time.Now().Add(ioTimeout))
		if _, err := w.conn.Write(part); err != nil {
			return err
		}
		buf = buf[len(part):]
	}
	return nil
}

// peerConn sends messages to a peer.
type peerConn struct {
	*frameWriter
	t      *transport
	target string
	ctx    context.Context
}

func (t *transport) GetConnection(ctx context.Context, target string) (raftio.IConnection, error) {
	w, err := t.redial(ctx, target)
	if err != nil {
		return nil, err
	}
	return &peerConn{w, t, target, ctx}, nil
}

// redial dials until it succeeds or redialFor is over.
//
// Dragonboat has one circuit breaker for each address: after any failure of a
// connection it sends nothing to that node for up to a second, for no shard. Each
// shard has a connection of its own and learns only by writing that the peer has
// restarted, so a node that was back after some milliseconds was cut off for
// several seconds, one for each stale connection. If another node ended meanwhile,
// the cluster had no leader for as long. So a peerConn replaces a broken connection
// without telling Dragonboat; what was lost with it, Raft sends again.
func (t *transport) redial(ctx context.Context, target string) (*frameWriter, error) {
	for end := time.Now().Add(redialFor); ; {
		w, err := t.dial(ctx, target)
		if err == nil || time.Now().After(end) || !sleepFor(ctx, redialEvery) {
			return w, err
		}
	}
}

func (c *peerConn) Close() { c.conn.Close() }

// SendMessageBatch sends a batch in one frame, or in several if it is large.
func (c *peerConn) SendMessageBatch(batch raftpb.MessageBatch) error {
	all := c.t.guard.sending(batch.Requests)
	for len(all) > 0 {
		n, size := 1, all[0].Size()
		for n < len(all) && size < splitFrame {
			size += all[n].Size()
			n++
		}
		batch.Requests, all = all[:n], all[n:]
		if err := c.writeBatch(&batch); err != nil {
			return err
		}
	}
	return nil
}

// writeBatch writes a batch, on a new connection if the present one is broken.
func (c *peerConn) writeBatch(batch *raftpb.MessageBatch) error {
	if c.write(batchFrame, batch) == nil {
		return nil
	}
	c.conn.Close()
	w, err := c.t.redial(c.ctx, c.target)
	if err != nil {
		return err
	}
	c.frameWriter = w
	return c.write(batchFrame, batch)
}

// snapshotConn sends the chunks of a snapshot.
type snapshotConn struct {
	*frameWriter
	failed bool
}

func (t *transport) GetSnapshotConnection(ctx context.Context, target string) (raftio.ISnapshotConnection, error) {
	w, err := t.dial(ctx, target)
	if err != nil {
		return nil, err
	}
	return &snapshotConn{frameWriter: w}, nil
}

func (c *snapshotConn) SendChunk(chunk raftpb.Chunk) error {
	err := c.write(chunkFrame, &chunk)
	c.failed = c.failed || err != nil
	return err
}

// Close waits until the peer has read everything: closing would discard it.
func (c *snapshotConn) Close() {
	if !c.failed && c.write(endFrame, nil) == nil {
		c.conn.SetReadDeadline(time.Now().Add(ackTimeout))
		io.ReadFull(c.conn, make([]byte, 1))
	}
	c.conn.Close()
}

// listenError says what to do about an address that cannot be listened on.
func listenError(address string, err error) error {
	hint := "stop what uses the port, or configure another one"
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		hint = "no interface of this machine has it: name a listen address that one has"
	}
	return fmt.Errorf("hiqlite: cannot listen on the Raft address %s: %w: %s", address, err, hint)
}
