package kv

import (
	"context"
	"errors"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/shardapi"
)

// A WatchOption configures a Watcher.
type WatchOption func(*watchOptions)

type watchOptions struct{ unordered bool }

// WithoutOrder makes Next return a change as soon as this node has applied it. SQL
// that was written before the change may then not be readable on this node yet.
func WithoutOrder() WatchOption { return func(o *watchOptions) { o.unordered = true } }

// An EventKind says what happened to an entry.
type EventKind uint8

// The kinds of events.
const (
	Put     EventKind = EventKind(shardapi.Written)
	Deleted EventKind = EventKind(shardapi.Deleted)
	Expired EventKind = EventKind(shardapi.Expired) // its TTL has passed
	Evicted EventKind = EventKind(shardapi.Evicted) // the bucket exceeded its limits
	Cleared EventKind = EventKind(shardapi.Cleared) // all entries were removed; the event has no key
)

func (k EventKind) String() string {
	names := [...]string{"put", "deleted", "expired", "evicted", "cleared"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("EventKind(%d)", k)
}

// An Event is a change of a bucket.
type Event[V any] struct {
	Kind    EventKind
	Key     string
	Value   V      // of a Put
	Version uint64 // of the entry if Kind is Put, else of the change; it grows from event to event
}

// A Watcher returns the changes of entries in the order in which they were applied,
// and leaves none out. It does not see counters.
type Watcher[V any] struct {
	bucket *Bucket[V]
	watch  shardapi.Watcher
}

// Watch returns a watcher of the entries whose keys begin with prefix; "" selects all
// entries. The watcher does not return changes that were acknowledged before the call
// of Watch. When Watch returns, Get and Snapshot see every change that the watcher
// does not return. So a program that calls Watch first and reads entries afterwards
// misses no change, but may see some changes twice. The caller must Close the
// watcher.
func (b *Bucket[V]) Watch(ctx context.Context, prefix string, opts ...WatchOption) (*Watcher[V], error) {
	return b.watch(ctx, shardapi.Prefix(prefix), opts)
}

// WatchKey is like Watch, for one key.
func (b *Bucket[V]) WatchKey(ctx context.Context, key string, opts ...WatchOption) (*Watcher[V], error) {
	if err := b.checkKey(key); err != nil {
		return nil, err
	}
	return b.watch(ctx, shardapi.Exact(key), opts)
}

func (b *Bucket[V]) watch(ctx context.Context, match shardapi.Match, opts []WatchOption) (*Watcher[V], error) {
	var o watchOptions
	for _, opt := range opts {
		opt(&o)
	}
	w, _, err := b.kv.Watch(ctx, b.name, match, nil, !o.unordered)
	if err != nil {
		return nil, err
	}
	return &Watcher[V]{b, w}, nil
}

// Next waits for the next event and returns it. When it returns, all SQL that could be
// read on the node that made the change, when it made it, can be read on this node.
//
// At most 4096 events, or 16 MiB of them, wait for a watcher. If there are more, or
// if this node had to catch up by a snapshot, the watcher has lagged: the waiting
// events are dropped, and Next returns ErrLagged from then on. Make another watcher,
// and read the entries again. A slow watcher never delays writers or other watchers.
//
// If a value cannot be decoded, Next returns the event without its value and
// ErrDecode; the next call returns the next event. Other errors are the error of ctx,
// after which no event is lost, and hiqlite.ErrClosed. Next may be called from several
// goroutines; each event is returned to one of them.
func (w *Watcher[V]) Next(ctx context.Context) (Event[V], error) {
	e, err := w.watch.Next(ctx)
	var lagged *shardapi.LaggedError
	if errors.As(err, &lagged) {
		return Event[V]{}, fmt.Errorf("%w: bucket %q: make another watcher, and read the entries again", ErrLagged, w.bucket.name)
	}
	out := Event[V]{Kind: EventKind(e.Kind), Key: e.Key, Version: e.Version}
	if err == nil && out.Kind == Put {
		out.Value, err = w.bucket.decode(e.Key, e.Value)
	}
	return out, err
}

// Close ends the watcher. A Next that waits returns hiqlite.ErrClosed. Close is
// idempotent and always returns nil.
func (w *Watcher[V]) Close() error {
	w.watch.Close()
	return nil
}
