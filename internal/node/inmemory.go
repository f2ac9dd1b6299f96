package node

import (
	"context"
	"fmt"
	"sync"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// An inMemoryShard is a shard whose machine is in memory. kvShard, lockShard and
// pubsubShard embed it.
type inMemoryShard struct {
	shard
	combiner *cluster.Combiner[[]byte, wire.Outcome]
	raw      sm.IConcurrentStateMachine // the machine, to Raft
}

// An inMemoryMachine is a machine of an inMemoryShard.
type inMemoryMachine interface {
	machine
	sm.IConcurrentStateMachine
	Size() int64
}

// init makes the shard. The machine is made by create, which gets the listener for
// it.
func (s *inMemoryShard) init(n *Node, id uint64, name string, incarnation uint64, cfg cluster.CombinerConfig, create func(memory.Config) inMemoryMachine) {
	machine := create(memory.Config{Listener: s, Logger: n.opts.Logger})
	s.shard.init(n, id, name, machine)
	s.raw, s.size = machine, machine.Size
	cfg.MaxEntryBytes = MaxOperation
	s.combiner = cluster.NewCombiner[[]byte, wire.Outcome](s.raft, commandCodec{n.opts.ID, incarnation}, cfg)
	s.shard.combiner = s.combiner
}

// start lets the shard take part in the cluster.
func (s *inMemoryShard) start() error {
	if err := s.raft.CheckSnapshot(); err != nil {
		return fmt.Errorf("%w: of %s, %w; put back what was there, from a copy of the data folder", ErrDamaged, s.name, err)
	}
	if err := s.checkLog(0, 0); err != nil {
		return err
	}
	return s.withCause(s.raft.StartInMemory(s.raw)) // ErrClosed if the machine has failed meanwhile
}

// inMemoryHook calls a test's hook before entries are applied.
type inMemoryHook struct {
	sm.IConcurrentStateMachine
	hook func()
}

func (m inMemoryHook) Update(entries []sm.Entry) ([]sm.Entry, error) {
	m.hook()
	return m.IConcurrentStateMachine.Update(entries)
}

// commandCodec makes entries of encoded commands.
type commandCodec struct{ node, incarnation uint64 }

func (c commandCodec) OpenSession(nonce uint64) []byte {
	return wire.EncodeOpenSession(nonce, c.node, c.incarnation)
}

func (commandCodec) Encode(session, sequence, oldest uint64, commands [][]byte) ([]byte, error) {
	return wire.EncodeCommands(session, sequence, oldest, commands), nil
}

func (commandCodec) Size(command []byte) int { return len(command) + 6 }
func (commandCodec) Exclusive([]byte) bool   { return false }
func (commandCodec) Remote([]byte) bool      { return false } // their calls are unary, and do not come together

// Applied implements memory.Listener, with the methods of shard.
func (s *inMemoryShard) Applied(session, sequence uint64, outcomes []wire.Outcome) {
	s.combiner.Applied(session, sequence, outcomes)
}

// Do has a command applied and returns its outcome.
func (s *inMemoryShard) Do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return wire.Outcome{}, err
	}
	if err := s.node.RefusesWrites(); err != nil && (takesSpace(c.Kind) || s.node.pausedError() != nil) {
		return wire.Outcome{}, err
	}
	ctx, cancel := s.node.Within(ctx)
	defer cancel()
	c.Seen = s.node.seen().Max(c.Seen) // a remote client may have seen more on another node
	o, err := s.combiner.Do(ctx, wire.EncodeCommand(c))
	if err != nil {
		return o, s.withCause(err)
	}
	if o.Admission != wire.Admitted {
		return wire.Outcome{}, notAdmitted(o.Admission)
	}
	if o.ValueDropped {
		return o, fmt.Errorf("%w: it was applied, but its answer came through a node that had to be brought up to date, and was too large to be kept", ErrOutcomeUnknown)
	}
	return o, nil
}

// takesSpace reports whether a command makes the state larger. Commands that do
// not, such as deletions and renewals of locks, are proposed even while the disk
// is nearly full.
func takesSpace(kind wire.CommandKind) bool {
	switch kind {
	case wire.KindKVDelete, wire.KindKVGetRemove, wire.KindKVClear, wire.KindKVClearAll, wire.KindKVSetLimits, wire.KindCounterDelete, wire.KindLockRelease, wire.KindLockRenew, wire.KindLockLeave:
		return false
	}
	return true
}

// beforeRead makes what is read next as consistent as ctx asks for.
func (s *inMemoryShard) beforeRead(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.node.Closed() {
		return s.node.withCause(ErrClosed)
	}
	if err := s.machine.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	// The state is restored from the log some time after the start. Until then
	// the machine is empty, which would be a wrong answer.
	if linearizable, _ := Linearizable(ctx); linearizable || !s.caughtUp.Load() {
		return s.linearize(ctx)
	}
	return nil
}

// seen returns how far reads on this node see.
func (n *Node) seen() wire.Seen {
	return wire.Seen{SQL: n.sql.machine.Applied(), KV: n.kv.machine.Applied()}
}

// follow waits until reads on this node see what s names. The error is that of
// ctx, or ErrClosed if the node, or one of ends, has ended.
func (n *Node) follow(ctx context.Context, s wire.Seen, ends ...context.Context) error {
	if now := n.seen(); now.SQL >= s.SQL && now.KV >= s.KV {
		return nil
	}
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, end := range append(ends, n.ctx) {
		defer context.AfterFunc(end, cancel)()
	}
	err := n.sql.machine.WaitApplied(wait, s.SQL)
	if err == nil {
		err = n.kv.machine.WaitApplied(wait, s.KV)
	}
	if err != nil && ctx.Err() == nil {
		return n.kv.withCause(ErrClosed)
	}
	return err
}

// Seen returns how far reads of SQL and of the KV cache on this node see.
func (n *Node) Seen() wire.Seen { return n.seen() }

// Follow waits until reads on this node see at least that much. If there is no
// leader, the node may wait until ctx ends.
func (n *Node) Follow(ctx context.Context, s wire.Seen) error { return n.follow(ctx, s) }

// linearizeData returns once reads of SQL and of the KV cache on this node see
// everything that was acknowledged before the call.
func (n *Node) linearizeData(ctx context.Context) error {
	var sqlErr, kvErr error
	var wait sync.WaitGroup
	wait.Go(func() { sqlErr = n.sql.linearize(ctx) })
	wait.Go(func() { kvErr = n.kv.linearize(ctx) })
	wait.Wait()
	if sqlErr != nil {
		return sqlErr
	}
	return kvErr
}
