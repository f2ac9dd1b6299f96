package memory

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A kvModel is a model of the kv machine, made of maps and lists.
type kvModel struct {
	revision, now uint64
	buckets       map[string]*kvBucket
	events        map[string][]string // by bucket
}

type kvBucket struct {
	entries  map[string]*kvEntry
	counters map[string]int64
	limits   limits
}

type kvEntry struct {
	key, value string
	version    uint64
	ttl, end   uint64
	advances   int // clock advances since the last write
}

func (m *kvModel) bucket(name string) *kvBucket {
	if m.buckets[name] == nil {
		m.buckets[name] = &kvBucket{entries: map[string]*kvEntry{}, counters: map[string]int64{}}
	}
	return m.buckets[name]
}

func (m *kvModel) tidy() {
	maps.DeleteFunc(m.buckets, func(_ string, b *kvBucket) bool {
		return len(b.entries)+len(b.counters) == 0 && b.limits == limits{}
	})
}

func (m *kvModel) event(bucket string, kind shardapi.EventKind, key, value string) {
	if kind != shardapi.Written {
		value = ""
	}
	m.events[bucket] = append(m.events[bucket], fmt.Sprintf("%d %q=%q at %d", kind, key, value, m.revision))
}

// lose removes an entry and adds the event.
func (m *kvModel) lose(bucket string, e *kvEntry, why shardapi.EventKind) {
	m.revision++
	delete(m.buckets[bucket].entries, e.key)
	m.event(bucket, why, e.key, e.value)
}

func (b *kvBucket) size() (n uint64) {
	for _, e := range b.entries {
		n += uint64(len(e.key) + len(e.value))
	}
	return n
}

// evict removes the least recently written entries until the bucket is within its limits.
func (m *kvModel) evict(bucket string) {
	b := m.buckets[bucket]
	for l := b.limits; l.entries > 0 && uint64(len(b.entries)) > l.entries || l.bytes > 0 && b.size() > l.bytes; {
		m.lose(bucket, slices.MinFunc(slices.Collect(maps.Values(b.entries)), func(x, y *kvEntry) int { return cmp.Compare(x.version, y.version) }), shardapi.Evicted)
	}
}

func (m *kvModel) advance(now uint64) {
	m.now = now
	type expiring struct {
		bucket string
		*kvEntry
	}
	var due []expiring
	for name, b := range m.buckets {
		for _, e := range b.entries {
			if e.ttl == 0 {
				continue
			}
			e.advances++
			switch {
			case e.advances == 2:
				e.end = now + e.ttl
			case e.advances > 2 && e.end <= now:
				due = append(due, expiring{name, e})
			}
		}
	}
	slices.SortFunc(due, func(x, y expiring) int { return cmp.Or(cmp.Compare(x.end, y.end), cmp.Compare(x.version, y.version)) })
	for _, e := range due {
		m.lose(e.bucket, e.kvEntry, shardapi.Expired)
	}
	m.tidy()
}

func (m *kvModel) apply(c *wire.Command) wire.Outcome {
	defer m.tidy()
	if c.Kind == wire.KindKVClearAll {
		for _, name := range slices.Sorted(maps.Keys(m.buckets)) {
			m.clear(name)
		}
		return wire.Outcome{}
	}
	if c.Bucket == "" {
		return wire.Outcome{Code: wire.UnknownCommand}
	}
	there := m.buckets[c.Bucket] != nil
	b := m.bucket(c.Bucket)
	e, n := b.entries[c.Key], b.counters[c.Key]
	_, existed := b.counters[c.Key]
	switch c.Kind {
	case wire.KindKVPut, wire.KindKVPutIfAbsent, wire.KindKVReplace, wire.KindKVCompareAndSwap:
		return m.put(c, b, e)
	case wire.KindKVDelete, wire.KindKVGetRemove:
		if e == nil {
			return wire.Outcome{Code: wire.Missing}
		}
		m.lose(c.Bucket, e, shardapi.Deleted)
		o := wire.Outcome{Version: e.version, Existed: true}
		if c.Kind == wire.KindKVGetRemove {
			o.Value = e.value
		}
		return o
	case wire.KindKVClear:
		if there {
			m.clear(c.Bucket)
		}
		return wire.Outcome{}
	case wire.KindKVSetLimits:
		want := limits{c.MaxEntries, c.MaxBytes}
		if b.limits != (limits{}) && b.limits != want && !c.Override {
			return wire.Outcome{Code: wire.Differs, MaxEntries: b.limits.entries, MaxBytes: b.limits.bytes}
		}
		b.limits = want
		m.evict(c.Bucket)
		return wire.Outcome{MaxEntries: want.entries, MaxBytes: want.bytes}
	case wire.KindCounterAdd:
		sum := n + c.Delta
		if (sum > n) != (c.Delta > 0) && c.Delta != 0 {
			return wire.Outcome{Code: wire.Overflow, Counter: n, Existed: existed}
		}
		b.counters[c.Key] = sum
		m.revision++
		return wire.Outcome{Counter: sum, Existed: existed}
	case wire.KindCounterSet:
		b.counters[c.Key] = c.Counter
		m.revision++
		return wire.Outcome{Counter: c.Counter, Existed: existed}
	case wire.KindCounterDelete:
		if !existed {
			return wire.Outcome{Code: wire.Missing}
		}
		delete(b.counters, c.Key)
		return wire.Outcome{Counter: n, Existed: true}
	}
	return wire.Outcome{Code: wire.UnknownCommand}
}

func (m *kvModel) clear(bucket string) {
	m.revision++
	b := m.buckets[bucket]
	clear(b.entries)
	clear(b.counters)
	m.event(bucket, shardapi.Cleared, "", "")
}

func (m *kvModel) put(c *wire.Command, b *kvBucket, e *kvEntry) wire.Outcome {
	version := uint64(0)
	if e != nil {
		version = e.version
	}
	switch {
	case b.limits.bytes > 0 && uint64(len(c.Key)+len(c.Value)) > b.limits.bytes:
		return wire.Outcome{Code: wire.TooLarge, MaxBytes: b.limits.bytes}
	case c.Kind == wire.KindKVPutIfAbsent && e != nil:
		return wire.Outcome{Code: wire.Present, Version: version}
	case c.Kind == wire.KindKVCompareAndSwap && c.Version != version:
		return wire.Outcome{Code: wire.Changed, Version: version}
	}
	m.revision++
	o := wire.Outcome{Version: m.revision, Existed: e != nil}
	if e != nil && c.Kind == wire.KindKVReplace {
		o.Value = e.value
	}
	b.entries[c.Key] = &kvEntry{key: c.Key, value: string(c.Value), version: m.revision, ttl: c.TTLMS}
	m.event(c.Bucket, shardapi.Written, c.Key, string(c.Value))
	m.evict(c.Bucket)
	return o
}
