// Package pubsub sends messages between the programs of a cluster: Notify sends a
// message on one node, and Listen receives messages on any node.
//
//	sub, err := pubsub.Listen(ctx, client, "orders")
//	defer sub.Close()
//	for {
//		m, err := sub.Next(ctx)
//		...
//	}
//
// The client is a *hiqlite.Node, or what hiqlite.From returns for a database.
//
// # Guarantees
//
//   - The messages of all channels have one order, which is the same for all
//     subscribers on all nodes: that of [Message].Index, which grows by one from
//     each message to the next.
//   - If Notify returned without an error, its message is in the log of a majority
//     of the nodes, on disk, exactly once. If it returned an error, the message was
//     not sent and never will be, unless the error is hiqlite.ErrOutcomeUnknown.
//   - A subscription receives each message of its channels that is sent after
//     Listen returned, exactly once, whichever other nodes die. It receives no
//     message whose Notify had returned before Listen was called.
//   - When Next returns a message, this node can read everything that the sending
//     node could read when it sent the message: SQL, and buckets of package kv.
//   - A slow subscriber delays nobody. If it is so slow that messages are
//     forgotten before it has read them, it gets [ErrLagged].
//   - Messages are kept for subscribers that are slow, or come back with [After]:
//     the last [KeptMessages] messages, at most [KeptBytes], and for [KeptFor] or
//     up to 20 s less.
//
// This is not a work queue: every subscriber receives every message, and a message
// that nobody listens for is received by nobody. Nor is it part of SQL transactions:
// a message that is sent inside a transaction is sent even if the transaction is
// rolled back.
package pubsub

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
)

const (
	// MaxChannel and MaxPayload are the largest sizes of the parts of a message, in
	// bytes.
	MaxChannel = 255
	MaxPayload = 1 << 20

	// KeptMessages, KeptBytes (of channels and payloads) and KeptFor bound the
	// messages that are kept, of all channels together.
	KeptMessages = 65_536
	KeptBytes    = 64 << 20
	KeptFor      = 15 * time.Minute
)

// Errors to test for with errors.Is, besides those of package hiqlite.
// hiqlite.ErrTooLarge says that a payload is larger than MaxPayload.
var (
	// ErrChannel: the name of a channel is empty or too long, or has a * where none
	// is allowed.
	ErrChannel = errors.New("pubsub: bad channel")
	// ErrLagged: messages were forgotten before they were read. Next returns it as a
	// *LaggedError.
	ErrLagged = errors.New("pubsub: lagged")
	// ErrTooOld: some messages after the index given to After have been forgotten.
	ErrTooOld = errors.New("pubsub: too old")
	// ErrAhead: no message with the index given to After has been sent; the index
	// comes from another cluster.
	ErrAhead = errors.New("pubsub: after the last message")
)

// A LaggedError says which messages a subscription has missed.
type LaggedError struct {
	// Resume is the index of the last message that has been forgotten, of all
	// channels. The subscription continues with the next one, as another
	// subscription with After(Resume) would.
	Resume uint64
}

func (e *LaggedError) Error() string {
	return fmt.Sprintf("%v: messages up to %d were forgotten before they were read; the subscription continues after them", ErrLagged, e.Resume)
}

// Is reports that e is ErrLagged.
func (e *LaggedError) Is(target error) bool { return target == ErrLagged }

// A Message was sent to a channel.
type Message struct {
	Index   uint64 // grows by one from each message to the next, over all channels
	Channel string
	Payload []byte
	Time    time.Time // by the clock of the sending node, in milliseconds; not suited for ordering
}

// Notify sends a message to all subscribers of the channel, on all nodes, and returns
// the message's index. When it returns, the message is in the log of a majority and
// has been passed to the subscribers on this node.
func Notify(ctx context.Context, c hiqlite.Client, channel string, payload []byte) (index uint64, err error) {
	if err := checkChannel(channel); err != nil {
		return 0, err
	}
	if strings.Contains(channel, "*") {
		return 0, fmt.Errorf("%w: %q: a * stands for many channels, which only Listen accepts", ErrChannel, channel)
	}
	if len(payload) > MaxPayload {
		return 0, fmt.Errorf("%w: the payload for %q has %d bytes, and may have %d: store it, and send where it can be read", hiqlite.ErrTooLarge, channel, len(payload), MaxPayload)
	}
	o, err := c.InMemoryShards().PubSub.Do(ctx, wire.Notify{Channel: channel, Payload: payload, TimeMS: time.Now().UnixMilli()}.Command())
	if err == nil && o.Code != wire.Done {
		err = errors.New("pubsub: the cluster does not know this command: upgrade all nodes")
	}
	return o.Index, err
}

func checkChannel(channel string) error {
	if channel == "" || len(channel) > MaxChannel {
		return fmt.Errorf("%w: its name has %d bytes: give it 1 to %d", ErrChannel, len(channel), MaxChannel)
	}
	return nil
}

// An Option configures a Subscription.
type Option func(*options)

type options struct {
	after     *uint64
	unordered bool
}

// After makes the subscription begin after the message with this index, as if it had
// existed since then; 0 selects all messages ever sent. Listen returns ErrTooOld if
// some of the selected messages have been forgotten, and ErrAhead if no message with
// this index has been sent.
func After(index uint64) Option { return func(o *options) { o.after = &index } }

// WithoutOrder makes Next return a message as soon as this node has applied it. What
// was written before the message may then not be readable on this node yet.
func WithoutOrder() Option { return func(o *options) { o.unordered = true } }

// A Subscription receives the messages of one or several channels.
type Subscription struct {
	messages shardapi.Subscription
	start    uint64
}

// Listen returns a subscription to a channel. If the last character of channel is a
// *, it is a subscription to all channels whose names begin with the characters
// before it; "*" selects all channels. Listen asks the leader for the index of the
// last message, so that the subscription receives no earlier ones. The caller must
// Close the subscription.
func Listen(ctx context.Context, c hiqlite.Client, channel string, opts ...Option) (*Subscription, error) {
	if err := checkChannel(channel); err != nil {
		return nil, err
	}
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	channels := shardapi.Exact(channel)
	if text, many := strings.CutSuffix(channel, "*"); many {
		channels = shardapi.Prefix(text)
	}
	if strings.Contains(channels.Text, "*") {
		return nil, fmt.Errorf("%w: %q: a * may only be its last character", ErrChannel, channel)
	}
	messages, index, err := c.InMemoryShards().PubSub.Listen(ctx, channels, o.after, !o.unordered)
	if errors.Is(err, shardapi.ErrTooOld) {
		return nil, fmt.Errorf("%w: messages up to %d have been forgotten, and After was given %d: read again what the messages were about, and listen without After", ErrTooOld, index, *o.after)
	}
	if errors.Is(err, shardapi.ErrAhead) {
		return nil, fmt.Errorf("%w: the last message is %d, and After was given %d, which comes from another cluster: listen without After", ErrAhead, index, *o.after)
	}
	if err != nil {
		return nil, err
	}
	return &Subscription{messages, index}, nil
}

// Start returns the index after which the subscription begins: it receives messages
// with higher indexes.
func (s *Subscription) Start() uint64 { return s.start }

// Next waits for the next message and returns it. It returns the error of ctx, after
// which no message is lost, and hiqlite.ErrClosed. It returns a *LaggedError once in
// place of messages that were forgotten before they were read, or may have been
// because this node had to catch up by a snapshot; the next call returns the next
// message. Next may be called from several goroutines; each message is returned to
// one of them.
func (s *Subscription) Next(ctx context.Context) (Message, error) {
	m, err := s.messages.Next(ctx)
	var lagged *shardapi.LaggedError
	if errors.As(err, &lagged) {
		err = &LaggedError{Resume: lagged.Lost}
	}
	if err != nil {
		return Message{}, err
	}
	return Message{m.Index, m.Channel, []byte(m.Payload), time.UnixMilli(m.TimeMS)}, nil
}

// Close ends the subscription. A Next that waits returns hiqlite.ErrClosed. Close is
// idempotent and always returns nil.
func (s *Subscription) Close() error {
	s.messages.Close()
	return nil
}
