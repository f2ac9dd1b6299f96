// Package kv keeps named buckets of values on all nodes of a cluster: caches,
// sessions, feature flags, counters, with no other process beside the program.
//
//	flags, err := kv.New[bool](client, "flags")
//	err = flags.Put(ctx, "dark-mode", true)
//	on, ok, err := flags.Get(ctx, "dark-mode")
//
// The client is a *hiqlite.Node, or what hiqlite.From returns for a database.
//
// # Guarantees
//
//   - A change that returned without an error is in the log of a majority, on
//     disk, and was applied exactly once. Buckets are in memory, and survive the
//     restart of nodes and of the whole cluster.
//   - A change that returned an error was not applied and never will be, unless
//     the error is hiqlite.ErrOutcomeUnknown (or an [ErrDecode] that says so).
//   - All changes of all buckets have one order, the same on all nodes. Each is
//     atomic: [Bucket.CompareAndSwap], [Bucket.GetRemove], [Bucket.Replace] and
//     [Bucket.Add] are exact, whoever competes.
//   - Reads are reads of this node's memory, without a lock or the network. They
//     see every change that was made through this node, and others' a moment
//     later. After a start they wait until the node has caught up, as
//     hiqlite.Node.Ready does, and are hiqlite.ErrNoLeader if there is no
//     majority; with hiqlite.WithConsistency(ctx, hiqlite.Linearizable) they see
//     every change acknowledged anywhere before.
//   - Who is given a lock of package lock, or gets a message of package pubsub,
//     reads buckets as they were there when it was given or told, or later. What
//     [Bucket.Watch] tells has an order with SQL: who is told can read all SQL
//     that could be read on the node on which the change was made, at the time.
//     Entries that are just read have none: one can be seen before rows that
//     were written before it.
//   - Buckets are no part of SQL transactions: a change within one stands, also
//     if that is rolled back.
//
// # Expiry
//
// An entry put with [Bucket.PutTTL] is removed on all nodes by the same entry of
// the log: never before its time, whatever clocks say, and mostly within 0.5 s
// after it. (Monotonic clocks have to run at one speed.) Time counts while there
// is a leader: not while all nodes are down, and when the leader's process or
// machine dies, up to ten seconds may count twice. A node that is cut off from
// the others hears of no end, so a plain Get there may return what has expired;
// a linearizable one does not. Memory is given back at the end, without a read.
// Every write of an entry sets its time to live anew, and all but PutTTL to none.
//
// # Limits
//
// Keys have 1 to [MaxKey] bytes, names of buckets 1 to [MaxBucket], encoded
// values up to [MaxValue]. A bucket takes what memory there is, unless it is
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

// Bounds, in bytes.
const (
	MaxBucket = 255
	MaxKey    = 4 << 10
	MaxValue  = 1 << 20 // as encoded
)

var errUpgrade = errors.New("kv: the cluster does not know this command: upgrade all nodes")

// Errors to test for with errors.Is, beside those of package hiqlite, of which
// ErrTooLarge says that a value is larger than MaxValue, or an entry than its
// bucket may be. With any of them nothing was changed, but for an ErrDecode that
// says so.
var (
	// ErrKey: a key is empty or too long.
	ErrKey = errors.New("kv: bad key")
	// ErrTTL: a time to live is not positive.
	ErrTTL = errors.New("kv: bad time to live")
	// ErrOverflow: a counter would be beyond 64 bits.
	ErrOverflow = errors.New("kv: counter overflow")
	// ErrLimits: the bucket has other limits than this program asks for.
	ErrLimits = errors.New("kv: the bucket has other limits")
	// ErrDecode: the bucket's codec refuses a value, which stays as it is. (When
	// another program puts such a value in the instant of a Replace or GetRemove,
	// it is not seen in time: then it was changed, and the error says so and has
	// the beginning of the value.) JSON refuses little: another struct's value
	// becomes one with its fields unset.
	ErrDecode = errors.New("kv: cannot decode")
	// ErrLagged: a watcher was too slow, see Watcher.Next.
	ErrLagged = errors.New("kv: watcher lagged")
)

// A Bucket is a named bucket of values of type V. It holds nothing itself: any
// number of them, on any node, are views of the same entries. Its methods may be
// called from any goroutine.
type Bucket[V any] struct {
	kv     shardapi.KV
	name   string
	codec  Codec[V]
	limits *limits
	agreed atomic.Bool // the cluster has these limits
}

// New returns a bucket. It asks nobody: the bucket is there once something is
// in it. Values are encoded as JSON, unless WithCodec says otherwise; all who
// use a bucket must agree on that. (JSON is UTF-8: what is not, in a string, is
// replaced; the codec String keeps every byte.)
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

// Get returns the value of key; ok is false if there is none. Errors are ErrKey,
// ErrDecode, that of ctx, hiqlite.ErrClosed, and hiqlite.ErrNoLeader of
// linearizable reads and until the node has caught up after its start.
func (b *Bucket[V]) Get(ctx context.Context, key string) (v V, ok bool, err error) {
	v, _, ok, err = b.GetVersion(ctx, key)
	return v, ok, err
}

// GetVersion is Get with the entry's version, for CompareAndSwap: a number that
// grows with each change of any bucket, and is never used again.
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

// Put sets the value of key, for good.
func (b *Bucket[V]) Put(ctx context.Context, key string, v V) error {
	_, err := b.put(ctx, &wire.Command{Kind: wire.KVPut, Key: key}, v)
	return err
}

// PutTTL sets the value of key, which is removed after ttl, rounded up to
// milliseconds; see Expiry.
func (b *Bucket[V]) PutTTL(ctx context.Context, key string, v V, ttl time.Duration) error {
	if ttl <= 0 {
		return fmt.Errorf("%w %v for %q in bucket %q: use Put for an entry that stays", ErrTTL, ttl, key, b.name)
	}
	ms := uint64(ttl / time.Millisecond)
	if ttl%time.Millisecond > 0 {
		ms++
	}
	_, err := b.put(ctx, &wire.Command{Kind: wire.KVPut, Key: key, TTLMS: ms}, v)
	return err
}

// PutIfAbsent sets the value of key if there is none, and reports whether it
// did.
func (b *Bucket[V]) PutIfAbsent(ctx context.Context, key string, v V) (put bool, err error) {
	o, err := b.put(ctx, &wire.Command{Kind: wire.KVPutIfAbsent, Key: key}, v)
	return err == nil && o.Code == wire.Done, err
}

// Replace sets the value of key and returns the one before; had is false if
// there was none. An old value that cannot be decoded is ErrDecode, and stays;
// see ErrDecode.
func (b *Bucket[V]) Replace(ctx context.Context, key string, v V) (old V, had bool, err error) {
	if _, _, err := b.Get(ctx, key); err != nil { // what cannot be decoded is not replaced
		return old, false, err
	}
	o, err := b.put(ctx, &wire.Command{Kind: wire.KVReplace, Key: key}, v)
	return b.before(key, o, err)
}

// before returns the value that a change has replaced or removed.
func (b *Bucket[V]) before(key string, o wire.Outcome, err error) (old V, had bool, _ error) {
	if err != nil || !o.Had {
		return old, false, err
	}
	old, err = b.codec.Decode([]byte(o.Value))
	if err != nil {
		return old, true, fmt.Errorf("%w what was the value of %q in bucket %q as %T (it came meanwhile, and was changed as asked; it was %q): %w", ErrDecode, key, b.name, old, o.Value[:min(len(o.Value), 1<<10)], err)
	}
	return old, true, nil
}

// CompareAndSwap sets the value of key if the entry has this version, and
// returns its new one; version 0 stands for no entry. If another version was
// found, swapped is false, and newVersion that one.
func (b *Bucket[V]) CompareAndSwap(ctx context.Context, key string, version uint64, v V) (newVersion uint64, swapped bool, err error) {
	o, err := b.put(ctx, &wire.Command{Kind: wire.KVCompareAndSwap, Key: key, Version: version}, v)
	return o.Index, err == nil && o.Code == wire.Done, err
}

// put has a command with a value applied.
func (b *Bucket[V]) put(ctx context.Context, c *wire.Command, v V) (wire.Outcome, error) {
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
	c.Value = data
	o, err := b.do(ctx, c)
	if err == nil && o.Code == wire.TooLarge {
		err = fmt.Errorf("%w: the entry %q has %d bytes, the whole bucket %q may have %d", hiqlite.ErrTooLarge, c.Key, len(c.Key)+len(data), b.name, o.Number)
	}
	return o, err
}

// do has a command applied, and before the first one the limits.
func (b *Bucket[V]) do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	if b.limits != nil && !b.agreed.Load() {
		if err := b.limit(ctx, *b.limits, false); err != nil {
			return wire.Outcome{}, err
		}
		b.agreed.Store(true)
	}
	c.Name = b.name
	o, err := b.kv.Do(ctx, c)
	if err == nil && o.Code == wire.Foreign {
		err = errUpgrade
	}
	return o, err
}

// Delete removes the entry of key, and reports whether there was one.
func (b *Bucket[V]) Delete(ctx context.Context, key string) (had bool, err error) {
	o, err := b.keyed(ctx, &wire.Command{Kind: wire.KVDelete, Key: key})
	return o.Had, err
}

// GetRemove removes the entry of key and returns its value; of all who try, one
// gets it. A value that cannot be decoded is ErrDecode, and stays; see ErrDecode.
func (b *Bucket[V]) GetRemove(ctx context.Context, key string) (v V, had bool, err error) {
	if _, _, err := b.Get(ctx, key); err != nil {
		return v, false, err
	}
	o, err := b.keyed(ctx, &wire.Command{Kind: wire.KVGetRemove, Key: key})
	return b.before(key, o, err)
}

func (b *Bucket[V]) keyed(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	if err := b.checkKey(c.Key); err != nil {
		return wire.Outcome{}, err
	}
	return b.do(ctx, c)
}

// Keys returns the keys that begin with prefix, sorted, as they were at one
// moment. It goes through the whole bucket.
func (b *Bucket[V]) Keys(ctx context.Context, prefix string) ([]string, error) {
	entries, err := b.kv.Entries(ctx, b.name, prefix)
	if err != nil {
		return nil, err
	}
	var keys []string
	for key := range entries {
		keys = append(keys, strings.Clone(key)) // without the value behind it
	}
	slices.Sort(keys)
	return keys, nil
}

// Snapshot returns all entries, as they were at one moment. If a value cannot be
// decoded the error is ErrDecode.
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

// Clear removes all entries and counters of the bucket, at once. Its limits
// stay.
func (b *Bucket[V]) Clear(ctx context.Context) error {
	_, err := b.do(ctx, &wire.Command{Kind: wire.KVClear})
	return err
}

// ClearAll removes all entries and counters of all buckets, at once.
func ClearAll(ctx context.Context, c hiqlite.Client) error {
	_, err := c.InMemoryShards().KV.Do(ctx, &wire.Command{Kind: wire.KVClearAll})
	return err
}
