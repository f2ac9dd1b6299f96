package hiqlite_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/lock"
)

// Nodes listen on other addresses than those under which they are reached.
func TestListenAddress(t *testing.T) {
	t.Parallel()
	own, advertised := freePorts(t, 3), freePorts(t, 3)
	for i := range own {
		newValve(t, advertised[i], own[i])
	}
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		cfg.ListenAddr = own[cfg.NodeID-1]
		cfg.Nodes = nil
		for i, address := range advertised {
			cfg.Nodes = append(cfg.Nodes, hiqlite.Member{ID: uint64(i + 1), RaftAddr: address})
		}
	})
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
	c.insert(1, 3)
	c.WaitEqual()
}

// Two nodes cannot reach each other, but both reach a third. The one that does not
// lead takes no part; its lock goes to the next one when its time to live is over,
// and it goes on when the network is whole again.
func TestTwoNodesThatCannotReachEachOther(t *testing.T) {
	t.Parallel()
	own := freePorts(t, 3)
	valves := map[[2]int]*valve{} // from, to
	for from := range own {
		for to, address := range freePorts(t, 3) {
			if from != to {
				valves[[2]int{from, to}] = newValve(t, address, own[to])
			}
		}
	}
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		from := int(cfg.NodeID - 1)
		cfg.Nodes = nil
		for to := range own {
			address := own[to]
			if to != from {
				address = valves[[2]int{from, to}].l.Addr().String()
			}
			cfg.Nodes = append(cfg.Nodes, hiqlite.Member{ID: uint64(to + 1), RaftAddr: address})
		}
	})
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
	between := []*valve{valves[[2]int{leads, cut}], valves[[2]int{cut, leads}]}
	for _, v := range between {
		v.hold()
	}
	next, err := lock.New(c.Node(third)).Lock(testrun.Context(t), "k")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-held.Done():
	default:
		t.Error("the lock is held twice")
	}
	if err := next.Unlock(testrun.Context(t)); err != nil {
		t.Error(err)
	}
	if leaderOf(third) == leads { // no election moved it meanwhile
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := lock.New(c.Node(cut)).Lock(ctx, "other"); err == nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("locking through the node that does not reach the leader: %v", err)
		}
	}
	for _, v := range between {
		v.release()
	}
	again, err := lock.New(c.Node(cut)).Lock(testrun.Context(t), "k")
	if err != nil {
		t.Fatal(err)
	}
	again.Unlock(testrun.Context(t))
}
