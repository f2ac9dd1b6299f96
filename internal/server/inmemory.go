package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/hiqlite/hiqlite"
	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// kvService implements the service KV, for programs that are not written with this
// driver. What their names and values may be is what package kv allows.
type kvService struct{ *Server }

const (
	maxName  = 4 << 10 // bytes of a bucket, key or channel
	maxValue = 4 << 20 // bytes of a value or payload; less than an entry of the log
)

// checkNames checks the names of a request, and its value.
func checkNames(value []byte, names ...string) error {
	for _, n := range names {
		if n == "" || len(n) > maxName {
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("hiqlite: a bucket, key or channel has %d bytes: give it 1 to %d", len(n), maxName))
		}
	}
	if len(value) > maxValue {
		return connectError(fmt.Errorf("%w: a value of %d bytes; the most are %d", hiqlite.ErrTooLarge, len(value), maxValue))
	}
	return nil
}

func (s *Server) kv() shardapi.KV { return s.backend.InMemoryShards().KV }

// doKV applies a command of the kv shard.
func (s *Server) doKV(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	if err := checkNames(c.Value, c.Bucket, c.Key); err != nil {
		return wire.Outcome{}, err
	}
	o, err := s.kv().Do(ctx, c)
	if err != nil {
		return o, connectError(err)
	}
	switch o.Code {
	case wire.TooLarge:
		return o, connectError(fmt.Errorf("%w: the bucket may have %d bytes", hiqlite.ErrTooLarge, o.MaxBytes))
	case wire.Overflow:
		return o, connect.NewError(connect.CodeOutOfRange, errors.New("hiqlite: the counter does not fit into 64 bits"))
	}
	return o, nil
}

// readContext returns the context of a read, and waits until it sees what the client
// has seen.
func (s *Server) readContext(ctx context.Context, c apiv1.Consistency, seen *apiv1.Seen) (context.Context, error) {
	if err := s.follow(ctx, seen); err != nil {
		return ctx, connectError(err)
	}
	return withConsistency(ctx, c), nil
}

// Get implements the API.
func (s *kvService) Get(ctx context.Context, r *connect.Request[apiv1.GetRequest]) (*connect.Response[apiv1.GetResponse], error) {
	ctx, err := s.readContext(ctx, r.Msg.Consistency, r.Msg.Seen)
	if err != nil {
		return nil, err
	}
	value, version, ok, err := s.kv().Get(ctx, protocol.NameOf(r.Msg.Bucket, r.Msg.RawBucket), protocol.NameOf(r.Msg.Key, r.Msg.RawKey))
	if err != nil {
		return nil, connectError(err)
	}
	return connect.NewResponse(&apiv1.GetResponse{Found: ok, Value: []byte(value), Version: version}), nil
}

// Put implements the API.
func (s *kvService) Put(ctx context.Context, r *connect.Request[apiv1.PutRequest]) (*connect.Response[apiv1.PutResponse], error) {
	o, err := s.doKV(ctx, wire.KVPut{Kind: wire.KindKVPut, Bucket: r.Msg.Bucket, Key: r.Msg.Key, Value: r.Msg.Value, TTLMS: r.Msg.TtlMs}.Command())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&apiv1.PutResponse{Version: o.Version}), nil
}

// Delete implements the API.
func (s *kvService) Delete(ctx context.Context, r *connect.Request[apiv1.DeleteRequest]) (*connect.Response[apiv1.DeleteResponse], error) {
	o, err := s.doKV(ctx, wire.KVDelete{Bucket: r.Msg.Bucket, Key: r.Msg.Key}.Command())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&apiv1.DeleteResponse{Existed: o.Existed}), nil
}

// List implements the API.
func (s *kvService) List(ctx context.Context, r *connect.Request[apiv1.ListRequest]) (*connect.Response[apiv1.ListResponse], error) {
	out := &apiv1.ListResponse{}
	bytes := 0
	err := s.entries(ctx, r.Msg, func(e *apiv1.Entry) error {
		bytes += len(e.Key) + len(e.RawKey) + len(e.Value)
		if len(out.Entries) == s.limits.MaxRows || bytes > s.limits.MaxResult {
			return connectError(fmt.Errorf("%w: there are more than %d entries or %d bytes: give a longer prefix", protocol.ErrLimit, s.limits.MaxRows, s.limits.MaxResult))
		}
		out.Entries = append(out.Entries, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// entries calls f for the entries of a bucket.
func (s *Server) entries(ctx context.Context, r *apiv1.ListRequest, f func(*apiv1.Entry) error) error {
	ctx, err := s.readContext(ctx, r.Consistency, r.Seen)
	if err != nil {
		return err
	}
	all, err := s.kv().Entries(ctx, protocol.NameOf(r.Bucket, r.RawBucket), protocol.NameOf(r.Prefix, r.RawPrefix))
	if err != nil {
		return connectError(err)
	}
	for key, value := range all {
		e := &apiv1.Entry{Value: []byte(value)}
		e.Key, e.RawKey = protocol.Name(key)
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

// Counter implements the API.
func (s *kvService) Counter(ctx context.Context, r *connect.Request[apiv1.CounterRequest]) (*connect.Response[apiv1.CounterResponse], error) {
	ctx, err := s.readContext(ctx, r.Msg.Consistency, r.Msg.Seen)
	if err != nil {
		return nil, err
	}
	n, ok, err := s.kv().Counter(ctx, protocol.NameOf(r.Msg.Bucket, r.Msg.RawBucket), protocol.NameOf(r.Msg.Key, r.Msg.RawKey))
	if err != nil {
		return nil, connectError(err)
	}
	return connect.NewResponse(&apiv1.CounterResponse{Found: ok, Value: n}), nil
}

// Add implements the API.
func (s *kvService) Add(ctx context.Context, r *connect.Request[apiv1.AddRequest]) (*connect.Response[apiv1.AddResponse], error) {
	o, err := s.doKV(ctx, wire.CounterAdd{Bucket: r.Msg.Bucket, Key: r.Msg.Key, Delta: r.Msg.Delta}.Command())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&apiv1.AddResponse{Value: o.Counter}), nil
}

var eventKinds = map[shardapi.EventKind]apiv1.Event_Kind{
	shardapi.Written: apiv1.Event_KIND_PUT, shardapi.Deleted: apiv1.Event_KIND_DELETED, shardapi.Expired: apiv1.Event_KIND_EXPIRED,
	shardapi.Evicted: apiv1.Event_KIND_EVICTED, shardapi.Cleared: apiv1.Event_KIND_CLEARED,
}

// Watch implements the API.
func (s *kvService) Watch(ctx context.Context, r *connect.Request[apiv1.WatchRequest], out *connect.ServerStream[apiv1.WatchResponse]) error {
	ctx, cancel := s.streamContext(ctx)
	defer cancel()
	if err := s.follow(ctx, r.Msg.Seen); err != nil {
		return connectError(err)
	}
	match := shardapi.Match{Text: protocol.NameOf(r.Msg.Key, r.Msg.RawKey), Prefix: r.Msg.Prefix}
	w, version, err := s.kv().Watch(ctx, protocol.NameOf(r.Msg.Bucket, r.Msg.RawBucket), match, r.Msg.After, !r.Msg.Unordered)
	if err != nil {
		return connectError(err)
	}
	defer w.Close()
	if err := out.Send(&apiv1.WatchResponse{Version: version}); err != nil {
		return err
	}
	for {
		e, err := w.Next(ctx)
		if err != nil {
			return s.streamError(ctx, err)
		}
		event := &apiv1.Event{Kind: eventKinds[e.Kind], Value: []byte(e.Value), Version: e.Version}
		event.Key, event.RawKey = protocol.Name(e.Key)
		if err := out.Send(&apiv1.WatchResponse{Event: event, Seen: protocol.Seen(s.connector.Seen())}); err != nil {
			return err
		}
	}
}

// streamContext returns the context of a stream of events, which also ends when the
// server shuts down.
func (s *Server) streamContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() { // ends with the stream
		select {
		case <-s.draining:
			cancel(fmt.Errorf("%w: the server is shutting down", hiqlite.ErrClosed))
		case <-done:
		}
	}()
	return ctx, func() { close(done); cancel(nil) }
}

// streamError returns the error that ends a stream of events.
func (s *Server) streamError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); ctx.Err() != nil && cause != nil {
		err = cause
	}
	return connectError(err)
}

// pubsubService implements the service PubSub.
type pubsubService struct{ *Server }

func (s *Server) pubsub() shardapi.PubSub { return s.backend.InMemoryShards().PubSub }

// Notify implements the API.
func (s *pubsubService) Notify(ctx context.Context, r *connect.Request[apiv1.NotifyRequest]) (*connect.Response[apiv1.NotifyResponse], error) {
	if err := checkNames(r.Msg.Payload, r.Msg.Channel); err != nil {
		return nil, err
	}
	o, err := s.pubsub().Do(ctx, wire.Notify{Channel: r.Msg.Channel, Payload: r.Msg.Payload, TimeMS: time.Now().UnixMilli()}.Command())
	if err != nil {
		return nil, connectError(err)
	}
	return connect.NewResponse(&apiv1.NotifyResponse{Index: o.Index}), nil
}

// Listen implements the API.
func (s *pubsubService) Listen(ctx context.Context, r *connect.Request[apiv1.ListenRequest], out *connect.ServerStream[apiv1.ListenResponse]) error {
	ctx, cancel := s.streamContext(ctx)
	defer cancel()
	if err := s.follow(ctx, r.Msg.Seen); err != nil {
		return connectError(err)
	}
	match := shardapi.Match{Text: protocol.NameOf(r.Msg.Channel, r.Msg.RawChannel), Prefix: r.Msg.Prefix}
	sub, index, err := s.pubsub().Listen(ctx, match, r.Msg.After, !r.Msg.Unordered)
	if err != nil {
		e := encodeError(err)
		e.Index = index
		return protocol.ConnectError(e)
	}
	defer sub.Close()
	if err := out.Send(&apiv1.ListenResponse{Index: index}); err != nil {
		return err
	}
	for {
		m, err := sub.Next(ctx)
		if err != nil {
			return s.streamError(ctx, err)
		}
		message := &apiv1.Message{Index: m.Index, Payload: []byte(m.Payload), TimeMs: m.TimeMS}
		message.Channel, message.RawChannel = protocol.Name(m.Channel)
		if err := out.Send(&apiv1.ListenResponse{Message: message, Seen: protocol.Seen(s.connector.Seen())}); err != nil {
			return err
		}
	}
}

// shardsService implements the service Shards.
type shardsService struct{ *Server }

// Do implements the API.
func (s *shardsService) Do(ctx context.Context, r *connect.Request[apiv1.DoRequest]) (*connect.Response[apiv1.DoResponse], error) {
	c, err := wire.DecodeCommand(r.Msg.Command)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("hiqlite: the command is malformed"))
	}
	if err := s.follow(ctx, r.Msg.Seen); err != nil {
		return nil, connectError(err)
	}
	shards := s.backend.InMemoryShards()
	var o wire.Outcome
	switch r.Msg.Shard {
	case apiv1.DoRequest_SHARD_KV:
		o, err = shards.KV.Do(ctx, c)
	case apiv1.DoRequest_SHARD_LOCK:
		if c.Kind == wire.KindLockLeave { // it would release the locks of all clients of this node
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("hiqlite: only a node may send this command"))
		}
		if c.Origin == nil { // the lock would belong to this node, and end with it
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("hiqlite: a lock belongs to a session of the client: the command needs an origin"))
		}
		o, err = shards.Lock.Do(ctx, c)
	case apiv1.DoRequest_SHARD_PUBSUB:
		o, err = shards.PubSub.Do(ctx, c)
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("hiqlite: there is no such shard"))
	}
	if err != nil {
		return nil, connectError(err)
	}
	return connect.NewResponse(&apiv1.DoResponse{Outcome: wire.EncodeOutcome(&o), Seen: protocol.Seen(s.connector.Seen())}), nil
}

// OpenSession implements the API.
func (s *shardsService) OpenSession(ctx context.Context, r *connect.Request[apiv1.OpenSessionRequest]) (*connect.Response[apiv1.OpenSessionResponse], error) {
	id, err := s.connector.OpenSession(ctx, r.Msg.Shard)
	if err != nil {
		return nil, connectError(err)
	}
	return connect.NewResponse(&apiv1.OpenSessionResponse{Session: id}), nil
}

// CommitOutcome implements the API.
func (s *shardsService) CommitOutcome(ctx context.Context, r *connect.Request[apiv1.CommitOutcomeRequest]) (*connect.Response[apiv1.CommitOutcomeResponse], error) {
	origin := protocol.WireOrigin(r.Msg.Origin)
	if origin == nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("hiqlite: the request names no origin"))
	}
	if err := s.connector.CommitOutcome(ctx, *origin); err != nil {
		return nil, connectError(err)
	}
	return connect.NewResponse(&apiv1.CommitOutcomeResponse{Seen: protocol.Seen(s.connector.Seen())}), nil
}

// Await implements the API.
func (s *shardsService) Await(ctx context.Context, r *connect.Request[apiv1.AwaitRequest]) (*connect.Response[apiv1.AwaitResponse], error) {
	o, ok, err := s.backend.InMemoryShards().Lock.Await(ctx, r.Msg.Owner, r.Msg.Waiter)
	if err != nil {
		return nil, connectError(err)
	}
	return connect.NewResponse(&apiv1.AwaitResponse{Found: ok, Outcome: wire.EncodeOutcome(&o)}), nil
}

// CatchUp implements the API.
func (s *shardsService) CatchUp(ctx context.Context, r *connect.Request[apiv1.CatchUpRequest]) (*connect.Response[apiv1.CatchUpResponse], error) {
	o, err := wire.DecodeOutcome(r.Msg.Outcome)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("hiqlite: the outcome is malformed"))
	}
	if err := s.backend.InMemoryShards().Lock.CatchUp(ctx, *o); err != nil {
		return nil, connectError(err)
	}
	return connect.NewResponse(&apiv1.CatchUpResponse{Seen: protocol.Seen(s.connector.Seen())}), nil
}

// QueueLen implements the API.
func (s *shardsService) QueueLen(_ context.Context, r *connect.Request[apiv1.QueueLenRequest]) (*connect.Response[apiv1.QueueLenResponse], error) {
	n := s.backend.InMemoryShards().Lock.QueueLen(string(r.Msg.Key))
	return connect.NewResponse(&apiv1.QueueLenResponse{Length: int32(n)}), nil
}

// Entries implements the API.
func (s *shardsService) Entries(ctx context.Context, r *connect.Request[apiv1.ListRequest], out *connect.ServerStream[apiv1.ListResponse]) error {
	chunk := &apiv1.ListResponse{}
	bytes := 0
	err := s.entries(ctx, r.Msg, func(e *apiv1.Entry) error {
		chunk.Entries = append(chunk.Entries, e)
		if bytes += len(e.Key) + len(e.RawKey) + len(e.Value); bytes < protocol.ChunkBytes {
			return nil
		}
		err := out.Send(chunk)
		chunk, bytes = &apiv1.ListResponse{}, 0
		return err
	})
	if err != nil {
		return err
	}
	return out.Send(chunk)
}
