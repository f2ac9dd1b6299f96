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
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/testcluster"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/lock"
)

// altered is a client whose commands for locks pass through do.
type altered struct {
	*hiqlite.Node
	do func(ctx context.Context, c *wire.Command, next shardapi.Lock) (wire.Outcome, error)
}

type alteredLock struct {
	shardapi.Lock
	do func(ctx context.Context, c *wire.Command, next shardapi.Lock) (wire.Outcome, error)
}

func (a *altered) InMemoryShards() shardapi.Shards {
	c := a.Node.InMemoryShards()
	c.Lock = alteredLock{c.Lock, a.do}
	return c
}

func (l alteredLock) Do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	return l.do(ctx, c, l.Lock)
}

// A holder whose renewing goroutine does not get the processor, while others of
// his program go on and take locks, does not keep what is another's by then.
func TestAStarvedHolderLosesWhatHeHas(t *testing.T) {
	c := testcluster.Started(t, 3)
	ctx := testcluster.Patient(t)
	goOn := make(chan struct{})
	starved := &altered{c.Nodes[0], func(ctx context.Context, c *wire.Command, next shardapi.Lock) (wire.Outcome, error) {
		if c.Kind == wire.LockRenew {
			<-goOn
		}
		return next.Do(ctx, c)
	}}
	l := lock.New(starved, lock.WithTTL(lock.MinTTL))
	a := take(t, l, "a")
	other := take(t, lock.New(c.Nodes[1]), "a") // its time to live is over
	b := take(t, l, "b")
	select {
	case <-a.Done():
	case <-ctx.Done():
		t.Error("a has two holders")
	}
	if err := a.Unlock(ctx); !errors.Is(err, lock.ErrLost) {
		t.Errorf("Unlock by the first: %v", err)
	}
	close(goOn)
	give(t, b)
	give(t, other)
}

// A renewal that overtakes a release gives the lock up as well: it was held to
// the end.
func TestARenewalOvertakesARelease(t *testing.T) {
	c := testcluster.Started(t, 1)
	n := &altered{c.Nodes[0], func(ctx context.Context, c *wire.Command, next shardapi.Lock) (wire.Outcome, error) {
		if c.Kind == wire.LockRelease {
			if o, err := next.Do(ctx, &wire.Command{Kind: wire.LockRenew, Owner: c.Owner, ID: c.ID}); err != nil || o.Code != wire.Done {
				t.Errorf("the renewal: %+v, %v", o, err)
			}
		}
		return next.Do(ctx, c)
	}}
	give(t, take(t, lock.New(n), "l"))
}

// Whatever was under way when a node was closed, it leaves no lock that nobody
// holds.
func TestClosingLeavesNoLocks(t *testing.T) {
	const lockers = 16
	c := testcluster.Started(t, 3)
	var wg sync.WaitGroup
	var rounds [lockers]atomic.Int64
	node := c.Nodes[0]
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
		testcluster.WaitFor(t, "all to be at it", func() bool { return rounds[i].Load() >= 3 })
	}
	c.Stop(0)
	wg.Wait()
	for i := range lockers {
		give(t, take(t, lock.New(c.Nodes[1]), fmt.Sprint(i))) // not in an hour
	}
}

// First come, first served, also if a program gives back its last lock while it
// asks for another.
func TestGivingBackWhileAskingKeepsTheOrder(t *testing.T) {
	c := testcluster.Started(t, 3)
	ctx := testcluster.Patient(t)
	var a *lock.Held
	asked := make(chan struct{}, 1)
	other := make(chan *lock.Held, 1)
	n := &altered{c.Nodes[0], func(ctx context.Context, cmd *wire.Command, next shardapi.Lock) (wire.Outcome, error) {
		if cmd.Kind != wire.LockAcquire || cmd.Key != "b" || len(asked) > 0 {
			return next.Do(ctx, cmd)
		}
		asked <- struct{}{}
		give(t, a) // before the cluster hears of the other
		o, err := next.Do(ctx, cmd)
		go func() { other <- take(t, lock.New(c.Nodes[1]), "b") }()
		waitUntilQueued(t, c.Nodes[0], "b", 2)
		return o, err
	}}
	l := lock.New(n)
	a = take(t, l, "a")
	b, err := l.Lock(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-other:
		t.Error("who came second has the lock")
	default:
	}
	give(t, b)
	give(t, <-other)
}

// Who waits in the queue, with a context without a deadline, gives up when there
// is no leader.
func TestWaitingWithoutLeader(t *testing.T) {
	c := testcluster.Started(t, 3, func(cfg *hiqlite.Config) { cfg.Timeout = 2 * time.Second })
	n := c.Nodes[0]
	held := take(t, lock.New(n, lock.WithTTL(lock.MinTTL)), "a")
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
			t.Errorf("it gave up with %v", err)
		}
	case <-testcluster.Patient(t).Done():
		t.Error("it waits still")
	}
	<-held.Done()
}
