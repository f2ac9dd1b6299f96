package kv

import (
	"context"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// Counters have keys of their own: an entry and a counter of the same key are
// independent. Counters do not expire, do not count towards the bucket's limits, and
// are never evicted.

// Add adds delta to the counter of key, which starts at 0, and returns the sum. It is
// exact however many nodes add at the same time. If the sum would exceed 64 bits, it
// returns ErrOverflow and leaves the counter unchanged.
func (b *Bucket[V]) Add(ctx context.Context, key string, delta int64) (int64, error) {
	o, err := b.doKey(ctx, wire.CounterAdd{Bucket: b.name, Key: key, Delta: delta}.Command())
	if err == nil && o.Code == wire.Overflow {
		err = fmt.Errorf("%w: %d plus %d, for %q in bucket %q", ErrOverflow, o.Counter, delta, key, b.name)
	}
	return o.Counter, err
}

// Counter returns the counter of key; ok is false if there is none. It sees the same
// changes as Get.
func (b *Bucket[V]) Counter(ctx context.Context, key string) (n int64, ok bool, err error) {
	if err := b.checkKey(key); err != nil {
		return 0, false, err
	}
	return b.kv.Counter(ctx, b.name, key)
}

// SetCounter sets the counter of key.
func (b *Bucket[V]) SetCounter(ctx context.Context, key string, n int64) error {
	_, err := b.doKey(ctx, wire.CounterSet{Bucket: b.name, Key: key, Counter: n}.Command())
	return err
}

// DeleteCounter removes the counter of key, and reports whether there was one.
func (b *Bucket[V]) DeleteCounter(ctx context.Context, key string) (had bool, err error) {
	o, err := b.doKey(ctx, wire.CounterDelete{Bucket: b.name, Key: key}.Command())
	return o.Existed, err
}
