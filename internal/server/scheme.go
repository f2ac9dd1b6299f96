package server

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
)

// A firstRead is a connection of which nothing has been read. It tells clients that use
// TLS on a port without, or the reverse, what is wrong: net/http would wait until such a
// client gives up, or end the connection without an answer.
type firstRead struct {
	net.Conn
	server *Server
	done   bool // only the goroutine that reads uses it
}

const (
	handshakeRecord = 0x16 // the first byte of a client with TLS
	prefaceOfHTTP2  = "PRI * HTTP/2.0"

	// errInadequateSecurity is INADEQUATE_SECURITY of HTTP/2.
	errInadequateSecurity = 0xc

	answerWithoutTLS = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nThe client uses TLS on a port without: use http://, or configure TLS on the server.\n"
	adviceWithTLS    = "this port needs TLS: use https://"
)

func (c *firstRead) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.done || n == 0 {
		return n, err
	}
	c.done = true
	encrypted := p[0] == handshakeRecord
	if encrypted == (c.server.tls != nil) {
		return n, err
	}
	c.server.counters.wrongScheme.Add(1)
	switch {
	case encrypted:
		_, _ = io.WriteString(c.Conn, answerWithoutTLS) // if it fails, the client is gone
		return 0, io.EOF
	case bytes.HasPrefix(p[:n], []byte(prefaceOfHTTP2)):
		_, _ = c.Conn.Write(goAway(errInadequateSecurity, adviceWithTLS))
		return 0, io.EOF
	}
	return n, err // net/http answers clients of HTTP/1
}

// goAway returns what a server of HTTP/2 sends to refuse a connection: empty SETTINGS,
// and GOAWAY.
func goAway(code uint32, advice string) []byte {
	const settings, away = 0x4, 0x7
	out := []byte{0, 0, 0, settings, 0, 0, 0, 0, 0}
	out = append(out, 0, 0, byte(8+len(advice)), away, 0, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, 0) // the last stream that was accepted
	out = binary.BigEndian.AppendUint32(out, code)
	return append(out, advice...)
}
