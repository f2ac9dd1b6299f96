// Package loopback finds, and recognises, addresses for nodes that all run on this
// machine.
package loopback

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
)

// Addresses returns n different addresses, as host:port, that nobody listens on.
//
// A free port of 127.0.0.1 does not stay free until a node listens on it, or while
// the node is stopped: outgoing connections of any process use ports of 127.0.0.1.
// On Linux all of 127.0.0.0/8 is loopback, so each call uses a random host of it,
// whose ports nobody else takes. Where these hosts do not exist, as on macOS,
// Addresses uses 127.0.0.1.
func Addresses(n int) ([]string, error) {
	// Leave out 127.0.x.y: resolvers and the machine's own name have addresses there.
	host := fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), 1+rand.N(254), 1+rand.N(254))
	addresses, err := free(host, n)
	if err != nil {
		return free("127.0.0.1", n)
	}
	return addresses, nil
}

// free returns n addresses of a host whose ports are free now.
func free(host string, n int) (addresses []string, err error) {
	for range n {
		l, err := net.Listen("tcp4", net.JoinHostPort(host, "0"))
		if err != nil {
			return nil, err
		}
		defer l.Close() // keep it open until all are found, so that they differ
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

// Is reports whether only this machine can reach an address, a host:port. Of names,
// only localhost counts: what others mean can change.
func Is(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return strings.EqualFold(strings.TrimSuffix(host, "."), "localhost")
}
