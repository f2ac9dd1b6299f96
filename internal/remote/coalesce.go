package remote

import (
	"encoding/binary"
	"io"
	"net/http"
	"strings"
)

// envelopePrefix is the size of what precedes each message of a stream: a byte of flags,
// and the length of the message.
const envelopePrefix = 5

// coalescing is a transport that sends a message of a stream in one frame. connect writes
// the prefix of a message and the message one after the other, and net/http would make a
// frame, and a system call, of each.
type coalescing struct{ *http.Transport }

func (t coalescing) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && strings.HasPrefix(r.Header.Get("Content-Type"), "application/connect+") {
		r = r.Clone(r.Context())
		r.Body = &coalescedBody{ReadCloser: r.Body}
	}
	return t.Transport.RoundTrip(r)
}

// A coalescedBody returns a prefix together with its message.
type coalescedBody struct {
	io.ReadCloser
	left uint32 // of the present message
}

func (b *coalescedBody) Read(p []byte) (int, error) {
	if b.left > 0 || len(p) <= envelopePrefix {
		n, err := b.ReadCloser.Read(p)
		b.left -= min(b.left, uint32(n))
		return n, err
	}
	n, err := io.ReadFull(b.ReadCloser, p[:envelopePrefix])
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	if err != nil {
		return n, err
	}
	b.left = binary.BigEndian.Uint32(p[1:envelopePrefix])
	if b.left == 0 {
		return n, nil
	}
	more, err := io.ReadAtLeast(b.ReadCloser, p[n:min(len(p), n+int(min(b.left, 1<<30)))], 1)
	b.left -= uint32(more)
	return n + more, err
}
