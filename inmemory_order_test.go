package hiqlite_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
	"github.com/hiqlite/hiqlite/lock"
	"github.com/hiqlite/hiqlite/pubsub"
)

// A door is what one node's SQL shard has to pass before it applies entries.
type door struct {
	mu     sync.Mutex
	closed chan struct{} // closed when it opens; nil: it is open
}

func (d *door) pass() {
	d.mu.Lock()
	closed := d.closed
	d.mu.Unlock()
	if closed != nil {
		<-closed
	}
}

func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = make(chan struct{})
}

func (d *door) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed != nil {
		close(d.closed)
		d.closed = nil
	}
}

// behindDoor is three nodes, of which the last has to pass a door to apply
// entries of the shard whose gate set sets.
func behindDoor(t *testing.T, hook func(cfg *hiqlite.Config, f func(node uint64))) (*testCluster, *door) {
	t.Helper()
	d := &door{}
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		hook(cfg, func(node uint64) {
			if node == 3 {
				d.pass()
			}
		})
	})
	t.Cleanup(d.open) // before the nodes are stopped
	return c, d
}

// lockAndUnlock takes a lock on a node and gives it back.
func lockAndUnlock(ctx context.Context, n *hiqlite.Node, key string, opts ...lock.Option) error {
	held, err := lock.New(n, opts...).Lock(ctx, key)
	if err == nil {
		err = held.Unlock(ctx)
	}
	return err
}

// slowCluster is three nodes, of which the last can be made slow to apply SQL.
// It never leads: the others would have to wait for it.
func slowCluster(t *testing.T) (*testCluster, *door) {
	t.Helper()
	c, d := behindDoor(t, (*hiqlite.Config).HookApplySQL)
	for c.Leader() == 2 {
		c.Stop(2)
		c.WaitReady(0)
		c.Start(2)
		c.WaitReady(2)
	}
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
	c.WaitReady(2)
	return c, d
}

// slowBuckets is three nodes, of which the last can be made slow to apply what is
// put into buckets.
func slowBuckets(t *testing.T) (*testCluster, *door) {
	t.Helper()
	return behindDoor(t, (*hiqlite.Config).HookApplyKV)
}

// told runs f, which waits for being told on the slow node, and counts the rows
// that can be read there the moment it returns.
func (c *testCluster) told(f func(ctx context.Context) error) <-chan int {
	ctx, rows := testrun.Context(c.t), make(chan int, 1)
	go func() {
		n := -1
		if err := f(ctx); err != nil {
			c.t.Error(err)
		} else if err := c.DB(2).QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&n); err != nil {
			c.t.Error(err)
		}
		rows <- n
	}()
	return rows
}

// Whoever is told of a change can read what was written before it, on a node
// that is behind with SQL.
func TestWhoIsToldCanRead(t *testing.T) {
	t.Parallel()
	c, d := slowCluster(t)
	ctx := testrun.Context(t)
	near, far := c.Node(0), c.Node(2)

	nearKV, err := kv.New[string](near, "b")
	if err != nil {
		t.Fatal(err)
	}
	farKV, err := kv.New[string](far, "b")
	if err != nil {
		t.Fatal(err)
	}
	ordered, err := farKV.Watch(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	defer ordered.Close()
	unordered, err := farKV.Watch(ctx, "", kv.WithoutOrder())
	if err != nil {
		t.Fatal(err)
	}
	defer unordered.Close()
	sub, err := pubsub.Listen(ctx, far, "c")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	eager, err := pubsub.Listen(ctx, far, "c", pubsub.WithoutOrder())
	if err != nil {
		t.Fatal(err)
	}
	defer eager.Close()
	held, err := lock.New(near).Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}

	d.close()
	mustExec(t, c.DB(0), "INSERT INTO t DEFAULT VALUES")
	if err := nearKV.Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if _, err := pubsub.Notify(ctx, near, "c", nil); err != nil {
		t.Fatal(err)
	}
	waiting := []<-chan int{
		c.told(func(ctx context.Context) error { _, err := ordered.Next(ctx); return err }),
		c.told(func(ctx context.Context) error { _, err := sub.Next(ctx); return err }),
		c.told(func(ctx context.Context) error { return lockAndUnlock(ctx, far, "l") }),
	}
	if err := held.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	// They are known on the slow node, which tells only who does not mind.
	if _, err := unordered.Next(ctx); err != nil {
		t.Error(err)
	}
	if _, err := eager.Next(ctx); err != nil {
		t.Error(err)
	}
	if err := lockAndUnlock(ctx, far, "other", lock.WithoutOrder()); err != nil {
		t.Error(err)
	}
	if v, ok, err := farKV.Get(ctx, "k"); err != nil || !ok || v != "v" {
		t.Errorf("the slow node has %q, %v, %v", v, ok, err)
	}
	var n int
	if err := c.DB(2).QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&n); err != nil || n != 0 {
		t.Fatalf("the slow node reads %d rows, %v: it is not slow", n, err)
	}
	d.open()
	for i, rows := range waiting {
		if n := <-rows; n != 1 {
			t.Errorf("reader %d was told and read %d rows", i, n)
		}
	}
}

// Who is given a lock or gets a message reads the buckets as they were before, on
// a node that is behind with them.
func TestWhoIsToldCanReadBuckets(t *testing.T) {
	t.Parallel()
	c, d := slowBuckets(t)
	ctx := testrun.Context(t)
	near, far := c.Node(0), c.Node(2)
	nearKV, farKV := bucketOf(t, near, "b"), bucketOf(t, far, "b")
	if _, _, err := farKV.Get(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	sub, err := pubsub.Listen(ctx, far, "c")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	eager, err := pubsub.Listen(ctx, far, "c", pubsub.WithoutOrder())
	if err != nil {
		t.Fatal(err)
	}
	defer eager.Close()
	held, err := lock.New(near).Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}
	told := func(f func() error) <-chan string {
		got := make(chan string, 1)
		go func() {
			if err := f(); err != nil {
				t.Error(err)
			}
			v, _, err := farKV.Get(ctx, "k")
			if err != nil {
				t.Error(err)
			}
			got <- v
		}()
		return got
	}

	d.close()
	if err := nearKV.Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if _, err := pubsub.Notify(ctx, near, "c", nil); err != nil {
		t.Fatal(err)
	}
	waiting := []<-chan string{
		told(func() error { _, err := sub.Next(ctx); return err }),
		told(func() error { return lockAndUnlock(ctx, far, "l") }),
	}
	if err := held.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := eager.Next(ctx); err != nil {
		t.Error(err)
	}
	if err := lockAndUnlock(ctx, far, "other", lock.WithoutOrder()); err != nil {
		t.Error(err)
	}
	if v, ok, err := farKV.Get(ctx, "k"); err != nil || ok {
		t.Fatalf("the slow node has %q, %v: it is not slow", v, err)
	}
	d.open()
	for i, got := range waiting {
		if v := <-got; v != "v" {
			t.Errorf("reader %d was told and read %q", i, v)
		}
	}
}

// The next holder reads what one wrote who did not come to unlock.
func TestWhoTakesALockOverCanRead(t *testing.T) {
	t.Parallel()
	c, d := slowCluster(t)
	ctx := testrun.Context(t)
	holder := 0
	if c.Leader() == 0 {
		holder = 1 // the leader stays
	}
	held, err := lock.New(c.Node(holder)).Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}
	d.close()
	mustExec(t, c.DB(holder), "INSERT INTO t DEFAULT VALUES")
	rows := c.told(func(ctx context.Context) error { return lockAndUnlock(ctx, c.Node(2), "l") })
	c.Stop(holder)
	select {
	case <-held.Done():
	case <-ctx.Done():
		t.Error("the node was closed and its lock is held")
	}
	if err := lockAndUnlock(ctx, c.Node(2), "other", lock.WithoutOrder()); err != nil {
		t.Error(err)
	}
	d.open()
	if n := <-rows; n != 1 {
		t.Errorf("the next holder reads %d rows", n)
	}
}

// The next holder reads what one put into buckets who did not come to unlock.
func TestWhoTakesALockOverCanReadBuckets(t *testing.T) {
	t.Parallel()
	c, d := slowBuckets(t)
	ctx := testrun.Context(t)
	far := bucketOf(t, c.Node(2), "b")
	held, err := lock.New(c.Node(0)).Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}
	d.close()
	if err := bucketOf(t, c.Node(0), "b").Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		held, err := lock.New(c.Node(2)).Lock(ctx, "l")
		if err != nil {
			t.Error(err)
		}
		v, _, err := far.Get(ctx, "k")
		if err = errors.Join(err, held.Unlock(ctx)); err != nil {
			t.Error(err)
		}
		got <- v
	}()
	c.Stop(0)
	<-held.Done()
	if err := lockAndUnlock(ctx, c.Node(2), "other", lock.WithoutOrder()); err != nil {
		t.Error(err)
	}
	d.open()
	if v := <-got; v != "v" {
		t.Errorf("the next holder reads %q", v)
	}
}

// What waits for a node's SQL ends with its context, and with the node, and is
// told later.
func TestWaitingForSQLEnds(t *testing.T) {
	t.Parallel()
	c, d := slowCluster(t)
	ctx := testrun.Context(t)
	sub, err := pubsub.Listen(ctx, c.Node(2), "c")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	d.close()
	mustExec(t, c.DB(0), "INSERT INTO t DEFAULT VALUES")
	index, err := pubsub.Notify(ctx, c.Node(0), "c", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { _, err := sub.Next(short); done <- err }()
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("Next: %v", err)
	}
	if _, err := lock.New(c.Node(2)).Lock(short, "l"); err == nil {
		t.Error("Lock took a lock with a context that has ended")
	}
	d.open()
	if m, err := sub.Next(ctx); err != nil || m.Index != index {
		t.Errorf("Next: %+v, %v, want message %d", m, err, index)
	}
}

// Close ends a Next that waits for SQL, too.
func TestCloseEndsWaitingForSQL(t *testing.T) {
	t.Parallel()
	c, d := slowCluster(t)
	ctx := testrun.Context(t)
	near, far := c.Node(0), c.Node(2)
	messages, err := pubsub.Listen(ctx, far, "c")
	if err != nil {
		t.Fatal(err)
	}
	first, err := pubsub.Listen(ctx, far, "c", pubsub.WithoutOrder())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	d.close()
	mustExec(t, near.DB(), "INSERT INTO t DEFAULT VALUES")
	if _, err := pubsub.Notify(ctx, near, "c", nil); err != nil {
		t.Fatal(err)
	}
	next := make(chan error, 1)
	go func() { _, err := messages.Next(ctx); next <- err }()
	if _, err := first.Next(ctx); err != nil { // it has come
		t.Fatal(err)
	}
	messages.Close()
	select {
	case err := <-next:
		if !errors.Is(err, hiqlite.ErrClosed) {
			t.Errorf("Next: %v", err)
		}
	case <-ctx.Done():
		t.Error("Next waits still")
	}
	d.open()
}

// After Close, of the subscription or the node, Next returns nothing any more,
// also of what has come before.
func TestNextAfterClose(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	ctx := testrun.Context(t)
	listen := func() *pubsub.Subscription {
		s, err := pubsub.Listen(ctx, c.Node(0), "c")
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := pubsub.Notify(ctx, c.Node(0), "c", nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Next(ctx); err != nil {
			t.Fatal(err)
		}
		return s
	}
	for range 50 {
		s := listen()
		s.Close()
		if m, err := s.Next(ctx); !errors.Is(err, hiqlite.ErrClosed) {
			t.Fatalf("Next returned %+v, %v", m, err)
		}
	}
	s := listen()
	c.Stop(0)
	if m, err := s.Next(ctx); !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("Next of a closed node's returned %+v, %v", m, err)
	}
}
