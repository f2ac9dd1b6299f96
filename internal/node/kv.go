package node

import (
	"context"
	"iter"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// A kvShard is the shard of the KV cache.
type kvShard struct {
	inMemoryShard
	machine *memory.KV
}

var _ shardapi.KV = (*kvShard)(nil)

func newKVShard(n *Node, incarnation uint64) *kvShard {
	s := &kvShard{}
	s.init(n, kvID, "kv", incarnation, cluster.CombinerConfig{}, func(cfg memory.Config) inMemoryMachine {
		s.machine = memory.NewKV(cfg)
		return s.machine
	})
	if hook := n.opts.Hooks.ApplyKV; hook != nil {
		s.raw = inMemoryHook{s.raw, func() { hook(n.opts.ID) }}
	}
	return s
}

func (s *kvShard) Get(ctx context.Context, bucket, key string) (value string, version uint64, ok bool, err error) {
	if err := s.beforeRead(ctx); err != nil {
		return "", 0, false, err
	}
	value, version, ok = s.machine.Get(bucket, key)
	return value, version, ok, nil
}

func (s *kvShard) Counter(ctx context.Context, bucket, key string) (n int64, ok bool, err error) {
	if err := s.beforeRead(ctx); err != nil {
		return 0, false, err
	}
	n, ok = s.machine.Counter(bucket, key)
	return n, ok, nil
}

func (s *kvShard) Entries(ctx context.Context, bucket, prefix string) (iter.Seq2[string, string], error) {
	if err := s.beforeRead(ctx); err != nil {
		return nil, err
	}
	return s.machine.Entries(bucket, prefix), nil
}

func (s *kvShard) Watch(ctx context.Context, bucket string, m shardapi.Match, after *uint64, ordered bool) (shardapi.Watcher, uint64, error) {
	if err := s.linearize(ctx); err != nil {
		return nil, 0, err
	}
	watcher, version, ok := s.machine.Watch(bucket, m.Text, m.Prefix, after)
	if !ok {
		return nil, version, &shardapi.LaggedError{}
	}
	d := newDelivery(&s.shard, watcher, ordered, func(e memory.Event) wire.Seen { return e.Seen })
	d.fetch = func() ([]memory.Event, error) {
		events, err := watcher.Next()
		if err != nil {
			return nil, &shardapi.LaggedError{}
		}
		return events, nil
	}
	return &watch{d}, version, nil
}

type watch struct{ *delivery[memory.Event] }

func (w *watch) Next(ctx context.Context) (shardapi.Event, error) {
	e, err := w.next(ctx)
	if err != nil {
		return shardapi.Event{}, err
	}
	return shardapi.Event{Kind: e.Kind, Key: e.Key, Value: e.Value, Version: e.Version}, nil
}
