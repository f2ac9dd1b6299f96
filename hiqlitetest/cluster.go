// Package hiqlitetest runs clusters of hiqlite nodes inside a test, for programs
// that want to know how they behave on several nodes, and while nodes are lost.
//
//	func TestTransfer(t *testing.T) {
//		c := hiqlitetest.NewCluster(t, 3)
//		bank := NewBank(c.DB(0)) // the program under test
//		c.Stop(c.Leader())       // the other two nodes go on
//		...
//	}
//
// All nodes run in the process of the test. They talk to each other over TCP, with a
// secret as in production, on loopback addresses that no other cluster or test uses,
// and keep their data in folders that are removed when the test ends. Nothing has to be closed: the
// cluster stops with the test.
//
// A node that is stopped closes its files properly and, if it leads, transfers its
// leadership. A crash is different: what a node keeps then is seen only if its process
// ends. The tests of hiqlite itself kill processes for that.
package hiqlitetest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

const (
	// patience bounds how long a cluster waits for one of its nodes before the
	// test fails. A ready node takes less than a second on an idle machine.
	patience = 2 * time.Minute
	// tick makes elections five times as fast as with the default Config.Tick.
	tick = 10 * time.Millisecond
)

// A Cluster is some nodes in the process of a test. Nodes are numbered from 0;
// the NodeID of node i is i+1.
//
// Methods may be called from several goroutines, with two exceptions: Start and
// Stop are not called for the same node at the same time; and those that can fail
// the test (Start, Stop, Leader and the methods that wait) are called from the
// goroutine of the test, as [testing.T.FailNow] requires.
type Cluster struct {
	t testing.TB

	mu      sync.Mutex // guards what follows
	configs []hiqlite.Config
	nodes   []*hiqlite.Node
	running []bool
	servers map[int]*served // of the nodes for which Serve was called
}

// An Option changes what NewCluster does.
type Option func(*options)

type options struct {
	configure []func(*hiqlite.Config)
	stopped   bool
}

// WithConfig has NewCluster call change with the configuration of each node, in
// the order of the nodes, before any of them starts. DataDir, NodeID, Nodes and
// SecretFile are set already, and so is a Logger that writes to the log of the test.
func WithConfig(change func(*hiqlite.Config)) Option {
	return func(o *options) { o.configure = append(o.configure, change) }
}

// Stopped makes NewCluster start no node. Each one starts with its first Start.
func Stopped() Option {
	return func(o *options) { o.stopped = true }
}

// NewCluster starts a cluster of n nodes and returns when all of them are ready.
// It fails the test if they are not. The cluster stops when the test ends.
func NewCluster(t testing.TB, n int, opts ...Option) *Cluster {
	t.Helper()
	var o options
	for _, option := range opts {
		option(&o)
	}
	addresses, err := loopback.Addresses(n)
	if err != nil {
		t.Fatalf("hiqlitetest: finding addresses for %d nodes: %v", n, err)
	}
	members := make([]hiqlite.Member, n)
	for i, address := range addresses {
		members[i] = hiqlite.Member{ID: uint64(i + 1), RaftAddr: address}
	}
	c := &Cluster{t: t, nodes: make([]*hiqlite.Node, n), running: make([]bool, n)}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(rand.Text()), 0o600); err != nil {
		t.Fatalf("hiqlitetest: writing the secret of the cluster: %v", err)
	}
	for i := range n {
		cfg := hiqlite.Config{
			DataDir:    filepath.Join(dir, fmt.Sprint(i+1)),
			NodeID:     members[i].ID,
			Nodes:      slices.Clone(members),
			SecretFile: secret,
			Tick:       raftTick(),
			Logger:     slog.New(slog.NewTextHandler(t.Output(), nil)),
		}
		for _, change := range o.configure {
			change(&cfg)
		}
		c.configs = append(c.configs, cfg)
	}
	t.Cleanup(c.stopAll)
	if !o.stopped {
		for i := range n {
			c.Start(i)
		}
		c.WaitReady()
	}
	return c
}

// Len returns how many nodes the cluster has, stopped ones included.
func (c *Cluster) Len() int { return len(c.configs) }

// Config returns the configuration with which node i is started.
func (c *Cluster) Config(i int) hiqlite.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.configs[i]
}

// Configure changes the configuration with which node i is started the next time.
func (c *Cluster) Configure(i int, change func(*hiqlite.Config)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.configs[i])
}

// Node returns node i as it was started last; nil if it never was. The methods of a
// stopped node return hiqlite.ErrClosed. A restarted node is another *hiqlite.Node:
// call Node again.
func (c *Cluster) Node(i int) *hiqlite.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i]
}

// Nodes returns all nodes, see Node.
func (c *Cluster) Nodes() []*hiqlite.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*hiqlite.Node(nil), c.nodes...)
}

// DB returns the database of node i, which must have been started. It is closed
// with the node; a restarted node has another one.
func (c *Cluster) DB(i int) *sql.DB { return c.Node(i).DB() }

// Running reports whether node i has been started and not stopped.
func (c *Cluster) Running(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running[i]
}

func (c *Cluster) runningNodes() (nodes []int) {
	for i := range c.Len() {
		if c.Running(i) {
			nodes = append(nodes, i)
		}
	}
	return nodes
}

// Start starts node i with the data that it had when it was stopped. It does not
// wait until the node is ready: see WaitReady. Starting a node that runs does
// nothing.
func (c *Cluster) Start(i int) {
	c.t.Helper()
	if err := c.TryStart(i); err != nil {
		c.t.Fatalf("hiqlitetest: starting node %d: %v", i, err)
	}
}

// TryStart is Start for a node that may refuse to start: it returns the error of
// hiqlite.Open instead of failing the test.
func (c *Cluster) TryStart(i int) error {
	if c.Running(i) {
		return nil
	}
	ctx, cancel := c.context()
	defer cancel()
	node, err := hiqlite.Open(ctx, c.Config(i))
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[i], c.running[i] = node, true
	if s := c.servers[i]; s != nil {
		return s.start(c, i)
	}
	return nil
}

// Stop stops node i and returns when it has ended. Stopping a node that does not
// run does nothing. Writes wait while no majority of the nodes runs.
func (c *Cluster) Stop(i int) {
	c.t.Helper()
	if err := c.close(i); err != nil {
		c.t.Errorf("hiqlitetest: stopping node %d: %v", i, err)
	}
}

func (c *Cluster) close(i int) error {
	c.mu.Lock()
	node, running := c.nodes[i], c.running[i]
	c.running[i] = false
	server := c.servers[i]
	c.mu.Unlock()
	if !running {
		return nil
	}
	if server != nil {
		server.stop()
	}
	return node.Close()
}

// stopAll stops all nodes at the same time. If they were stopped one after the other,
// the last ones would wait for a majority, because a node that closes transfers its
// leadership and releases its locks.
func (c *Cluster) stopAll() {
	errs := make([]error, c.Len())
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = c.close(i) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			c.t.Errorf("hiqlitetest: stopping node %d: %v", i, err)
		}
	}
}

// WaitReady waits until each of the nodes given, or of the running ones if none is
// given, knows a leader and has applied all that was acknowledged, on any node,
// before the call. It fails the test if there is no majority.
func (c *Cluster) WaitReady(nodes ...int) {
	c.t.Helper()
	if len(nodes) == 0 {
		nodes = c.runningNodes()
	}
	ctx, cancel := c.context()
	defer cancel()
	errs := make([]error, c.Len())
	var wg sync.WaitGroup
	for _, i := range nodes {
		wg.Go(func() { errs[i] = c.Node(i).Ready(ctx) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			c.t.Fatalf("hiqlitetest: node %d is not ready: %v", i, err)
		}
	}
}

// Leader returns the node that leads the SQL database. It waits until there is
// one that runs, and fails the test if there is no majority.
func (c *Cluster) Leader() int {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		c.WaitReady()
		for _, i := range c.runningNodes() {
			status, err := c.Node(i).Status(context.Background())
			if err != nil {
				c.t.Fatalf("hiqlitetest: the status of node %d: %v", i, err)
			}
			if leader := int(status.Leader) - 1; leader >= 0 && c.Running(leader) {
				return leader
			}
		}
		if time.Now().After(deadline) {
			c.t.Fatal("hiqlitetest: there is no leader")
		}
		time.Sleep(time.Millisecond) // until the next election is over
	}
}

// WaitEqual waits until all running nodes hold the same database, and fails the
// test if two of them ever hold different rows at the same index of the log. It
// is for the end of a test, when nothing writes any more.
func (c *Cluster) WaitEqual() {
	c.t.Helper()
	c.WaitReady()
	ctx, cancel := c.context()
	defer cancel()
	byIndex := map[uint64][32]byte{}
	for {
		hashes := map[[32]byte]bool{}
		for _, i := range c.runningNodes() {
			hash, index, err := c.Node(i).Hash(ctx)
			if err != nil {
				c.t.Fatalf("hiqlitetest: the hash of node %d: %v", i, err)
			}
			if other, ok := byIndex[index]; ok && other != hash {
				c.t.Fatalf("hiqlitetest: at index %d node %d does not hold the rows that another node holds", index, i)
			}
			byIndex[index], hashes[hash] = hash, true
		}
		if len(hashes) <= 1 {
			return
		}
		if ctx.Err() != nil {
			c.t.Fatal("hiqlitetest: the nodes still hold different rows, at different indexes")
		}
		time.Sleep(time.Millisecond) // until all nodes have applied an entry whose writer did not wait
	}
}

func (c *Cluster) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// raftTick returns the tick of the nodes. The race detector makes them ten times slower,
// so that leaders would not be heard in time.
func raftTick() time.Duration {
	if testrun.Race {
		return 5 * tick
	}
	return tick
}
