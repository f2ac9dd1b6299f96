package loopback

import (
	"net"
	"runtime"
	"testing"
)

func addresses(t *testing.T, n int) []string {
	t.Helper()
	out, err := Addresses(n)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != n {
		t.Fatalf("%d addresses instead of %d: %v", len(out), n, out)
	}
	return out
}

func hostOf(t *testing.T, address string) string {
	t.Helper()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return host
}

func TestAddressesCanBeListenedOn(t *testing.T) {
	for _, a := range addresses(t, 9) {
		l, err := net.Listen("tcp", a) // also fails if the address was returned twice
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if l.Addr().String() != a {
			t.Errorf("listening on %s, the address is %s", a, l.Addr())
		}
	}
}

// The ports stay free because no other call returns the host, and no outgoing
// connection uses it, not even one to the host itself.
func TestTheHostIsUsedByNobodyElse(t *testing.T) {
	a := addresses(t, 1)[0]
	host, linux := hostOf(t, a), runtime.GOOS == "linux"
	if other := hostOf(t, addresses(t, 1)[0]); linux && other == host {
		t.Errorf("two calls returned the host %s", host)
	}
	l, err := net.Listen("tcp", a)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", a)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if from := hostOf(t, c.LocalAddr().String()); linux && from != "127.0.0.1" {
		t.Errorf("an outgoing connection uses %s", from)
	}
}
