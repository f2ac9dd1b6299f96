package consistency_test

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// longTTL is one that no test waits for: what comes sooner than lockTimeout does
// not come of it.
const longTTL = time.Minute

// take takes a lock on a node, and waits for it as long as the test may.
func (n *node) take(key string) *lockOrder {
	n.c.t.Helper()
	o := &lockOrder{Key: key, TTL: longTTL}
	a, err := n.alive().ask(request{Do: "lock", Lock: o, Within: lockTimeout}, nil)
	if err != nil {
		n.c.t.Fatalf("locking %s on node %d: %v", key, n.cfg.NodeID, err)
	}
	o.Hold = a.Lock.Hold
	return o
}

// wait has a node wait for a lock, and returns when it has a place in the queue
// or, at the latest, would have had one long before. The channel tells what came
// of it.
func (n *node) wait(key string) <-chan error {
	got := make(chan error, 1)
	l := n.alive()
	go func() {
		_, err := l.ask(request{Do: "lock", Lock: &lockOrder{Key: key, TTL: longTTL, Locker: 1}, Within: lockTimeout}, nil)
		got <- err
	}()
	queued()
	return got
}

// expectHeld fails if a lock is to be had.
func (n *node) expectHeld(key string) {
	n.c.t.Helper()
	_, err := n.alive().ask(request{Do: "trylock", Lock: &lockOrder{Key: key, TTL: longTTL, Locker: 2}}, nil)
	var r *refusal
	if !errors.As(err, &r) || !r.Held {
		n.c.t.Errorf("TryLock of %s on node %d: %v, want ErrHeld", key, n.cfg.NodeID, err)
	}
}

func (n *node) unlock(o *lockOrder) {
	n.c.t.Helper()
	if _, err := n.alive().ask(request{Do: "unlock", Lock: o}, nil); err != nil {
		n.c.t.Errorf("unlocking %s on node %d: %v", o.Key, n.cfg.NodeID, err)
	}
}

// others returns the nodes but one.
func (c *cluster) others(n *node) (one, other *node) {
	for _, x := range c.nodes {
		switch {
		case x == n:
		case one == nil:
			one = x
		default:
			other = x
		}
	}
	return one, other
}

// What a node had is given to others when its next process is there, though its
// time to live is not over: whether that process takes locks or not, and for
// what the node held as for what it waited for.
func TestLocksOfTheRestarted(t *testing.T) {
	c := newCluster(t, 3, nil)
	for i, idle := range []bool{true, false} {
		t.Run(fmt.Sprintf("idle=%v", idle), func(t *testing.T) {
			victim := c.nodes[i]
			one, other := c.others(victim)
			held, queue := fmt.Sprint("held ", i), fmt.Sprint("queue ", i)
			victim.take(held)
			before := one.take(queue)
			victim.wait(queue)
			got := []<-chan error{one.wait(held), other.wait(queue)}
			victim.kill()
			one.unlock(before) // the next one in the queue is dead
			other.expectHeld(held)
			one.expectHeld(queue)
			victim.restart()
			if !idle {
				victim.unlock(victim.take(fmt.Sprint("of the restarted ", i)))
			}
			for _, err := range got {
				if err := <-err; err != nil {
					t.Errorf("behind the restarted: %v", err)
				}
			}
		})
	}
}

// A node that is closed gives back what it has, be it the leader or not.
func TestLocksOfTheClosed(t *testing.T) {
	c := newCluster(t, 3, nil)
	for _, leads := range []bool{false, true} {
		t.Run(fmt.Sprintf("leader=%v", leads), func(t *testing.T) {
			victim := c.lockLeader()
			if !leads {
				victim, _ = c.others(victim)
			}
			one, other := c.others(victim)
			held, queue := fmt.Sprint("held, leader=", leads), fmt.Sprint("queue, leader=", leads)
			victim.take(held)
			before := one.take(queue)
			victim.wait(queue)
			got := []<-chan error{one.wait(held), other.wait(queue)}
			victim.close()
			one.unlock(before) // the next one in the queue is closed
			for _, err := range got {
				if err := <-err; err != nil {
					t.Errorf("behind the closed: %v", err)
				}
			}
			victim.restart()
		})
	}
}

// The death of the leader takes no lock from those who live, nor their places
// in the queue.
func TestLocksOutliveLeaders(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.lockLeader()
	holder, other := c.others(leader)
	o := holder.take("lasting")
	got := other.wait("lasting")
	leader.kill()
	for _, n := range []*node{holder, other} {
		n.unlock(n.take("another")) // there is a new leader
		n.expectHeld("lasting")
	}
	a, err := holder.alive().ask(request{Do: "held", Lock: o}, nil)
	if err != nil || a.Lock.Closed {
		t.Errorf("the holder hears that the lock is lost: %+v, %v", a.Lock, err)
	}
	select {
	case err := <-got:
		t.Errorf("another has the lock (%v), too", err)
	default:
	}
	holder.unlock(o)
	if err := <-got; err != nil {
		t.Errorf("the next in the queue: %v", err)
	}
	leader.restart()
}
