package kv_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bucket returns a bucket of a node.
func bucket[V any](t testing.TB, n *hiqlite.Node, name string, opts ...kv.Option) *kv.Bucket[V] {
	t.Helper()
	b, err := kv.New[V](n, name, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// eachSize runs a test on a cluster of one node and on one of three.
func eachSize(t *testing.T, test func(t *testing.T, c *hiqlitetest.Cluster)) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) { test(t, hiqlitetest.NewCluster(t, size)) })
	}
}

func TestPutThenGet(t *testing.T) {
	type user struct {
		Name string
		Age  int
	}
	eachSize(t, func(t *testing.T, c *hiqlitetest.Cluster) {
		ctx := testrun.Context(t)
		for i, n := range c.Nodes() {
			b := bucket[user](t, n, "users")
			want := user{"Ada", 36 + i}
			if err := b.Put(ctx, "ada", want); err != nil {
				t.Fatal(err)
			}
			if got, ok, err := b.Get(ctx, "ada"); err != nil || !ok || got != want {
				t.Errorf("node %d reads %v, %v, %v, want what was put through it", i+1, got, ok, err)
			}
			for j, other := range c.Nodes() {
				got, ok, err := bucket[user](t, other, "users").Get(hiqlite.WithConsistency(ctx, hiqlite.Linearizable), "ada")
				if err != nil || !ok || got != want {
					t.Errorf("node %d reads %v, %v, %v, want what was put through node %d", j+1, got, ok, err, i+1)
				}
			}
		}
	})
}

// A twoNodeBucket is a bucket on two nodes: operations run through one of them, and their
// effects are read on the other one.
type twoNodeBucket struct {
	*kv.Bucket[string]
	t      *testing.T
	ctx    context.Context
	strict context.Context // for linearizable reads
	node   *hiqlite.Node
	other  *kv.Bucket[string]
}

func (b twoNodeBucket) ok(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Error(err)
	}
}

// wantElsewhere fails the test unless the other node reads this value, or no entry.
func (b twoNodeBucket) wantElsewhere(key, want string, there bool) {
	b.t.Helper()
	if got, ok, err := b.other.Get(b.strict, key); err != nil || ok != there || got != want {
		b.t.Errorf("the other node reads %q, %v, %v of %s, want %q, %v", got, ok, err, key, want, there)
	}
}

// All operations, through each node in turn.
func TestOperations(t *testing.T) {
	eachSize(t, func(t *testing.T, c *hiqlitetest.Cluster) {
		ctx := testrun.Context(t)
		for i, n := range c.Nodes() {
			b := twoNodeBucket{
				bucket[string](t, n, "b"), t, ctx, hiqlite.WithConsistency(ctx, hiqlite.Linearizable),
				n, bucket[string](t, c.Node((i+1)%c.Len()), "b"),
			}
			b.checkConditionalPuts()
			b.checkRemovals(b.checkVersions())
			b.checkListsAndClears()
		}
	})
}

func (b twoNodeBucket) checkConditionalPuts() {
	put, err := b.PutIfAbsent(b.ctx, "a", "1")
	b.ok(err)
	again, err := b.other.PutIfAbsent(b.ctx, "a", "2")
	b.ok(err)
	if !put || again {
		b.t.Errorf("PutIfAbsent: %v, then %v", put, again)
	}
	b.wantElsewhere("a", "1", true)

	old, had, err := b.Replace(b.ctx, "a", "2")
	if b.ok(err); old != "1" || !had {
		b.t.Errorf("Replace: %q, %v", old, had)
	}
	old, had, err = b.Replace(b.ctx, "fresh", "f")
	if b.ok(err); old != "" || had {
		b.t.Errorf("Replace of nothing: %q, %v", old, had)
	}
	b.wantElsewhere("a", "2", true)
	b.wantElsewhere("fresh", "f", true)
}

// checkVersions leaves an entry a, and returns its version.
func (b twoNodeBucket) checkVersions() uint64 {
	v, version, there, err := b.GetVersion(b.ctx, "a")
	if b.ok(err); v != "2" || !there || version == 0 {
		b.t.Errorf("GetVersion: %q, %d, %v", v, version, there)
	}
	next, swapped, err := b.CompareAndSwap(b.ctx, "a", version, "3")
	if b.ok(err); !swapped || next <= version {
		b.t.Errorf("CompareAndSwap: %d, %v", next, swapped)
	}
	found, swapped, err := b.CompareAndSwap(b.ctx, "a", version, "4")
	if b.ok(err); swapped || found != next {
		b.t.Errorf("CompareAndSwap of an old version: %d, %v, want %d", found, swapped, next)
	}
	b.wantElsewhere("a", "3", true)
	if _, swapped, err = b.CompareAndSwap(b.ctx, "a", 0, "5"); err != nil || swapped {
		b.t.Errorf("CompareAndSwap of an existing entry with version 0: %v, %v", swapped, err)
	}
	if _, swapped, err = b.CompareAndSwap(b.ctx, "none", 0, "5"); err != nil || !swapped {
		b.t.Errorf("CompareAndSwap with version 0: %v, %v", swapped, err)
	}
	return next
}

// checkRemovals removes the entry a, which has this version, and puts another one.
func (b twoNodeBucket) checkRemovals(version uint64) {
	v, had, err := b.GetRemove(b.ctx, "a")
	if b.ok(err); v != "3" || !had {
		b.t.Errorf("GetRemove: %q, %v", v, had)
	}
	if _, had, err = b.other.GetRemove(b.ctx, "a"); err != nil || had {
		b.t.Errorf("GetRemove of nothing: %v, %v", had, err)
	}
	b.wantElsewhere("a", "", false)
	// Versions are never reused: one that was read before the removal does not match the
	// entry that was put after it.
	b.ok(b.Put(b.ctx, "a", "new"))
	if _, swapped, err := b.CompareAndSwap(b.ctx, "a", version, "6"); err != nil || swapped {
		b.t.Errorf("CompareAndSwap across a removal: %v, %v", swapped, err)
	}

	had, err = b.Delete(b.ctx, "none")
	if b.ok(err); !had {
		b.t.Error("Delete has found no entry")
	}
	had, err = b.Delete(b.ctx, "none")
	if b.ok(err); had {
		b.t.Error("the second Delete has found an entry")
	}
}

func (b twoNodeBucket) checkListsAndClears() {
	b.ok(b.Put(b.ctx, "user:2", "x"))
	b.ok(b.Put(b.ctx, "user:1", ""))
	keys, err := b.other.Keys(b.strict, "user:")
	if b.ok(err); !slices.Equal(keys, []string{"user:1", "user:2"}) {
		b.t.Errorf("Keys: %v", keys)
	}
	all, err := b.other.Snapshot(b.strict)
	if b.ok(err); !maps.Equal(all, map[string]string{"a": "new", "fresh": "f", "user:1": "", "user:2": "x"}) {
		b.t.Errorf("Snapshot: %v", all)
	}

	another := bucket[string](b.t, b.node, "another")
	b.ok(another.Put(b.ctx, "k", "stays"))
	b.ok(b.SetCounter(b.ctx, "c", 5))
	b.ok(b.Clear(b.ctx))
	if keys, err := b.Keys(b.ctx, ""); err != nil || len(keys) > 0 {
		b.t.Errorf("after Clear: %v, %v", keys, err)
	}
	if _, there, err := b.Counter(b.ctx, "c"); err != nil || there {
		b.t.Errorf("after Clear there is a counter: %v, %v", there, err)
	}
	if v, there, err := another.Get(b.ctx, "k"); err != nil || !there || v != "stays" {
		b.t.Errorf("Clear has changed another bucket: %q, %v, %v", v, there, err)
	}
	b.ok(kv.ClearAll(b.ctx, b.node))
	if _, there, err := another.Get(b.ctx, "k"); err != nil || there {
		b.t.Errorf("after ClearAll: %v, %v", there, err)
	}
}

// Each codec returns values as they were put.
func TestCodecs(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	ctx := testrun.Context(t)
	raw := bucket[[]byte](t, c.Node(0), "raw", kv.WithCodec(kv.Bytes))
	value := []byte{0, 255, '"'}
	if err := raw.Put(ctx, "k", value); err != nil {
		t.Fatal(err)
	}
	value[0] = 9
	got, _, err := raw.Get(ctx, "k")
	if err != nil || !bytes.Equal(got, []byte{0, 255, '"'}) {
		t.Errorf("bytes: %v, %v", got, err)
	}
	got[0] = 7 // the caller may change it
	if got, _, _ := raw.Get(ctx, "k"); got[0] != 0 {
		t.Error("a caller has changed the value in the bucket")
	}
	text := bucket[string](t, c.Node(0), "raw", kv.WithCodec(kv.String))
	if got, _, err := text.Get(ctx, "k"); err != nil || got != "\x00\xff\"" {
		t.Errorf("string: %q, %v", got, err)
	}
	own := bucket[time.Duration](t, c.Node(0), "own", kv.WithCodec[time.Duration](durationAsText{}))
	if err := own.Put(ctx, "k", 90*time.Second); err != nil {
		t.Fatal(err)
	}
	if got, _, err := own.Get(ctx, "k"); err != nil || got != 90*time.Second {
		t.Errorf("a codec of the program: %v, %v", got, err)
	}
	if got, _, err := bucket[string](t, c.Node(0), "own", kv.WithCodec(kv.String)).Get(ctx, "k"); err != nil || got != "1m30s" {
		t.Errorf("the encoded value: %q, %v", got, err)
	}
	if err := own.Put(ctx, "k", -1); !errors.Is(err, errNegative) {
		t.Errorf("a value that cannot be encoded: %v", err)
	}
}

type durationAsText struct{}

var errNegative = errors.New("negative")

func (durationAsText) Encode(d time.Duration) ([]byte, error) {
	if d < 0 {
		return nil, errNegative
	}
	return []byte(d.String()), nil
}
func (durationAsText) Decode(b []byte) (time.Duration, error) { return time.ParseDuration(string(b)) }

// Counters are exact while all nodes add at once and the leader changes.
func TestCountersAreExact(t *testing.T) {
	const writers, each = 4, 150
	c := hiqlitetest.NewCluster(t, 3)
	ctx := testrun.Context(t)
	var wg sync.WaitGroup
	var sums sync.Map
	for _, n := range c.Nodes()[:2] {
		for range writers {
			wg.Go(func() {
				b := bucket[string](t, n, "b")
				for range each {
					sum, err := b.Add(ctx, "hits", 1)
					if err != nil {
						t.Error(err)
						return
					}
					if _, twice := sums.LoadOrStore(sum, true); twice {
						t.Errorf("two callers got %d", sum)
					}
				}
			})
		}
	}
	wg.Go(func() {
		b := bucket[string](t, c.Node(2), "b")
		for range each {
			if _, err := b.Add(ctx, "others", 2); err != nil {
				t.Error(err)
				return
			}
			if _, err := b.Add(ctx, "others", -2); err != nil {
				t.Error(err)
				return
			}
		}
		c.Node(2).Close()
	})
	wg.Wait()
	for _, n := range c.Nodes()[:2] {
		sum, ok, err := bucket[string](t, n, "b").Counter(hiqlite.WithConsistency(ctx, hiqlite.Linearizable), "hits")
		if err != nil || !ok || sum != 2*writers*each {
			t.Errorf("the counter is %d, %v, %v, want %d", sum, ok, err, 2*writers*each)
		}
	}
}

func TestCounters(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	ctx := testrun.Context(t)
	b := bucket[string](t, c.Node(0), "b")
	if err := b.Put(ctx, "k", "an entry"); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := b.Counter(ctx, "k"); err != nil || ok {
		t.Errorf("an entry is a counter: %v, %v", ok, err)
	}
	if err := b.SetCounter(ctx, "k", math.MaxInt64-1); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Add(ctx, "k", 1); err != nil || n != math.MaxInt64 {
		t.Errorf("Add: %d, %v", n, err)
	}
	_, err := b.Add(ctx, "k", 1)
	if !errors.Is(err, kv.ErrOverflow) || !strings.Contains(err.Error(), "9223372036854775807") || !strings.Contains(err.Error(), `"k"`) {
		t.Errorf("overflow: %v", err)
	}
	if n, ok, err := b.Counter(ctx, "k"); err != nil || !ok || n != math.MaxInt64 {
		t.Errorf("after the overflow: %d, %v, %v", n, ok, err)
	}
	if n, err := b.Add(ctx, "low", math.MinInt64); err != nil || n != math.MinInt64 {
		t.Errorf("Add: %d, %v", n, err)
	}
	if _, err := b.Add(ctx, "low", -1); !errors.Is(err, kv.ErrOverflow) {
		t.Errorf("overflow downwards: %v", err)
	}
	if had, err := b.DeleteCounter(ctx, "k"); err != nil || !had {
		t.Errorf("DeleteCounter: %v, %v", had, err)
	}
	if had, err := b.DeleteCounter(ctx, "k"); err != nil || had {
		t.Errorf("DeleteCounter of nothing: %v, %v", had, err)
	}
	if v, ok, err := b.Get(ctx, "k"); err != nil || !ok || v != "an entry" {
		t.Errorf("the entry is %q, %v, %v", v, ok, err)
	}
}

// An entry does not expire before its TTL has passed on the clock of the test, and then
// expires on all nodes. Each write starts the TTL again.
func TestExpiry(t *testing.T) {
	eachSize(t, func(t *testing.T, c *hiqlitetest.Cluster) {
		ctx := testrun.Context(t)
		b := bucket[string](t, c.Node(0), "b")
		const ttl = 700 * time.Millisecond
		if err := b.Put(ctx, "stays", "x"); err != nil {
			t.Fatal(err)
		}
		if err := b.PutTTL(ctx, "kept", "x", ttl); err != nil {
			t.Fatal(err)
		}
		if err := b.Put(ctx, "kept", "for good"); err != nil {
			t.Fatal(err)
		}
		if err := b.PutTTL(ctx, "longer", "x", ttl); err != nil {
			t.Fatal(err)
		}
		if err := b.PutTTL(ctx, "longer", "x", 1<<63-1); err != nil { // the longest duration
			t.Fatal(err)
		}
		w, err := b.Watch(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		began := time.Now()
		if err := b.PutTTL(ctx, "goes", "x", ttl); err != nil {
			t.Fatal(err)
		}
		if e, err := w.Next(ctx); err != nil || e.Kind != kv.Put || e.Key != "goes" {
			t.Fatalf("the first event is %+v, %v", e, err)
		}
		e, err := w.Next(ctx)
		if err != nil || e.Kind != kv.Expired || e.Key != "goes" {
			t.Fatalf("the second event is %+v, %v", e, err)
		}
		if lived := time.Since(began); lived < ttl {
			t.Errorf("the entry has lived for %v, want at least %v", lived, ttl)
		}
		for i, n := range c.Nodes() {
			all, err := bucket[string](t, n, "b").Snapshot(hiqlite.WithConsistency(ctx, hiqlite.Linearizable))
			if err != nil || !maps.Equal(all, map[string]string{"stays": "x", "kept": "for good", "longer": "x"}) {
				t.Errorf("node %d holds %v, %v", i+1, all, err)
			}
		}
	})
}

// A read on a node that has just been started waits until the node has caught up,
// instead of finding nothing. Without a majority it returns ErrNoLeader.
func TestReadsAfterAStart(t *testing.T) {
	eachSize(t, func(t *testing.T, c *hiqlitetest.Cluster) {
		ctx := testrun.Context(t)
		b := bucket[string](t, c.Node(0), "b")
		if err := b.Put(ctx, "k", "v"); err != nil {
			t.Fatal(err)
		}
		if err := b.SetCounter(ctx, "n", 7); err != nil {
			t.Fatal(err)
		}
		for i := range c.Nodes() {
			c.Stop(i)
		}
		c.Start(0)
		b = bucket[string](t, c.Node(0), "b")
		if c.Len() > 1 {
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if v, ok, err := b.Get(short, "k"); !errors.Is(err, hiqlite.ErrNoLeader) {
				t.Errorf("without a majority: %q, %v, %v", v, ok, err)
			}
			c.Start(1)
		}
		if v, ok, err := b.Get(ctx, "k"); err != nil || !ok || v != "v" {
			t.Errorf("Get: %q, %v, %v", v, ok, err)
		}
		if n, ok, err := b.Counter(ctx, "n"); err != nil || !ok || n != 7 {
			t.Errorf("Counter: %d, %v, %v", n, ok, err)
		}
	})
}
