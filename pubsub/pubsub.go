// Package pubsub tells the programs of a cluster what happens in others: Notify
// on one node, Listen on any.
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
//   - Messages of all channels have one order, the same for all subscribers on
//     all nodes: that of [Message].Index, which grows by one from each message
//     to the next.
//   - A message whose Notify returned without an error is in the log of a
//     majority, on disk, once. If Notify returned an error it was not told and
//     never will be, unless the error is hiqlite.ErrOutcomeUnknown.
//   - A subscription gets each message of its channels that was told after
//     Listen returned, exactly once, whichever nodes die, as long as its own
//     lives; and none whose Notify had returned before Listen was called.
//   - When Next returns a message, all that could be read on the node on which
//     it was told, at the time, can be read on this node: SQL, and buckets of
//     package kv.
//   - A slow subscriber holds nobody up. What he may be behind is bounded by
//     what is kept: then he gets [ErrLagged].
//   - What was told is kept for a while: the last [KeptMessages] messages, at
//     most [KeptBytes], for [KeptFor] or up to 20 s less. A program that was away
//     goes on where it was with [After].
//
// It is not a queue: a message is told to all who listen, and to nobody if none
// does. Nor has it a part in SQL transactions: what is told within one is told,
// also if that is rolled back.
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
	// MaxChannel and MaxPayload bound a message, in bytes.
	MaxChannel = 255
	MaxPayload = 1 << 20

	// KeptMessages, KeptBytes (of channels and payloads) and KeptFor bound what
	// is kept for those who are slow or come back, of all channels together.
	KeptMessages = 65_536
	KeptBytes    = 64 << 20
	KeptFor      = 15 * time.Minute
)

// Errors to test for with errors.Is, beside those of package hiqlite, of which
// ErrTooLarge says that a payload is larger than MaxPayload.
var (
	// ErrChannel: the name of a channel is empty, too long, or has a * where
	// none may be.
	ErrChannel = errors.New("pubsub: bad channel")
	// ErrLagged: messages were forgotten before they were read. It comes as a
	// *LaggedError.
	ErrLagged = errors.New("pubsub: lagged")
	// ErrTooOld: of the messages behind the one given to After some are
	// forgotten.
	ErrTooOld = errors.New("pubsub: too old")
	// ErrAhead: the message given to After was never told: its index is of
	// another cluster.
	ErrAhead = errors.New("pubsub: beyond the last message")
)

// A LaggedError says what a subscription has missed.
type LaggedError struct {
	// Resume is the index of the last message that is forgotten, of all
	// channels. The subscription goes on with those behind it, and so would one
	// with After(Resume).
	Resume uint64
}

func (e *LaggedError) Error() string {
	return fmt.Sprintf("%v: messages up to %d were forgotten before they were read; what comes next is behind it", ErrLagged, e.Resume)
}

// Is reports that e is ErrLagged.
func (e *LaggedError) Is(target error) bool { return target == ErrLagged }

// A Message is what was told to a channel.
type Message struct {
	Index   uint64 // grows by one from each message to the next, over all channels
	Channel string
	Payload []byte
	Time    time.Time // by the clock of who told it, to the millisecond: not for ordering
}

// Notify tells all who listen to the channel, on all nodes, and returns the
// message's index. It returns when the message is in the log of a majority and
// this node has handed it to its own subscribers.
func Notify(ctx context.Context, c hiqlite.Client, channel string, payload []byte) (index uint64, err error) {
	if err := checkChannel(channel); err != nil {
		return 0, err
	}
	if strings.Contains(channel, "*") {
		return 0, fmt.Errorf("%w: %q: a * stands for many channels, and only Listen takes that", ErrChannel, channel)
	}
	if len(payload) > MaxPayload {
		return 0, fmt.Errorf("%w: the payload for %q has %d bytes, and may have %d: send where it can be read instead", hiqlite.ErrTooLarge, channel, len(payload), MaxPayload)
	}
	o, err := c.InMemoryShards().PubSub.Do(ctx, &wire.Command{Kind: wire.Notify, Name: channel, Value: payload, Number: time.Now().UnixMilli()})
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

// An Option changes what Listen returns.
type Option func(*options)

type options struct {
	after     *uint64
	unordered bool
}

// After begins behind the message with this index, as if the subscription had
// been there since; 0 stands for all that were ever told. If some of these are
// forgotten, Listen returns ErrTooOld; if it was never told, ErrAhead.
func After(index uint64) Option { return func(o *options) { o.after = &index } }

// WithoutOrder returns messages as soon as they are known here: what was written
// before one may not be readable on this node yet.
func WithoutOrder() Option { return func(o *options) { o.unordered = true } }

// A Subscription gets the messages of one or several channels.
type Subscription struct {
	listen    shardapi.Subscription
	unordered bool
	start     uint64
}

// Listen returns a subscription to a channel; to all channels whose names begin
// alike, if the last character is a *; and so to all channels with "*". It asks
// the leader where the messages are, so that it gets none that was told before.
// The caller must Close it.
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
	listen, index, err := c.InMemoryShards().PubSub.Listen(ctx, channels, o.after)
	if errors.Is(err, shardapi.ErrTooOld) {
		return nil, fmt.Errorf("%w: messages up to %d are forgotten, the last one seen was %d: read anew what they were about, and listen without After", ErrTooOld, index, *o.after)
	}
	if errors.Is(err, shardapi.ErrAhead) {
		return nil, fmt.Errorf("%w: the last message is %d, the last one seen was %d: it is of another cluster, listen without After", ErrAhead, index, *o.after)
	}
	if err != nil {
		return nil, err
	}
	return &Subscription{listen, o.unordered, index}, nil
}

// Start returns the index of the last message that the subscription is behind:
// it gets those with higher ones.
func (s *Subscription) Start() uint64 { return s.start }

// Next waits for the next message and returns it. Errors are those of ctx, after
// which Next can be called again and nothing is lost; a *LaggedError, once, in
// the place of messages that were missed (or may have been, if this node had to
// be brought up to date by a snapshot); and hiqlite.ErrClosed. It may be called
// from several goroutines, each of which gets another message.
func (s *Subscription) Next(ctx context.Context) (Message, error) {
	m, err := s.listen.Next(ctx, !s.unordered)
	var lagged *shardapi.LaggedError
	if errors.As(err, &lagged) {
		err = &LaggedError{Resume: lagged.Lost}
	}
	if err != nil {
		return Message{}, err
	}
	return Message{m.Index, m.Channel, []byte(m.Payload), time.UnixMilli(m.TimeMS)}, nil
}

// Close ends the subscription, and a Next that waits with hiqlite.ErrClosed.
// Idempotent; nil.
func (s *Subscription) Close() error {
	s.listen.Close()
	return nil
}
