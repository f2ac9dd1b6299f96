package consistency_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// longTTL is longer than lockTimeout. A lock with this TTL that another waiter
// gets within lockTimeout has not expired, but ended in another way.
const longTTL = time.Minute

// lock takes a lock on a node, and waits for it for up to lockTimeout.
func (n *node) lock(key string) *lockOrder {
	n.c.t.Helper()
	o := &lockOrder{Key: key, TTL: longTTL}
	a, err := n.alive().ask(request{Do: "lock", Lock: o, Within: lockTimeout}, nil)
	if err != nil {
		n.c.t.Fatalf("locking %s on node %d: %v", key, n.cfg.NodeID, err)
	}
	o.Hold = a.Lock.Hold
	return o
}

// waitForLock begins to wait for a lock on a node, and returns when the holder and
// the waiters of the lock are so many, as far as the node has applied the log. The
// channel receives the error of Lock.
func (n *node) waitForLock(key string, holderAndWaiters int) <-chan error {
	n.c.t.Helper()
	got := make(chan error, 1)
	l := n.alive()
	go func() {
		_, err := l.ask(request{Do: "lock", Lock: &lockOrder{Key: key, TTL: longTTL, Locker: 1}, Within: lockTimeout}, nil)
		got <- err
	}()
	testrun.WaitFor(n.c.t, fmt.Sprintf("%d to hold the lock %s or to wait for it", holderAndWaiters, key), func() bool {
		a, err := l.ask(request{Do: "queue", Lock: &lockOrder{Key: key}}, nil)
		if err != nil {
			n.c.t.Fatal(err)
		}
		return a.Lock.HolderAndWaiters == holderAndWaiters
	})
	return got
}

// expectHeld fails the test unless somebody holds the lock.
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

// others returns the nodes except n.
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

// When a killed node starts again, the locks of its previous process are granted to
// others before their TTL has passed, whether the new process takes locks or not.
// The waiters of the previous process leave the queues, too.
func TestLocksOfRestartedNodes(t *testing.T) {
	c := newCluster(t, 3, nil)
	for i, idle := range []bool{true, false} {
		t.Run(fmt.Sprintf("idle=%v", idle), func(t *testing.T) {
			victim := c.nodes[i]
			one, other := c.others(victim)
			held, queue := fmt.Sprint("held ", i), fmt.Sprint("queue ", i)
			victim.lock(held)
			before := one.lock(queue)
			victim.waitForLock(queue, 2)
			got := []<-chan error{one.waitForLock(held, 2), other.waitForLock(queue, 3)}
			victim.kill()
			one.unlock(before) // the next waiter in the queue is the victim's
			other.expectHeld(held)
			one.expectHeld(queue)
			victim.restart()
			if !idle {
				victim.unlock(victim.lock(fmt.Sprint("of the new process ", i)))
			}
			for _, err := range got {
				if err := <-err; err != nil {
					t.Errorf("a waiter after the restart: %v", err)
				}
			}
		})
	}
}

// A node that is closed releases its locks and removes its waiters, whether it is
// the leader or not.
func TestLocksOfClosedNodes(t *testing.T) {
	c := newCluster(t, 3, nil)
	for _, leads := range []bool{false, true} {
		t.Run(fmt.Sprintf("leader=%v", leads), func(t *testing.T) {
			victim := c.leader("lock")
			if !leads {
				victim, _ = c.others(victim)
			}
			one, other := c.others(victim)
			held, queue := fmt.Sprint("held, leader=", leads), fmt.Sprint("queue, leader=", leads)
			victim.lock(held)
			before := one.lock(queue)
			victim.waitForLock(queue, 2)
			got := []<-chan error{one.waitForLock(held, 2), other.waitForLock(queue, 3)}
			victim.close()
			one.unlock(before) // the next waiter in the queue is the victim's
			for _, err := range got {
				if err := <-err; err != nil {
					t.Errorf("a waiter after the node was closed: %v", err)
				}
			}
			victim.restart()
		})
	}
}

// When the leader dies, the holders and waiters of other nodes keep their locks and
// their places in the queue.
func TestLocksSurviveTheLeader(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader("lock")
	holder, other := c.others(leader)
	o := holder.lock("lasting")
	got := other.waitForLock("lasting", 2)
	leader.kill()
	for _, n := range []*node{holder, other} {
		n.unlock(n.lock("another")) // this needs a new leader
		n.expectHeld("lasting")
	}
	a, err := holder.alive().ask(request{Do: "held", Lock: o}, nil)
	if err != nil || a.Lock.Closed {
		t.Errorf("the lock of a surviving holder: %+v, %v; want one that is not lost", a.Lock, err)
	}
	select {
	case err := <-got:
		t.Errorf("Lock of a waiter returned while the lock was held: %v", err)
	default:
	}
	holder.unlock(o)
	if err := <-got; err != nil {
		t.Errorf("the next waiter in the queue: %v", err)
	}
	leader.restart()
}
