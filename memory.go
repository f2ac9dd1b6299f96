package hiqlite

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// The ids of the shards in memory; see sqlShard.
const (
	kvShard     = 2
	lockShard   = 3
	pubsubShard = 4
)

// A memoryReplica is the replica of a shard in memory.
type memoryReplica interface {
	sm.IConcurrentStateMachine
	Clock() statemachine.Clock
	LogBytes() uint64
	Applied() uint64
	Size() int64
	Err() error
	Fail(error)
}

// A memoryShard is a shard in memory: its replica, and how commands get there.
type memoryShard struct {
	node     *Node
	name     string
	id       uint64
	replica  memoryReplica
	shard    *cluster.Shard // set once started is closed
	started  chan struct{}
	commands atomic.Pointer[cluster.Combiner[[]byte, wire.Outcome]]
	held     chan struct{} // capacity 1: a hold was applied
	caughtUp atomic.Bool   // with what was acknowledged before the start
}

// memoryShards are the node's shards in memory.
type memoryShards struct {
	kv     kvClient
	lock   lockClient
	pubsub pubsubClient
	all    []*memoryShard
}

func newMemoryShards(n *Node) *memoryShards {
	shard := func(name string, id uint64) *memoryShard {
		return &memoryShard{node: n, name: name, id: id, started: make(chan struct{}), held: make(chan struct{}, 1)}
	}
	config := func(s *memoryShard) memory.Config {
		return memory.Config{Listener: s, Logger: n.cfg.Logger}
	}
	kv, lock, pubsub := shard("kv", kvShard), shard("lock", lockShard), shard("pubsub", pubsubShard)
	m := &memoryShards{all: []*memoryShard{kv, lock, pubsub}}
	m.kv = kvClient{kv, memory.NewKV(config(kv))}
	m.lock = lockClient{memoryShard: lock, machine: memory.NewLocks(config(lock)), holders: map[uint64]func(){}}
	m.pubsub = pubsubClient{pubsub, memory.NewMessages(config(pubsub), retention)}
	kv.replica, lock.replica, pubsub.replica = m.kv.machine, m.lock.machine, m.pubsub.machine
	return m
}

// retention is exchanged by tests.
var retention = memory.DefaultRetention

// kvMachine is what Raft applies entries of the kv shard to; exchanged by tests.
var kvMachine = func(_ uint64, replica sm.IConcurrentStateMachine) sm.IConcurrentStateMachine { return replica }

// start starts the replica. It is read from its snapshot and log in the
// background.
func (s *memoryShard) start(incarnation uint64) (err error) {
	s.shard = s.node.host.NewShard(cluster.ShardConfig{ID: s.id, Name: s.name, Failed: func(err error) { s.replica.Fail(s.node.shardFailure(err)) }})
	if err := s.shard.CheckSnapshot(); err != nil {
		return fmt.Errorf("%w: of %s, %w; put back what was there, from a copy of the data folder", ErrDamaged, s.name, err)
	}
	if err := s.node.checkLog(s.shard, 0, 0); err != nil {
		return err
	}
	var machine sm.IConcurrentStateMachine = s.replica
	if s.id == kvShard {
		machine = kvMachine(s.node.cfg.NodeID, machine)
	}
	if err := s.shard.StartInMemory(machine); err != nil {
		return err
	}
	close(s.started)
	s.commands.Store(cluster.NewCombiner[[]byte, wire.Outcome](s.shard, commandCodec{s.node.cfg.NodeID, incarnation},
		cluster.CombinerConfig{MaxEntryBytes: maxOperation, Eager: s.id == lockShard})) // the locks of the node's earlier incarnations end with the new one's session
	return nil
}

// commandCodec makes entries of commands.
type commandCodec struct{ node, incarnation uint64 }

func (c commandCodec) OpenSession(nonce uint64) []byte {
	return wire.EncodeOpenSession(nonce, c.node, c.incarnation)
}

func (commandCodec) Encode(session, sequence uint64, commands [][]byte) ([]byte, error) {
	return wire.EncodeCommands(session, sequence, commands), nil
}

func (commandCodec) Size(command []byte) int { return len(command) + 6 }
func (commandCodec) Exclusive([]byte) bool   { return false }

// Do has a command applied.
func (s *memoryShard) Do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return wire.Outcome{}, err
	}
	if err := s.node.diskError(); err != nil && (grows(c.Kind) || s.node.pausedError() != nil) {
		return wire.Outcome{}, err
	}
	ctx, cancel := s.node.within(ctx)
	defer cancel()
	c.Seen = s.node.seen()
	o, err := s.commands.Load().Do(ctx, wire.EncodeCommand(c))
	if err != nil {
		return o, s.explain(err)
	}
	if o.Dropped {
		return o, fmt.Errorf("%w: it was applied, but its answer came through a node that had to be brought up to date, and was too large to be kept", ErrOutcomeUnknown)
	}
	return o, nil
}

// grows reports whether a command takes space. What gives some back, or renews a
// lock, is not refused while the disk is nearly full.
func grows(kind wire.CommandKind) bool {
	switch kind {
	case wire.KVDelete, wire.KVGetRemove, wire.KVClear, wire.KVClearAll, wire.KVLimits, wire.CounterDelete, wire.LockRelease, wire.LockRenew, wire.LockLeave:
		return false
	}
	return true
}

// explain prefers why the replica, or the node, stopped over their being closed.
func (s *memoryShard) explain(err error) error {
	if failure := s.replica.Err(); failure != nil && errors.Is(err, ErrClosed) {
		return fmt.Errorf("%w: %w", err, failure)
	}
	return s.node.explain(err)
}

// linearize waits until this node has applied what was acknowledged before.
func (s *memoryShard) linearize(ctx context.Context) error {
	ctx, cancel := s.node.within(ctx)
	defer cancel()
	err := s.explain(s.shard.ReadIndex(ctx))
	if err == nil {
		s.caughtUp.Store(true)
	}
	return err
}

// consistent makes what is read afterwards as consistent as the context says.
func (s *memoryShard) consistent(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.node.ctx.Err() != nil {
		return s.node.explain(ErrClosed)
	}
	if err := s.replica.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	// What is in memory comes back with the log, some time after the start:
	// until then there would be nothing, which is no answer.
	if consistencyOf(ctx, Local) == Linearizable || !s.caughtUp.Load() {
		return s.linearize(ctx)
	}
	return nil
}

// seen is what can be read on this node.
func (n *Node) seen() wire.Seen {
	return wire.Seen{SQL: n.replica.Applied(), KV: n.memory.kv.machine.Applied()}
}

// hasSeen reports whether all of it can be read on this node.
func (n *Node) hasSeen(s wire.Seen) bool {
	return n.replica.Applied() >= s.SQL && n.memory.kv.machine.Applied() >= s.KV
}

// follow waits until this node has applied what was written before. The error is
// that of ctx, or ErrClosed if the node, or one of ends, has ended.
func (n *Node) follow(ctx context.Context, s wire.Seen, ends ...context.Context) error {
	if n.hasSeen(s) {
		return nil
	}
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, end := range append(ends, n.ctx) {
		defer context.AfterFunc(end, cancel)()
	}
	err := n.replica.WaitApplied(wait, s.SQL)
	if err == nil {
		err = n.memory.kv.machine.WaitApplied(wait, s.KV)
	}
	if err != nil && ctx.Err() == nil {
		return n.memory.kv.explain(ErrClosed)
	}
	return err
}

// The machine tells.

func (s *memoryShard) Applied(session, sequence uint64, outcomes []wire.Outcome) {
	if c := s.commands.Load(); c != nil {
		c.Applied(session, sequence, outcomes)
	}
}

func (s *memoryShard) SessionOpened(nonce, session uint64) {
	if c := s.commands.Load(); c != nil {
		c.SessionOpened(nonce, session)
	}
}

func (s *memoryShard) SessionUnknown(session, sequence uint64) {
	if c := s.commands.Load(); c != nil {
		c.SessionUnknown(session, sequence)
	}
}

func (s *memoryShard) Held(ms uint64) {
	if c := s.commands.Load(); c != nil {
		c.Hold(time.Duration(ms) * time.Millisecond)
	}
	select {
	case s.held <- struct{}{}:
	default:
	}
}

// Failed stops the replica, whose entry waits for that.
func (s *memoryShard) Failed(err error) {
	s.node.cfg.Logger.Error("hiqlite: the node stops taking part in a shard", "node", s.node.cfg.NodeID, "shard", s.name, "error", err)
	s.node.stopOnceStarted(s.started, &s.shard)
}
