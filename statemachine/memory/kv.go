package memory

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/table"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// KV is the machine of the kv shard: named buckets of entries and counters.
type KV struct {
	core
	buckets  atomic.Pointer[buckets]
	recent   recentEvents // guarded by mu
	revision uint64       // of the last change; never decreases. Versions of entries are revisions
	expiries timers[expiry]
	expiring int // how many entries expire

	watchers map[string]map[*Watcher]bool // by bucket

	restoring *restoration // what a snapshot holds, while it is read
}

// NewKV returns a machine that holds nothing.
func NewKV(cfg Config) *KV {
	k := &KV{watchers: map[string]map[*Watcher]bool{}}
	k.buckets.Store(newBuckets())
	k.start(cfg, k)
	return k
}

// A bucket is one namespace. The entries that expire are marked in the table.
type bucket struct {
	name     string
	entries  *table.Table
	counters *table.Table // a value is a little-endian int64
	limits   limits

	// order has the entries of a bucket with limits in the order in which they were
	// written: the first one is evicted first. An entry that was written again is in
	// it more than once; only its last Ref finds it in entries.
	order []table.Ref
	first int // the refs before this one are outdated
}

// limits of a bucket; 0: none.
type limits struct{ entries, bytes uint64 }

// expiry names an entry that expires.
type expiry struct {
	bucket *bucket
	ref    table.Ref
}

func newBucket(name string) *bucket {
	return &bucket{name: strings.Clone(name), entries: table.New(), counters: table.New()}
}

// bucket returns a bucket, or nil.
func (k *KV) bucket(name string) *bucket { return k.buckets.Load().find(name) }

// bucketOrNew returns a bucket; it adds an empty one if there is none with the name.
func (k *KV) bucketOrNew(name string) *bucket {
	if b := k.bucket(name); b != nil {
		return b
	}
	b := newBucket(name)
	k.buckets.Load().add(b)
	return b
}

// removeIfEmpty removes a bucket that has neither entries, counters nor limits.
func (k *KV) removeIfEmpty(b *bucket) {
	if b.entries.Len() == 0 && b.counters.Len() == 0 && b.limits == (limits{}) {
		k.buckets.Load().remove(b)
	}
}

// Get returns the entry of key, as it is now on this node. It takes no lock.
func (k *KV) Get(bucket, key string) (value string, version uint64, ok bool) {
	b := k.bucket(bucket)
	if b == nil {
		return "", 0, false
	}
	i := b.entries.Get(key)
	if i == nil {
		return "", 0, false
	}
	return i.Value(), i.Version(), true
}

// Counter returns the counter of key, as it is now on this node. It takes no lock.
func (k *KV) Counter(bucket, key string) (n int64, ok bool) {
	b := k.bucket(bucket)
	if b == nil {
		return 0, false
	}
	i := b.counters.Get(key)
	if i == nil {
		return 0, false
	}
	return counterValue(i), true
}

// counterValue returns the value of a counter.
func counterValue(i *table.Item) int64 { return int64(binary.LittleEndian.Uint64([]byte(i.Value()))) }

// Entries returns the entries of a bucket whose keys begin with prefix, all as they
// were when Entries was called, in no particular order.
func (k *KV) Entries(bucket, prefix string) iter.Seq2[string, string] {
	k.mu.Lock()
	b := k.bucket(bucket)
	var frozen table.Frozen
	if b != nil {
		frozen = b.entries.Freeze()
	}
	k.mu.Unlock()
	return func(yield func(string, string) bool) {
		for i := range frozen.All() {
			if strings.HasPrefix(i.Key(), prefix) && !yield(i.Key(), i.Value()) {
				return
			}
		}
	}
}

func (k *KV) apply(c *wire.Command, _ *wire.Session[wire.Outcome]) wire.Outcome {
	if c.Bucket == "" && c.Kind != wire.KindKVClearAll {
		return wire.Outcome{Code: wire.UnknownCommand}
	}
	switch c.Kind {
	case wire.KindKVPut, wire.KindKVPutIfAbsent, wire.KindKVReplace, wire.KindKVCompareAndSwap:
		return k.put(c.KVPut())
	case wire.KindKVDelete, wire.KindKVGetRemove:
		return k.delete(c.KVDelete())
	case wire.KindKVClear:
		if b := k.bucket(c.Bucket); b != nil {
			k.clear(b)
		}
		return wire.Outcome{}
	case wire.KindKVClearAll:
		for _, b := range k.buckets.Load().sorted() {
			k.clear(b)
		}
		return wire.Outcome{}
	case wire.KindKVSetLimits:
		return k.setLimits(c.KVSetLimits())
	case wire.KindCounterAdd:
		return k.addToCounter(c.CounterAdd())
	case wire.KindCounterSet:
		return k.setCounter(c.CounterSet())
	case wire.KindCounterDelete:
		return k.deleteCounter(c.CounterDelete())
	}
	return wire.Outcome{Code: wire.UnknownCommand}
}

func (k *KV) put(c wire.KVPut) wire.Outcome {
	b := k.bucketOrNew(c.Bucket)
	defer k.removeIfEmpty(b)
	size := uint64(len(c.Key) + len(c.Value))
	if b.limits.bytes > 0 && size > b.limits.bytes {
		return wire.Outcome{Code: wire.TooLarge, MaxBytes: b.limits.bytes}
	}
	switch c.Kind {
	case wire.KindKVPutIfAbsent:
		if i := b.entries.Get(c.Key); i != nil {
			return wire.Outcome{Code: wire.Present, Version: i.Version()}
		}
	case wire.KindKVCompareAndSwap:
		version := uint64(0)
		if i := b.entries.Get(c.Key); i != nil {
			version = i.Version()
		}
		if version != c.Version {
			return wire.Outcome{Code: wire.Changed, Version: version}
		}
	}
	k.revision++
	item, old := b.entries.Put(c.Key, c.Value, k.revision, c.TTLMS > 0)
	o := wire.Outcome{Version: k.revision, Existed: old != nil}
	if old != nil && c.Kind == wire.KindKVReplace {
		o.Value = old.Value()
	}
	k.countRemoved(old)
	if c.TTLMS > 0 {
		k.expiring++
		k.expiries.start(c.TTLMS, expiry{b, item.Ref()})
	}
	k.emit(b.name, shardapi.Written, item)
	if b.limits != (limits{}) {
		b.order = append(b.order, item.Ref())
		k.evict(b)
	}
	return o
}

// countRemoved corrects the number of expiring entries after an entry, or nil, was
// removed or replaced.
func (k *KV) countRemoved(i *table.Item) {
	if i != nil && i.Mark() {
		k.expiring--
	}
}

func (k *KV) delete(c wire.KVDelete) wire.Outcome {
	b := k.bucket(c.Bucket)
	if b == nil {
		return wire.Outcome{Code: wire.Missing}
	}
	old := b.entries.Delete(c.Key)
	if old == nil {
		return wire.Outcome{Code: wire.Missing}
	}
	k.emitRemoved(b, old, shardapi.Deleted)
	k.removeIfEmpty(b)
	o := wire.Outcome{Version: old.Version(), Existed: true}
	if c.ReturnValue {
		o.Value = old.Value()
	}
	return o
}

// emitRemoved sends watchers the event of an entry that was removed.
func (k *KV) emitRemoved(b *bucket, i *table.Item, why shardapi.EventKind) {
	k.revision++
	k.countRemoved(i)
	k.emit(b.name, why, i)
}

// clear removes the entries and counters of a bucket. Its limits stay.
func (k *KV) clear(b *bucket) {
	k.revision++
	if k.expiring > 0 {
		for i := range b.entries.Freeze().All() {
			k.countRemoved(i)
		}
	}
	b.entries.Clear()
	b.counters.Clear()
	b.order, b.first = nil, 0
	k.emit(b.name, shardapi.Cleared, nil)
	k.removeIfEmpty(b)
}

// setLimits sets the limits of a bucket. Other limits that it has already are replaced
// only if the command says so.
func (k *KV) setLimits(c wire.KVSetLimits) wire.Outcome {
	b, want := k.bucketOrNew(c.Bucket), limits{c.MaxEntries, c.MaxBytes}
	defer k.removeIfEmpty(b)
	if b.limits != (limits{}) && b.limits != want && !c.Override {
		return wire.Outcome{Code: wire.Differs, MaxEntries: b.limits.entries, MaxBytes: b.limits.bytes}
	}
	b.limits = want
	b.order, b.first = nil, 0
	if want != (limits{}) {
		for i := range b.entries.Freeze().All() {
			b.order = append(b.order, i.Ref())
		}
		b.sortOrder()
		k.evict(b)
	}
	return wire.Outcome{MaxEntries: want.entries, MaxBytes: want.bytes}
}

// sortOrder orders the entries by when they were written.
func (b *bucket) sortOrder() {
	slices.SortFunc(b.order, func(x, y table.Ref) int { return cmp.Compare(x.Version(), y.Version()) })
}

// evict removes the entries that were written longest ago until the bucket is within
// its limits. put has made sure that the last one alone is.
func (k *KV) evict(b *bucket) {
	exceeded := func() bool {
		return b.limits.entries > 0 && uint64(b.entries.Len()) > b.limits.entries || b.limits.bytes > 0 && uint64(b.entries.Size()) > b.limits.bytes
	}
	for exceeded() && b.first < len(b.order) {
		if i := b.entries.Remove(b.order[b.first]); i != nil {
			k.emitRemoved(b, i, shardapi.Evicted)
		}
		b.first++
	}
	if len(b.order)-b.first > 2*b.entries.Len()+1024 { // most are of entries that were written again or deleted
		b.order = slices.DeleteFunc(b.order[b.first:], func(r table.Ref) bool { return b.entries.Find(r) == nil })
		b.first = 0
	}
	if b.first > len(b.order)/2 {
		b.order, b.first = slices.Clone(b.order[b.first:]), 0
	}
}

func (k *KV) addToCounter(c wire.CounterAdd) wire.Outcome {
	n, existed := int64(0), false
	if b := k.bucket(c.Bucket); b != nil {
		if old := b.counters.Get(c.Key); old != nil {
			n, existed = counterValue(old), true
		}
	}
	if c.Delta > 0 && n > math.MaxInt64-c.Delta || c.Delta < 0 && n < math.MinInt64-c.Delta {
		return wire.Outcome{Code: wire.Overflow, Counter: n, Existed: existed}
	}
	return k.setCounter(wire.CounterSet{Bucket: c.Bucket, Key: c.Key, Counter: n + c.Delta})
}

func (k *KV) setCounter(c wire.CounterSet) wire.Outcome {
	k.revision++
	_, old := k.bucketOrNew(c.Bucket).counters.Put(c.Key, binary.LittleEndian.AppendUint64(nil, uint64(c.Counter)), k.revision, false)
	return wire.Outcome{Counter: c.Counter, Existed: old != nil}
}

func (k *KV) deleteCounter(c wire.CounterDelete) wire.Outcome {
	b := k.bucket(c.Bucket)
	if b == nil {
		return wire.Outcome{Code: wire.Missing}
	}
	old := b.counters.Delete(c.Key)
	if old == nil {
		return wire.Outcome{Code: wire.Missing}
	}
	k.removeIfEmpty(b)
	return wire.Outcome{Existed: true, Counter: counterValue(old)}
}

// advance moves the clock, and removes the entries that have expired.
func (k *KV) advance(now uint64) {
	for _, t := range k.expiries.advance(now) {
		b := t.payload.bucket
		if i := b.entries.Remove(t.payload.ref); i != nil {
			k.emitRemoved(b, i, shardapi.Expired)
			k.removeIfEmpty(b)
		}
	}
	k.expiries.prune(k.expiring, func(e expiry) bool { return e.bucket.entries.Find(e.ref) == nil })
}

func (k *KV) sessionOpened(uint64, uint64) {}

// Size returns the bytes of all keys and values, counters included.
func (k *KV) Size() (n int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range k.buckets.Load().sorted() {
		n += int64(b.entries.Size() + b.counters.Size())
	}
	return n
}

func (k *KV) nextAdvance() (atOnce bool, end uint64, any bool) { return k.expiries.next() }

func (k *KV) freeze() iter.Seq[wire.Record] {
	type frozen struct {
		head              *wire.BucketRecord
		entries, counters table.Frozen
	}
	var all []frozen
	for _, b := range k.buckets.Load().sorted() {
		all = append(all, frozen{
			&wire.BucketRecord{Name: b.name, MaxEntries: b.limits.entries, MaxBytes: b.limits.bytes},
			b.entries.Freeze(), b.counters.Freeze(),
		})
	}
	revision := k.revision
	timers := k.expiries.clone()
	return func(yield func(wire.Record) bool) {
		if !yield(&wire.KVRecord{LastVersion: revision}) {
			return
		}
		for _, f := range all {
			if !yield(f.head) {
				return
			}
			for i := range f.entries.All() {
				if !yield(&wire.KVEntryRecord{Key: i.Key(), Value: i.Value(), Version: i.Version(), Expires: i.Mark()}) {
					return
				}
			}
			for i := range f.counters.All() {
				if !yield(&wire.CounterRecord{Key: i.Key(), Counter: counterValue(i), Version: i.Version()}) {
					return
				}
			}
		}
		expiries, phases := timers.all()
		for n, t := range expiries {
			if !yield(&wire.ExpiryRecord{Version: t.payload.ref.Version(), Timer: wire.Timer{End: t.end, Phase: uint8(phases[n])}}) {
				return
			}
		}
	}
}

// restoration is the state of a snapshot that is being read. Readers see the former
// state until the snapshot is complete.
type restoration struct {
	buckets  *buckets
	current  *bucket // to which the following records belong
	revision uint64
	expiries timers[expiry]
	expiring map[uint64]expiry // entries that expire, by version
}

func (k *KV) beginRestore() {
	k.restoring = &restoration{buckets: newBuckets(), expiring: map[uint64]expiry{}}
}

func (k *KV) restore(r wire.Record) error {
	x := k.restoring
	b := x.current
	switch r := r.(type) {
	case *wire.KVRecord:
		x.revision = r.LastVersion
	case *wire.BucketRecord:
		b = newBucket(r.Name)
		b.limits = limits{r.MaxEntries, r.MaxBytes}
		x.buckets.add(b)
		x.current = b
	case *wire.KVEntryRecord:
		if b == nil {
			return fmt.Errorf("entry %q comes before a bucket", r.Key)
		}
		item, _ := b.entries.Put(r.Key, []byte(r.Value), r.Version, r.Expires)
		if r.Expires {
			x.expiring[r.Version] = expiry{b, item.Ref()}
		}
		if b.limits != (limits{}) {
			b.order = append(b.order, item.Ref())
		}
	case *wire.CounterRecord:
		if b == nil {
			return fmt.Errorf("counter %q comes before a bucket", r.Key)
		}
		b.counters.Put(r.Key, binary.LittleEndian.AppendUint64(nil, uint64(r.Counter)), r.Version, false)
	case *wire.ExpiryRecord:
		if e, ok := x.expiring[r.Version]; ok {
			x.expiries.restore(r.Timer.End, phase(r.Timer.Phase), e)
		}
	default:
		return fmt.Errorf("a %T in a snapshot of the kv shard", r)
	}
	return nil
}

func (k *KV) endRestore() error {
	x := k.restoring
	for _, b := range x.buckets.sorted() {
		b.sortOrder()
	}
	k.buckets.Store(x.buckets)
	k.recent = recentEvents{forgotten: x.revision}
	k.revision, k.expiries, k.expiring = x.revision, x.expiries, len(x.expiring)
	k.restoring = nil
	for _, name := range slices.Sorted(maps.Keys(k.watchers)) {
		for w := range k.watchers[name] {
			w.markLagged()
		}
	}
	return nil
}
