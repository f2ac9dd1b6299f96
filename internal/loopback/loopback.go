// Package loopback finds addresses for nodes that all run on this machine.
package loopback

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// Addresses returns n different addresses, host:port, which nobody listens on.
//
// On 127.0.0.1 such a port may be taken again before a node listens on it, or
// while it is stopped: connections go out from there, and others look for ports.
// On Linux all of 127.0.0.0/8 is loopback, so each call has a host of its own,
// whose ports stay free. Where there is none, as on macOS, it is 127.0.0.1.
func Addresses(n int) ([]string, error) {
	// Not 127.0.x.y, where resolvers and the machine's own name have theirs.
	own := fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), 1+rand.N(254), 1+rand.N(254))
	addresses, err := free(own, n)
	if err != nil {
		return free("127.0.0.1", n)
	}
	return addresses, nil
}

// free returns ports of a host that are free now.
func free(host string, n int) (addresses []string, err error) {
	for range n {
		l, err := net.Listen("tcp4", net.JoinHostPort(host, "0"))
		if err != nil {
			return nil, err
		}
		defer l.Close() // not before all are taken: they must differ
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}
