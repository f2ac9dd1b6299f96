package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// settle gives wrong things the time to happen that a test says do not happen.
const settle = 300 * time.Millisecond

// A node that holds another secret, or none, is refused, and logged once.
func TestOtherSecretsAreRefused(t *testing.T) {
	for name, other := range map[string]func(*Options){"another": withSecret(t, "b"), "none": func(*Options) {}} {
		t.Run(name, func(t *testing.T) {
			members := newMembers(t, "127.0.0.1", 2)
			one, two := start(t, 1, members, withSecret(t, "a")), start(t, 2, members, other)
			testrun.WaitFor(t, "both to refuse", func() bool {
				return one.Stats().Refused > 3 && one.dialError(2) != nil && two.dialError(1) != nil && one.log.count("secret") > 0 && two.log.count("refused") > 0
			})
			if len(one.Reachable()) > 0 || len(two.Reachable()) > 0 || len(one.peers.nodes) > 0 || len(two.peers.nodes) > 0 {
				t.Error("they are connected")
			}
			for _, n := range []*recorder{one, two} {
				// Once as seen by the side that dials, and once by the one that accepts.
				if lines := n.log.count("refused a connection"); lines < 1 || lines > 3 {
					t.Errorf("%d lines are logged:\n%s", lines, n.log)
				}
			}
		})
	}
}

// Strangers that say nothing, half of something, or too much do not keep a node from
// being connected, however many they are.
func TestManyStrangers(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	one := start(t, 1, members, withSecret(t, "a"))
	var strangers []net.Conn
	var mu sync.Mutex
	defer func() {
		for _, c := range strangers {
			c.Close()
		}
	}()
	var work sync.WaitGroup
	for i := range 2000 {
		if i%100 == 0 {
			work.Wait()
		}
		work.Go(func() {
			c, err := net.Dial("tcp", members[1])
			if err != nil {
				t.Error(err)
				return
			}
			switch i % 4 {
			case 1: // half of a handshake
				c.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
			case 2:
				c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
			case 3:
				c.Write([]byte(strings.Repeat("x", 1000)))
			}
			mu.Lock()
			strangers = append(strangers, c)
			mu.Unlock()
		})
	}
	work.Wait()
	one.gate.mu.Lock()
	pending := one.gate.pending.Len()
	one.gate.mu.Unlock()
	if pending > maxPending {
		t.Errorf("%d handshakes are pending", pending)
	}
	began := time.Now()
	two := start(t, 2, members, withSecret(t, "a"))
	one.waitFor(two)
	two.waitFor(one)
	t.Logf("connected after %v, %+v", time.Since(began), one.Stats())
	if one.Stats().Evicted == 0 {
		t.Error("no stranger was closed to make room")
	}
	testrun.WaitFor(t, "all strangers to be gone", func() bool {
		one.gate.mu.Lock()
		defer one.gate.mu.Unlock()
		return one.gate.pending.Len() == 0
	})
	if lines := one.log.count("refused a connection"); lines > 4 {
		t.Errorf("%d lines are logged:\n%s", lines, one.log)
	}
}

// A stranger that sends nothing is closed after the time for a handshake.
func TestHandshakesHaveADeadline(t *testing.T) {
	for name, options := range map[string][]func(*Options){"TLS": {withSecret(t, "a")}, "in the clear": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			members := newMembers(t, "127.0.0.1", 2)
			one := start(t, 1, members, options...)
			c, err := net.Dial("tcp", members[1])
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			began := time.Now()
			closes(t, c)
			if took := time.Since(began); took < handshakeTimeout-time.Second || took > handshakeTimeout+5*time.Second {
				t.Errorf("it was closed after %v", took)
			}
			testrun.WaitFor(t, "a line", func() bool { return one.log.count("did not finish its handshake") == 1 })
		})
	}
}

// A TLS client that does not prove to hold the secret reads and writes nothing.
func TestTLSAloneIsNotEnough(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	one := start(t, 1, members, withSecret(t, "a"))
	for _, cfg := range []*tls.Config{
		{InsecureSkipVerify: true, NextProtos: []string{Protocol}}, // without a certificate
		{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{Protocol}},
		{InsecureSkipVerify: true, NextProtos: []string{"h2"}},
	} {
		c, err := net.Dial("tcp", members[1])
		if err != nil {
			t.Fatal(err)
		}
		encrypted := tls.Client(c, cfg)
		encrypted.Handshake()
		encrypted.Write([]byte("x"))
		closes(t, encrypted)
		c.Close()
	}
	testrun.WaitFor(t, "three refusals", func() bool { return one.Stats().Refused == 3 })
}

// The second process with a node's id is refused as long as the first one is there.
func TestSecondProcessIsRefused(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	one, first := start(t, 1, members, withSecret(t, "a")), start(t, 2, members, withSecret(t, "a"))
	one.waitFor(first)
	first.waitFor(one)
	elsewhere := map[uint64]string{1: members[1], 2: freeAddress(t, "127.0.0.1")}
	second := start(t, 2, elsewhere, withSecret(t, "a"), func(o *Options) { o.Storage = "folder-2" })
	testrun.WaitFor(t, "the second to be refused", func() bool { return second.Refused()[1] != nil })
	if err := second.Refused()[1]; !strings.Contains(err.Error(), "node 2 runs already") || !strings.Contains(err.Error(), "node 1 refuses") {
		t.Error(err)
	}
	if second.log.count("refuses the connections of this node") != 1 || one.log.count("runs already") != 1 {
		t.Errorf("logged:\n%s\n%s", second.log, one.log)
	}
	time.Sleep(settle)
	one.waitFor(first)
	first.waitFor(one)
	if len(first.Refused()) > 0 || second.batchCount() > 0 || len(second.Reachable()) > 0 {
		t.Error("the first one does not go on alone")
	}
	first.Close()
	one.waitFor(second)
	second.waitFor(one)
	if err := second.Refused()[1]; err != nil {
		t.Errorf("after the first one has ended: %v", err)
	}
}

// A process that has ended without a word does not keep its successor out for long.
func TestSilentProcessGivesWay(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	way := newProxy(t, members[1])
	one := start(t, 1, members)
	former := start(t, 2, map[uint64]string{1: way.address, 2: freeAddress(t, "127.0.0.1")})
	former.waitFor(one)
	way.hold(true)
	began := time.Now()
	next := start(t, 2, members)
	next.waitFor(one)
	one.waitFor(next)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	} else {
		t.Logf("it took %v", took)
	}
	if err := next.Refused()[1]; err != nil {
		t.Error(err)
	}
}

func TestStrangersOfAnotherCluster(t *testing.T) {
	for name, c := range map[string]struct {
		node    uint64
		change  func(*Options)
		members func(map[uint64]string)
		want    string
	}{
		"an unknown id":       {9, func(*Options) {}, func(m map[uint64]string) { m[9] = m[2]; delete(m, 2) }, "node 9 is not among the nodes [1 2]"},
		"the same id":         {1, func(*Options) {}, func(m map[uint64]string) { m[2] = m[1]; m[1] = "127.0.0.1:1" }, "own id"},
		"another data folder": {2, func(o *Options) { o.Storage = "another" }, func(map[uint64]string) {}, "another data folder"},
	} {
		t.Run(name, func(t *testing.T) {
			members := newMembers(t, "127.0.0.1", 2)
			one := start(t, 1, members, withSecret(t, "a"))
			friend := start(t, 2, members, withSecret(t, "a"))
			one.waitFor(friend)
			testrun.WaitFor(t, "the folder to be known", func() bool { same, _ := one.sameStorage(2, "?", false); return !same })
			friend.Close()
			seen := map[uint64]string{1: members[1], 2: members[2]}
			c.members(seen)
			listen := freeAddress(t, "127.0.0.1")
			other := start(t, c.node, seen, withSecret(t, "a"), func(o *Options) { o.Listen = listen }, c.change)
			testrun.WaitFor(t, "a refusal", func() bool { return len(other.Refused()) > 0 })
			for _, err := range other.Refused() {
				if !strings.Contains(err.Error(), c.want) {
					t.Errorf("it says %v, want %q", err, c.want)
				}
			}
			if len(one.Reachable()) > 0 || one.log.count(c.want) != 1 {
				t.Errorf("it is connected, or it was not logged once:\n%s", one.log)
			}
		})
	}
}

// The name of a node's folder is remembered when the node takes part, not before, and
// only if the node has proved who it is.
func TestFoldersAreRememberedOfNodesThatTakePart(t *testing.T) {
	for name, c := range map[string]struct {
		tookPart, secret, known bool
	}{"taking part": {true, true, true}, "not yet": {false, true, false}, "nothing proved": {true, false, false}} {
		t.Run(name, func(t *testing.T) {
			members := newMembers(t, "127.0.0.1", 2)
			change := []func(*Options){func(o *Options) { o.TookPart = func() bool { return c.tookPart } }}
			if c.secret {
				change = append(change, withSecret(t, "a"))
			}
			one, two := start(t, 1, members, change...), start(t, 2, members, change...)
			one.waitFor(two)
			two.waitFor(one)
			known := func() bool { same, _ := one.sameStorage(2, "?", false); return !same }
			if c.known {
				testrun.WaitFor(t, "the folder to be known", known)
			} else if time.Sleep(settle + aliveInterval); known() {
				t.Error("the folder is known")
			}
			two.Close()
			next := start(t, 2, members, append(change, func(o *Options) { o.Storage = "another" })...)
			if c.known {
				testrun.WaitFor(t, "a refusal", func() bool { return next.Refused()[1] != nil })
			} else {
				next.waitFor(one)
			}
		})
	}
}

// A name that cannot be written does not end connections, and is written later.
func TestFoldersAreRememberedLater(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	var failures atomic.Int32
	one := start(t, 1, members, withSecret(t, "a"), func(o *Options) {
		write := o.SameStorage
		o.SameStorage = func(node uint64, name string, remember bool) (bool, error) {
			if remember && failures.Add(1) <= 3 {
				return true, errors.New("no space left")
			}
			return write(node, name, remember)
		}
	})
	two := start(t, 2, members, withSecret(t, "a"))
	two.waitUp(1)
	connection := two.links[1].urgent.conn.Load()
	testrun.WaitFor(t, "the folder to be known", func() bool { same, _ := one.sameStorage(2, "?", false); return !same })
	if two.links[1].urgent.conn.Load() != connection {
		t.Error("the connection was ended")
	}
}

// Somebody else at the address that a node has named does not keep the configured
// one from being tried.
func TestWrongLearnedAddressIsForgotten(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 3)
	one, two := start(t, 1, members, withSecret(t, "a")), start(t, 2, members, withSecret(t, "a"))
	start(t, 3, members, withSecret(t, "a"))
	one.waitFor(two)
	one.links[2].mu.Lock()
	one.links[2].learned = members[3]
	one.links[2].mu.Unlock()
	two.Close()
	testrun.WaitFor(t, "the address to be forgotten", func() bool { return len(one.links[2].addresses()) == 1 })
}

// A node that has moved is found again, by what it says itself and proves.
func TestNodesThatMoveAreFound(t *testing.T) {
	for _, secure := range []bool{true, false} {
		members := newMembers(t, "127.0.0.1", 2)
		var options []func(*Options)
		if secure {
			options = append(options, withSecret(t, "a"))
		}
		one, two := start(t, 1, members, options...), start(t, 2, members, options...)
		one.waitFor(two)
		two.Close()
		moved := map[uint64]string{1: members[1], 2: freeAddress(t, "127.0.0.1")}
		if !secure { // anybody could say so
			third := start(t, 2, moved, options...)
			testrun.WaitFor(t, "the node to call", func() bool { return len(third.Reachable()) == 1 })
			time.Sleep(settle)
			if len(one.Reachable()) != 0 {
				t.Error("a node that proves nothing is believed to have moved")
			}
			continue
		}
		two = start(t, 2, moved, options...)
		one.waitFor(two)
		two.waitFor(one)
	}
}

// A name is looked up again at each attempt.
func TestNamesAreLookedUpAgain(t *testing.T) {
	members := map[uint64]string{1: freeAddress(t, "127.0.0.1"), 2: "node-2:8200"}
	var mu sync.Mutex
	address, lookups := "", 0 // of node 2
	one := start(t, 1, members, func(o *Options) {
		o.Hooks.Dial = func(ctx context.Context, dialer *net.Dialer, name string) (net.Conn, error) {
			mu.Lock()
			is := address
			lookups++
			mu.Unlock()
			if is == "" || name != "node-2:8200" {
				return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}}
			}
			return dialer.DialContext(ctx, "tcp", is)
		}
	})
	testrun.WaitFor(t, "several look-ups", func() bool { mu.Lock(); defer mu.Unlock(); return lookups > 3 })
	if err := one.dialError(2); !unresolved(err) {
		t.Error(err)
	}
	if n := one.log.count("refused"); n > 0 {
		t.Errorf("a name that does not resolve is logged as a refusal:\n%s", one.log)
	}
	for range 2 {
		now := freeAddress(t, "127.0.0.1")
		two := start(t, 2, map[uint64]string{1: members[1], 2: now})
		mu.Lock()
		address = now
		mu.Unlock()
		one.waitFor(two)
		two.Close()
	}
}

func TestReachableAs(t *testing.T) {
	for said, want := range map[string]string{
		"[::]:8200": "10.1.1.1:8200", ":8200": "10.1.1.1:8200", "0.0.0.0:8200": "10.1.1.1:8200", "host:8200": "host:8200",
		"10.2.2.2:1": "10.2.2.2:1", "[::1]:9": "[::1]:9", "x": "", "": "", "host:0": "",
	} {
		if got := reachableAs(said, &net.TCPAddr{IP: net.IPv4(10, 1, 1, 1), Port: 99}); got != want {
			t.Errorf("a node that says %q is reached at %q, want %q", said, got, want)
		}
	}
}

// Accepting goes on after errors.
func TestAcceptErrorsAreSurvived(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	var broken *brokenListener
	one := start(t, 1, members, func(o *Options) {
		o.Hooks.Listen = func(ctx context.Context, cfg *net.ListenConfig, address string) (net.Listener, error) {
			l, err := listenTCP(ctx, cfg, address)
			broken = &brokenListener{Listener: l, failures: 5}
			return broken, err
		}
	})
	two := start(t, 2, members)
	two.waitFor(one)
	if broken.failures > 0 {
		t.Error("no error was met")
	}
}

// brokenListener fails some times.
type brokenListener struct {
	net.Listener
	failures int
}

func (l *brokenListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: net.UnknownNetworkError("too many open files")}
	}
	return l.Listener.Accept()
}
