package lock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/lock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eachSize runs a test on a cluster of one node and on one of three.
func eachSize(t *testing.T, test func(t *testing.T, c *hiqlitetest.Cluster)) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) { test(t, hiqlitetest.NewCluster(t, size)) })
	}
}

func TestLockAndUnlock(t *testing.T) {
	eachSize(t, func(t *testing.T, c *hiqlitetest.Cluster) {
		ctx := testrun.Context(t)
		token := uint64(0)
		for i, n := range c.Nodes() {
			l := lock.New(n)
			held, err := l.Lock(ctx, "job")
			if err != nil {
				t.Fatal(err)
			}
			if held.Token() <= token {
				t.Errorf("token %d after %d", held.Token(), token)
			}
			token = held.Token()
			for _, other := range c.Nodes() {
				if _, err := lock.New(other).TryLock(ctx, "job"); !errors.Is(err, lock.ErrHeld) {
					t.Errorf("TryLock of a held lock: %v", err)
				}
			}
			if err := held.Unlock(ctx); err != nil {
				t.Errorf("node %d unlocks: %v", i+1, err)
			}
			if err := held.Unlock(ctx); !errors.Is(err, lock.ErrNotHeld) {
				t.Errorf("node %d unlocks twice: %v", i+1, err)
			}
		}
	})
}

func mustLock(t testing.TB, l *lock.Locker, key string) *lock.Held {
	t.Helper()
	h, err := l.Lock(testrun.Context(t), key)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func mustUnlock(t testing.TB, h *lock.Held) {
	t.Helper()
	if err := h.Unlock(testrun.Context(t)); err != nil {
		t.Error(err)
	}
}

// waitUntilQueued waits until the queue of a lock has n waiters, its holder included.
func waitUntilQueued(t testing.TB, node *hiqlite.Node, key string, n int) {
	t.Helper()
	testrun.WaitFor(t, "the queue", func() bool { return node.InMemoryShards().Lock.QueueLen(key) == n })
}

// Waiters get the lock in the order of their requests, on whichever nodes, and never
// two at once.
func TestWaitersAreServedInOrder(t *testing.T) {
	eachSize(t, func(t *testing.T, c *hiqlitetest.Cluster) {
		const waiters = 12
		first := mustLock(t, lock.New(c.Node(0)), "l")
		var wg sync.WaitGroup
		var mu sync.Mutex
		var order []int
		var inside atomic.Int32
		token := first.Token()
		for i := range waiters {
			wg.Go(func() {
				h := mustLock(t, lock.New(c.Node(i%c.Len())), "l")
				if inside.Add(1) != 1 {
					t.Error("two holders at once")
				}
				mu.Lock()
				order = append(order, i)
				if h.Token() <= token {
					t.Errorf("token %d after %d", h.Token(), token)
				}
				token = h.Token()
				mu.Unlock()
				inside.Add(-1)
				mustUnlock(t, h)
			})
			waitUntilQueued(t, c.Node(0), "l", i+2)
		}
		mustUnlock(t, first)
		wg.Wait()
		for i := range waiters {
			if order[i] != i {
				t.Fatalf("the waiters were served in the order %v", order)
			}
		}
		waitUntilQueued(t, c.Node(0), "l", 0)
	})
}

// A waiter whose context ends leaves the queue, and the next one gets the lock.
func TestCancelledWaiterLeavesTheQueue(t *testing.T) {
	eachSize(t, func(t *testing.T, c *hiqlitetest.Cluster) {
		l := lock.New(c.Node(0))
		first := mustLock(t, l, "l")
		ctx, cancel := context.WithCancel(testrun.Context(t))
		gaveUp := make(chan error, 1)
		go func() { _, err := l.Lock(ctx, "l"); gaveUp <- err }()
		waitUntilQueued(t, c.Node(0), "l", 2)
		next := make(chan *lock.Held, 1)
		go func() { next <- mustLock(t, lock.New(c.Node(c.Len()-1)), "l") }()
		waitUntilQueued(t, c.Node(0), "l", 3)
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Errorf("Lock returned %v", err)
		}
		waitUntilQueued(t, c.Node(0), "l", 2)
		mustUnlock(t, first)
		mustUnlock(t, <-next)
	})
}

// A lock is held for longer than its TTL because it is renewed, even while the
// leader changes.
func TestRenewal(t *testing.T) {
	const ttl = 4 * time.Second // the shortest that survives an election
	c := hiqlitetest.NewCluster(t, 3)
	h := mustLock(t, lock.New(c.Node(0), lock.WithTTL(ttl)), "l")
	other := lock.New(c.Node(1))
	began := time.Now()
	closed := false
	for time.Since(began) < 3*ttl/2 {
		if _, err := other.TryLock(testrun.Context(t), "l"); !errors.Is(err, lock.ErrHeld) {
			t.Fatalf("after %v another TryLock returned %v", time.Since(began), err)
		}
		if !closed && time.Since(began) > ttl/4 {
			c.Stop(2) // whether or not it is the leader
			closed = true
		}
	}
	select {
	case <-h.Done():
		t.Error("the lock was lost")
	default:
	}
	mustUnlock(t, h)
	if cause := context.Cause(h.Context()); !errors.Is(cause, lock.ErrNotHeld) {
		t.Errorf("the context ended because of %v", cause)
	}
}

// A holder that is cut off learns that its locks are lost. When it is connected
// again, it cannot unlock a lock that another holds.
func TestLoss(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 3)
	type key struct{}
	ctx := context.WithValue(testrun.Context(t), key{}, "value")
	l := lock.New(c.Node(0), lock.WithTTL(lock.MinTTL))
	h, err := l.Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}
	also := mustLock(t, l, "also")
	c.Stop(1)
	c.Stop(2) // without a majority nothing can be renewed
	<-h.Done()
	<-also.Done()
	if cause := context.Cause(h.Context()); !errors.Is(cause, lock.ErrLost) {
		t.Errorf("the context ended because of %v", cause)
	}
	if h.Context().Value(key{}) != "value" {
		t.Error("the context does not have the values of Lock's context")
	}
	if err := h.Unlock(ctx); !errors.Is(err, lock.ErrLost) {
		t.Errorf("Unlock of a lost lock: %v", err)
	}
	c.Start(1)
	c.Start(2)
	c.WaitReady(1)
	next := mustLock(t, lock.New(c.Node(1)), "l") // after the TTL
	if next.Token() <= h.Token() {
		t.Errorf("token %d after %d", next.Token(), h.Token())
	}
	if err := h.Unlock(ctx); !errors.Is(err, lock.ErrLost) {
		t.Errorf("Unlock of a lock that another holds: %v", err)
	}
	if _, err := l.TryLock(ctx, "l"); !errors.Is(err, lock.ErrHeld) {
		t.Errorf("TryLock of a lock that another holds: %v", err)
	}
	mustUnlock(t, next)
	mustUnlock(t, mustLock(t, l, "l")) // the Locker can be used again
}

// A node that is closed releases its locks, after the contexts of their holders
// have ended.
func TestClosingANodeReleasesItsLocks(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 3)
	h := mustLock(t, lock.New(c.Node(0), lock.WithTTL(lock.MaxTTL)), "l")
	next := make(chan *lock.Held, 1)
	go func() { next <- mustLock(t, lock.New(c.Node(1)), "l") }()
	waitUntilQueued(t, c.Node(1), "l", 2)
	c.Stop(0)
	select {
	case <-h.Done():
		if cause := context.Cause(h.Context()); !errors.Is(cause, lock.ErrLost) || !errors.Is(cause, hiqlite.ErrClosed) {
			t.Errorf("the context ended because of %v", cause)
		}
	default:
		t.Error("the node is closed and its lock is still held")
	}
	mustUnlock(t, <-next) // at once, not after the TTL of one hour
	c.Start(0)
	c.WaitReady(0)
	if err := h.Unlock(testrun.Context(t)); !errors.Is(err, lock.ErrLost) {
		t.Errorf("Unlock: %v", err)
	}
}

func TestBadInput(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	ctx := testrun.Context(t)
	for _, key := range []string{"", strings.Repeat("k", lock.MaxKey+1)} {
		if _, err := lock.New(c.Node(0)).Lock(ctx, key); !errors.Is(err, lock.ErrKey) {
			t.Errorf("a key of %d bytes: %v", len(key), err)
		}
		if _, err := lock.New(c.Node(0)).TryLock(ctx, key); !errors.Is(err, lock.ErrKey) {
			t.Errorf("a key of %d bytes: %v", len(key), err)
		}
	}
	for _, ttl := range []time.Duration{0, -time.Second, time.Millisecond, 2 * lock.MaxTTL} {
		if _, err := lock.New(c.Node(0), lock.WithTTL(ttl)).Lock(ctx, "l"); err == nil || !strings.Contains(err.Error(), "1s and 1h0m0s") {
			t.Errorf("a time to live of %v: %v", ttl, err)
		}
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := lock.New(c.Node(0)).Lock(ended, "l"); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
	// Unlock releases the lock even with a context that has ended.
	h := mustLock(t, lock.New(c.Node(0)), "l")
	if err := h.Unlock(ended); err != nil {
		t.Errorf("Unlock with a context that has ended: %v", err)
	}
	mustUnlock(t, mustLock(t, lock.New(c.Node(0)), "l"))
	node := c.Node(0)
	c.Stop(0)
	if _, err := lock.New(node).Lock(ctx, "l"); !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("a closed node: %v", err)
	}
}
