// Package testcluster runs clusters for the tests of packages above the root:
// some nodes, on loopback, in the test's own process.
package testcluster

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/loopback"
)

// patience bounds what a test waits for.
const patience = 60 * time.Second

// Patient returns a context for what a test waits for.
func Patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// WaitFor waits until a condition holds.
func WaitFor(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}

// A Cluster is some nodes.
type Cluster struct {
	t       testing.TB
	Configs []hiqlite.Config
	Nodes   []*hiqlite.Node // nil: stopped
}

// Members returns nodes on this machine.
func Members(t testing.TB, size int) (members []hiqlite.Member) {
	t.Helper()
	addresses, err := loopback.Addresses(size)
	if err != nil {
		t.Fatal(err)
	}
	for i, address := range addresses {
		members = append(members, hiqlite.Member{ID: uint64(i + 1), RaftAddr: address})
	}
	return members
}

// New prepares a cluster whose nodes are not started yet.
func New(t testing.TB, size int, change ...func(*hiqlite.Config)) *Cluster {
	t.Helper()
	c := &Cluster{t: t, Nodes: make([]*hiqlite.Node, size)}
	dir := t.TempDir()
	members := Members(t, size)
	for i := range size {
		cfg := hiqlite.Config{DataDir: filepath.Join(dir, fmt.Sprint(i+1)), NodeID: uint64(i + 1), Nodes: members, Tick: 10 * time.Millisecond}
		for _, f := range change {
			f(&cfg)
		}
		c.Configs = append(c.Configs, cfg)
	}
	t.Cleanup(func() {
		for i := range c.Nodes {
			c.Stop(i)
		}
	})
	return c
}

// Each runs a test on a cluster of one node and on one of three.
func Each(t *testing.T, f func(t *testing.T, c *Cluster)) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) { f(t, Started(t, size)) })
	}
}

// Started is New, with all nodes started and ready.
func Started(t testing.TB, size int, change ...func(*hiqlite.Config)) *Cluster {
	t.Helper()
	c := New(t, size, change...)
	for i := range size {
		c.Start(i)
	}
	for i := range size {
		c.Ready(i)
	}
	return c
}

// Start starts a node.
func (c *Cluster) Start(i int) {
	c.t.Helper()
	node, err := hiqlite.Open(Patient(c.t), c.Configs[i])
	if err != nil {
		c.t.Fatalf("node %d: %v", i+1, err)
	}
	c.Nodes[i] = node
}

// Ready waits until a node is.
func (c *Cluster) Ready(i int) {
	c.t.Helper()
	if err := c.Nodes[i].Ready(Patient(c.t)); err != nil {
		c.t.Fatalf("node %d: %v", i+1, err)
	}
}

// Stop closes a node.
func (c *Cluster) Stop(i int) {
	c.t.Helper()
	if c.Nodes[i] == nil {
		return
	}
	if err := c.Nodes[i].Close(); err != nil {
		c.t.Errorf("closing node %d: %v", i+1, err)
	}
	c.Nodes[i] = nil
}
