package hiqlitetest_test

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStoppedNodesRefuse(t *testing.T) {
	t.Parallel()
	c := hiqlitetest.NewCluster(t, 1)
	if !c.Running(0) || c.Leader() != 0 {
		t.Errorf("node 0: running %v, the leader is node %d", c.Running(0), c.Leader())
	}
	if _, err := c.DB(0).ExecContext(t.Context(), "CREATE TABLE t(a)"); err != nil {
		t.Fatal(err)
	}
	c.Stop(0)
	c.Stop(0) // does nothing
	if c.Running(0) {
		t.Error("node 0 runs after Stop")
	}
	if _, err := c.Node(0).Status(t.Context()); !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("the status of a stopped node: %v, want ErrClosed", err)
	}
	if err := c.DB(0).PingContext(t.Context()); err == nil {
		t.Error("the database of a stopped node answers")
	}
	c.Start(0)
	c.Start(0) // does nothing
	c.WaitReady()
	if _, err := c.DB(0).ExecContext(t.Context(), "INSERT INTO t VALUES(1)"); err != nil {
		t.Errorf("after Stop and Start: %v", err)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	var ids []uint64
	c := hiqlitetest.NewCluster(t, 2, hiqlitetest.Stopped(), hiqlitetest.WithConfig(func(cfg *hiqlite.Config) {
		ids = append(ids, cfg.NodeID)
		cfg.MaxReaders = 7
	}))
	if len(ids) != 2 || ids[0] != 1 || ids[1] != 2 {
		t.Errorf("WithConfig is called for the nodes %v, want 1 and 2", ids)
	}
	if n := c.Config(1).MaxReaders; n != 7 {
		t.Errorf("MaxReaders of node 1 is %d, want 7", n)
	}
	for i, n := range c.Nodes() {
		if n != nil || c.Running(i) {
			t.Errorf("node %d was started", i)
		}
	}
	c.Start(0)
	c.Start(1)
	c.WaitReady()
}

func TestLeaderIsARunningNode(t *testing.T) {
	t.Parallel()
	c := hiqlitetest.NewCluster(t, 3)
	for range 2 {
		leader := c.Leader()
		c.Stop(leader)
		if next := c.Leader(); next == leader || !c.Running(next) {
			t.Errorf("node %d leads after node %d was stopped", next, leader)
		}
		c.Start(leader)
	}
	if _, err := c.DB(0).ExecContext(t.Context(), "CREATE TABLE t(a)"); err != nil {
		t.Fatal(err)
	}
	c.WaitEqual()
	hash, _, err := c.Node(0).Hash(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range c.Nodes() {
		if other, _, err := n.Hash(t.Context()); err != nil || other != hash {
			t.Errorf("after WaitEqual node %d has another hash than node 0 (%v)", i, err)
		}
	}
}
