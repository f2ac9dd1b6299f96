package faults

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/lock"
	"github.com/hiqlite/hiqlite/tests/process"
)

// Nodes listen on other addresses than those at which other nodes reach them.
func TestListenAddress(t *testing.T) {
	t.Parallel()
	advertised, err := loopback.Addresses(3)
	if err != nil {
		t.Fatal(err)
	}
	network := process.NewNetwork(t)
	c := hiqlitetest.NewCluster(t, 3, hiqlitetest.WithConfig(func(cfg *hiqlite.Config) {
		this := cfg.NodeID - 1
		cfg.ListenAddr = cfg.Nodes[this].RaftAddr
		network.Route(cfg)
		cfg.Nodes[this].RaftAddr = advertised[this]
	}))
	ctx := testrun.Context(t)
	if _, err := c.DB(0).ExecContext(ctx, "CREATE TABLE t(id INTEGER PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.DB(1).ExecContext(ctx, "INSERT INTO t DEFAULT VALUES"); err != nil {
			t.Fatal(err)
		}
	}
	c.WaitEqual()
}

// Two nodes cannot reach each other, but both reach a third one. One of the two leads, and the
// other one takes no part: its lock is granted to the next waiter after its TTL. It takes part
// again when the network is healed.
func TestTwoNodesThatCannotReachEachOther(t *testing.T) {
	t.Parallel()
	network := process.NewNetwork(t)
	c := hiqlitetest.NewCluster(t, 3, hiqlitetest.WithConfig(network.Route))
	leaderOf := func(i int) int {
		s, err := c.Node(i).Status(testrun.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, shard := range s.Shards {
			if shard.Name == "lock" {
				return int(shard.Leader) - 1
			}
		}
		return -1
	}
	leads := leaderOf(0)
	cut, third := (leads+1)%3, (leads+2)%3
	held, err := lock.New(c.Node(cut), lock.WithTTL(2*time.Second)).Lock(testrun.Context(t), "k")
	if err != nil {
		t.Fatal(err)
	}
	network.CutBetween(uint64(leads+1), uint64(cut+1), process.LinkHeld)
	next, err := lock.New(c.Node(third)).Lock(testrun.Context(t), "k")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-held.Done():
	default:
		t.Error("Done of the first holder is open while there is a second holder")
	}
	if err := next.Unlock(testrun.Context(t)); err != nil {
		t.Error(err)
	}
	if leaderOf(third) == leads { // no election has changed the leader meanwhile
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := lock.New(c.Node(cut)).Lock(ctx, "other"); err == nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("locking through the node that does not reach the leader: %v", err)
		}
	}
	network.Heal()
	again, err := lock.New(c.Node(cut)).Lock(testrun.Context(t), "k")
	if err != nil {
		t.Fatal(err)
	}
	again.Unlock(testrun.Context(t))
}
