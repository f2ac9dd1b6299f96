package consistency_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/tests/process"
)

const (
	// patience bounds what a test waits for.
	patience = 40 * time.Second
	// operationTimeout bounds an operation, and a transaction as a whole.
	operationTimeout = 10 * time.Second
	// leaseTTL is the least there may be, so that leases expire often.
	leaseTTL = time.Second
)

var seedFlag = flag.Uint64("seed", 0, "of workload and faults; 0: any")

func TestMain(m *testing.M) {
	process.Serve(openServer)
	goleak.VerifyTestMain(m)
}

// seedOf returns the seed of a test, and prints it.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d: once more with -run %s -seed %d", seed, t.Name(), seed)
	return seed
}

// A cluster is some nodes, each in a process of its own.
type cluster struct {
	t     testing.TB
	nodes []*node
	lives []*life // all there were; of the test's goroutine
}

// A node is one of a cluster, alive or dead.
type node struct {
	c   *cluster
	cfg hiqlite.Config
	log string // file of what its processes say

	mu      sync.Mutex
	now     *life         // nil: dead, or not ready yet
	changed chan struct{} // closed when now changes

	traps [2]atomic.Pointer[trap]
}

// newCluster starts a cluster and waits until every node is ready.
func newCluster(t testing.TB, size int, change func(*hiqlite.Config)) *cluster {
	t.Helper()
	dir := t.TempDir()
	c := &cluster{t: t}
	members := process.Members(t, size)
	for i := range size {
		cfg := hiqlite.Config{
			DataDir: filepath.Join(dir, fmt.Sprint(i+1)), NodeID: uint64(i + 1), Nodes: members,
			Tick: 10 * time.Millisecond, LeaseTTL: leaseTTL,
		}
		if change != nil {
			change(&cfg)
		}
		n := &node{c: c, cfg: cfg, log: filepath.Join(dir, fmt.Sprintf("log-%d", i+1)), changed: make(chan struct{})}
		c.nodes = append(c.nodes, n)
	}
	t.Cleanup(func() {
		for _, l := range c.lives {
			select {
			case <-l.Ended():
				if err := l.Crashed(); err != nil {
					t.Errorf("node %d: %v", l.node.cfg.NodeID, err)
				}
			default:
			}
			l.Kill()
		}
		c.printLogs()
	})
	c.start()
	return c
}

// start starts all nodes, of which none is alive.
func (c *cluster) start() {
	c.t.Helper()
	lives := make([]*life, len(c.nodes))
	for i, n := range c.nodes {
		lives[i] = n.start()
	}
	for i, n := range c.nodes {
		n.serveFrom(lives[i])
	}
}

// printLogs prints the end of what the nodes of a failed test said. What the
// race detector says fails it.
func (c *cluster) printLogs() {
	for _, n := range c.nodes {
		text, err := os.ReadFile(n.log)
		if bytes.Contains(text, []byte("DATA RACE")) {
			c.t.Errorf("a data race in node %d", n.cfg.NodeID)
		}
		if err == nil && len(text) > 0 && c.t.Failed() {
			c.t.Logf("node %d said:\n%s", n.cfg.NodeID, text[max(0, len(text)-16<<10):])
		}
	}
}

// start starts a process of the node's.
func (n *node) start() *life {
	n.c.t.Helper()
	p, err := process.Start(n.cfg, n.log)
	if err != nil {
		n.c.t.Fatalf("starting node %d: %v", n.cfg.NodeID, err)
	}
	l := &life{Process: p, node: n, number: len(n.c.lives) + 1}
	n.c.lives = append(n.c.lives, l)
	return l
}

// serveFrom waits until a process is ready, and lets workers use it.
func (n *node) serveFrom(l *life) {
	n.c.t.Helper()
	if _, err := l.ask(request{Do: "ready", Within: patience}, nil); err != nil {
		n.c.t.Fatalf("node %d is not ready: %v", n.cfg.NodeID, err)
	}
	n.set(l)
}

func (n *node) set(l *life) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now = l
	close(n.changed)
	n.changed = make(chan struct{})
}

// alive returns the node's process; nil: it has none that is ready.
func (n *node) alive() *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now
}

// usable waits for a process that is ready, or until quit.
func (n *node) usable(quit <-chan struct{}) *life {
	for {
		n.mu.Lock()
		l, changed := n.now, n.changed
		n.mu.Unlock()
		if l != nil {
			return l
		}
		select {
		case <-changed:
		case <-quit:
			return nil
		}
	}
}

// kill ends the node's process with SIGKILL.
func (n *node) kill() {
	l := n.alive()
	n.set(nil)
	l.Kill()
}

// restart starts the node anew and waits until it is ready.
func (n *node) restart() {
	n.c.t.Helper()
	n.serveFrom(n.start())
}

func (n *node) pause() { n.alive().Pause() }
func (n *node) goOn()  { n.alive().Resume() }

// leader returns the node that leads, as those that answer know it. None of
// them may be paused but those in without.
func (c *cluster) leader(without ...*node) *node {
	c.t.Helper()
	var leader *node
	waitFor(c.t, "a leader that all agree on", func() bool {
		seen := map[uint64]bool{}
		for _, n := range c.nodes {
			if contains(without, n) || n.alive() == nil {
				continue
			}
			a, err := n.alive().ask(request{Do: "status"}, nil)
			if err != nil {
				c.t.Fatal(err)
			}
			seen[a.Status.Leader] = true
		}
		if len(seen) != 1 {
			return false
		}
		for _, n := range c.nodes {
			if seen[n.cfg.NodeID] && n.alive() != nil && !contains(without, n) {
				leader = n
			}
		}
		return leader != nil
	})
	return leader
}

func contains(all []*node, n *node) bool {
	for _, other := range all {
		if other == n {
			return true
		}
	}
	return false
}

// waitFor waits until ready says so.
func waitFor(t testing.TB, what string, ready func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ready() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond) // between looks
	}
}

// equal fails unless all nodes come to hold the same.
func (c *cluster) equal() {
	c.t.Helper()
	byIndex := map[uint64]string{}
	waitFor(c.t, "the nodes to hold the same", func() bool {
		all := map[string]bool{}
		for _, n := range c.nodes {
			if _, err := n.alive().ask(request{Do: "ready"}, nil); err != nil {
				c.t.Fatal(err)
			}
			a, err := n.alive().ask(request{Do: "hash"}, nil)
			if err != nil {
				c.t.Fatal(err)
			}
			if other := byIndex[a.Index]; other != "" && other != a.Hash {
				c.t.Fatalf("node %d holds something else at index %d", n.cfg.NodeID, a.Index)
			}
			byIndex[a.Index] = a.Hash
			all[a.Hash] = true
		}
		return len(all) == 1
	})
}

// must runs a statement that has to succeed.
func (l *life) must(sql string, args ...any) {
	l.node.c.t.Helper()
	if _, err := l.exec(sql, args...); err != nil {
		l.node.c.t.Fatalf("%s: %v", sql, err)
	}
}
