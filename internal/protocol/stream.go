package protocol

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
)

// UpgradeName is the protocol that the driver asks for, by an Upgrade of HTTP/1.1, to have
// sessions without HTTP/2.
const UpgradeName = "hiqlite-session-1"

// A Stream carries the messages of sessions over a connection, in both directions. It
// costs less than a stream of HTTP/2, whose frames, flow control and goroutines cost more
// than a statement.
//
// Each side sends frames: one byte for the kind, the length in four bytes, big endian, and
// so many bytes. The kinds are those below. There is no flow control: whoever reads a
// Stream must never wait for anything before it reads again.
//
// A side that receives nothing for a while sends a ping, and gives up the connection if
// there is still nothing.
type Stream struct {
	conn   net.Conn
	limits StreamLimits
	in     *bufio.Reader
	buf    []byte // of the last frame; the reader's own
	pinged bool   // a ping was sent since something was last received; the reader's own

	writing   sync.Mutex  // held while a frame is written
	finishing atomic.Bool // Finish was called
}

const (
	frameMessages = 0 // SessionRequests from a client, SessionResponses from a server
	framePing     = 1 // empty; the answer is a pong, or any other frame
	framePong     = 2 // empty
	frameEnd      = 3 // an Error, or nothing: the sender sends no more
)

// StreamLimits bound what a Stream waits for and holds.
type StreamLimits struct {
	MaxFrame     int           // of messages, in bytes
	PingAfter    time.Duration // how long nothing may be received before a ping is sent
	PingTimeout  time.Duration // how long nothing may be received after the ping
	WriteTimeout time.Duration // how long the other side may take nothing of what is sent
}

const (
	// readBuffer is the size of the buffer of a Stream, in bytes.
	readBuffer = 16 << 10
	// writeStep is how many bytes are written under one deadline, and readStep how many
	// are allocated before anything of a frame has come.
	writeStep, readStep = 64 << 10, 64 << 10
	// maxEnd bounds the error of a frame that ends a Stream, in bytes.
	maxEnd = 64 << 10
	// endTimeout bounds the wait for the other side to close its side of a connection.
	endTimeout = time.Second
)

// NewStream returns the Stream of a connection. early has what was read from it before,
// and must not read on: only the Stream notices that the other side is silent; or it is
// nil.
func NewStream(conn net.Conn, early io.Reader, limits StreamLimits) *Stream {
	s := &Stream{conn: conn, limits: limits}
	var source io.Reader = streamReader{s}
	if early != nil {
		source = io.MultiReader(early, source)
	}
	s.in = bufio.NewReaderSize(source, readBuffer)
	return s
}

// streamReader reads from the connection of a Stream, and sends pings.
type streamReader struct{ *Stream }

var errSilent = errors.New("hiqlite: the other side of the connection is silent")

func (s streamReader) Read(p []byte) (int, error) {
	for {
		if s.finishing.Load() {
			return 0, net.ErrClosed
		}
		wait := s.limits.PingAfter
		if s.pinged {
			wait = s.limits.PingTimeout
		}
		if err := s.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return 0, err
		}
		n, err := s.conn.Read(p)
		if n > 0 {
			s.pinged = false
			return n, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, err
		}
		if s.pinged {
			return 0, errSilent
		}
		if s.pinged, err = s.control(framePing); err != nil {
			return 0, err
		}
	}
}

// control sends a frame without content, unless another one is being sent, which the
// other side will notice too.
func (s *Stream) control(kind byte) (sent bool, err error) {
	if !s.writing.TryLock() {
		return false, nil
	}
	defer s.writing.Unlock()
	return true, s.write([]byte{kind, 0, 0, 0, 0})
}

// Send sends a frame of messages, which begins with HeadBytes of room for the head.
func (s *Stream) Send(frame []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.write(setHead(frame, frameMessages))
}

// SendEnd says that nothing more is sent, and why; nil: everything was sent.
func (s *Stream) SendEnd(e *apiv1.Error) error {
	frame := make([]byte, HeadBytes)
	if e != nil {
		var err error
		if frame, err = (proto.MarshalOptions{}).MarshalAppend(frame, e); err != nil {
			return err
		}
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.write(setHead(frame, frameEnd))
}

func setHead(frame []byte, kind byte) []byte {
	frame[0] = kind
	binary.BigEndian.PutUint32(frame[1:], uint32(len(frame)-HeadBytes))
	return frame
}

// write writes a frame. The caller holds writing.
func (s *Stream) write(frame []byte) error {
	for len(frame) > 0 {
		step := frame[:min(len(frame), writeStep)]
		if err := s.conn.SetWriteDeadline(time.Now().Add(s.limits.WriteTimeout)); err != nil {
			return err
		}
		if _, err := s.conn.Write(step); err != nil {
			return err
		}
		frame = frame[len(step):]
	}
	return nil
}

// A FrameError says that the other side does not keep to the protocol.
type FrameError struct {
	Text     string
	TooLarge bool // a frame of messages is larger than StreamLimits.MaxFrame
}

func (e *FrameError) Error() string { return "hiqlite: " + e.Text }

// Receive returns the next messages. They are valid until Receive is called again. The
// error is io.EOF after the end of the Stream, or the *Error for which the other side has
// ended it.
func (s *Stream) Receive() ([]byte, error) {
	var head [HeadBytes]byte
	for {
		if _, err := io.ReadFull(s.in, head[:]); err != nil {
			return nil, err
		}
		kind, size := head[0], binary.BigEndian.Uint32(head[1:])
		switch {
		case kind == frameMessages && size > uint32(s.limits.MaxFrame):
			return nil, &FrameError{Text: fmt.Sprintf("a message of %d bytes is larger than the %d that it may have", size, s.limits.MaxFrame), TooLarge: true}
		case kind == frameMessages:
			return s.read(int(size))
		case kind == framePing && size == 0:
			if _, err := s.control(framePong); err != nil {
				return nil, err
			}
		case kind == framePong && size == 0:
		case kind == frameEnd && size <= maxEnd:
			return nil, s.readEnd(int(size))
		default:
			return nil, &FrameError{Text: fmt.Sprintf("a frame of the kind %d with %d bytes", kind, size)}
		}
	}
}

// read reads the messages of a frame. The memory that it takes grows with what has come,
// whatever the head of the frame says.
func (s *Stream) read(size int) ([]byte, error) {
	if cap(s.buf) > maxIdleBuffer {
		s.buf = nil
	}
	s.buf = s.buf[:0]
	for len(s.buf) < size {
		have := len(s.buf)
		if have == cap(s.buf) {
			grown := make([]byte, have, min(size, max(2*have, readStep)))
			copy(grown, s.buf)
			s.buf = grown
		}
		s.buf = s.buf[:min(size, cap(s.buf))]
		if _, err := io.ReadFull(s.in, s.buf[have:]); err != nil {
			return nil, noEOF(err)
		}
	}
	return s.buf, nil
}

func (s *Stream) readEnd(size int) error {
	if size == 0 {
		return io.EOF
	}
	b, err := s.read(size)
	if err != nil {
		return err
	}
	e := new(apiv1.Error)
	if err := proto.Unmarshal(b, e); err != nil {
		return err
	}
	return DecodeError(e)
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Close ends the connection at once.
func (s *Stream) Close() error { return s.conn.Close() }

// Finish closes the connection once the other side has read what was sent, or after a
// while. A connection that is closed with unread input would be reset, and what was sent
// could be lost. What a goroutine still receives meanwhile is to be ignored.
func (s *Stream) Finish() error {
	s.finishing.Store(true)
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
		s.writing.Lock()
		err := c.CloseWrite()
		s.writing.Unlock()
		if err == nil && s.conn.SetReadDeadline(time.Now().Add(endTimeout)) == nil {
			_, _ = io.Copy(io.Discard, s.conn) // whatever ends it, the connection is closed
		}
	}
	return s.conn.Close()
}
