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

// Connections carry frames. A frame is a header of frameHeader bytes (the magic, a
// kind, the length and the CRC-32C of the payload) and the payload. Only the node
// that dialled sends frames; the other one answers an endFrame with one byte.
const (
	frameMagic  = "hiq1"
	frameHeader = len(frameMagic) + 1 + 4 + 4

	batchFrame byte = 1 // a raftpb.MessageBatch
	chunkFrame byte = 2 // a raftpb.Chunk of a snapshot
	endFrame   byte = 3 // the snapshot is complete

	// maxFrame bounds, in bytes, the payload that a header may announce. The largest
	// message is a proposal that is forwarded to the leader.
	maxFrame = 128 << 20
	// splitFrame is the size, in bytes, from which the messages of a batch are sent in
	// several frames, so that no large buffer is needed.
	splitFrame = 1 << 20
	// maxKeptBuffer is the size, in bytes, of the largest buffer that a connection
	// keeps for the next frame.
	maxKeptBuffer = 2 << 20

	dialTimeout       = 5 * time.Second
	redialTime        = time.Second           // how long a broken connection is replaced without telling Dragonboat; see redial
	redialPause       = 20 * time.Millisecond // between the attempts; a refused connection costs about 0.1 ms
	ioTimeout         = 5 * time.Second       // for a part of a frame, of at most ioPart bytes
	ioPart            = 1 << 20
	ackTimeout        = 10 * time.Second // for the answer to an endFrame
	keepAliveInterval = 10 * time.Second
	acceptRetryPause  = 50 * time.Millisecond
	listenRetryPause  = time.Second
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// transport carries Raft's messages over TCP, without encryption. Unlike
// Dragonboat's own transport it supports every address that Go can listen on and
// dial, it does not end the process because of what a stranger sends or because
// accepting a connection fails, and it waits for a listen address that does not
// resolve yet.
type transport struct {
	listenOn string
	listen   listenFunc
	log      *slog.Logger
	guard    *guard
	handle   raftio.MessageHandler
	chunk    raftio.ChunkHandler

	ctx  context.Context // ends with the transport
	stop context.CancelFunc
	work sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // accepted connections; nil: the transport is closed; guarded by mu
}

var _ raftio.ITransport = (*transport)(nil)

// transportFactory makes the transport of a node that is not alone.
type transportFactory struct {
	listenOn string
	listen   listenFunc // nil: listenTCP; tests set another one
	log      *slog.Logger
	guard    *guard
}

var _ config.TransportFactory = transportFactory{}

func (f transportFactory) Create(_ config.NodeHostConfig, handle raftio.MessageHandler, chunk raftio.ChunkHandler) raftio.ITransport {
	t := &transport{listenOn: f.listenOn, listen: f.listen, log: f.log, guard: f.guard, handle: handle, chunk: chunk, conns: map[net.Conn]struct{}{}}
	if t.listen == nil {
		t.listen = listenTCP
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	return t
}

// listenFunc listens on an address.
type listenFunc func(ctx context.Context, cfg *net.ListenConfig, address string) (net.Listener, error)

func listenTCP(ctx context.Context, cfg *net.ListenConfig, address string) (net.Listener, error) {
	return cfg.Listen(ctx, "tcp", address)
}

// Validate accepts the addresses that Config.validate accepts.
func (transportFactory) Validate(address string) bool { return checkAddress(address) == nil }

// checkAddress reports why an address is not host:port. The host may be any name,
// or an IP address; an IPv6 address is in brackets.
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

// Start listens. While the address does not resolve it tries again, and logs that
// once: the name of a container may be known only some time after its start.
func (t *transport) Start() error {
	l, err := t.tryListen()
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

func (t *transport) tryListen() (net.Listener, error) {
	ctx, cancel := context.WithTimeout(t.ctx, dialTimeout)
	defer cancel()
	return t.listen(ctx, &net.ListenConfig{KeepAlive: keepAliveInterval}, t.listenOn)
}

// listenLater tries to listen until it succeeds, or until the transport is closed.
// Then it returns nil.
func (t *transport) listenLater() net.Listener {
	for logged := false; sleepFor(t.ctx, listenRetryPause); {
		l, err := t.tryListen()
		if err == nil {
			return l
		}
		if !unresolved(err) && !logged {
			logged = true
			t.log.Error("hiqlite: cannot listen on the Raft address; trying again", "address", t.listenOn, "error", err)
		}
	}
	return nil
}

// unresolved reports whether an error says that a name could not be resolved.
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
		if err != nil { // such as too many open files, or a connection that broke at once
			sleepFor(t.ctx, acceptRetryPause)
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

// Close returns once the handlers of Raft are not called any more.
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

// serve reads frames from a connection until it ends, or a frame is invalid.
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

// frameReader reads frames. A payload is valid until the next call of next.
type frameReader struct {
	conn net.Conn
	head [frameHeader]byte
	buf  []byte
}

var errFrame = errors.New("hiqlite: not a frame of this transport")

func (r *frameReader) next() (kind byte, payload []byte, err error) {
	r.conn.SetReadDeadline(time.Time{}) // TCP's keep-alive notices a dead node
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
	// The buffer grows as the bytes arrive: a header that announces a large payload
	// costs no memory.
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
	if r.buf = buf; cap(buf) > maxKeptBuffer {
		r.buf = nil
	}
	return r.head[4], buf, nil
}

func (t *transport) dial(ctx context.Context, target string) (*frameWriter, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := (&net.Dialer{KeepAlive: keepAliveInterval}).DialContext(ctx, "tcp", target)
	t.guard.peers.dialled(target, err)
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
	if w.buf = buf; cap(buf) > maxKeptBuffer {
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

// peerConn sends messages to another node. Dragonboat uses it from one goroutine at a
// time.
type peerConn struct {
	*frameWriter
	t      *transport
	target string
	ctx    context.Context // ends with Dragonboat's transport
}

func (t *transport) GetConnection(ctx context.Context, target string) (raftio.IConnection, error) {
	w, err := t.redial(ctx, target)
	if err != nil {
		return nil, err
	}
	return &peerConn{w, t, target, ctx}, nil
}

// redial dials until it succeeds or redialTime is over.
//
// Dragonboat has one circuit breaker for each address: after any failure of a
// connection it sends nothing to that node for up to a second, for no shard. Each
// shard has a connection of its own, and learns only by writing that the other node
// has restarted. So a node that was back after some milliseconds was cut off for
// several seconds, one for each stale connection, and if yet another node ended
// meanwhile, the cluster had no leader for as long. Therefore a peerConn replaces a
// broken connection without telling Dragonboat. Raft sends again the messages that
// were lost with the old one.
func (t *transport) redial(ctx context.Context, target string) (*frameWriter, error) {
	for end := time.Now().Add(redialTime); ; {
		w, err := t.dial(ctx, target)
		if err == nil || time.Now().After(end) || !sleepFor(ctx, redialPause) {
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

// writeBatch writes a batch, on a new connection if the current one is broken.
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

// Close waits until the other node has read everything. To close the connection at
// once would discard what it has not read.
func (c *snapshotConn) Close() {
	if !c.failed && c.write(endFrame, nil) == nil {
		c.conn.SetReadDeadline(time.Now().Add(ackTimeout))
		io.ReadFull(c.conn, make([]byte, 1))
	}
	c.conn.Close()
}

// listenError adds what to do about an address that cannot be listened on.
func listenError(address string, err error) error {
	hint := "stop what uses the port, or configure another one"
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		hint = "no interface of this machine has it: name a listen address that one has"
	}
	return fmt.Errorf("hiqlite: cannot listen on the Raft address %s: %w: %s", address, err, hint)
}
