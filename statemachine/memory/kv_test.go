package memory

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/hiqlite/hiqlite/internal/wire"
)

func newKVShard(t rapid.TB) (*shard, *KV) {
	s := newShard(t, shardKinds["kv"])
	return s, s.machine.(*KV)
}

func put(bucket, key, value string) *wire.Command {
	return &wire.Command{Kind: wire.KindKVPut, Bucket: bucket, Key: key, Value: []byte(value)}
}

func eventText(e Event) string {
	return fmt.Sprintf("%d %q=%q at %d", e.Kind, e.Key, e.Value, e.Version)
}

// The kv machine does the same as a model of maps whose entries have a TTL, and sends the
// same events to watchers.
func TestKVBehavesLikeMaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, kv := newKVShard(t)
		m := &kvModel{buckets: map[string]*kvBucket{}, events: map[string][]string{}}
		watchers := map[string]*Watcher{}
		for _, name := range []string{"a", "b"} {
			watchers[name] = watchKV(kv, name, "", true)
		}
		seen := map[string]int{}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			if rapid.IntRange(0, 4).Draw(t, "step") == 0 {
				step := rapid.SampledFrom([]uint64{1, 100, 1000, 3000}).Draw(t, "advance")
				s.advance(step)
				m.advance(m.now + step)
			} else {
				var commands []*wire.Command
				var want []wire.Outcome
				for range rapid.IntRange(1, 3).Draw(t, "commands") {
					c := kvCommand(t)
					if rapid.IntRange(0, 3).Draw(t, "now") == 0 { // in some cases the present version
						_, c.Version, _ = kv.Get(c.Bucket, c.Key)
					}
					commands, want = append(commands, c), append(want, m.apply(c))
				}
				if got := s.do(commands...); !slices.Equal(got, want) {
					t.Fatalf("the outcomes of %+v are\n%+v, want\n%+v", commands, got, want)
				}
			}
			for name, w := range watchers {
				events, err := w.Next()
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, e := range events {
					got = append(got, eventText(e))
				}
				if want := m.events[name][seen[name]:]; !slices.Equal(got, want) {
					t.Fatalf("the watcher of %s received %q, want %q", name, got, want)
				}
				seen[name] = len(m.events[name])
			}
		}
		size, expires := int64(0), 0
		for name, b := range m.buckets {
			got := maps.Collect(kv.Entries(name, ""))
			if len(got) != len(b.entries) {
				t.Fatalf("bucket %s has %v, want %d entries", name, got, len(b.entries))
			}
			for key, e := range b.entries {
				if e.ttl > 0 {
					expires++
				}
				if value, version, ok := kv.Get(name, key); !ok || value != e.value || version != e.version || got[key] != value {
					t.Fatalf("%s of %s is %q, %d, %v, want %+v", key, name, value, version, ok, e)
				}
			}
			for key, want := range b.counters {
				if n, ok := kv.Counter(name, key); !ok || n != want {
					t.Fatalf("%s of %s is %d, %v, want %d", key, name, n, ok, want)
				}
				size += int64(len(key)) + 8
			}
			size += int64(b.size())
		}
		var names []string
		for _, b := range kv.buckets.Load().sorted() {
			names = append(names, b.name)
		}
		if want := slices.Sorted(maps.Keys(m.buckets)); !slices.Equal(names, want) {
			t.Fatalf("the buckets are %q, want %q", names, want)
		}
		if kv.expiring != expires {
			t.Fatalf("expiring is %d, want %d", kv.expiring, expires)
		}
		if got := kv.Size(); got != size {
			t.Fatalf("the size is %d bytes, want %d", got, size)
		}
	})
}

// The entry that was written least recently is evicted first. An entry that is written again
// becomes the most recent one, and deleted entries are removed from the order in time.
func TestTheLeastRecentlyWrittenEntryIsEvictedFirst(t *testing.T) {
	s, kv := newKVShard(t)
	const limit = 100
	s.do(&wire.Command{Kind: wire.KindKVSetLimits, Bucket: "b", MaxEntries: limit})
	var order []string // by the time of their last write
	write := func(key string) {
		order = append(slices.DeleteFunc(order, func(k string) bool { return k == key }), key)
		if len(order) > limit {
			order = order[1:]
		}
	}
	for i := range 400 {
		var commands []*wire.Command
		for j := range 20 {
			key := fmt.Sprint("k", (i*7+j*j)%150)
			if (i+j)%11 == 0 {
				commands = append(commands, &wire.Command{Kind: wire.KindKVDelete, Bucket: "b", Key: key})
				order = slices.DeleteFunc(order, func(k string) bool { return k == key })
				continue
			}
			commands = append(commands, put("b", key, "v"))
			write(key)
		}
		if i == 200 {
			s.restore(s.snapshot())
		}
		s.do(commands...)
		if got := slices.Sorted(maps.Keys(maps.Collect(kv.Entries("b", "")))); !slices.Equal(got, slices.Sorted(slices.Values(order))) {
			t.Fatalf("after round %d there are %q, want %q", i, got, order)
		}
	}
	if n := len(kv.bucket("b").order); n > 3*limit+1024 {
		t.Errorf("the order has %d elements for %d entries", n, limit)
	}
}

// Limits that are set later apply to all entries that the bucket already has.
func TestLimitsAreSetOnceOrByForce(t *testing.T) {
	s, kv := newKVShard(t)
	s.do(put("b", "1", "aaaa"), put("b", "2", "bbbb"), put("b", "3", "cccc"), put("b", "1", "dddd"))
	set := func(entries, size uint64, force bool) wire.Outcome {
		return s.do(&wire.Command{Kind: wire.KindKVSetLimits, Bucket: "b", MaxEntries: entries, MaxBytes: size, Override: force})[0]
	}
	expect := func(want string) {
		t.Helper()
		if got := strings.Join(slices.Sorted(maps.Keys(maps.Collect(kv.Entries("b", "")))), ""); got != want {
			t.Errorf("there are %q, want %q", got, want)
		}
	}
	if o := set(0, 11, false); o.Code != wire.Done {
		t.Errorf("the outcome is %+v", o)
	}
	expect("13")
	if o := set(5, 0, false); o.Code != wire.Differs || o.MaxBytes != 11 {
		t.Errorf("the outcome is %+v", o)
	}
	if o := set(0, 11, false); o.Code != wire.Done {
		t.Errorf("the outcome for the same limits again is %+v", o)
	}
	if o := s.do(put("b", "4", strings.Repeat("x", 11)))[0]; o.Code != wire.TooLarge || o.MaxBytes != 11 {
		t.Errorf("the outcome for an entry that does not fit is %+v", o)
	}
	expect("13")
	s.do(put("b", "4", strings.Repeat("x", 10)))
	expect("4")
	if o := set(0, 0, true); o.Code != wire.Done {
		t.Errorf("the outcome is %+v", o)
	}
	s.do(put("b", "5", strings.Repeat("x", 100)))
	expect("45")
}

func TestCountersDoNotOverflow(t *testing.T) {
	s, kv := newKVShard(t)
	count := func(kind wire.CommandKind, n int64) wire.Outcome {
		c := &wire.Command{Kind: kind, Bucket: "b", Key: "n"}
		if kind == wire.KindCounterAdd {
			c.Delta = n
		} else {
			c.Counter = n
		}
		return s.do(c)[0]
	}
	for _, sign := range []int64{1, -1} {
		limit := int64(math.MaxInt64)
		if sign < 0 {
			limit = math.MinInt64
		}
		count(wire.KindCounterSet, limit-sign)
		if o := count(wire.KindCounterAdd, 2*sign); o.Code != wire.Overflow || o.Counter != limit-sign || !o.Existed {
			t.Errorf("the outcome beyond %d is %+v", limit, o)
		}
		if o := count(wire.KindCounterAdd, sign); o.Code != wire.Done || o.Counter != limit {
			t.Errorf("the outcome of counting to %d is %+v", limit, o)
		}
		if o := count(wire.KindCounterAdd, 0); o.Code != wire.Done || o.Counter != limit {
			t.Errorf("the outcome at %d is %+v", limit, o)
		}
	}
	if n, ok := kv.Counter("b", "n"); !ok || n != math.MinInt64 {
		t.Errorf("the counter is %d, %v", n, ok)
	}
}

// An entry with the longest possible TTL does not expire at once.
func TestTheLongestTTLDoesNotEndAtOnce(t *testing.T) {
	s, kv := newKVShard(t)
	c := put("b", "k", "v")
	c.TTLMS = math.MaxUint64
	s.do(c)
	s.advance(100, 100, 100, 100)
	if _, _, ok := kv.Get("b", "k"); !ok {
		t.Error("the entry expired")
	}
}

// An empty bucket is forgotten. If its name is used again, the old timers do not affect
// the new bucket.
func TestBucketsThatAreUsedAgain(t *testing.T) {
	s, kv := newKVShard(t)
	c := put("b", "k", "first")
	c.TTLMS = 100
	s.do(c)
	s.advance(1, 1)
	s.do(&wire.Command{Kind: wire.KindKVDelete, Bucket: "b", Key: "k"})
	if kv.bucket("b") != nil {
		t.Error("the empty bucket still exists")
	}
	s.do(put("b", "k", "second"))
	s.advance(200, 200)
	if v, _, ok := kv.Get("b", "k"); !ok || v != "second" {
		t.Errorf("the entry is %q, %v", v, ok)
	}
}

// An entry that is written again has only the TTL of its last value.
func TestWritesRenewTheTTL(t *testing.T) {
	s, kv := newKVShard(t)
	short := put("b", "k", "v")
	short.TTLMS = 100
	s.do(short)
	s.advance(1, 1, 99)
	s.do(short)
	s.advance(1, 50)
	if _, _, ok := kv.Get("b", "k"); !ok {
		t.Fatal("the entry expired with the TTL of its first value")
	}
	s.do(put("b", "k", "v"))
	s.advance(1000, 1000, 1000)
	if _, _, ok := kv.Get("b", "k"); !ok {
		t.Error("an entry without a TTL expired")
	}
}

// While a snapshot is restored, readers always see the entries that exist before and after.
func TestReadsDuringARestore(t *testing.T) {
	s, kv := newKVShard(t)
	var all []*wire.Command
	for i := range 3000 {
		all = append(all, put("b", fmt.Sprint("k", i), "v"))
	}
	s.do(append(all, &wire.Command{Kind: wire.KindCounterSet, Bucket: "b", Key: "n", Counter: 7})...)
	b := s.snapshot()
	stop := make(chan struct{})
	var missing error
	var readers sync.WaitGroup
	readers.Go(func() {
		for missing == nil {
			select {
			case <-stop:
				return
			default:
			}
			if v, _, ok := kv.Get("b", "k1500"); !ok || v != "v" {
				missing = fmt.Errorf("the entry is %q, %v", v, ok)
			}
			if n, ok := kv.Counter("b", "n"); !ok || n != 7 {
				missing = fmt.Errorf("the counter is %d, %v", n, ok)
			}
		}
	})
	for range 20 {
		s.restore(b)
	}
	close(stop)
	if readers.Wait(); missing != nil {
		t.Error(missing)
	}
}

// Entries returns the entries of one moment, although others are written meanwhile.
func TestEntriesAreOfOneMoment(t *testing.T) {
	s, kv := newKVShard(t)
	s.do(put("b", "x1", "0"), put("b", "x2", "0"), put("b", "y", "0"))
	entries := kv.Entries("b", "x")
	s.do(put("b", "x1", "1"), put("b", "x3", "1"), &wire.Command{Kind: wire.KindKVDelete, Bucket: "b", Key: "x2"})
	if got := maps.Collect(entries); !maps.Equal(got, map[string]string{"x1": "0", "x2": "0"}) {
		t.Errorf("the entries are %v", got)
	}
	if got := maps.Collect(kv.Entries("none", "")); len(got) != 0 {
		t.Errorf("the entries of a bucket that does not exist are %v", got)
	}
	for range kv.Entries("b", "") {
		break
	}
}

// A snapshot of more than one block is saved while entries are written.
func TestLargeSnapshotsDuringWrites(t *testing.T) {
	s, kv := newKVShard(t)
	value := strings.Repeat("value ", 20)
	var all []*wire.Command
	for i := range 5000 {
		all = append(all, put(fmt.Sprint("b", i%3), fmt.Sprint("k", i), value))
	}
	s.do(all...)
	want := s.state()
	prepared, err := s.PrepareSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	written := make(chan error, 1)
	go func() { written <- s.SaveSnapshot(prepared, &b, nil, nil) }()
	for i := range 300 {
		s.do(put("b1", fmt.Sprint("k", i), "after"), &wire.Command{Kind: wire.KindKVDelete, Bucket: "b2", Key: fmt.Sprint("k", 3*i+2)}, &wire.Command{Kind: wire.KindKVClear, Bucket: fmt.Sprint("b", i/299)})
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if v, _, ok := kv.Get("b0", "k0"); ok {
		t.Errorf("the entry of the cleared bucket is %q", v)
	}
	other := emptyShard(t, shardKinds["kv"])
	other.restore(b.Bytes())
	if !slices.Equal(other.state(), want) {
		t.Error("the restored state is not that of the time of the snapshot")
	}
}

// The checksum of a snapshot comes after its last record. It is checked at whichever position
// of a block the last record ends.
func TestDamageAtTheEndOfASnapshotIsDetected(t *testing.T) {
	const block = 64 << 10 // the size of a read
	size := func(b []byte) (n int) {
		for _, r := range records(t, b) {
			one := len(wire.AppendRecord(nil, r))
			n += one + 1
			for ; one >= 0x80; one >>= 7 {
				n++
			}
		}
		return n
	}
	with := func(n int) []byte {
		s, _ := newKVShard(t)
		s.do(put("b", "k", strings.Repeat("v", n)))
		return s.snapshot()
	}
	b := with(2*block - 200 - size(with(block-200)))
	if n := size(b); n != block {
		t.Fatalf("the snapshot has %d bytes", n)
	}
	other := emptyShard(t, shardKinds["kv"])
	for n := len(b) - 4; n < len(b); n++ {
		damaged := bytes.Clone(b)
		damaged[n] ^= 1
		if !other.refuses(damaged) {
			t.Errorf("a damaged checksum, in byte %d of %d, is not detected", n, len(b))
		}
	}
	if !other.refuses(append(bytes.Clone(b), "more"...)) {
		t.Error("bytes after the end are not detected")
	}
}

// A write copies the names of few buckets, however many there are. With a fixed number of
// parts, an entry that removed 100,000 buckets took seconds.
func TestWritesCopyFewNames(t *testing.T) {
	s, kv := newKVShard(t)
	const n = 20_000
	for i := range n {
		s.do(put(fmt.Sprint("bucket ", i), "k", "v"))
	}
	all := kv.buckets.Load()
	if len(all.all()) != n || all.n != n {
		t.Errorf("there are %d buckets, but n is %d", len(all.all()), all.n)
	}
	parts := *all.parts.Load()
	for i := range parts {
		if names := len(*parts[i].Load()); names > 64 {
			t.Fatalf("there are %d buckets in one of %d parts", names, len(parts))
		}
	}
	for i := range n {
		if _, _, ok := kv.Get(fmt.Sprint("bucket ", i), "k"); !ok {
			t.Fatalf("bucket %d is not found", i)
		}
	}
	s.do(&wire.Command{Kind: wire.KindKVClearAll})
	if parts := len(*all.parts.Load()); parts != minParts || all.n != 0 || len(all.all()) != 0 {
		t.Errorf("after all were removed, %d buckets are left, in %d parts", all.n, parts)
	}
}
