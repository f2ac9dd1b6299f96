package kv

import (
	"context"
	"errors"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/shardapi"
)

// A WatchOption changes what Watch returns.
type WatchOption func(*watchOptions)

type watchOptions struct{ unordered bool }

// WithoutOrder tells of changes as soon as they are known here: SQL that was
// written before a change may not be readable on this node yet.
func WithoutOrder() WatchOption { return func(o *watchOptions) { o.unordered = true } }

// An EventKind says what happened to an entry.
type EventKind uint8

// The kinds.
const (
	Put     EventKind = EventKind(shardapi.Written)
	Deleted EventKind = EventKind(shardapi.Deleted)
	Expired EventKind = EventKind(shardapi.Expired) // its time to live was over
	Evicted EventKind = EventKind(shardapi.Evicted) // the bucket was at its limits
	Cleared EventKind = EventKind(shardapi.Cleared) // all entries were removed; there is no key
)

func (k EventKind) String() string {
	names := [...]string{"put", "deleted", "expired", "evicted", "cleared"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("EventKind(%d)", k)
}

// An Event is a change of a bucket. Version is the entry's if it was put, and
// otherwise the change's: it grows from one event to the next.
type Event[V any] struct {
	Kind    EventKind
	Key     string
	Value   V // that was put
	Version uint64
}

// A Watcher gets the changes of entries, all of them and in their order.
// Counters are not watched.
type Watcher[V any] struct {
	bucket    *Bucket[V]
	watch     shardapi.Watcher
	unordered bool
}

// Watch returns a watcher of the entries whose keys begin with prefix, "" for
// all. Changes that were acknowledged before Watch was called it does not get;
// any that it does not get are there for Get and Snapshot when Watch returns. So
// who watches first and reads then misses nothing, and may see the first changes
// twice. The caller must Close it.
func (b *Bucket[V]) Watch(ctx context.Context, prefix string, opts ...WatchOption) (*Watcher[V], error) {
	return b.watch(ctx, shardapi.Prefix(prefix), opts)
}

// WatchKey is Watch for one key.
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
	w, err := b.kv.Watch(ctx, b.name, match)
	if err != nil {
		return nil, err
	}
	return &Watcher[V]{b, w, o.unordered}, nil
}

// Next waits for the next event. When it returns, the SQL that could be read on
// the node on which the change was made can be read on this one.
//
// A watcher that lets 4096 events, or 16 MiB of them, wait has lagged: what waits
// is given up, and Next returns ErrLagged, then and for ever. So it does when
// this node had to be brought up to date by a snapshot. Make another one, and
// read the entries anew. It never holds anybody up. A value that cannot be
// decoded is ErrDecode, beside the rest of the event, and the watcher goes on.
// Other errors are those of ctx, after which Next can be called again, and
// hiqlite.ErrClosed. It may be called from several goroutines, each of which
// gets another event.
func (w *Watcher[V]) Next(ctx context.Context) (Event[V], error) {
	e, err := w.watch.Next(ctx, !w.unordered)
	var lagged *shardapi.LaggedError
	if errors.As(err, &lagged) {
		return Event[V]{}, fmt.Errorf("%w: bucket %q: watch it anew, and read its entries", ErrLagged, w.bucket.name)
	}
	out := Event[V]{Kind: EventKind(e.Kind), Key: e.Key, Version: e.Version}
	if err == nil && out.Kind == Put {
		out.Value, err = w.bucket.decode(e.Key, e.Value)
	}
	return out, err
}

// Close ends the watcher, and a Next that waits with hiqlite.ErrClosed.
// Idempotent; nil.
func (w *Watcher[V]) Close() error {
	w.watch.Close()
	return nil
}
