package hiqlite_test

import (
	"context"
	"errors"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
	"github.com/hiqlite/hiqlite/lock"
	"github.com/hiqlite/hiqlite/pubsub"
)

// The tests of this file check the order between SQL and the in-memory shards: who gets an
// event, a message or a lock can read what was written before it.

// lockAndUnlock acquires a lock on a node, and releases it.
func lockAndUnlock(ctx context.Context, n hiqlite.Client, key string, opts ...lock.Option) error {
	held, err := lock.New(n, opts...).Lock(ctx, key)
	if err == nil {
		err = held.Unlock(ctx)
	}
	return err
}

// clusterWithSlowSQL returns a cluster of three nodes with an empty table t. While the
// gate is closed, the last one applies no entries of the SQL shard. It is not the
// leader.
func clusterWithSlowSQL(t *testing.T) (*testCluster, *applyGate) {
	t.Helper()
	c, gate := clusterWithGate(t, (*hiqlite.Config).HookApplySQL)
	for c.Leader() == 2 {
		c.Stop(2)
		c.WaitReady(0)
		c.Start(2)
		c.WaitReady(2)
	}
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
	c.WaitReady(2)
	return c, gate
}

// clusterWithSlowKV returns a cluster of three nodes. While the gate is closed, the
// last one applies no entries of the kv shard.
func clusterWithSlowKV(t *testing.T) (*testCluster, *applyGate) {
	t.Helper()
	return clusterWithGate(t, (*hiqlite.Config).HookApplyKV)
}

// rowsAfter calls f, which waits for a notification on the last node, and sends how
// many rows that node reads right after f has returned.
func (c *testCluster) rowsAfter(f func(ctx context.Context) error) <-chan int {
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

// A program that gets an event, a message or a lock can read the rows that were
// written before it, on a node that applies SQL late.
func TestNotificationsComeAfterEarlierRows(t *testing.T) {
	t.Parallel()
	c, gate := clusterWithSlowSQL(t)
	ctx := testrun.Context(t)
	near, far := c.Node(0), c.Node(2)

	nearKV, farKV := bucketOf(t, near, "b"), bucketOf(t, far, "b")
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
	unorderedSub, err := pubsub.Listen(ctx, far, "c", pubsub.WithoutOrder())
	if err != nil {
		t.Fatal(err)
	}
	defer unorderedSub.Close()
	held, err := lock.New(near).Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}

	gate.close()
	mustExec(t, c.DB(0), "INSERT INTO t DEFAULT VALUES")
	if err := nearKV.Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if _, err := pubsub.Notify(ctx, near, "c", nil); err != nil {
		t.Fatal(err)
	}
	waiting := []<-chan int{
		c.rowsAfter(func(ctx context.Context) error { _, err := ordered.Next(ctx); return err }),
		c.rowsAfter(func(ctx context.Context) error { _, err := sub.Next(ctx); return err }),
		c.rowsAfter(func(ctx context.Context) error { return lockAndUnlock(ctx, far, "l") }),
	}
	if err := held.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	// The last node has applied the event, the message and the release. It reports them
	// only to those that have asked for WithoutOrder.
	if _, err := unordered.Next(ctx); err != nil {
		t.Error(err)
	}
	if _, err := unorderedSub.Next(ctx); err != nil {
		t.Error(err)
	}
	if err := lockAndUnlock(ctx, far, "other", lock.WithoutOrder()); err != nil {
		t.Error(err)
	}
	if v, ok, err := farKV.Get(ctx, "k"); err != nil || !ok || v != "v" {
		t.Errorf("the bucket of the last node has %q, %v, %v, want v", v, ok, err)
	}
	var n int
	if err := c.DB(2).QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&n); err != nil || n != 0 {
		t.Fatalf("the last node reads %d rows, %v: the gate does not hold it back", n, err)
	}
	gate.open()
	for i, rows := range waiting {
		if n := <-rows; n != 1 {
			t.Errorf("reader %d was notified and read %d rows, want 1", i, n)
		}
	}
}

// The same over the API: a client of a node that applies SQL late gets ordered events and
// messages late, and those without order at once.
func TestRemoteNotificationsComeAfterEarlierRows(t *testing.T) {
	t.Parallel()
	c, gate := clusterWithSlowSQL(t)
	ctx := testrun.Context(t)
	near, far := c.Node(0), c.Remote(2)
	farKV := bucketOf(t, far, "b")
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
	unorderedSub, err := pubsub.Listen(ctx, far, "c", pubsub.WithoutOrder())
	if err != nil {
		t.Fatal(err)
	}
	defer unorderedSub.Close()

	gate.close()
	mustExec(t, c.DB(0), "INSERT INTO t DEFAULT VALUES")
	if err := bucketOf(t, near, "b").Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if _, err := pubsub.Notify(ctx, near, "c", nil); err != nil {
		t.Fatal(err)
	}
	rows := make(chan int, 2)
	for _, next := range []func() error{
		func() error { _, err := ordered.Next(ctx); return err },
		func() error { _, err := sub.Next(ctx); return err },
	} {
		go func() {
			n := -1
			if err := next(); err != nil {
				t.Error(err)
			} else if err := far.DB().QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&n); err != nil {
				t.Error(err)
			}
			rows <- n
		}()
	}
	if _, err := unordered.Next(ctx); err != nil {
		t.Error(err)
	}
	if _, err := unorderedSub.Next(ctx); err != nil {
		t.Error(err)
	}
	if err := lockAndUnlock(ctx, far, "other", lock.WithoutOrder()); err != nil {
		t.Error(err)
	}
	select {
	case n := <-rows:
		t.Errorf("an ordered notification came before its rows: %d", n)
	default:
	}
	gate.open()
	for range 2 {
		if n := <-rows; n != 1 {
			t.Errorf("after a notification there are %d rows", n)
		}
	}
}

// A program that gets a message or a lock can read the kv entries that were put before
// it, on a node that applies kv late.
func TestNotificationsComeAfterEarlierKVEntries(t *testing.T) {
	t.Parallel()
	c, gate := clusterWithSlowKV(t)
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
	unorderedSub, err := pubsub.Listen(ctx, far, "c", pubsub.WithoutOrder())
	if err != nil {
		t.Fatal(err)
	}
	defer unorderedSub.Close()
	held, err := lock.New(near).Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}
	valueAfter := func(f func() error) <-chan string {
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

	gate.close()
	if err := nearKV.Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if _, err := pubsub.Notify(ctx, near, "c", nil); err != nil {
		t.Fatal(err)
	}
	waiting := []<-chan string{
		valueAfter(func() error { _, err := sub.Next(ctx); return err }),
		valueAfter(func() error { return lockAndUnlock(ctx, far, "l") }),
	}
	if err := held.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := unorderedSub.Next(ctx); err != nil {
		t.Error(err)
	}
	if err := lockAndUnlock(ctx, far, "other", lock.WithoutOrder()); err != nil {
		t.Error(err)
	}
	if v, ok, err := farKV.Get(ctx, "k"); err != nil || ok {
		t.Fatalf("the last node has %q, %v: the gate does not hold it back", v, err)
	}
	gate.open()
	for i, got := range waiting {
		if v := <-got; v != "v" {
			t.Errorf("reader %d was notified and read %q, want v", i, v)
		}
	}
}

// A holder of a lock whose node stops does not release it. The next holder can read
// what the former one has written.
func TestNextHolderReadsRowsOfALostHolder(t *testing.T) {
	t.Parallel()
	c, gate := clusterWithSlowSQL(t)
	ctx := testrun.Context(t)
	holder := 0
	if c.Leader() == 0 {
		holder = 1 // a node that does not lead, since it will be stopped
	}
	held, err := lock.New(c.Node(holder)).Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}
	gate.close()
	mustExec(t, c.DB(holder), "INSERT INTO t DEFAULT VALUES")
	rows := c.rowsAfter(func(ctx context.Context) error { return lockAndUnlock(ctx, c.Node(2), "l") })
	c.Stop(holder)
	select {
	case <-held.Done():
	case <-ctx.Done():
		t.Error("the lock is still held although its node was closed")
	}
	if err := lockAndUnlock(ctx, c.Node(2), "other", lock.WithoutOrder()); err != nil {
		t.Error(err)
	}
	gate.open()
	if n := <-rows; n != 1 {
		t.Errorf("the next holder reads %d rows, want 1", n)
	}
}

// The same for kv entries that the former holder has put.
func TestNextHolderReadsKVEntriesOfALostHolder(t *testing.T) {
	t.Parallel()
	c, gate := clusterWithSlowKV(t)
	ctx := testrun.Context(t)
	far := bucketOf(t, c.Node(2), "b")
	held, err := lock.New(c.Node(0)).Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}
	gate.close()
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
	gate.open()
	if v := <-got; v != "v" {
		t.Errorf("the next holder reads %q, want v", v)
	}
}

// Next and Lock wait until the node has applied earlier SQL. This wait ends with their
// context, and a later Next returns the message.
func TestWaitingForSQLEndsWithTheContext(t *testing.T) {
	t.Parallel()
	c, gate := clusterWithSlowSQL(t)
	ctx := testrun.Context(t)
	sub, err := pubsub.Listen(ctx, c.Node(2), "c")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	gate.close()
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
		t.Error("Lock has succeeded with a context that has ended")
	}
	gate.open()
	if m, err := sub.Next(ctx); err != nil || m.Index != index {
		t.Errorf("Next: %+v, %v, want message %d", m, err, index)
	}
}

// Close of a subscription ends a Next that waits until the node has applied SQL.
func TestCloseEndsWaitingForSQL(t *testing.T) {
	t.Parallel()
	c, gate := clusterWithSlowSQL(t)
	ctx := testrun.Context(t)
	near, far := c.Node(0), c.Node(2)
	messages, err := pubsub.Listen(ctx, far, "c")
	if err != nil {
		t.Fatal(err)
	}
	unordered, err := pubsub.Listen(ctx, far, "c", pubsub.WithoutOrder())
	if err != nil {
		t.Fatal(err)
	}
	defer unordered.Close()
	gate.close()
	mustExec(t, near.DB(), "INSERT INTO t DEFAULT VALUES")
	if _, err := pubsub.Notify(ctx, near, "c", nil); err != nil {
		t.Fatal(err)
	}
	next := make(chan error, 1)
	go func() { _, err := messages.Next(ctx); next <- err }()
	if _, err := unordered.Next(ctx); err != nil { // the node has applied the message
		t.Fatal(err)
	}
	messages.Close()
	select {
	case err := <-next:
		if !errors.Is(err, hiqlite.ErrClosed) {
			t.Errorf("Next: %v", err)
		}
	case <-ctx.Done():
		t.Error("Next still waits")
	}
	gate.open()
}

// After Close, of the subscription or of the node, Next returns ErrClosed, even if
// messages are left that it has not returned.
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
		t.Errorf("Next has returned %+v, %v after its node was closed", m, err)
	}
}
