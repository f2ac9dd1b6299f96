package kv_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
)

func watch[V any](t testing.TB, b *kv.Bucket[V], prefix string) *kv.Watcher[V] {
	t.Helper()
	w, err := b.Watch(testrun.Context(t), prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// events returns the next n events.
func events[V any](t testing.TB, w *kv.Watcher[V], n int) (out []string) {
	t.Helper()
	last := uint64(0)
	for range n {
		e, err := w.Next(testrun.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		if e.Version <= last {
			t.Errorf("version %d after %d", e.Version, last)
		}
		last = e.Version
		out = append(out, strings.TrimSpace(fmt.Sprint(e.Kind, " ", e.Key, " ", e.Value)))
	}
	return out
}

// A watcher returns all changes of its keys, in order, on every node.
func TestWatch(t *testing.T) {
	eachSize(t, func(t *testing.T, c *hiqlitetest.Cluster) {
		ctx := testrun.Context(t)
		b := bucket[string](t, c.Node(0), "b")
		if err := b.Put(ctx, "a1", "before"); err != nil {
			t.Fatal(err)
		}
		var all, some []*kv.Watcher[string]
		for _, n := range c.Nodes() {
			all = append(all, watch(t, bucket[string](t, n, "b"), ""))
			some = append(some, watch(t, bucket[string](t, n, "b"), "a"))
		}
		one, err := b.WatchKey(ctx, "a1")
		if err != nil {
			t.Fatal(err)
		}
		defer one.Close()
		ok := func(_ any, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		ok(nil, bucket[string](t, c.Node(0), "another").Put(ctx, "a1", "x"))
		ok(nil, b.Put(ctx, "a1", "1"))
		ok(nil, b.Put(ctx, "b1", "2"))
		ok(b.PutIfAbsent(ctx, "b1", "not put"))
		ok(b.Delete(ctx, "none"))
		ok(b.Add(ctx, "a-counter", 1))
		ok(nil, b.PutTTL(ctx, "a2", "3", time.Millisecond))
		if got := events(t, one, 1); !slices.Equal(got, []string{"put a1 1"}) {
			t.Errorf("the watcher of a key got %v", got)
		}
		want := []string{"put a1 1", "put b1 2", "put a2 3", "expired a2"}
		if got := events(t, all[0], 4); !slices.Equal(got, want) {
			t.Errorf("node 1 got %v", got)
		}
		_, _, err = b.GetRemove(ctx, "a1")
		ok(nil, err)
		ok(nil, b.Clear(ctx))
		if got := events(t, one, 2); !slices.Equal(got, []string{"deleted a1", "cleared"}) {
			t.Errorf("the watcher of a key got %v", got)
		}
		for i := range c.Nodes() {
			n := 6
			if i == 0 {
				n = 2
			}
			if got := events(t, all[i], n); !slices.Equal(got, append(want, "deleted a1", "cleared")[6-n:]) {
				t.Errorf("node %d got %v", i+1, got)
			}
			if got := events(t, some[i], 5); !slices.Equal(got, []string{"put a1 1", "put a2 3", "expired a2", "deleted a1", "cleared"}) {
				t.Errorf("node %d got %v for the prefix a", i+1, got)
			}
		}
	})
}

// A slow watcher gets ErrLagged. It delays neither writers nor other watchers.
func TestSlowWatcher(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	ctx := testrun.Context(t)
	b := bucket[string](t, c.Node(0), "b")
	slow, quick := watch(t, b, ""), watch(t, b, "last")
	var wg sync.WaitGroup
	for g := range 50 {
		wg.Go(func() {
			for i := range 100 {
				if err := b.Put(ctx, fmt.Sprint(g, "-", i), "x"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := b.Put(ctx, "last", "x"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := slow.Next(ctx); !errors.Is(err, kv.ErrLagged) || !strings.Contains(err.Error(), `"b"`) {
			t.Fatalf("a slow watcher got %v", err)
		}
	}
	if got := events(t, quick, 1); !slices.Equal(got, []string{"put last x"}) {
		t.Errorf("the other watcher got %v", got)
	}
}

// If a value cannot be decoded, Next returns an error for its event, and later events
// as usual.
func TestWatchingValuesThatDoNotDecode(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	ctx := testrun.Context(t)
	w := watch(t, bucket[int](t, c.Node(0), "b"), "")
	if err := bucket[string](t, c.Node(0), "b").Put(ctx, "k", "no number"); err != nil {
		t.Fatal(err)
	}
	if err := bucket[int](t, c.Node(0), "b").Put(ctx, "k", 7); err != nil {
		t.Fatal(err)
	}
	if e, err := w.Next(ctx); !errors.Is(err, kv.ErrDecode) || e.Key != "k" {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := w.Next(ctx); err != nil || e.Value != 7 {
		t.Errorf("%+v, %v", e, err)
	}
}

// Next returns when its context ends, without losing an event, and when the node closes.
func TestNextEnds(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	b := bucket[string](t, c.Node(0), "b")
	w := watch(t, b, "")
	ctx, cancel := context.WithCancel(testrun.Context(t))
	done := make(chan error, 1)
	go func() { _, err := w.Next(ctx); done <- err }()
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("Next: %v", err)
	}
	if err := b.Put(testrun.Context(t), "k", "v"); err != nil {
		t.Fatal(err)
	}
	if got := events(t, w, 1); got[0] != "put k v" {
		t.Errorf("after that, the watcher got %v", got)
	}
	go func() { _, err := w.Next(testrun.Context(t)); done <- err }()
	c.Stop(0)
	if err := <-done; !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("Next on a closed node: %v", err)
	}
	w.Close()
	w.Close()
	if _, err := w.Next(testrun.Context(t)); !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("Next of a closed watcher: %v", err)
	}
}
