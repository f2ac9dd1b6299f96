package consistency_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
)

// leaseSlack is what the tests allow beyond the time that a dead node should
// cost others: this is about bounds that are there, not about speed.
const leaseSlack = 5 * time.Second

// leaseCluster starts a cluster whose nodes wait for each other as long as it
// takes.
func leaseCluster(t *testing.T, ttl time.Duration) *cluster {
	t.Helper()
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		cfg.LeaseTTL, cfg.Conn.BusyTimeout = ttl, patience
	})
	c.nodes[0].alive().must("CREATE TABLE t(name TEXT)")
	c.settle()
	return c
}

// settle has all nodes apply what was acknowledged.
func (c *cluster) settle() {
	c.t.Helper()
	for _, n := range c.nodes {
		if _, err := n.alive().ask(request{Do: "ready"}, nil); err != nil {
			c.t.Fatal(err)
		}
	}
}

// roles returns the leader and the two others.
func (c *cluster) roles() (leader, one, other *node) {
	c.t.Helper()
	c.settle()
	leader = c.leader()
	for _, n := range c.nodes {
		switch {
		case n == leader:
		case one == nil:
			one = n
		default:
			other = n
		}
	}
	return leader, one, other
}

// hold begins a transaction on a node, which inserts name.
func (n *node) hold(name string) *transaction {
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

// insert inserts name through a node, and tells when that was done.
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

// queued waits until what was asked for a moment ago must have a place in the
// queue for the lease. That it has is no part of what the tests assert.
func queued() { time.Sleep(150 * time.Millisecond) }

// count returns how many rows of a name a node holds.
func (n *node) count(name string) int {
	n.c.t.Helper()
	rows, err := n.alive().query(true, "SELECT count(*) FROM t WHERE name=?", name)
	if err != nil {
		n.c.t.Fatal(err)
	}
	return number(rows[0][0])
}

// expect fails unless all nodes hold so many rows of a name.
func (c *cluster) expect(name string, want int) {
	c.t.Helper()
	for _, n := range c.nodes {
		if got := n.count(name); got != want {
			c.t.Errorf("node %d holds %d rows of %s, want %d", n.cfg.NodeID, got, name, want)
		}
	}
}

// took logs, and bounds, how long after a moment others went on.
func took(t *testing.T, since time.Time, done <-chan time.Time, most time.Duration) {
	t.Helper()
	d := (<-done).Sub(since)
	t.Logf("others went on after %v", d.Round(time.Millisecond))
	if d > most {
		t.Errorf("others went on after %v, want %v at most", d, most)
	}
}

func TestDeadHolders(t *testing.T) {
	c := leaseCluster(t, leaseTTL)

	// A dead holder is in the way for its lease's TTL.
	t.Run("holder", func(t *testing.T) {
		_, holder, other := c.roles()
		holder.hold("dead")
		done := other.insert("behind the dead")
		queued()
		dead := time.Now()
		holder.kill()
		took(t, dead, done, leaseTTL+leaseSlack)
		holder.restart()
		c.expect("dead", 0)
		c.expect("behind the dead", 1)
	})

	// Ten that waited for the lease, and died with their node, are not waited
	// for one after the other.
	t.Run("ten waiting", func(t *testing.T) {
		_, holder, other := c.roles()
		holder.hold("dead")
		for range 10 {
			go holder.alive().begin(request{Within: patience})
		}
		queued()
		done := other.insert("behind eleven")
		queued()
		dead := time.Now()
		holder.kill()
		took(t, dead, done, leaseTTL+leaseSlack)
		holder.restart()
		c.expect("behind eleven", 1)
	})

	// The same when the lease comes to the dead node only then.
	t.Run("ten waiting behind a living holder", func(t *testing.T) {
		_, waiting, holder := c.roles()
		tx := holder.hold("living")
		for range 10 {
			go waiting.alive().begin(request{Within: patience})
		}
		queued()
		done := holder.insert("behind ten")
		queued()
		waiting.kill()
		dead := time.Now()
		if err := tx.commit(); err != nil {
			t.Error(err)
		}
		took(t, dead, done, leaseTTL+leaseSlack)
		waiting.restart()
		c.expect("living", 1)
		c.expect("behind ten", 1)
	})

	// A holder that slept too long learns of it at its commit, if not before.
	t.Run("paused", func(t *testing.T) {
		leader, one, _ := c.roles()
		for i, holder := range []*node{one, leader} {
			name := fmt.Sprint("paused ", i)
			tx := holder.hold(name)
			holder.pause()
			other := c.nodes[holder.cfg.NodeID%3]
			<-other.insert("behind " + name)
			holder.goOn()
			err := tx.commit()
			var r *refusal
			if !errors.As(err, &r) || !r.Expired || r.Unknown {
				t.Errorf("the commit of a holder that slept: %v, want ErrTxExpired", err)
			}
			c.settle()
			c.expect(name, 0)
			c.expect("behind "+name, 1)
		}
	})

	// One that nobody waited for still has its lease.
	t.Run("paused alone", func(t *testing.T) {
		_, holder, _ := c.roles()
		tx := holder.hold("paused alone")
		holder.pause()
		time.Sleep(2 * leaseTTL) // the fault itself
		holder.goOn()
		if err := tx.commit(); err != nil {
			t.Errorf("the commit of a holder for whose lease nobody waited: %v", err)
		}
		c.expect("paused alone", 1)
	})
}

// A lease that is kept for the next transaction is lost while the node sleeps,
// and the next transaction begins before the node learns of that: what it writes
// is not applied, or it has seen what others wrote.
func TestKeptLeasesOfSleepers(t *testing.T) {
	c := leaseCluster(t, leaseTTL)
	expired := 0
	for round := range 4 {
		_, holder, other := c.roles()
		name := fmt.Sprint("while it slept ", round)
		l := holder.alive()
		for range 10 {
			if err := holder.hold("in a row").commit(); err != nil {
				t.Fatal(err)
			}
		}
		// Its alarm goes off first when it wakes.
		type begun struct {
			tx  *transaction
			err error
		}
		begins := make(chan begun)
		go func() {
			tx, err := l.begin(request{After: 20 * time.Millisecond})
			begins <- begun{tx, err}
		}()
		time.Sleep(2 * time.Millisecond) // for the request to arrive
		holder.pause()
		<-other.insert(name)
		holder.goOn()
		b := <-begins
		if b.err != nil {
			t.Fatal(b.err)
		}
		saw := ""
		rows, err := b.tx.query("SELECT count(*) FROM t WHERE name=?", name)
		if err == nil {
			saw = rows[0][0]
			_, err = b.tx.exec("INSERT INTO t VALUES(?)", name)
		}
		if err == nil {
			err = b.tx.commit()
		} else {
			b.tx.rollback()
		}
		switch {
		case err == nil && saw != "1":
			t.Errorf("the transaction of a node that slept saw %s rows, others had written 1, and was committed", saw)
		case err != nil && kindOf(err) != "expired":
			t.Errorf("the transaction of a node that slept: %v, want ErrTxExpired", err)
		case err != nil:
			expired++
		}
	}
	t.Logf("%d of 4 expired", expired)
	c.equal()
}

// Transactions outlive the leader, and do not hinder the next one: not even if
// their node has nothing new of the log, and whether others wait or not.
func TestLeadersDieUnderTransactions(t *testing.T) {
	c := leaseCluster(t, leaseTTL)
	for _, waiting := range []bool{false, true} {
		t.Run(fmt.Sprintf("waiting=%v", waiting), func(t *testing.T) {
			leader, holder, other := c.roles()
			name := fmt.Sprintf("outlives, waiting=%v", waiting)
			tx := holder.hold(name)
			var done <-chan time.Time
			if waiting {
				done = other.insert("behind " + name)
				queued()
			}
			dead := time.Now()
			leader.kill()
			for _, n := range []*node{holder, other} {
				if got := n.count(name); got != 0 {
					t.Errorf("node %d sees %d rows of an open transaction", n.cfg.NodeID, got)
				}
			}
			t.Logf("linearizable reads on both survivors after %v", time.Since(dead).Round(time.Millisecond))
			if next := c.leader(); next != holder && next != other {
				t.Errorf("node %d leads", next.cfg.NodeID)
			}
			if _, err := tx.exec("INSERT INTO t VALUES(?)", name); err != nil {
				t.Errorf("the transaction after the leader's death: %v", err)
			}
			if err := tx.commit(); err != nil {
				t.Errorf("the commit after the leader's death: %v", err)
			}
			if waiting {
				took(t, dead, done, leaseTTL+leaseSlack)
			}
			leader.restart()
			c.settle()
			c.expect(name, 2)
		})
	}
}

// With a TTL that nobody wants to wait for.
func TestLeasesThatEndEarly(t *testing.T) {
	const ttl = 30 * time.Second
	c := leaseCluster(t, ttl)

	// A lease that is kept for the next of transactions in a row.
	t.Run("kept", func(t *testing.T) {
		_, holder, other := c.roles()
		for i := range 20 {
			if err := holder.hold(fmt.Sprint("in a row ", i)).commit(); err != nil {
				t.Fatal(err)
			}
		}
		holder.kill()
		dead := time.Now()
		took(t, dead, other.insert("behind a kept lease"), ttl/2)
		holder.restart()
		c.expect("in a row 19", 1)
	})

	// The holder's next process ends what the last one held, even if it does
	// nothing.
	t.Run("restarted", func(t *testing.T) {
		_, holder, other := c.roles()
		holder.hold("dead")
		done := other.insert("behind the restarted")
		queued()
		dead := time.Now()
		holder.kill()
		holder.restart()
		t.Logf("ready after %v", time.Since(dead).Round(time.Millisecond))
		took(t, dead, done, ttl/2)
		c.expect("dead", 0)
	})
	t.Run("restarted and writing", func(t *testing.T) {
		_, holder, other := c.roles()
		holder.hold("dead")
		done := other.insert("behind the restarted and writing")
		queued()
		dead := time.Now()
		holder.kill()
		holder.restart()
		own := holder.insert("written by the restarted")
		took(t, dead, done, ttl/2)
		took(t, dead, own, ttl/2)
		c.expect("dead", 0)
	})
}
