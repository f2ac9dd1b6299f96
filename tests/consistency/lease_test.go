package consistency_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// leaseSlack is how much longer than the TTL of the lease others may have to wait
// for a dead node. The tests check that there is a bound, not that it is tight.
const leaseSlack = 5 * time.Second

// leaseCluster starts a cluster whose nodes wait for the write lease for as long
// as a test may last.
func leaseCluster(t *testing.T, ttl time.Duration) *cluster {
	t.Helper()
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		cfg.LeaseTTL, cfg.Conn.BusyTimeout = ttl, patience
	})
	c.nodes[0].alive().must("CREATE TABLE t(name TEXT)")
	c.catchUp()
	return c
}

// catchUp waits until all nodes have applied what was acknowledged.
func (c *cluster) catchUp() {
	c.t.Helper()
	for _, n := range c.nodes {
		if _, err := n.alive().ask(request{Do: "ready"}, nil); err != nil {
			c.t.Fatal(err)
		}
	}
}

// roles returns the leader and the other two nodes.
func (c *cluster) roles() (leader, one, other *node) {
	c.t.Helper()
	c.catchUp()
	leader = c.leader("sql")
	one, other = c.others(leader)
	return leader, one, other
}

// holdLease begins a transaction on a node and inserts name in it.
func (n *node) holdLease(name string) *transaction {
	n.c.t.Helper()
	tx, err := n.alive().begin(request{Within: 2 * patience})
	if err != nil {
		n.c.t.Fatal(err)
	}
	if _, err := tx.exec("INSERT INTO t VALUES(?)", name); err != nil {
		n.c.t.Fatal(err)
	}
	return tx
}

// insert begins to insert name through a node. The channel receives the time at
// which the insert returned.
func (n *node) insert(name string) <-chan time.Time {
	done := make(chan time.Time, 1)
	l := n.alive()
	go func() {
		if _, err := l.ask(request{Do: "exec", SQL: []string{"INSERT INTO t VALUES(?)"}, Args: [][]any{{name}}, Within: patience}, nil); err != nil {
			n.c.t.Errorf("inserting %s: %v", name, err)
		}
		done <- time.Now()
	}()
	return done
}

// waitForWaiters waits until so many waiters are in the lease queue, as far as the
// node has applied the log.
func (n *node) waitForWaiters(want int) {
	n.c.t.Helper()
	testrun.WaitFor(n.c.t, fmt.Sprintf("%d waiters in the lease queue", want), func() bool {
		a, err := n.alive().ask(request{Do: "waiters"}, nil)
		if err != nil {
			n.c.t.Fatal(err)
		}
		return a.Waiters == want
	})
}

// count returns how many rows with a name a node has.
func (n *node) count(name string) int {
	n.c.t.Helper()
	rows, err := n.alive().query(true, "SELECT count(*) FROM t WHERE name=?", name)
	if err != nil {
		n.c.t.Fatal(err)
	}
	return number(rows[0][0])
}

// expect fails the test unless every node has so many rows with a name.
func (c *cluster) expect(name string, want int) {
	c.t.Helper()
	for _, n := range c.nodes {
		if got := n.count(name); got != want {
			c.t.Errorf("node %d has %d rows with the name %s, want %d", n.cfg.NodeID, got, name, want)
		}
	}
}

// expectWithin fails the test if a write that was blocked returned later than
// limit after since.
func expectWithin(t *testing.T, since time.Time, done <-chan time.Time, limit time.Duration) {
	t.Helper()
	d := (<-done).Sub(since)
	t.Logf("the waiting write returned after %v", d.Round(time.Millisecond))
	if d > limit {
		t.Errorf("the waiting write returned after %v, want %v at most", d, limit)
	}
}

func TestDeadHolders(t *testing.T) {
	c := leaseCluster(t, leaseTTL)

	// A dead holder blocks other writers for the TTL of its lease.
	t.Run("holder", func(t *testing.T) {
		_, holder, other := c.roles()
		holder.holdLease("dead")
		done := other.insert("after the dead holder")
		other.waitForWaiters(1)
		dead := time.Now()
		holder.kill()
		expectWithin(t, dead, done, leaseTTL+leaseSlack)
		holder.restart()
		c.expect("dead", 0)
		c.expect("after the dead holder", 1)
	})

	// Ten transactions of the dead node are in the lease queue. They expire
	// together with the holder, not one after the other.
	t.Run("ten waiting", func(t *testing.T) {
		_, holder, other := c.roles()
		holder.holdLease("dead")
		for range 10 {
			go holder.alive().begin(request{Within: patience})
		}
		other.waitForWaiters(10)
		done := other.insert("after eleven")
		other.waitForWaiters(11)
		dead := time.Now()
		holder.kill()
		expectWithin(t, dead, done, leaseTTL+leaseSlack)
		holder.restart()
		c.expect("after eleven", 1)
	})

	// The same, but the lease is granted to the dead node only after its death.
	t.Run("ten waiting for a living holder", func(t *testing.T) {
		_, waiting, holder := c.roles()
		tx := holder.holdLease("living")
		for range 10 {
			go waiting.alive().begin(request{Within: patience})
		}
		holder.waitForWaiters(10)
		done := holder.insert("after ten")
		holder.waitForWaiters(11)
		waiting.kill()
		dead := time.Now()
		if err := tx.commit(); err != nil {
			t.Error(err)
		}
		expectWithin(t, dead, done, leaseTTL+leaseSlack)
		waiting.restart()
		c.expect("living", 1)
		c.expect("after ten", 1)
	})

	// The commit of a holder that was paused for too long fails.
	t.Run("paused", func(t *testing.T) {
		leader, one, _ := c.roles()
		for i, holder := range []*node{one, leader} {
			name := fmt.Sprint("paused ", i)
			tx := holder.holdLease(name)
			holder.pause()
			other := c.nodes[holder.cfg.NodeID%3]
			<-other.insert("after " + name)
			holder.resume()
			err := tx.commit()
			var r *refusal
			if !errors.As(err, &r) || !r.Expired || r.Unknown {
				t.Errorf("the commit of a holder that was paused: %v, want ErrTxExpired", err)
			}
			c.catchUp()
			c.expect(name, 0)
			c.expect("after "+name, 1)
		}
	})

	// A holder that was paused while nobody waited still has its lease.
	t.Run("paused alone", func(t *testing.T) {
		_, holder, _ := c.roles()
		tx := holder.holdLease("paused alone")
		holder.pause()
		time.Sleep(2 * leaseTTL) // the fault itself
		holder.resume()
		if err := tx.commit(); err != nil {
			t.Errorf("the commit of a paused holder for whose lease nobody waited: %v", err)
		}
		c.expect("paused alone", 1)
	})
}

// Open transactions survive the death of the leader and do not delay the election
// of the next one. That holds even if their node has no new entries in its log,
// and whether others wait for the lease or not.
func TestTransactionsSurviveTheLeader(t *testing.T) {
	c := leaseCluster(t, leaseTTL)
	for _, waiting := range []bool{false, true} {
		t.Run(fmt.Sprintf("waiting=%v", waiting), func(t *testing.T) {
			leader, holder, other := c.roles()
			name := fmt.Sprintf("survives, waiting=%v", waiting)
			tx := holder.holdLease(name)
			var done <-chan time.Time
			if waiting {
				done = other.insert("after " + name)
				other.waitForWaiters(1)
			}
			dead := time.Now()
			leader.kill()
			for _, n := range []*node{holder, other} {
				if got := n.count(name); got != 0 {
					t.Errorf("node %d sees %d rows of an open transaction", n.cfg.NodeID, got)
				}
			}
			t.Logf("linearizable reads on both survivors after %v", time.Since(dead).Round(time.Millisecond))
			if next := c.leader("sql"); next != holder && next != other {
				t.Errorf("node %d leads", next.cfg.NodeID)
			}
			if _, err := tx.exec("INSERT INTO t VALUES(?)", name); err != nil {
				t.Errorf("a statement of the transaction after the leader's death: %v", err)
			}
			if err := tx.commit(); err != nil {
				t.Errorf("the commit after the leader's death: %v", err)
			}
			if waiting {
				expectWithin(t, dead, done, leaseTTL+leaseSlack)
			}
			leader.restart()
			c.catchUp()
			c.expect(name, 2)
		})
	}
}

// Leases of a dead node that end long before their TTL. The TTL is so long that
// the tests would fail if they had to wait for it.
func TestLeasesThatEndEarly(t *testing.T) {
	const ttl = 30 * time.Second
	c := leaseCluster(t, ttl)

	// The node kept the lease for its next transaction when it died.
	t.Run("kept", func(t *testing.T) {
		_, holder, other := c.roles()
		for i := range 20 {
			if err := holder.holdLease(fmt.Sprint("in a row ", i)).commit(); err != nil {
				t.Fatal(err)
			}
		}
		holder.kill()
		dead := time.Now()
		expectWithin(t, dead, other.insert("after a kept lease"), ttl/2)
		holder.restart()
		c.expect("in a row 19", 1)
	})

	// When the node starts again, the lease of its previous process ends, even if
	// the new process does not write.
	t.Run("restarted", func(t *testing.T) {
		_, holder, other := c.roles()
		holder.holdLease("dead")
		done := other.insert("after the restarted node")
		other.waitForWaiters(1)
		dead := time.Now()
		holder.kill()
		holder.restart()
		t.Logf("ready after %v", time.Since(dead).Round(time.Millisecond))
		expectWithin(t, dead, done, ttl/2)
		c.expect("dead", 0)
	})
	t.Run("restarted and writing", func(t *testing.T) {
		_, holder, other := c.roles()
		holder.holdLease("dead")
		done := other.insert("after the restarted and writing node")
		other.waitForWaiters(1)
		dead := time.Now()
		holder.kill()
		holder.restart()
		restarted := holder.insert("by the restarted node")
		expectWithin(t, dead, done, ttl/2)
		expectWithin(t, dead, restarted, ttl/2)
		c.expect("dead", 0)
	})
}
