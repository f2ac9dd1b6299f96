package transport

import (
	"syscall"
	"time"
)

// Options of TCP sockets, from linux/tcp.h.
const (
	tcpThinLinearTimeouts = 16
	tcpUserTimeout        = 18
)

// tune sets options of a TCP socket that Go has no methods for. An old kernel may
// not know them; the transport works without.
func tune(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		// A connection that carries little repeats a lost packet every 0.2 s, instead
		// of waiting twice as long each time.
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpThinLinearTimeouts, 1)
		// It ends if what was sent is not acknowledged for so long.
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(unacknowledgedTimeout/time.Millisecond))
	})
}
