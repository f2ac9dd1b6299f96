package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// ListenFunc listens on an address.
type ListenFunc func(ctx context.Context, cfg *net.ListenConfig, address string) (net.Listener, error)

func listenTCP(ctx context.Context, cfg *net.ListenConfig, address string) (net.Listener, error) {
	return cfg.Listen(ctx, "tcp", address)
}

func dialTCP(ctx context.Context, dialer *net.Dialer, address string) (net.Conn, error) {
	return dialer.DialContext(ctx, "tcp", address)
}

// CheckAddress reports why an address is not host:port. The host may be any name,
// or an IP address; an IPv6 address is in brackets.
func CheckAddress(address string) error {
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

// ProbePort reports why address cannot be listened on. A name that does not resolve
// yet is no error: see Transport.Start.
func ProbePort(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), listenTimeout)
	defer cancel()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return l.Close()
	case unresolved(err):
		return nil
	}
	return listenError(address, err)
}

// unresolved reports whether an error says that a name could not be resolved.
func unresolved(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns)
}

// listenError adds what to do about an address that cannot be listened on.
func listenError(address string, err error) error {
	hint := "stop what uses the port, or configure another one"
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		hint = "no interface of this machine has it: name a listen address that one has"
	}
	return fmt.Errorf("hiqlite: cannot listen on the Raft address %s: %w: %s", address, err, hint)
}

// reachableAs returns the address at which a peer that was accepted from remote is
// reached, by what it says of itself. If it names no host, or all interfaces, the
// host is that of the connection.
func reachableAs(said string, remote net.Addr) string {
	host, port, err := net.SplitHostPort(said)
	if err != nil {
		return ""
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		if host, _, err = net.SplitHostPort(remote.String()); err != nil {
			return ""
		}
	}
	if address := net.JoinHostPort(host, port); CheckAddress(address) == nil {
		return address
	}
	return ""
}
