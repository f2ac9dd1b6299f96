package node

import (
	"context"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// A pubsubShard is the shard of the messages.
type pubsubShard struct {
	inMemoryShard
	machine *memory.Messages
}

var _ shardapi.PubSub = (*pubsubShard)(nil)

func newPubSubShard(n *Node, incarnation uint64) *pubsubShard {
	s := &pubsubShard{}
	s.init(n, pubsubID, "pubsub", incarnation, cluster.CombinerConfig{}, func(cfg memory.Config) inMemoryMachine {
		s.machine = memory.NewMessages(cfg, n.opts.Hooks.Retention)
		return s.machine
	})
	return s
}

func (s *pubsubShard) Listen(ctx context.Context, channels shardapi.Match, after *uint64, ordered bool) (shardapi.Subscription, uint64, error) {
	if err := s.linearize(ctx); err != nil {
		return nil, 0, err
	}
	subscription, index, ok := s.machine.Subscribe(channels.Text, channels.Prefix, after)
	switch {
	case ok:
	case index < *after:
		return nil, index, shardapi.ErrAhead
	default:
		return nil, index, shardapi.ErrTooOld
	}
	d := newDelivery(&s.shard, subscription, ordered, func(m *memory.Message) wire.Seen { return m.Seen })
	d.fetch = func() ([]*memory.Message, error) {
		messages, lost, err := subscription.Next()
		if err != nil {
			return nil, &shardapi.LaggedError{Lost: lost}
		}
		return messages, nil
	}
	return &listen{d}, index, nil
}

type listen struct {
	*delivery[*memory.Message]
}

func (l *listen) Next(ctx context.Context) (shardapi.Message, error) {
	m, err := l.next(ctx)
	if err != nil {
		return shardapi.Message{}, err
	}
	return shardapi.Message{Index: m.Index, Channel: m.Channel, Payload: m.Payload, TimeMS: m.TimeMS}, nil
}
