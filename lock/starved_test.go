package lock_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/lock"
)

// interceptedNode is a node whose lock commands go through do.
type interceptedNode struct {
	*hiqlite.Node
	do func(ctx context.Context, c *wire.Command, next shardapi.Lock) (wire.Outcome, error)
}

type interceptedLock struct {
	shardapi.Lock
	do func(ctx context.Context, c *wire.Command, next shardapi.Lock) (wire.Outcome, error)
}

func (n *interceptedNode) InMemoryShards() shardapi.Shards {
	c := n.Node.InMemoryShards()
	c.Lock = interceptedLock{c.Lock, n.do}
	return c
}

func (l interceptedLock) Do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	return l.do(ctx, c, l.Lock)
}

// A holder loses its locks in time even if its renewing goroutine hangs while
// other goroutines of the program continue to take locks with the same Locker.
func TestAStarvedHolderLosesItsLocks(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 3)
	ctx := testrun.Context(t)
	resume := make(chan struct{})
	starved := &interceptedNode{c.Node(0), func(ctx context.Context, c *wire.Command, next shardapi.Lock) (wire.Outcome, error) {
		if c.Kind == wire.KindLockRenew {
			<-resume
		}
		return next.Do(ctx, c)
	}}
	l := lock.New(starved, lock.WithTTL(lock.MinTTL))
	a := mustLock(t, l, "a")
	other := mustLock(t, lock.New(c.Node(1)), "a") // after the TTL
	b := mustLock(t, l, "b")
	select {
	case <-a.Done():
	case <-ctx.Done():
		t.Error("a has two holders")
	}
	if err := a.Unlock(ctx); !errors.Is(err, lock.ErrLost) {
		t.Errorf("Unlock by the first: %v", err)
	}
	close(resume)
	mustUnlock(t, b)
	mustUnlock(t, other)
}

// A renewal that overtakes a release releases the lock as well, so Unlock succeeds.
func TestARenewalOvertakesARelease(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	n := &interceptedNode{c.Node(0), func(ctx context.Context, c *wire.Command, next shardapi.Lock) (wire.Outcome, error) {
		if c.Kind == wire.KindLockRelease {
			if o, err := next.Do(ctx, &wire.Command{Kind: wire.KindLockRenew, Owner: c.Owner, LastWaiter: c.Waiter}); err != nil || o.Code != wire.Done {
				t.Errorf("the renewal: %+v, %v", o, err)
			}
		}
		return next.Do(ctx, c)
	}}
	mustUnlock(t, mustLock(t, lock.New(n), "l"))
}

// A node that is closed while its Lockers are busy leaves no lock behind.
func TestAClosedNodeLeavesNoLocks(t *testing.T) {
	const lockers = 16
	c := hiqlitetest.NewCluster(t, 3)
	var wg sync.WaitGroup
	var rounds [lockers]atomic.Int64
	node := c.Node(0)
	for i := range lockers {
		wg.Go(func() {
			l := lock.New(node, lock.WithTTL(lock.MaxTTL))
			for {
				h, err := l.Lock(context.Background(), fmt.Sprint(i))
				if err != nil {
					return
				}
				_ = h.Unlock(context.Background())
				rounds[i].Add(1)
			}
		})
	}
	for i := range lockers {
		testrun.WaitFor(t, "all lockers to work", func() bool { return rounds[i].Load() >= 3 })
	}
	c.Stop(0)
	wg.Wait()
	for i := range lockers {
		mustUnlock(t, mustLock(t, lock.New(c.Node(1)), fmt.Sprint(i))) // at once, not after the TTL of one hour
	}
}

// A Locker releases its last lock while its request for another lock is on its way. The
// waiter of that request stays before later ones.
func TestReleasingTheLastLockKeepsTheOrderOfARequest(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 3)
	ctx := testrun.Context(t)
	var a *lock.Held
	asked := make(chan struct{}, 1)
	other := make(chan *lock.Held, 1)
	n := &interceptedNode{c.Node(0), func(ctx context.Context, cmd *wire.Command, next shardapi.Lock) (wire.Outcome, error) {
		if cmd.Kind != wire.KindLockAcquire || cmd.Key != "b" || len(asked) > 0 {
			return next.Do(ctx, cmd)
		}
		asked <- struct{}{}
		mustUnlock(t, a) // before the request for b arrives
		o, err := next.Do(ctx, cmd)
		go func() { other <- mustLock(t, lock.New(c.Node(1)), "b") }()
		waitUntilQueued(t, c.Node(0), "b", 2)
		return o, err
	}}
	l := lock.New(n)
	a = mustLock(t, l, "a")
	b, err := l.Lock(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-other:
		t.Error("the second waiter has the lock")
	default:
	}
	mustUnlock(t, b)
	mustUnlock(t, <-other)
}

// A waiter in the queue whose context has no deadline returns ErrNoLeader when
// there is no leader.
func TestWaitingWithoutALeader(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 3, hiqlitetest.WithConfig(func(cfg *hiqlite.Config) { cfg.Timeout = 2 * time.Second }))
	n := c.Node(0)
	held := mustLock(t, lock.New(n, lock.WithTTL(lock.MinTTL)), "a")
	gaveUp := make(chan error, 1)
	go func() {
		_, err := lock.New(n, lock.WithTTL(lock.MinTTL)).Lock(context.Background(), "a")
		gaveUp <- err
	}()
	waitUntilQueued(t, n, "a", 2)
	c.Stop(1)
	c.Stop(2)
	select {
	case err := <-gaveUp:
		if !errors.Is(err, hiqlite.ErrNoLeader) || errors.Is(err, hiqlite.ErrOutcomeUnknown) {
			t.Errorf("Lock returned %v", err)
		}
	case <-testrun.Context(t).Done():
		t.Error("Lock still waits")
	}
	<-held.Done()
}
