// Package shardapi has the interfaces through which the packages kv, lock and
// pubsub use the in-memory shards of a cluster. A node implements them.
//
// Each of the interfaces has a method Do, which applies a command exactly once
// on all nodes and returns its outcome. The errors of Do are those of a write:
// after hiqlite.ErrOutcomeUnknown the command may have been applied or may still
// be applied; after any other error it was not applied and never will be.
package shardapi

import (
	"context"
	"errors"
	"iter"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// Shards are the three in-memory shards of a cluster.
type Shards struct {
	KV     KV
	Lock   Lock
	PubSub PubSub

	// LeaseQueueLen is for tests. It returns how many operations and transactions
	// wait for the write lease of the SQL shard, as far as this node has applied the
	// log.
	LeaseQueueLen func() int
}

// KV is the kv shard. Its reads return what this node has applied; if the
// context asks for linearizable reads, they first wait until the node has
// applied everything that was acknowledged before. Keys and values are strings
// because the shard keeps the memory that they point to.
type KV interface {
	Do(ctx context.Context, c *wire.Command) (wire.Outcome, error)
	Get(ctx context.Context, bucket, key string) (value string, version uint64, ok bool, err error)
	Counter(ctx context.Context, bucket, key string) (n int64, ok bool, err error)
	// Entries returns the keys that begin with prefix and their values, all as
	// of one moment.
	Entries(ctx context.Context, bucket, prefix string) (iter.Seq2[string, string], error)
	// Watch returns the changes that are made after everything that was
	// acknowledged before the call or, if after is not nil, the changes after the
	// one with this version. It also returns the version of the last change that
	// the watcher does not get. The error is a *LaggedError if some of the changes
	// after that version have been forgotten.
	//
	// If ordered is set, the watcher returns an event when this node has applied the
	// SQL that was written before the change.
	Watch(ctx context.Context, bucket string, m Match, after *uint64, ordered bool) (Watcher, uint64, error)
}

// A Match selects keys or channels: those that begin with Text if Prefix is set,
// and otherwise the one that is equal to Text.
type Match struct {
	Text   string
	Prefix bool
}

// Prefix returns a Match for everything that begins with text.
func Prefix(text string) Match { return Match{text, true} }

// Exact returns a Match for text alone.
func Exact(text string) Match { return Match{text, false} }

// A Watcher returns the changes of a bucket in the order in which they were
// applied.
type Watcher interface {
	// Next waits for the next event. After a *LaggedError it returns nothing else.
	Next(ctx context.Context) (Event, error)
	// Close makes Next return hiqlite.ErrClosed.
	Close()
}

// An EventKind says what happened to an entry.
type EventKind uint8

// The kinds of events.
const (
	Written EventKind = iota
	Deleted
	Expired
	Evicted
	Cleared // the whole bucket was emptied
)

// An Event is a change of a bucket.
type Event struct {
	Kind       EventKind
	Key, Value string
	Version    uint64
}

// Lock is the lock shard.
type Lock interface {
	Do(ctx context.Context, c *wire.Command) (wire.Outcome, error)
	// Await waits until a queued waiter is granted its lock, and returns the
	// outcome. ok is false if the waiter is no longer in the queue.
	Await(ctx context.Context, owner, id uint64) (o wire.Outcome, ok bool, err error)
	// CatchUp waits until this node has applied the SQL and the kv entries that
	// were written before a grant.
	CatchUp(ctx context.Context, granted wire.Outcome) error
	// QueueLen returns how many hold a lock or wait for it, as far as this node
	// has applied the log.
	QueueLen(key string) int
	// OnClose calls f when the client is closed, before the client releases the
	// locks that are held through it. If the client is closed already, f is
	// called at once, in a goroutine of its own. cancel withdraws f.
	OnClose(f func()) (cancel func())
}

// PubSub is the pubsub shard.
type PubSub interface {
	Do(ctx context.Context, c *wire.Command) (wire.Outcome, error)
	// Listen returns a subscription to the messages that are sent after
	// everything that was acknowledged before the call or, if after is not nil,
	// to the messages with a higher index than after. It also returns the index
	// of the last message that the subscription does not get.
	//
	// If some of the messages after that index have been forgotten, it returns
	// the index of the last forgotten one and ErrTooOld. If there is no message
	// with that index yet, it returns the index of the last message and ErrAhead.
	//
	// If ordered is set, the subscription returns a message when this node has applied
	// the SQL and the kv entries that were written before it.
	Listen(ctx context.Context, channels Match, after *uint64, ordered bool) (Subscription, uint64, error)
}

// A Subscription returns the messages of channels in the order of their indexes.
type Subscription interface {
	// Next waits for the next message. It returns a *LaggedError once in place of
	// messages that were forgotten before they were read.
	Next(ctx context.Context) (Message, error)
	// Close makes Next return hiqlite.ErrClosed.
	Close()
}

// A Message was sent to a channel.
type Message struct {
	Index            uint64
	Channel, Payload string
	TimeMS           int64
}

// A LaggedError says that what a watcher or a subscription had not yet read has
// been forgotten.
type LaggedError struct {
	Lost uint64 // of a subscription: the index of the last forgotten message
}

func (e *LaggedError) Error() string { return "hiqlite: lagged" }

var (
	// ErrTooOld: messages after the one that was named have been forgotten.
	ErrTooOld = errors.New("hiqlite: too old")
	// ErrAhead: the message that was named has not been sent.
	ErrAhead = errors.New("hiqlite: ahead")
)
