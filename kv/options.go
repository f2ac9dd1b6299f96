package kv

import (
	"context"
	"errors"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// An Option configures a Bucket.
type Option func(*options) error

type options struct {
	codec  any // a Codec[V]
	limits *limits
}

// WithCodec makes the bucket encode values with c, for example Bytes or String.
func WithCodec[V any](c Codec[V]) Option {
	return func(o *options) error {
		if c == nil {
			return errors.New("the codec is nil: leave WithCodec out for JSON")
		}
		o.codec = c
		return nil
	}
}

// limits are the bounds of a bucket; 0 means unbounded.
type limits struct{ entries, bytes int64 }

func (l limits) validate() error {
	switch {
	case l.entries < 0 || l.bytes < 0:
		return fmt.Errorf("limits of %d entries and %d bytes: neither may be negative; 0 means unbounded", l.entries, l.bytes)
	case l == limits{}:
		return errors.New("limits of 0 entries and 0 bytes bound nothing: leave WithLimits out, or use SetLimits to remove limits")
	}
	return nil
}

// WithLimits bounds the number of entries of the bucket, and the number of bytes of
// their keys and encoded values; 0 means unbounded. When a write exceeds a limit, the
// entries that were written longest ago are evicted, the same ones on all nodes. (It
// cannot be those that were read longest ago, since the cluster does not know of
// reads.) Counters are not bounded.
//
// The limits belong to the cluster. The first write of the first program that has
// limits sets them. Each Bucket compares its limits with the cluster's before its
// first write: if they differ, this write and all later ones return ErrLimits until
// the program is changed or calls SetLimits. A Bucket without WithLimits accepts any.
// The limits stay when the bucket becomes empty.
func WithLimits(entries, bytes int64) Option {
	return func(o *options) error {
		o.limits = &limits{entries, bytes}
		return o.limits.validate()
	}
}

// SetLimits replaces the limits of the bucket; 0 and 0 remove them. They apply when
// SetLimits returns. This Bucket then ignores the limits of its WithLimits.
func (b *Bucket[V]) SetLimits(ctx context.Context, entries, bytes int64) error {
	if entries != 0 || bytes != 0 {
		if err := (limits{entries, bytes}).validate(); err != nil {
			return fmt.Errorf("kv: bucket %q: %w", b.name, err)
		}
	}
	if err := b.setLimits(ctx, limits{entries, bytes}, true); err != nil {
		return err
	}
	b.limitsAgreed.Store(true)
	return nil
}

func (b *Bucket[V]) setLimits(ctx context.Context, l limits, override bool) error {
	o, err := b.kv.Do(ctx, wire.KVSetLimits{Bucket: b.name, MaxEntries: uint64(l.entries), MaxBytes: uint64(l.bytes), Override: override}.Command())
	if err == nil && o.Code == wire.UnknownCommand {
		err = errUpgrade
	}
	if err == nil && o.Code == wire.Differs {
		err = fmt.Errorf("%w: %q has limits of %d entries and %d bytes (0: unbounded), this program asks for %d and %d: give all programs the same limits, or use SetLimits",
			ErrLimits, b.name, o.MaxEntries, o.MaxBytes, l.entries, l.bytes)
	}
	return err
}
