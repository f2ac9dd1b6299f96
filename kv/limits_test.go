package kv_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
)

// A bounded bucket keeps the entries that were written last, the same on all nodes.
func TestLimits(t *testing.T) {
	eachSize(t, func(t *testing.T, c *hiqlitetest.Cluster) {
		ctx := testrun.Context(t)
		strict := hiqlite.WithConsistency(ctx, hiqlite.Linearizable)
		last := c.Node(c.Len() - 1)
		few := bucket[string](t, c.Node(0), "few", kv.WithLimits(3, 0))
		w := watch(t, bucket[string](t, last, "few"), "")
		for _, key := range []string{"a", "b", "c", "a", "d", "e"} {
			if err := few.Put(ctx, key, "v"); err != nil {
				t.Fatal(err)
			}
		}
		if got := events(t, w, 8); !slices.Equal(got[4:], []string{"put d v", "evicted b", "put e v", "evicted c"}) {
			t.Errorf("got %v", got)
		}
		small := bucket[[]byte](t, c.Node(0), "small", kv.WithCodec(kv.Bytes), kv.WithLimits(0, 100))
		for _, key := range []string{"1", "2", "3"} {
			if err := small.Put(ctx, key, make([]byte, 39)); err != nil { // 40 bytes
				t.Fatal(err)
			}
		}
		err := small.Put(ctx, "large", make([]byte, 96))
		if !errors.Is(err, hiqlite.ErrTooLarge) || !strings.Contains(err.Error(), `"large"`) || !strings.Contains(err.Error(), `"small"`) {
			t.Errorf("an entry larger than its bucket: %v", err)
		}
		for i, n := range c.Nodes() {
			if keys, err := bucket[string](t, n, "few").Keys(strict, ""); err != nil || !slices.Equal(keys, []string{"a", "d", "e"}) {
				t.Errorf("node %d has %v, %v", i+1, keys, err)
			}
			if keys, err := bucket[[]byte](t, n, "small").Keys(strict, ""); err != nil || !slices.Equal(keys, []string{"2", "3"}) {
				t.Errorf("node %d has %v, %v", i+1, keys, err)
			}
		}
	})
}

// The first limits of a bucket stay until SetLimits is called. Buckets with other limits
// get an error.
func TestLimitsThatDiffer(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 3)
	ctx := testrun.Context(t)
	first := bucket[string](t, c.Node(0), "b", kv.WithLimits(2, 0))
	other := bucket[string](t, c.Node(1), "b", kv.WithLimits(5, 0))
	same := bucket[string](t, c.Node(2), "b", kv.WithLimits(2, 0))
	none := bucket[string](t, c.Node(2), "b")
	if err := none.Put(ctx, "unbounded", "x"); err != nil {
		t.Fatal(err)
	}
	if err := first.Put(ctx, "a", "x"); err != nil {
		t.Fatal(err)
	}
	err := other.Put(ctx, "b", "x")
	if !errors.Is(err, kv.ErrLimits) || !strings.Contains(err.Error(), "2 entries") || !strings.Contains(err.Error(), "asks for 5") || !strings.Contains(err.Error(), "SetLimits") {
		t.Errorf("other limits: %v", err)
	}
	if _, ok, err := other.Get(ctx, "a"); err != nil || !ok {
		t.Errorf("a read through the bucket with other limits: %v, %v", ok, err)
	}
	if err := same.Put(ctx, "b", "x"); err != nil {
		t.Error(err)
	}
	if err := none.Put(ctx, "c", "x"); err != nil {
		t.Error(err)
	}
	if keys, err := same.Keys(ctx, ""); err != nil || !slices.Equal(keys, []string{"b", "c"}) {
		t.Errorf("the keys are %v, %v", keys, err)
	}
	if err := other.SetLimits(ctx, 5, 0); err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		if err := other.Put(ctx, fmt.Sprint(i), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if keys, err := other.Keys(ctx, ""); err != nil || !slices.Equal(keys, []string{"4", "5", "6", "7", "8"}) {
		t.Errorf("the keys are %v, %v", keys, err)
	}
	// Limits below the present size evict the oldest entries at once.
	if err := none.SetLimits(ctx, 1, 0); err != nil {
		t.Fatal(err)
	}
	if keys, err := none.Keys(ctx, ""); err != nil || !slices.Equal(keys, []string{"8"}) {
		t.Errorf("the keys are %v, %v", keys, err)
	}
	if err := none.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	if err := first.SetLimits(ctx, 0, 0); err != nil { // remove the limits
		t.Fatal(err)
	}
	for i := range 9 {
		if err := none.Put(ctx, fmt.Sprint(i), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if keys, err := none.Keys(ctx, ""); err != nil || len(keys) != 9 {
		t.Errorf("the keys are %v, %v", keys, err)
	}
}
