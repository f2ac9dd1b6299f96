package memory

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"weak"

	"github.com/hiqlite/hiqlite/internal/table"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// eventsOf returns the events that a watcher has received since the last call.
func eventsOf(t *testing.T, w *Watcher) (out []string) {
	t.Helper()
	events, err := w.Next()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		out = append(out, eventText(e))
	}
	return out
}

func TestWatchersReceiveTheEventsOfTheirKeys(t *testing.T) {
	s, kv := newKVShard(t)
	s.do(put("b", "ab", "before"))
	key, prefix, all, other := watchKV(kv, "b", "a", false), watchKV(kv, "b", "a", true), watchKV(kv, "b", "", true), watchKV(kv, "other", "", true)
	s.do(put("b", "a", "1"), put("b", "ab", "2"), put("b", "b", "3"), put("b", "", "4"))
	s.do(&wire.Command{Kind: wire.KindKVDelete, Bucket: "b", Key: "ab"}, &wire.Command{Kind: wire.KindKVClear, Bucket: "b"})
	for w, want := range map[*Watcher][]string{
		key:    {`0 "a"="1" at 2`, `4 ""="" at 7`},
		prefix: {`0 "a"="1" at 2`, `0 "ab"="2" at 3`, `1 "ab"="" at 6`, `4 ""="" at 7`},
		all:    {`0 "a"="1" at 2`, `0 "ab"="2" at 3`, `0 "b"="3" at 4`, `0 ""="4" at 5`, `1 "ab"="" at 6`, `4 ""="" at 7`},
		other:  nil,
	} {
		select {
		case <-w.Ready():
			if want == nil {
				t.Error("a watcher without events is ready")
			}
		default:
			if want != nil {
				t.Error("a watcher with events is not ready")
			}
		}
		if got := eventsOf(t, w); !slices.Equal(got, want) {
			t.Errorf("the watcher received %q, want %q", got, want)
		}
		w.Close()
		w.Close()
	}
	s.do(put("b", "a", "5"))
	if got := eventsOf(t, all); got != nil {
		t.Errorf("a closed watcher received %q", got)
	}
	if len(kv.watchers) != 0 {
		t.Errorf("there are still watchers: %v", kv.watchers)
	}
}

// An event says which entries of the SQL shard a node has to apply before it delivers the
// event.
func TestEventsFollowTheSQL(t *testing.T) {
	s, kv := newKVShard(t)
	w := watchKV(kv, "b", "", true)
	defer w.Close()
	first, second := put("b", "k", "1"), put("b", "k", "2")
	first.Seen, second.Seen = wire.Seen{SQL: 30, KV: 1}, wire.Seen{SQL: 20, KV: 2}
	s.do(first)
	s.restore(s.snapshot()) // after which w has lagged
	w2 := watchKV(kv, "b", "", true)
	defer w2.Close()
	s.do(second)
	if events, err := w2.Next(); err != nil || len(events) != 1 || (events[0].Seen != wire.Seen{SQL: 30, KV: 2}) {
		t.Errorf("the events are %+v, and the error is %v", events, err)
	}
	if _, err := w.Next(); !errors.Is(err, ErrLagged) {
		t.Errorf("the error after a restore is %v", err)
	}
}

// A watcher whose pending events exceed the bound loses them all and gets ErrLagged from then
// on. Other watchers are not affected.
func TestSlowWatchersLag(t *testing.T) {
	large := strings.Repeat("x", 1<<20)
	for name, test := range map[string]struct {
		value string
		most  int
	}{"events": {"v", maxPendingEvents}, "bytes": {large, maxPendingBytes / (1<<20 + 1)}} {
		s, kv := newKVShard(t)
		slow, quiet, quick := watchKV(kv, "b", "k", false), watchKV(kv, "b", "other", false), watchKV(kv, "b", "", true)
		for i := range test.most {
			s.do(put("b", "k", test.value))
			if events, err := quick.Next(); err != nil || len(events) != 1 {
				t.Fatalf("%s: write %d: %d events, %v", name, i, len(events), err)
			}
		}
		if slow.lagged {
			t.Errorf("%s: the watcher has lagged at the bound", name)
		}
		s.do(put("b", "other", "v"))
		if slow.lagged {
			t.Errorf("%s: the watcher has lagged because of another key", name)
		}
		s.do(put("b", "k", test.value))
		for range 2 {
			if events, err := slow.Next(); !errors.Is(err, ErrLagged) || events != nil {
				t.Errorf("%s: beyond the bound there are %d events, and the error is %v", name, len(events), err)
			}
			s.do(put("b", "k", "v"))
		}
		if events, err := quiet.Next(); err != nil || len(events) != 1 {
			t.Errorf("%s: the watcher of the other key gets %d events, %v", name, len(events), err)
		}
		if _, err := quick.Next(); err != nil {
			t.Errorf("%s: the error of the fast watcher is %v", name, err)
		}
	}
	// A single event that is larger than the bound is delivered.
	s, kv := newKVShard(t)
	w := watchKV(kv, "b", "", true)
	s.do(put("b", "k", strings.Repeat("x", maxPendingBytes+1)))
	if events, err := w.Next(); err != nil || len(events) != 1 {
		t.Errorf("for a huge event there are %d events, %v", len(events), err)
	}
}

// Pending events keep only their own entries in memory, not those that were overwritten
// meanwhile. A key that the program keeps does not keep its value in memory.
func TestEventsKeepNothingElseInMemory(t *testing.T) {
	s, kv := newKVShard(t)
	key := func(i int) string { return fmt.Sprint("k", i) }
	const keys, rounds = 8, 16 // few keys, so that chains of the table have several
	w := watchKV(kv, "b", "k", true)
	big := strings.Repeat("x", 1<<20)
	var gone []weak.Pointer[table.Item]
	for range rounds {
		for i := range keys {
			s.do(put("b", key(i), "small"))
			s.do(put("b", "other", big))
			gone = append(gone, weak.Make(kv.bucket("b").entries.Get("other")))
		}
	}
	runtime.GC()
	held := 0
	for _, p := range gone[:len(gone)-1] { // the last one still exists
		if p.Value() != nil {
			held++
		}
	}
	if held > 0 {
		t.Errorf("%d of %d overwritten entries are still in memory", held, len(gone)-1)
	}
	events, err := w.Next()
	if err != nil || len(events) != rounds*keys {
		t.Fatalf("there are %d events, %v", len(events), err)
	}

	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var kept []string
	for i := range 64 {
		s.do(put("b", key(i), big))
		s.do(&wire.Command{Kind: wire.KindKVDelete, Bucket: "b", Key: key(i)})
		events, err := w.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			kept = append(kept, e.Key)
		}
	}
	if more := heap() - before; more > 32<<20 {
		t.Errorf("%d keys keep %d MiB in memory", len(kept), more>>20)
	}
	runtime.KeepAlive(kept)
	runtime.KeepAlive(kv)
}

// watchKV watches the changes from now on.
func watchKV(kv *KV, bucket, text string, prefix bool) *Watcher {
	w, _, _ := kv.Watch(bucket, text, prefix, nil)
	return w
}
