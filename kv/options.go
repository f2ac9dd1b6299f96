package kv

import (
	"context"
	"errors"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// An Option changes what New returns.
type Option func(*options) error

type options struct {
	codec  any // a Codec[V]
	limits *limits
}

// WithCodec encodes values by c, such as Bytes or String.
func WithCodec[V any](c Codec[V]) Option {
	return func(o *options) error {
		if c == nil {
			return errors.New("the codec is nil: leave WithCodec out for JSON")
		}
		o.codec = c
		return nil
	}
}

// limits of a bucket; 0: none.
type limits struct{ entries, bytes int64 }

func (l limits) validate() error {
	switch {
	case l.entries < 0 || l.bytes < 0:
		return fmt.Errorf("limits of %d entries and %d bytes: neither may be negative, and 0 is no bound", l.entries, l.bytes)
	case l == limits{}:
		return errors.New("limits of 0 entries and 0 bytes bound nothing: leave WithLimits out, or use SetLimits to take limits away")
	}
	return nil
}

// WithLimits bounds the bucket to so many entries, and to so many bytes of keys
// and encoded values; 0 is no bound. When a write goes beyond, the entries that
// were written longest ago are removed, the same on all nodes. (Reads are not
// known to the cluster, so it is not those that were read longest ago.) Counters
// are not bounded.
//
// The limits are the cluster's. They are set by the first write of the first
// program that has any. Each Bucket compares its own before its first write: if
// the cluster has others, that and all further writes return ErrLimits, until the
// program is changed or calls SetLimits. A program that asks for none takes what
// there is. A bucket with limits stays known when it is empty.
func WithLimits(entries, bytes int64) Option {
	return func(o *options) error {
		o.limits = &limits{entries, bytes}
		return o.limits.validate()
	}
}

// SetLimits sets the limits of the bucket, whatever they were; 0 and 0 take them
// away. They are in force when it returns, and those of WithLimits are not asked
// for any more.
func (b *Bucket[V]) SetLimits(ctx context.Context, entries, bytes int64) error {
	if entries != 0 || bytes != 0 {
		if err := (limits{entries, bytes}).validate(); err != nil {
			return fmt.Errorf("kv: bucket %q: %w", b.name, err)
		}
	}
	if err := b.limit(ctx, limits{entries, bytes}, true); err != nil {
		return err
	}
	b.agreed.Store(true)
	return nil
}

func (b *Bucket[V]) limit(ctx context.Context, l limits, force bool) error {
	o, err := b.kv.Do(ctx, &wire.Command{Kind: wire.KVLimits, Name: b.name, MaxEntries: uint64(l.entries), MaxBytes: uint64(l.bytes), Force: force})
	if err == nil && o.Code == wire.Foreign {
		err = errUpgrade
	}
	if err == nil && o.Code == wire.Differs {
		err = fmt.Errorf("%w: %q is bounded to %d entries and %d bytes (0: unbounded), this program asks for %d and %d: make programs agree, or use SetLimits",
			ErrLimits, b.name, o.Index, o.Number, l.entries, l.bytes)
	}
	return err
}
