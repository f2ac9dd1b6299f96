package hiqlite_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/lock"
	"github.com/hiqlite/hiqlite/pubsub"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// The tests of this file check buckets, locks and messages across restarts and snapshots.

// Buckets survive restarts of one node and of the whole cluster: they are loaded from the
// log, or from a snapshot and the entries after it.
func TestBucketsSurviveRestarts(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 3} {
		c := newCluster(t, size)
		ctx := testrun.Context(t)
		want := map[string]string{}
		write := func(i int, key string) {
			t.Helper()
			want[key] = fmt.Sprint("value of ", key)
			if err := bucketOf(t, c.Node(i), "b").Put(ctx, key, want[key]); err != nil {
				t.Fatal(err)
			}
			if _, err := bucketOf(t, c.Node(i), "b").Add(ctx, "n", 1); err != nil {
				t.Fatal(err)
			}
		}
		check := func() {
			t.Helper()
			for i, n := range c.Nodes() {
				b := bucketOf(t, n, "b")
				if all, err := b.Snapshot(ctx); err != nil || !maps.Equal(all, want) {
					t.Errorf("node %d of %d holds %v, %v, want %v", i+1, size, all, err, want)
				}
				if n, _, err := b.Counter(ctx, "n"); err != nil || n != int64(len(want)) {
					t.Errorf("node %d of %d counts %d, %v, want %d", i+1, size, n, err, len(want))
				}
			}
		}

		if err := bucketOf(t, c.Node(0), "b").PutTTL(ctx, "expires", "x", time.Hour); err != nil {
			t.Fatal(err)
		}
		want["expires"] = "x"
		if err := bucketOf(t, c.Node(0), "b").SetCounter(ctx, "n", 1); err != nil {
			t.Fatal(err)
		}
		write(0, "first")
		c.restart(0)
		check()
		c.restartAll()
		write(size-1, "second")
		for i, n := range c.Nodes() {
			if err := n.CompactMemory(0); err != nil {
				t.Fatalf("node %d: %v", i+1, err)
			}
		}
		write(0, "third")
		c.restartAll()
		check()
		write(0, "fourth")
		c.restart(size - 1)
		check()
	}
}

// The time to live of an entry goes on over restarts, however many there are.
func TestTimesToLiveGoOnAfterRestarts(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	c := newCluster(t, 1)
	began := time.Now()
	if err := bucketOf(t, c.Node(0), "b").PutTTL(testrun.Context(t), "k", "x", ttl); err != nil {
		t.Fatal(err)
	}
	testrun.WaitFor(t, "the entry to expire", func() bool {
		c.restart(0)
		for up := time.Now(); time.Since(up) < ttl/6; {
			_, there, err := bucketOf(t, c.Node(0), "b").Get(testrun.Context(t), "k")
			if err != nil {
				t.Fatal(err)
			}
			if !there {
				return true
			}
			time.Sleep(10 * time.Millisecond) // between two reads
		}
		return false
	})
	if lived := time.Since(began); lived < ttl {
		t.Errorf("the entry has lived for %v, want at least %v", lived, ttl)
	}
}

// A node that was stopped while entries that it needs were removed from the logs gets
// snapshots of the in-memory shards: it then has all kv entries, locks and messages.
func TestNodeCatchesUpBySnapshots(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	ctx := testrun.Context(t)
	b := bucketOf(t, c.Node(0), "b")
	if err := b.Put(ctx, "before", "x"); err != nil {
		t.Fatal(err)
	}
	first, err := pubsub.Notify(ctx, c.Node(0), "c", []byte("before"))
	if err != nil {
		t.Fatal(err)
	}
	held, err := lock.New(c.Node(0)).Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}
	c.Stop(2)
	want := map[string]string{"before": "x"}
	for i := range 300 {
		key := fmt.Sprint(i)
		want[key] = key
		if err := b.Put(ctx, key, key); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pubsub.Notify(ctx, c.Node(0), "c", []byte("missed")); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes()[:2] {
		if err := n.CompactMemory(0); err != nil {
			t.Fatal(err)
		}
	}
	c.Start(2)
	c.WaitReady(2)
	if all, err := bucketOf(t, c.Node(2), "b").Snapshot(ctx); err != nil || !maps.Equal(all, want) {
		t.Errorf("the node has %d entries, %v, want %d", len(all), err, len(want))
	}
	if _, err := lock.New(c.Node(2)).TryLock(ctx, "l"); !errors.Is(err, lock.ErrHeld) {
		t.Errorf("TryLock of a lock that is held: %v, want ErrHeld", err)
	}
	if err := held.Unlock(ctx); err != nil {
		t.Error(err)
	}
	s, err := pubsub.Listen(ctx, c.Node(2), "*", pubsub.After(first))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if m, err := s.Next(ctx); err != nil || string(m.Payload) != "missed" || m.Index != first+1 {
		t.Errorf("Next returns %+v, %v, want the missed message", m, err)
	}
}

// Nodes keep as many messages as package pubsub promises, and remove older ones. A
// subscription that has missed messages gets an error.
func TestRetention(t *testing.T) {
	if r := memory.DefaultRetention; r.Messages != pubsub.KeptMessages || r.Bytes != pubsub.KeptBytes || time.Duration(r.AgeMS)*time.Millisecond != pubsub.KeptFor {
		t.Errorf("nodes keep %+v, which is not what package pubsub promises", r)
	}
	c := newCluster(t, 1, func(cfg *hiqlite.Config) {
		cfg.HookRetention(memory.Retention{Messages: 10, Bytes: 1 << 20, AgeMS: 1 << 40})
	})
	ctx := testrun.Context(t)
	slow, err := pubsub.Listen(ctx, c.Node(0), "busy")
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	otherChannel, err := pubsub.Listen(ctx, c.Node(0), "other")
	if err != nil {
		t.Fatal(err)
	}
	defer otherChannel.Close()
	var last uint64
	for range 25 {
		if last, err = pubsub.Notify(ctx, c.Node(0), "busy", nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pubsub.Listen(ctx, c.Node(0), "busy", pubsub.After(last-11)); !errors.Is(err, pubsub.ErrTooOld) {
		t.Errorf("Listen from a message on that is not kept any more: %v, want ErrTooOld", err)
	}
	resumed, err := pubsub.Listen(ctx, c.Node(0), "busy", pubsub.After(last-10))
	if err != nil {
		t.Fatal(err)
	}
	defer resumed.Close()
	_, err = slow.Next(ctx)
	var lagged *pubsub.LaggedError
	if !errors.As(err, &lagged) || !errors.Is(err, pubsub.ErrLagged) || lagged.Resume != last-10 {
		t.Fatalf("Next of a slow subscription: %v, want a LaggedError with Resume %d", err, last-10)
	}
	var got [2][]uint64
	for i, s := range []*pubsub.Subscription{slow, resumed} {
		for range 10 {
			m, err := s.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			got[i] = append(got[i], m.Index)
		}
	}
	if !slices.Equal(got[0], got[1]) || got[0][0] != last-9 || got[0][9] != last {
		t.Errorf("the subscriptions got the messages %v, want those from %d to %d", got, last-9, last)
	}
	// The subscription of another channel has missed none of its messages.
	index, err := pubsub.Notify(ctx, c.Node(0), "other", nil)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := otherChannel.Next(ctx); err != nil || m.Index != index {
		t.Errorf("Next of the other channel returns %+v, %v, want message %d", m, err, index)
	}
}

// Status has the leader and the term of each shard.
func TestStatusOfShards(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for i, n := range c.Nodes() {
		s, err := n.Status(testrun.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, shard := range s.Shards {
			names = append(names, shard.Name)
			if shard.Leader == 0 || shard.Term == 0 || shard.Error != "" {
				t.Errorf("node %d: %+v", i+1, shard)
			}
		}
		if !slices.Equal(names, []string{"sql", "kv", "lock", "pubsub"}) {
			t.Errorf("node %d has the shards %v", i+1, names)
		}
	}
}
