package hiqlite

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// InMemoryShards returns what the packages kv, lock and pubsub work on.
func (n *Node) InMemoryShards() shardapi.Shards {
	return shardapi.Shards{KV: &n.memory.kv, Lock: &n.memory.lock, PubSub: &n.memory.pubsub}
}

type kvClient struct {
	*memoryShard
	machine *memory.KV
}

var _ shardapi.KV = (*kvClient)(nil)

func (c *kvClient) Get(ctx context.Context, bucket, key string) (value string, version uint64, ok bool, err error) {
	if err := c.consistent(ctx); err != nil {
		return "", 0, false, err
	}
	value, version, ok = c.machine.Get(bucket, key)
	return value, version, ok, nil
}

func (c *kvClient) Counter(ctx context.Context, bucket, key string) (n int64, ok bool, err error) {
	if err := c.consistent(ctx); err != nil {
		return 0, false, err
	}
	n, ok = c.machine.Counter(bucket, key)
	return n, ok, nil
}

func (c *kvClient) Entries(ctx context.Context, bucket, prefix string) (iter.Seq2[string, string], error) {
	if err := c.consistent(ctx); err != nil {
		return nil, err
	}
	return c.machine.Entries(bucket, prefix), nil
}

func (c *kvClient) Watch(ctx context.Context, bucket string, m shardapi.Match) (shardapi.Watcher, error) {
	if err := c.linearize(ctx); err != nil {
		return nil, err
	}
	w := c.machine.Watch(bucket, m.Text, m.Prefix)
	r := newReader(c.memoryShard, w, func(e memory.Event) wire.Seen { return e.Seen })
	r.fetch = func() ([]memory.Event, error) {
		events, err := w.Next()
		if err != nil {
			return nil, &shardapi.LaggedError{}
		}
		return events, nil
	}
	return &bucketWatch{r}, nil
}

type bucketWatch struct{ *reader[memory.Event] }

func (w *bucketWatch) Next(ctx context.Context, ordered bool) (out shardapi.Event, err error) {
	e, err := w.next(ctx, ordered)
	if err != nil {
		return out, err
	}
	return shardapi.Event{Kind: e.Kind, Key: e.Key, Value: e.Value, Version: e.Version}, nil
}

// A reader hands out what a machine tells, one after the other.
type reader[T any] struct {
	shard  *memoryShard
	source source
	fetch  func() ([]T, error) // what there is, without waiting
	seen   func(T) wire.Seen   // what has to be applied before it is told

	closed context.Context
	close  context.CancelFunc
	turn   chan struct{} // capacity 1: held by who reads; guards buffer
	buffer []T
}

// A source is where a machine leaves what it tells.
type source interface {
	Ready() <-chan struct{} // gets a value when there is something
	Close()
}

func newReader[T any](s *memoryShard, from source, seen func(T) wire.Seen) *reader[T] {
	r := &reader[T]{shard: s, source: from, seen: seen, turn: make(chan struct{}, 1)}
	r.closed, r.close = context.WithCancel(context.Background())
	return r
}

func (r *reader[T]) Close() {
	r.close()
	r.source.Close()
}

// over returns why there is nothing to read any more, or nil.
func (r *reader[T]) over() error {
	switch {
	case r.closed.Err() != nil:
		return errReaderClosed
	case r.shard.node.ctx.Err() != nil:
		return r.shard.explain(ErrClosed)
	}
	return nil
}

// next waits for the next one. One that was not returned, because ctx ended,
// is so by the next call.
func (r *reader[T]) next(ctx context.Context, ordered bool) (x T, err error) {
	if err := ctx.Err(); err != nil {
		return x, err
	}
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return x, ctx.Err()
	case <-r.closed.Done():
		return x, errReaderClosed
	}
	if err := r.over(); err != nil {
		return x, err
	}
	for len(r.buffer) == 0 {
		if r.buffer, err = r.fetch(); err != nil {
			return x, err
		}
		if len(r.buffer) == 0 {
			if err := r.shard.wait(ctx, r.source.Ready(), r.closed.Done()); err != nil {
				return x, err
			}
			if err := r.over(); err != nil {
				return x, err
			}
		}
	}
	if ordered {
		err := r.shard.node.follow(ctx, r.seen(r.buffer[0]), r.closed)
		if err != nil && ctx.Err() == nil && r.closed.Err() != nil {
			err = errReaderClosed
		}
		if err != nil {
			return x, err
		}
	}
	x = r.buffer[0]
	r.buffer = r.buffer[1:]
	return x, nil
}

var errReaderClosed = fmt.Errorf("%w: the watcher or subscription", ErrClosed)

// wait waits for something to read, or until that is over.
func (s *memoryShard) wait(ctx context.Context, ready, over <-chan struct{}) error {
	select {
	case <-ready:
		return nil
	case <-over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.shard.Done():
		return s.explain(ErrClosed)
	case <-s.node.ctx.Done():
		return s.explain(ErrClosed)
	}
}

type lockClient struct {
	*memoryShard
	machine *memory.Locks

	mu      sync.Mutex
	closed  bool
	serial  uint64
	holders map[uint64]func() // see OnClose
	asking  sync.WaitGroup    // calls of Do that may make places; none begins once it is closed
}

var _ shardapi.Lock = (*lockClient)(nil)

func (c *lockClient) Await(ctx context.Context, owner, id uint64) (o wire.Outcome, ok bool, err error) {
	now, changed, done := c.machine.Place(owner, id)
	defer done()
	for {
		place := now()
		if !place.There || place.Code != wire.Waits {
			return place.Outcome, place.There, nil
		}
		if err := c.wait(ctx, changed, nil); err != nil {
			return wire.Outcome{}, false, err
		}
	}
}

func (c *lockClient) CatchUp(ctx context.Context, granted wire.Outcome) error {
	if !granted.Expired {
		return c.node.follow(ctx, granted.Seen)
	}
	// Who had it before cannot say any more what he wrote.
	var sql, kv error
	var wg sync.WaitGroup
	wg.Go(func() { sql = c.node.linearize(ctx) })
	wg.Go(func() { kv = c.node.memory.kv.linearize(ctx) })
	wg.Wait()
	return cmp.Or(sql, kv)
}

// Do refuses to make places once the node gives back what there is.
func (c *lockClient) Do(ctx context.Context, cmd *wire.Command) (wire.Outcome, error) {
	if cmd.Kind == wire.LockAcquire || cmd.Kind == wire.LockTry {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return wire.Outcome{}, c.explain(ErrClosed)
		}
		c.asking.Add(1)
		c.mu.Unlock()
		defer c.asking.Done()
	}
	return c.memoryShard.Do(ctx, cmd)
}

func (c *lockClient) QueueLen(key string) int { return c.machine.Queue(key) }

func (c *lockClient) OnClose(f func()) (forget func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		go f()
		return func() {}
	}
	c.serial++
	id := c.serial
	c.holders[id] = f
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.holders, id)
	}
}

// leave gives back all locks that are held through this node, once their
// holders know it.
func (c *lockClient) leave(ctx context.Context) {
	c.mu.Lock()
	c.closed = true
	holders := slices.Collect(maps.Values(c.holders))
	c.mu.Unlock()
	for _, f := range holders {
		f()
	}
	asked := make(chan struct{})
	go func() { // at the latest when the combiner is closed
		c.asking.Wait()
		close(asked)
	}()
	select {
	case <-asked: // all places that were asked for are there, or never will be
	case <-ctx.Done():
	}
	if commands := c.commands.Load(); commands != nil && c.machine.Owned(c.node.cfg.NodeID) {
		_, _ = commands.Do(ctx, wire.EncodeCommand(&wire.Command{Kind: wire.LockLeave, Seen: c.node.seen()}))
	}
}

type pubsubClient struct {
	*memoryShard
	machine *memory.Messages
}

var _ shardapi.PubSub = (*pubsubClient)(nil)

func (c *pubsubClient) Listen(ctx context.Context, channels shardapi.Match, after *uint64) (shardapi.Subscription, uint64, error) {
	if err := c.linearize(ctx); err != nil {
		return nil, 0, err
	}
	s, index, ok := c.machine.Subscribe(channels.Text, channels.Prefix, after)
	switch {
	case ok:
	case index < *after:
		return nil, index, shardapi.ErrAhead
	default:
		return nil, index, shardapi.ErrTooOld
	}
	r := newReader(c.memoryShard, s, func(m *memory.Message) wire.Seen { return m.Seen })
	r.fetch = func() ([]*memory.Message, error) {
		messages, lost, err := s.Next()
		if err != nil {
			return nil, &shardapi.LaggedError{Lost: lost}
		}
		return messages, nil
	}
	return &channelListen{r}, index, nil
}

type channelListen struct{ *reader[*memory.Message] }

func (l *channelListen) Next(ctx context.Context, ordered bool) (shardapi.Message, error) {
	m, err := l.next(ctx, ordered)
	if err != nil {
		return shardapi.Message{}, err
	}
	return shardapi.Message{Index: m.Index, Channel: m.Channel, Payload: m.Payload, TimeMS: m.TimeMS}, nil
}
