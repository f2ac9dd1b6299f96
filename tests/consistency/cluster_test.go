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
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

const (
	// patience bounds the wait for an answer of a process. It is shorter than
	// testrun.Patience, so that a process that hangs is reported as such.
	patience = testrun.Patience / 3
	// operationTimeout bounds an operation, and a whole transaction.
	operationTimeout = 10 * time.Second
	// leaseTTL is the shortest that Config allows, so that leases expire often.
	leaseTTL = time.Second
)

var seedFlag = flag.Uint64("seed", 0, "seed of workload and faults; 0: a random one")

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
	t.Logf("seed %d: repeat with -run %s -seed %d", seed, t.Name(), seed)
	return seed
}

// A cluster has its nodes in processes of their own.
type cluster struct {
	t     testing.TB
	nodes []*node
	lives []*life // all processes that were started; used only by the test's goroutine
}

// A node is a node of a cluster; its process may run or not.
type node struct {
	c   *cluster
	cfg hiqlite.Config
	log string // file to which its processes write their logs

	mu      sync.Mutex
	now     *life         // nil: no process runs, or it is not ready yet
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

// start starts all nodes. None of them may run.
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

// printLogs prints the end of the nodes' logs if the test has failed. It fails the
// test if the race detector has found something in a node.
func (c *cluster) printLogs() {
	for _, n := range c.nodes {
		text, err := os.ReadFile(n.log)
		if bytes.Contains(text, []byte("DATA RACE")) {
			c.t.Errorf("a data race in node %d", n.cfg.NodeID)
		}
		if err == nil && len(text) > 0 && c.t.Failed() {
			c.t.Logf("the end of the log of node %d:\n%s", n.cfg.NodeID, text[max(0, len(text)-16<<10):])
		}
	}
}

// start starts a process for the node.
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

// serveFrom waits until a process is ready, and then lets workers use it.
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

// alive returns the node's process, or nil if it has none that is ready.
func (n *node) alive() *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now
}

// usable waits for a process that is ready. It returns nil when quit is closed.
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

// kill kills the node's process with SIGKILL.
func (n *node) kill() {
	l := n.alive()
	n.set(nil)
	l.Kill()
}

// restart starts the node again and waits until it is ready.
func (n *node) restart() {
	n.c.t.Helper()
	n.serveFrom(n.start())
}

func (n *node) pause()  { n.alive().Pause() }
func (n *node) resume() { n.alive().Resume() }

// leader waits until all running nodes agree on the leader of a shard, and returns it.
// No node may be paused.
func (c *cluster) leader(shard string) (leader *node) {
	c.t.Helper()
	testrun.WaitFor(c.t, "a leader of the shard "+shard+" that all nodes agree on", func() bool {
		leader = nil
		agreed := map[uint64]bool{}
		for _, n := range c.nodes {
			if n.alive() == nil {
				continue
			}
			a, err := n.alive().ask(request{Do: "status"}, nil)
			if err != nil {
				c.t.Fatal(err)
			}
			for _, s := range a.Status.Shards {
				if s.Name == shard {
					agreed[s.Leader] = true
				}
			}
		}
		for _, n := range c.nodes {
			if agreed[n.cfg.NodeID] && n.alive() != nil {
				leader = n
			}
		}
		return len(agreed) == 1 && leader != nil
	})
	return leader
}

// equal waits until all nodes have the same rows. It fails the test if two nodes
// have different rows at the same applied index.
func (c *cluster) equal() {
	c.t.Helper()
	byIndex := map[uint64]string{}
	testrun.WaitFor(c.t, "the nodes to have the same rows", func() bool {
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
				c.t.Fatalf("node %d has other rows than another node had at index %d", n.cfg.NodeID, a.Index)
			}
			byIndex[a.Index] = a.Hash
			all[a.Hash] = true
		}
		return len(all) == 1
	})
}

// must executes a statement that has to succeed.
func (l *life) must(sql string, args ...any) {
	l.node.c.t.Helper()
	if _, err := l.exec(sql, args...); err != nil {
		l.node.c.t.Fatalf("%s: %v", sql, err)
	}
}
