// Package kv provides named buckets of values that are the same on all nodes of a
// cluster, for caches, web sessions, feature flags and counters. It needs no
// process besides the program.
//
//	flags, err := kv.New[bool](client, "flags")
//	err = flags.Put(ctx, "dark-mode", true)
//	on, ok, err := flags.Get(ctx, "dark-mode")
//
// The client is a *hiqlite.Node, or what hiqlite.From returns for a database.
//
// # Guarantees
//
//   - A change that returned without an error is in the log of a majority of the
//     nodes, on disk, and was applied exactly once. Buckets are kept in memory,
//     but survive the restart of nodes and of the whole cluster.
//   - A change that returned an error was not applied and never will be, unless
//     the error is hiqlite.ErrOutcomeUnknown (or an [ErrDecode] that says so).
//   - All changes of all buckets have one order, the same on all nodes. Each
//     change is atomic: [Bucket.CompareAndSwap], [Bucket.GetRemove],
//     [Bucket.Replace] and [Bucket.Add] are exact under any competition.
//   - Reads read this node's memory, without a lock and without the network. They
//     see every change that was made through this node, and changes made through
//     other nodes a moment later. After the start of a node they wait until it
//     has caught up, as hiqlite.Node.Ready does, and return hiqlite.ErrNoLeader
//     if there is no majority. With
//     hiqlite.WithConsistency(ctx, hiqlite.Linearizable) they see every change
//     that was acknowledged anywhere before.
//   - A program that gets a lock of package lock can read what earlier holders
//     had put into buckets, and a program that gets a message of package pubsub
//     can read what its sender could read when it sent the message. A program
//     that gets an event of [Bucket.Watch] can read all SQL that could be read on
//     the node that made the change, at that time. Plain reads of entries are not
//     ordered with SQL: an entry can be visible before rows that were written
//     before it.
//   - Buckets are not part of SQL transactions: a change that is made inside a
//     transaction stays even if the transaction is rolled back.
//
// # Expiry
//
// An entry that was put with [Bucket.PutTTL] expires on all nodes by the same
// entry of the log: never before its time to live (TTL) has passed, whatever
// clocks say, and mostly within 0.5 s after that. (Monotonic clocks have to run at
// the same speed.) Only time in which there is a leader counts: it does not pass
// while all nodes are down. When the leader's process or machine dies, up to ten
// seconds may be counted twice. A node that is cut off from the others does not
// learn that entries have expired, so a plain Get on it may return them; a
// linearizable one does not. Memory is freed when entries expire; no read is needed
// for that. Every write of an entry replaces its TTL: PutTTL sets one, and all
// other writes remove it.
//
// # Limits
//
// Keys have 1 to [MaxKey] bytes, names of buckets 1 to [MaxBucket], and encoded
// values at most [MaxValue]. A bucket can use all memory there is unless it is
// bounded: see [WithLimits]. A million entries of 100 bytes take about 200 MB, and
// 240 MB if all of them expire.
package kv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// Largest sizes, in bytes.
const (
	MaxBucket = 255
	MaxKey    = 4 << 10
	MaxValue  = 1 << 20 // as encoded
)

var errUpgrade = errors.New("kv: the cluster does not know this command: upgrade all nodes")

// Errors to test for with errors.Is, besides those of package hiqlite.
// hiqlite.ErrTooLarge says that a value is larger than MaxValue, or an entry larger
// than its bucket may be. After each of these errors nothing has changed, except
// for an ErrDecode that says so.
var (
	// ErrKey: a key is empty or too long.
	ErrKey = errors.New("kv: bad key")
	// ErrTTL: a TTL is not positive.
	ErrTTL = errors.New("kv: bad time to live")
	// ErrOverflow: a counter would exceed 64 bits.
	ErrOverflow = errors.New("kv: counter overflow")
	// ErrLimits: the bucket has limits other than those that this program sets.
	ErrLimits = errors.New("kv: the bucket has other limits")
	// ErrDecode: the bucket's codec cannot decode a value. The value is unchanged,
	// except if another program put it while a Replace or GetRemove was under way:
	// then it has been replaced or removed, and the error says so and quotes the
	// beginning of the value. JSON accepts most values: one of another struct type
	// decodes with its fields unset.
	ErrDecode = errors.New("kv: cannot decode")
	// ErrLagged: a watcher was too slow; see Watcher.Next.
	ErrLagged = errors.New("kv: watcher lagged")
)

// A Bucket gives access to a named bucket of values of type V. It holds no entries
// itself: all Buckets of one name, on all nodes, have the same entries. Its methods
// may be called from any goroutine.
type Bucket[V any] struct {
	kv     shardapi.KV
	name   string
	codec  Codec[V]
	limits *limits

	limitsAgreed atomic.Bool // the cluster has the same limits
}

// New returns a bucket. It does not contact the cluster: the bucket comes into
// being with its first entry. Values are encoded as JSON unless WithCodec says
// otherwise; all programs must use the same codec for a bucket. (JSON is UTF-8 and
// replaces other bytes in strings; the codec String keeps all bytes.)
func New[V any](c hiqlite.Client, bucket string, opts ...Option) (*Bucket[V], error) {
	if c == nil {
		return nil, fmt.Errorf("kv: bucket %q: the client is nil: give a *hiqlite.Node, or what hiqlite.From returns", bucket)
	}
	b := &Bucket[V]{kv: c.InMemoryShards().KV, name: bucket, codec: jsonCodec[V]{}}
	if bucket == "" || len(bucket) > MaxBucket {
		return nil, fmt.Errorf("kv: the bucket's name has %d bytes: give it 1 to %d", len(bucket), MaxBucket)
	}
	var o options
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, fmt.Errorf("kv: bucket %q: %w", bucket, err)
		}
	}
	b.limits = o.limits
	if o.codec != nil {
		codec, ok := o.codec.(Codec[V])
		if !ok {
			return nil, fmt.Errorf("kv: bucket %q: the codec %T does not encode values of type %T", bucket, o.codec, *new(V))
		}
		b.codec = codec
	}
	return b, nil
}

// Name returns the bucket's name.
func (b *Bucket[V]) Name() string { return b.name }

func (b *Bucket[V]) checkKey(key string) error {
	if key == "" {
		return fmt.Errorf("%w: it is empty, in bucket %q", ErrKey, b.name)
	}
	if len(key) > MaxKey {
		return fmt.Errorf("%w: it has %d bytes, in bucket %q, and may have %d", ErrKey, len(key), b.name, MaxKey)
	}
	return nil
}

// Get returns the value of key; ok is false if there is none. It returns ErrKey,
// ErrDecode, the error of ctx, hiqlite.ErrClosed or hiqlite.ErrNoLeader; the last
// one only for linearizable reads, and while the node catches up after its start.
func (b *Bucket[V]) Get(ctx context.Context, key string) (v V, ok bool, err error) {
	v, _, ok, err = b.GetVersion(ctx, key)
	return v, ok, err
}

// GetVersion is like Get and also returns the entry's version, for CompareAndSwap.
// Versions grow with each change of any bucket and are never reused.
func (b *Bucket[V]) GetVersion(ctx context.Context, key string) (v V, version uint64, ok bool, err error) {
	if err := b.checkKey(key); err != nil {
		return v, 0, false, err
	}
	data, version, ok, err := b.kv.Get(ctx, b.name, key)
	if err != nil || !ok {
		return v, 0, false, err
	}
	v, err = b.decode(key, data)
	return v, version, err == nil, err
}

func (b *Bucket[V]) decode(key, data string) (V, error) {
	v, err := b.codec.Decode([]byte(data))
	if err != nil {
		return v, fmt.Errorf("%w the value of %q in bucket %q as %T; the entry is unchanged: %w", ErrDecode, key, b.name, v, err)
	}
	return v, nil
}

// Put sets the value of key. The entry does not expire.
func (b *Bucket[V]) Put(ctx context.Context, key string, v V) error {
	_, err := b.put(ctx, wire.KVPut{Kind: wire.KindKVPut, Key: key}, v)
	return err
}

// PutTTL sets the value of key. The entry expires after ttl, which is rounded up to
// milliseconds; see the section Expiry.
func (b *Bucket[V]) PutTTL(ctx context.Context, key string, v V, ttl time.Duration) error {
	if ttl <= 0 {
		return fmt.Errorf("%w %v for %q in bucket %q: use Put for an entry that does not expire", ErrTTL, ttl, key, b.name)
	}
	ms := uint64(ttl / time.Millisecond)
	if ttl%time.Millisecond > 0 {
		ms++
	}
	_, err := b.put(ctx, wire.KVPut{Kind: wire.KindKVPut, Key: key, TTLMS: ms}, v)
	return err
}

// PutIfAbsent sets the value of key if there is none, and reports whether it
// did.
func (b *Bucket[V]) PutIfAbsent(ctx context.Context, key string, v V) (put bool, err error) {
	o, err := b.put(ctx, wire.KVPut{Kind: wire.KindKVPutIfAbsent, Key: key}, v)
	return err == nil && o.Code == wire.Done, err
}

// Replace sets the value of key and returns the old one; had is false if there was
// none. If the old value cannot be decoded, it returns ErrDecode and does not
// replace the value; see there for an exception.
func (b *Bucket[V]) Replace(ctx context.Context, key string, v V) (old V, had bool, err error) {
	if _, _, err := b.Get(ctx, key); err != nil { // do not replace a value that cannot be decoded
		return old, false, err
	}
	o, err := b.put(ctx, wire.KVPut{Kind: wire.KindKVReplace, Key: key}, v)
	return b.oldValue(key, o, err)
}

// oldValue returns the value that a change has replaced or removed.
func (b *Bucket[V]) oldValue(key string, o wire.Outcome, err error) (old V, had bool, _ error) {
	if err != nil || !o.Existed {
		return old, false, err
	}
	old, err = b.codec.Decode([]byte(o.Value))
	if err != nil {
		return old, true, fmt.Errorf("%w the old value of %q in bucket %q as %T (another program put it meanwhile, and it has been changed as asked; it was %q): %w", ErrDecode, key, b.name, old, o.Value[:min(len(o.Value), 1<<10)], err)
	}
	return old, true, nil
}

// CompareAndSwap sets the value of key if the entry has this version, and returns
// its new version. Version 0 means that there is no entry. If the entry has another
// version, swapped is false and newVersion is the version that it has.
func (b *Bucket[V]) CompareAndSwap(ctx context.Context, key string, version uint64, v V) (newVersion uint64, swapped bool, err error) {
	o, err := b.put(ctx, wire.KVPut{Kind: wire.KindKVCompareAndSwap, Key: key, Version: version}, v)
	return o.Version, err == nil && o.Code == wire.Done, err
}

// put encodes the value and applies the command with it.
func (b *Bucket[V]) put(ctx context.Context, c wire.KVPut, v V) (wire.Outcome, error) {
	if err := b.checkKey(c.Key); err != nil {
		return wire.Outcome{}, err
	}
	data, err := b.codec.Encode(v)
	if err != nil {
		return wire.Outcome{}, fmt.Errorf("kv: cannot encode the value for %q in bucket %q: %w", c.Key, b.name, err)
	}
	if len(data) > MaxValue {
		return wire.Outcome{}, fmt.Errorf("%w: the value for %q in bucket %q has %d bytes, and may have %d", hiqlite.ErrTooLarge, c.Key, b.name, len(data), MaxValue)
	}
	c.Bucket, c.Value = b.name, data
	o, err := b.do(ctx, c.Command())
	if err == nil && o.Code == wire.TooLarge {
		err = fmt.Errorf("%w: the entry %q has %d bytes, the whole bucket %q may have %d", hiqlite.ErrTooLarge, c.Key, len(c.Key)+len(data), b.name, o.MaxBytes)
	}
	return o, err
}

// do applies a command of this bucket. Before the first one it sets the limits.
func (b *Bucket[V]) do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	if b.limits != nil && !b.limitsAgreed.Load() {
		if err := b.setLimits(ctx, *b.limits, false); err != nil {
			return wire.Outcome{}, err
		}
		b.limitsAgreed.Store(true)
	}
	o, err := b.kv.Do(ctx, c)
	if err == nil && o.Code == wire.UnknownCommand {
		err = errUpgrade
	}
	return o, err
}

// Delete removes the entry of key, and reports whether there was one.
func (b *Bucket[V]) Delete(ctx context.Context, key string) (had bool, err error) {
	o, err := b.doKey(ctx, wire.KVDelete{Bucket: b.name, Key: key}.Command())
	return o.Existed, err
}

// GetRemove removes the entry of key and returns its value. If several programs try
// at once, one of them gets it. If the value cannot be decoded, it returns ErrDecode
// and does not remove the entry; see there for an exception.
func (b *Bucket[V]) GetRemove(ctx context.Context, key string) (v V, had bool, err error) {
	if _, _, err := b.Get(ctx, key); err != nil {
		return v, false, err
	}
	o, err := b.doKey(ctx, wire.KVDelete{Bucket: b.name, Key: key, ReturnValue: true}.Command())
	return b.oldValue(key, o, err)
}

// doKey is do for a command with a key.
func (b *Bucket[V]) doKey(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	if err := b.checkKey(c.Key); err != nil {
		return wire.Outcome{}, err
	}
	return b.do(ctx, c)
}

// Keys returns the keys that begin with prefix, sorted, as of one moment. It
// visits all entries of the bucket.
func (b *Bucket[V]) Keys(ctx context.Context, prefix string) ([]string, error) {
	entries, err := b.kv.Entries(ctx, b.name, prefix)
	if err != nil {
		return nil, err
	}
	var keys []string
	for key := range entries {
		keys = append(keys, strings.Clone(key)) // the key shares memory with its value
	}
	slices.Sort(keys)
	return keys, nil
}

// Snapshot returns all entries as of one moment. If a value cannot be decoded, the
// error is ErrDecode.
func (b *Bucket[V]) Snapshot(ctx context.Context) (map[string]V, error) {
	entries, err := b.kv.Entries(ctx, b.name, "")
	if err != nil {
		return nil, err
	}
	all := map[string]V{}
	for key, data := range entries {
		if all[strings.Clone(key)], err = b.decode(key, data); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Clear removes all entries and counters of the bucket in one atomic step. The
// limits stay.
func (b *Bucket[V]) Clear(ctx context.Context) error {
	_, err := b.do(ctx, wire.KVClear{Bucket: b.name}.Command())
	return err
}

// ClearAll removes all entries and counters of all buckets in one atomic step. Limits
// stay.
func ClearAll(ctx context.Context, c hiqlite.Client) error {
	_, err := c.InMemoryShards().KV.Do(ctx, wire.KVClearAll{}.Command())
	return err
}
