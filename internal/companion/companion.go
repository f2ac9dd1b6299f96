// Package companion is what the packages kv, lock and pubsub need of a cluster:
// what a node offers them today, and what a remote client will.
//
// Each Do has a command applied exactly once on all nodes. Its errors are those
// of a write: ErrOutcomeUnknown says that it may be applied, any other that it
// is not and never will be.
package companion

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
}

// KV is the kv shard. Reads are of this node, of what it has applied, or
// linearizable if the context asks for that. Values are shared: they are strings
// because nobody may change them.
type KV interface {
	Do(ctx context.Context, c *wire.Command) (wire.Outcome, error)
	Get(ctx context.Context, bucket, key string) (value string, version uint64, ok bool, err error)
	Counter(ctx context.Context, bucket, key string) (n int64, ok bool, err error)
	// Entries are those of one moment.
	Entries(ctx context.Context, bucket, prefix string) (iter.Seq2[string, string], error)
	// Watch begins behind everything acknowledged before the call.
	Watch(ctx context.Context, bucket string, m Match) (Watch, error)
}

// A Match says which keys, or channels, are meant: one, or all that begin alike.
type Match struct {
	Text   string
	Prefix bool
}

// Prefix matches what begins with a text.
func Prefix(text string) Match { return Match{text, true} }

// Exactly matches a text.
func Exactly(text string) Match { return Match{text, false} }

// A Watch gets the events of a bucket in their order.
type Watch interface {
	// Next waits for the next event, and then, if ordered, until this node has
	// applied the SQL that was written before it. A *LaggedError is the last
	// thing that it returns.
	Next(ctx context.Context, ordered bool) (Event, error)
	Close() // Next returns ErrClosed
}

// An EventKind says what happened to an entry.
type EventKind uint8

// The kinds.
const (
	Written EventKind = iota
	Deleted
	Expired
	Evicted
	Cleared // of a whole bucket
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
	// Await waits until a place that was queued has the lock. ok is false if
	// there is no such place any more.
	Await(ctx context.Context, owner, id uint64) (o wire.Outcome, ok bool, err error)
	// CatchUp waits until this node has applied what was written before a grant.
	CatchUp(ctx context.Context, granted wire.Outcome) error
	// Queue returns how many wait for a lock or hold it, as this node knows it.
	Queue(key string) int
	// OnClose has f called before the client gives up what it holds because it
	// is closed; at once, if it is. forget takes that back.
	OnClose(f func()) (forget func())
}

// PubSub is the pubsub shard.
type PubSub interface {
	Do(ctx context.Context, c *wire.Command) (wire.Outcome, error)
	// Listen begins behind everything acknowledged before the call, or behind
	// the message after. If what follows that is not kept any more it returns
	// the index of the last message that is gone, and ErrTooOld; if after is
	// beyond the last message there is, the index of that, and ErrAhead.
	Listen(ctx context.Context, channels Match, after *uint64) (Listen, uint64, error)
}

// A Listen gets the messages of channels in their order.
type Listen interface {
	// Next waits for the next message, and then, if ordered, until this node
	// has applied what was written before it. A *LaggedError comes once,
	// in the place of the messages that were missed.
	Next(ctx context.Context, ordered bool) (Message, error)
	Close() // Next returns ErrClosed
}

// A Message is one that was told to a channel.
type Message struct {
	Index            uint64
	Channel, Payload string
	TimeMS           int64
}

// A LaggedError says that a reader was so slow that what it had not read is not
// kept any more.
type LaggedError struct {
	Lost uint64 // pubsub: the last message that is gone
}

func (e *LaggedError) Error() string { return "hiqlite: lagged" }

var (
	// ErrTooOld: what follows the message that was named is not kept any more.
	ErrTooOld = errors.New("hiqlite: too old")
	// ErrAhead: the message that was named was never told.
	ErrAhead = errors.New("hiqlite: ahead")
)
