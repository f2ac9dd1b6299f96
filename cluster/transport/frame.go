package transport

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Connections carry frames. A frame is a header of frameHeader bytes (the magic, a
// kind, the length and the CRC-32C of the payload) and the payload.
//
//	frame         sent by         when                                  payload
//	helloFrame    both            first; the dialling side begins       a hello
//	refusalFrame  either          instead of, or after, a helloFrame    a refusal; the connection ends
//	batchFrame    dialling side   on a lane                             a raftpb.MessageBatch
//	aliveFrame    both            see aliveInterval                     1 if the node took part in the cluster
//	chunkFrame    dialling side   on a connection for a snapshot        a raftpb.Chunk
//	endFrame      both            after the last chunk, as its answer   none
const (
	frameMagic  = "hiq2"
	frameHeader = len(frameMagic) + 1 + 4 + 4

	batchFrame   byte = 1
	chunkFrame   byte = 2
	endFrame     byte = 3
	helloFrame   byte = 4
	refusalFrame byte = 5
	aliveFrame   byte = 6

	// maxHello bounds, in bytes, the payload of a frame until both sides know each
	// other.
	maxHello = 4 << 10
	// maxFrame bounds, in bytes, the payload that a header may announce. The largest
	// message is a proposal that is forwarded to the leader.
	maxFrame = 128 << 20
	// splitFrame is the size, in bytes, from which messages are sent in several
	// frames, so that no large buffer is needed.
	splitFrame = 1 << 20
	// maxKeptBuffer is the size, in bytes, of the largest buffer that a connection
	// keeps for the next frame.
	maxKeptBuffer = 2 << 20
	// readBuffer is the size, in bytes, of what is read at once from a connection.
	readBuffer = 16 << 10

	ioTimeout = 5 * time.Second // for a part of a frame, of at most ioPart bytes
	ioPart    = 1 << 20
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errFrame = errors.New("hiqlite: not a frame of this transport")
)

// A frameReader reads frames. One goroutine uses it.
type frameReader struct {
	conn  net.Conn
	in    *bufio.Reader
	limit uint32 // of a payload, in bytes
	head  [frameHeader]byte
	buf   []byte

	received atomic.Int64 // when bytes were received last; see sinceStart
}

func newFrameReader(conn net.Conn) *frameReader {
	r := &frameReader{conn: conn, limit: maxHello}
	r.in = bufio.NewReaderSize(conn, readBuffer)
	return r
}

// next returns the next frame, which has to begin within wait. Its payload is valid
// until the next call.
func (r *frameReader) next(wait time.Duration) (kind byte, payload []byte, err error) {
	r.conn.SetReadDeadline(time.Now().Add(wait))
	if _, err := io.ReadFull(r.in, r.head[:1]); err != nil {
		return 0, nil, err
	}
	now := time.Now()
	r.received.Store(sinceStart(now))
	r.conn.SetReadDeadline(now.Add(min(wait, ioTimeout)))
	if _, err := io.ReadFull(r.in, r.head[1:]); err != nil {
		return 0, nil, err
	}
	size := binary.LittleEndian.Uint32(r.head[5:])
	if string(r.head[:4]) != frameMagic || size > r.limit {
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
		if from > 0 {
			r.conn.SetReadDeadline(time.Now().Add(ioTimeout))
		}
		if _, err := io.ReadFull(r.in, buf[from:]); err != nil {
			return 0, nil, err
		}
		if size > ioPart {
			r.received.Store(sinceStart(time.Now()))
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

// A frameWriter writes frames. It may be used from several goroutines.
type frameWriter struct {
	conn net.Conn
	mu   sync.Mutex // held while a frame is written
	buf  []byte     // guarded by mu
}

// marshaler is a message of raftpb.
type marshaler interface {
	Size() int
	MarshalTo([]byte) (int, error)
}

// bytesOf is a payload that is marshalled already.
type bytesOf []byte

func (b bytesOf) Size() int                        { return len(b) }
func (b bytesOf) MarshalTo(to []byte) (int, error) { return copy(to, b), nil }

// write writes a frame; a nil m is an empty payload. After an error the connection
// is of no use any more.
func (w *frameWriter) write(kind byte, m marshaler) error {
	w.mu.Lock()
	defer w.mu.Unlock()
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

// started is a moment of this process. What is counted from it fits into an
// atomic.Int64 and does not change with the machine's clock.
var started = time.Now()

func sinceStart(t time.Time) int64 { return int64(t.Sub(started)) }
