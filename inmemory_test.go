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

// Buckets survive restarts of single nodes and of the whole cluster, from the
// log alone and from a snapshot with the log behind it.
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
		restart := func(which ...int) {
			t.Helper()
			for _, i := range which {
				c.Stop(i)
			}
			for _, i := range which {
				c.Start(i)
			}
			c.WaitReady()
		}
		everyone := []int{0, 1, 2}[:size]
		if err := bucketOf(t, c.Node(0), "b").PutTTL(ctx, "expires", "x", time.Hour); err != nil {
			t.Fatal(err)
		}
		want["expires"] = "x"
		if err := bucketOf(t, c.Node(0), "b").SetCounter(ctx, "n", 1); err != nil {
			t.Fatal(err)
		}
		write(0, "first")
		restart(0)
		check()
		restart(everyone...)
		write(size-1, "second")
		for i, n := range c.Nodes() {
			if err := n.CompactMemory(0); err != nil {
				t.Fatalf("node %d: %v", i+1, err)
			}
		}
		write(0, "third")
		restart(everyone...)
		check()
		write(0, "fourth")
		restart(size - 1)
		check()
	}
}

// An entry's time goes on over restarts, however often there are some.
func TestTimesToLiveOutliveRestarts(t *testing.T) {
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
			time.Sleep(10 * time.Millisecond) // between looks
		}
		return false
	})
	if lived := time.Since(began); lived < ttl {
		t.Errorf("it lived for %v instead of %v", lived, ttl)
	}
}

// A node that was away while the others' logs forgot what it has missed is
// brought up to date by a snapshot, and what its subscribers and watchers missed
// they are told or told of.
func TestANodeThatWasAwayForLong(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	ctx := testrun.Context(t)
	stays := bucketOf(t, c.Node(0), "b")
	if err := stays.Put(ctx, "before", "x"); err != nil {
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
		if err := stays.Put(ctx, key, key); err != nil {
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
		t.Errorf("it holds %d entries, %v, want %d", len(all), err, len(want))
	}
	if _, err := lock.New(c.Node(2)).TryLock(ctx, "l"); !errors.Is(err, lock.ErrHeld) {
		t.Errorf("it took a lock that is held: %v", err)
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
		t.Errorf("it is told %+v, %v", m, err)
	}
}

// What is kept of messages is what the package promises, and more is forgotten.
func TestRetention(t *testing.T) {
	if r := memory.DefaultRetention; r.Messages != pubsub.KeptMessages || r.Bytes != pubsub.KeptBytes || time.Duration(r.AgeMS)*time.Millisecond != pubsub.KeptFor {
		t.Errorf("nodes keep %+v", r)
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
	quiet, err := pubsub.Listen(ctx, c.Node(0), "quiet")
	if err != nil {
		t.Fatal(err)
	}
	defer quiet.Close()
	var last uint64
	for range 25 {
		if last, err = pubsub.Notify(ctx, c.Node(0), "busy", nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pubsub.Listen(ctx, c.Node(0), "busy", pubsub.After(last-11)); !errors.Is(err, pubsub.ErrTooOld) {
		t.Errorf("Listen behind what is kept: %v", err)
	}
	back, err := pubsub.Listen(ctx, c.Node(0), "busy", pubsub.After(last-10))
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	_, err = slow.Next(ctx)
	var lagged *pubsub.LaggedError
	if !errors.As(err, &lagged) || !errors.Is(err, pubsub.ErrLagged) || lagged.Resume != last-10 {
		t.Fatalf("a slow subscriber is told %v, want to resume at %d", err, last-10)
	}
	var told [2][]uint64
	for i, s := range []*pubsub.Subscription{slow, back} {
		for range 10 {
			m, err := s.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			told[i] = append(told[i], m.Index)
		}
	}
	if !slices.Equal(told[0], told[1]) || told[0][0] != last-9 || told[0][9] != last {
		t.Errorf("they were told %v, up to %d", told, last)
	}
	// One whose channel was quiet has missed nothing.
	index, err := pubsub.Notify(ctx, c.Node(0), "quiet", nil)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := quiet.Next(ctx); err != nil || m.Index != index {
		t.Errorf("the quiet channel's subscriber is told %+v, %v", m, err)
	}
}

// Status names the leaders of all shards.
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
