package kv_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
)

// New and SetLimits return errors that say what is wrong.
func TestBadBuckets(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	for _, bad := range []struct {
		what string
		make func() error
		want string
	}{
		{"no name", func() error { _, err := kv.New[int](c.Node(0), ""); return err }, "1 to 255"},
		{"a long name", func() error { _, err := kv.New[int](c.Node(0), strings.Repeat("b", 256)); return err }, "256 bytes"},
		{"a codec of another type", func() error { _, err := kv.New[int](c.Node(0), "b", kv.WithCodec(kv.Bytes)); return err }, "int"},
		{"no limits", func() error { _, err := kv.New[int](c.Node(0), "b", kv.WithLimits(0, 0)); return err }, "SetLimits"},
		{"no client", func() error { _, err := kv.New[int](nil, "b"); return err }, "hiqlite.From"},
		{"no codec", func() error { _, err := kv.New[int](c.Node(0), "b", kv.WithCodec[int](nil)); return err }, "JSON"},
		{"negative limits", func() error { _, err := kv.New[int](c.Node(0), "b", kv.WithLimits(-1, 0)); return err }, "-1 entries"},
		{"negative limits set", func() error {
			return bucket[int](t, c.Node(0), "b").SetLimits(testrun.Context(t), 0, -5)
		}, "-5 bytes"},
	} {
		if err := bad.make(); err == nil || !strings.Contains(err.Error(), bad.want) || !strings.HasPrefix(err.Error(), "kv: ") {
			t.Errorf("%s: %v, want one with %q", bad.what, err, bad.want)
		}
	}
}

// A bad key, value or TTL returns an error that names it, and changes nothing.
func TestBadInput(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	ctx := testrun.Context(t)
	b := bucket[[]byte](t, c.Node(0), "b", kv.WithCodec(kv.Bytes))
	if err := b.Put(ctx, "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", strings.Repeat("k", kv.MaxKey+1)} {
		for name, f := range map[string]func() error{
			"Get":            func() error { _, _, err := b.Get(ctx, key); return err },
			"GetVersion":     func() error { _, _, _, err := b.GetVersion(ctx, key); return err },
			"Put":            func() error { return b.Put(ctx, key, nil) },
			"PutTTL":         func() error { return b.PutTTL(ctx, key, nil, time.Second) },
			"PutIfAbsent":    func() error { _, err := b.PutIfAbsent(ctx, key, nil); return err },
			"Replace":        func() error { _, _, err := b.Replace(ctx, key, nil); return err },
			"CompareAndSwap": func() error { _, _, err := b.CompareAndSwap(ctx, key, 0, nil); return err },
			"Delete":         func() error { _, err := b.Delete(ctx, key); return err },
			"GetRemove":      func() error { _, _, err := b.GetRemove(ctx, key); return err },
			"Add":            func() error { _, err := b.Add(ctx, key, 1); return err },
			"Counter":        func() error { _, _, err := b.Counter(ctx, key); return err },
			"SetCounter":     func() error { return b.SetCounter(ctx, key, 1) },
			"DeleteCounter":  func() error { _, err := b.DeleteCounter(ctx, key); return err },
			"WatchKey":       func() error { _, err := b.WatchKey(ctx, key); return err },
		} {
			if err := f(); !errors.Is(err, kv.ErrKey) || !strings.Contains(err.Error(), `"b"`) {
				t.Errorf("%s of a key of %d bytes: %v", name, len(key), err)
			}
		}
	}
	for _, ttl := range []time.Duration{0, -time.Second} {
		if err := b.PutTTL(ctx, "k", nil, ttl); !errors.Is(err, kv.ErrTTL) || !strings.Contains(err.Error(), ttl.String()) {
			t.Errorf("a time to live of %v: %v", ttl, err)
		}
	}
	err := b.Put(ctx, "k", make([]byte, kv.MaxValue+1))
	if !errors.Is(err, hiqlite.ErrTooLarge) || !strings.Contains(err.Error(), "1048577") || !strings.Contains(err.Error(), `"k"`) {
		t.Errorf("a large value: %v", err)
	}
	if err := bucket[func()](t, c.Node(0), "b").Put(ctx, "k", nil); err == nil || !strings.Contains(err.Error(), `"k"`) {
		t.Errorf("a value that JSON cannot encode: %v", err)
	}
	if v, ok, err := b.Get(ctx, "k"); err != nil || !ok || string(v) != "v" {
		t.Errorf("the entry is %q, %v, %v", v, ok, err)
	}
	// The largest sizes are accepted.
	if err := b.Put(ctx, strings.Repeat("k", kv.MaxKey), make([]byte, kv.MaxValue)); err != nil {
		t.Errorf("the longest key and value: %v", err)
	}
	if v, had, err := b.GetRemove(ctx, strings.Repeat("k", kv.MaxKey)); err != nil || !had || len(v) != kv.MaxValue {
		t.Errorf("the largest value is read as %d bytes, %v, %v", len(v), had, err)
	}
	if err := b.PutTTL(ctx, "long", nil, 1<<63-1); err != nil {
		t.Errorf("the longest time to live: %v", err)
	}
	if v, ok, err := b.Get(ctx, "long"); err != nil || !ok || len(v) != 0 {
		t.Errorf("an empty value: %v, %v, %v", v, ok, err)
	}
}

// A value that is not of the bucket's type returns an error that names it, and stays.
func TestValuesThatDoNotDecode(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	ctx := testrun.Context(t)
	text, number := bucket[string](t, c.Node(0), "b"), bucket[int](t, c.Node(0), "b")
	if err := text.Put(ctx, "k", "seven"); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() (bool, error){
		"Get":       func() (bool, error) { _, ok, err := number.Get(ctx, "k"); return ok, err },
		"Snapshot":  func() (bool, error) { _, err := number.Snapshot(ctx); return false, err },
		"Replace":   func() (bool, error) { _, had, err := number.Replace(ctx, "k", 7); return had, err },
		"GetRemove": func() (bool, error) { _, had, err := number.GetRemove(ctx, "k"); return had, err },
	} {
		ok, err := f()
		if !errors.Is(err, kv.ErrDecode) || ok || !strings.Contains(err.Error(), `"k"`) || !strings.Contains(err.Error(), `"b"`) || !strings.Contains(err.Error(), "int") {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	if v, ok, err := text.Get(ctx, "k"); err != nil || !ok || v != "seven" {
		t.Errorf("the entry is %q, %v, %v", v, ok, err)
	}
}

// A context that has ended, a cluster without a majority and a closed node return
// different errors, and none of them leaves a partial change.
func TestWithoutACluster(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 3)
	ctx := testrun.Context(t)
	b := bucket[string](t, c.Node(0), "b")
	if err := b.Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for name, f := range map[string]func(context.Context) error{
		"Put":      func(ctx context.Context) error { return b.Put(ctx, "k", "new") },
		"Get":      func(ctx context.Context) error { _, _, err := b.Get(ctx, "k"); return err },
		"Counter":  func(ctx context.Context) error { _, _, err := b.Counter(ctx, "k"); return err },
		"Keys":     func(ctx context.Context) error { _, err := b.Keys(ctx, ""); return err },
		"Watch":    func(ctx context.Context) error { _, err := b.Watch(ctx, ""); return err },
		"ClearAll": func(ctx context.Context) error { return kv.ClearAll(ctx, c.Node(0)) },
	} {
		if err := f(ended); !errors.Is(err, context.Canceled) || errors.Is(err, hiqlite.ErrOutcomeUnknown) {
			t.Errorf("%s with a context that has ended: %v", name, err)
		}
	}
	c.Stop(1)
	c.Stop(2)
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := b.Put(short, "k", "lost?")
	if !errors.Is(err, hiqlite.ErrNoLeader) && !errors.Is(err, hiqlite.ErrOutcomeUnknown) {
		t.Errorf("Put without a majority: %v", err)
	}
	short, cancel = context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, _, err := b.Get(hiqlite.WithConsistency(short, hiqlite.Linearizable), "k"); !errors.Is(err, hiqlite.ErrNoLeader) {
		t.Errorf("a linearizable Get without a majority: %v", err)
	}
	if v, ok, err := b.Get(ctx, "k"); err != nil || !ok || v != "v" {
		t.Errorf("a local Get without a majority: %q, %v, %v", v, ok, err)
	}
	c.Start(1)
	c.WaitReady(0)
	if err := b.Put(ctx, "k", "again"); err != nil {
		t.Errorf("Put with a majority again: %v", err)
	}
	node := c.Node(0)
	c.Stop(0)
	if err := b.Put(ctx, "k", "x"); !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("Put on a closed node: %v", err)
	}
	if _, _, err := b.Get(ctx, "k"); !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("Get on a closed node: %v", err)
	}
	if _, err := bucket[string](t, node, "b").Watch(ctx, ""); !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("Watch on a closed node: %v", err)
	}
}
