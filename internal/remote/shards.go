package remote

import (
	"context"
	"errors"
	"iter"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// Shards are the in-memory shards over the API.
type Shards struct {
	client  *Client
	all     shardapi.Shards
	onClose shardapi.CloseHooks
}

// NewShards returns the in-memory shards that c reaches.
func NewShards(c *Client) *Shards {
	s := &Shards{client: c}
	s.all = shardapi.Shards{KV: &kvShard{s}, Lock: &lockShard{s}, PubSub: &pubsubShard{s}}
	return s
}

// All returns the interfaces of the shards.
func (s *Shards) All() shardapi.Shards { return s.all }

// Close tells the holders of locks that the client closes.
func (s *Shards) Close() { s.onClose.Close() }

var shardNames = map[apiv1.DoRequest_Shard]string{
	apiv1.DoRequest_SHARD_KV: "kv", apiv1.DoRequest_SHARD_LOCK: "lock", apiv1.DoRequest_SHARD_PUBSUB: "pubsub",
}

// do applies a command once, through whichever nodes it is sent.
func (s *Shards) do(ctx context.Context, shard apiv1.DoRequest_Shard, c *wire.Command) (o wire.Outcome, err error) {
	if err := ctx.Err(); err != nil {
		return o, err
	}
	if c.Origin != nil { // this client is a proxy's
		return s.send(ctx, shard, c)
	}
	for {
		origins, err := s.client.TakeOrigins(ctx, shardNames[shard])
		if err != nil {
			return o, err
		}
		own := *c
		own.Origin, own.Seen = origins.Next(), s.client.Seen()
		o, err = s.send(ctx, shard, &own)
		if errors.Is(err, node.ErrSessionUnknown) && !errors.Is(err, node.ErrOutcomeUnknown) {
			continue // it has expired; nothing was applied
		}
		if !errors.Is(err, node.ErrOutcomeUnknown) {
			s.client.ReturnOrigins(origins)
		}
		return o, err
	}
}

func (s *Shards) send(ctx context.Context, shard apiv1.DoRequest_Shard, c *wire.Command) (o wire.Outcome, err error) {
	answer, err := call(ctx, s.client, true, func(e *endpoint) func(context.Context, *connect.Request[apiv1.DoRequest]) (*connect.Response[apiv1.DoResponse], error) {
		return e.shards.Do
	}, &apiv1.DoRequest{Shard: shard, Command: wire.EncodeCommand(c), Seen: protocol.Seen(s.client.Seen())})
	if err != nil {
		return o, err
	}
	s.client.RecordSeen(protocol.WireSeen(answer.Seen))
	got, err := wire.DecodeOutcome(answer.Outcome)
	if err != nil {
		return o, errors.Join(node.ErrOutcomeUnknown, err)
	}
	return *got, nil
}

type kvShard struct{ *Shards }

func (s *kvShard) Do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	return s.do(ctx, apiv1.DoRequest_SHARD_KV, c)
}

func (s *kvShard) Get(ctx context.Context, bucket, key string) (value string, version uint64, ok bool, err error) {
	r := &apiv1.GetRequest{Consistency: consistency(ctx), Seen: protocol.Seen(s.client.Seen())}
	r.Bucket, r.RawBucket = protocol.Name(bucket)
	r.Key, r.RawKey = protocol.Name(key)
	if err := ctx.Err(); err != nil {
		return "", 0, false, err
	}
	answer, err := call(ctx, s.client, false, func(e *endpoint) func(context.Context, *connect.Request[apiv1.GetRequest]) (*connect.Response[apiv1.GetResponse], error) {
		return e.kv.Get
	}, r)
	return string(answer.GetValue()), answer.GetVersion(), answer.GetFound(), err
}

func (s *kvShard) Counter(ctx context.Context, bucket, key string) (n int64, ok bool, err error) {
	r := &apiv1.CounterRequest{Consistency: consistency(ctx), Seen: protocol.Seen(s.client.Seen())}
	r.Bucket, r.RawBucket = protocol.Name(bucket)
	r.Key, r.RawKey = protocol.Name(key)
	if err := ctx.Err(); err != nil {
		return 0, false, err
	}
	answer, err := call(ctx, s.client, false, func(e *endpoint) func(context.Context, *connect.Request[apiv1.CounterRequest]) (*connect.Response[apiv1.CounterResponse], error) {
		return e.kv.Counter
	}, r)
	return answer.GetValue(), answer.GetFound(), err
}

// Entries reads all entries before it returns, so that they are as of one moment.
func (s *kvShard) Entries(ctx context.Context, bucket, prefix string) (iter.Seq2[string, string], error) {
	r := &apiv1.ListRequest{Consistency: consistency(ctx), Seen: protocol.Seen(s.client.Seen())}
	r.Bucket, r.RawBucket = protocol.Name(bucket)
	r.Prefix, r.RawPrefix = protocol.Name(prefix)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := s.client.within(ctx)
	defer cancel()
	var entries []*apiv1.Entry
	err := s.client.onSomeNode(ctx, func(e *endpoint) error {
		entries = nil
		stream, err := e.shards.Entries(ctx, connect.NewRequest(r))
		if err != nil {
			return fromConnect(err)
		}
		defer stream.Close()
		for stream.Receive() {
			entries = append(entries, stream.Msg().Entries...)
		}
		return fromConnect(stream.Err())
	})
	if err != nil {
		return nil, withContext(ctx, err)
	}
	return func(yield func(string, string) bool) {
		for _, e := range entries {
			if !yield(protocol.NameOf(e.Key, e.RawKey), string(e.Value)) {
				return
			}
		}
	}, nil
}

func (s *kvShard) Watch(ctx context.Context, bucket string, m shardapi.Match, after *uint64, ordered bool) (shardapi.Watcher, uint64, error) {
	w := &watch{}
	w.feed = newFeed(s.client, func(ctx context.Context, e *endpoint, resume *uint64) (stream[*apiv1.WatchResponse], error) {
		r := &apiv1.WatchRequest{Prefix: m.Prefix, After: resume, Unordered: !ordered, Seen: protocol.Seen(s.client.Seen())}
		r.Bucket, r.RawBucket = protocol.Name(bucket)
		r.Key, r.RawKey = protocol.Name(m.Text)
		return e.kv.Watch(ctx, connect.NewRequest(r))
	}, func(m *apiv1.WatchResponse) (uint64, bool) {
		if m.Event == nil {
			return m.Version, false
		}
		return m.Event.Version, true
	})
	version, err := w.feed.start(ctx, after)
	if err != nil {
		return nil, version, err
	}
	return w, version, nil
}

type watch struct {
	feed *feed[*apiv1.WatchResponse]
}

func (w *watch) Close() { w.feed.close() }

func (w *watch) Next(ctx context.Context) (shardapi.Event, error) {
	m, err := w.feed.next(ctx)
	if err != nil {
		return shardapi.Event{}, err
	}
	e := m.Event
	return shardapi.Event{Kind: eventKinds[e.Kind], Key: protocol.NameOf(e.Key, e.RawKey), Value: string(e.Value), Version: e.Version}, nil
}

var eventKinds = map[apiv1.Event_Kind]shardapi.EventKind{
	apiv1.Event_KIND_PUT: shardapi.Written, apiv1.Event_KIND_DELETED: shardapi.Deleted, apiv1.Event_KIND_EXPIRED: shardapi.Expired,
	apiv1.Event_KIND_EVICTED: shardapi.Evicted, apiv1.Event_KIND_CLEARED: shardapi.Cleared,
}

type pubsubShard struct{ *Shards }

func (s *pubsubShard) Do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	return s.do(ctx, apiv1.DoRequest_SHARD_PUBSUB, c)
}

func (s *pubsubShard) Listen(ctx context.Context, channels shardapi.Match, after *uint64, ordered bool) (shardapi.Subscription, uint64, error) {
	l := &listen{}
	l.feed = newFeed(s.client, func(ctx context.Context, e *endpoint, resume *uint64) (stream[*apiv1.ListenResponse], error) {
		r := &apiv1.ListenRequest{Prefix: channels.Prefix, After: resume, Unordered: !ordered, Seen: protocol.Seen(s.client.Seen())}
		r.Channel, r.RawChannel = protocol.Name(channels.Text)
		return e.pubsub.Listen(ctx, connect.NewRequest(r))
	}, func(m *apiv1.ListenResponse) (uint64, bool) {
		if m.Message == nil {
			return m.Index, false
		}
		return m.Message.Index, true
	})
	l.feed.skips = true
	index, err := l.feed.start(ctx, after)
	if err != nil {
		return nil, index, err
	}
	return l, index, nil
}

type listen struct {
	feed *feed[*apiv1.ListenResponse]
}

func (l *listen) Close() { l.feed.close() }

func (l *listen) Next(ctx context.Context) (shardapi.Message, error) {
	got, err := l.feed.next(ctx)
	if err != nil {
		return shardapi.Message{}, err
	}
	m := got.Message
	return shardapi.Message{Index: m.Index, Channel: protocol.NameOf(m.Channel, m.RawChannel), Payload: string(m.Payload), TimeMS: m.TimeMs}, nil
}

type lockShard struct{ *Shards }

// Do applies a command. A lock's time to live counts from before the command was
// sent, because package lock takes the time before it calls Do.
func (s *lockShard) Do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	return s.do(ctx, apiv1.DoRequest_SHARD_LOCK, c)
}

func (s *lockShard) Await(ctx context.Context, owner, id uint64) (o wire.Outcome, ok bool, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return o, false, err
		}
		attempt, cancel := context.WithTimeout(ctx, awaitTime)
		answer, err := call(attempt, s.client, false, func(e *endpoint) func(context.Context, *connect.Request[apiv1.AwaitRequest]) (*connect.Response[apiv1.AwaitResponse], error) {
			return e.shards.Await
		}, &apiv1.AwaitRequest{Owner: owner, Waiter: id})
		timedOut := attempt.Err() != nil
		cancel()
		if err != nil {
			if timedOut && ctx.Err() == nil {
				continue
			}
			return o, false, withContext(ctx, err)
		}
		got, err := wire.DecodeOutcome(answer.Outcome)
		if err != nil {
			return o, false, err
		}
		return *got, answer.Found, nil
	}
}

// awaitTime bounds one call of Await. A server bounds it by its own limit, too.
const awaitTime = 20 * time.Second

func (s *lockShard) CatchUp(ctx context.Context, granted wire.Outcome) error {
	answer, err := call(ctx, s.client, false, func(e *endpoint) func(context.Context, *connect.Request[apiv1.CatchUpRequest]) (*connect.Response[apiv1.CatchUpResponse], error) {
		return e.shards.CatchUp
	}, &apiv1.CatchUpRequest{Outcome: wire.EncodeOutcome(&granted)})
	if err == nil {
		s.client.RecordSeen(protocol.WireSeen(answer.Seen))
	}
	return err
}

// queueTime bounds QueueLen, which has no context.
const queueTime = 5 * time.Second

func (s *lockShard) QueueLen(key string) int {
	ctx, cancel := context.WithTimeout(context.Background(), queueTime)
	defer cancel()
	answer, err := call(ctx, s.client, false, func(e *endpoint) func(context.Context, *connect.Request[apiv1.QueueLenRequest]) (*connect.Response[apiv1.QueueLenResponse], error) {
		return e.shards.QueueLen
	}, &apiv1.QueueLenRequest{Key: []byte(key)})
	if err != nil {
		return 0
	}
	return int(answer.Length)
}

func (s *lockShard) OnClose(f func()) (forget func()) { return s.onClose.OnClose(f) }
