package node

import (
	"context"
	"fmt"
	"path/filepath"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/durable"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// A sqlShard is the shard that replicates the database.
type sqlShard struct {
	shard
	machine  *replica.SQL
	combiner *cluster.Combiner[*wire.EncodedOperation, resultOrWaiter]
	leases   *leases
}

// A resultOrWaiter is what the combiner returns for an operation: its result or, if the
// operation was put into the lease queue, the waiter there.
type resultOrWaiter struct {
	wire.Result
	waiter *waiter
}

func newSQLShard(n *Node, incarnation uint64) *sqlShard {
	s := &sqlShard{leases: newLeases(n)}
	s.machine = replica.New(replica.Config{
		Dir: filepath.Join(n.opts.DataDir, "sql"), SyncedFile: filepath.Join(n.opts.DataDir, syncedFile),
		Listener: s, Leases: s, Logger: n.opts.Logger, MaxReaders: n.opts.MaxReaders, Functions: n.opts.Functions,
		Term: func(index uint64) uint64 { return s.raft.Term(index) },
	})
	s.shard.init(n, sqlID, "sql", s.machine)
	s.size = func() int64 { size, _ := s.machine.Size(); return size }
	s.combiner = cluster.NewCombiner[*wire.EncodedOperation, resultOrWaiter](s.raft, operationCodec{n.opts.ID, incarnation}, cluster.CombinerConfig{MaxEntryBytes: MaxOperation})
	s.shard.combiner = s.combiner
	return s
}

// start opens the database, checks that it and the Raft log belong together, and
// lets the shard take part in the cluster.
func (s *sqlShard) start() error {
	dir := filepath.Join(s.node.opts.DataDir, "sql")
	applied, err := s.machine.Open(nil)
	if err != nil {
		return fmt.Errorf("hiqlite: open the database in %s: %w", dir, err)
	}
	if err := durable.Sync(s.node.opts.DataDir); err != nil { // the names raft and sql
		return err
	}
	if applied > 0 && !s.raft.Bootstrapped() {
		return fmt.Errorf("%w: %s holds a database but the Raft log beside it is gone; put the folder back; to start without it would forget whom this node voted for",
			ErrDamaged, dir)
	}
	if err := s.checkLog(applied, s.machine.AppliedTerm()); err != nil {
		return err
	}
	var machine sm.IOnDiskStateMachine = s.machine
	if hook := s.node.opts.Hooks.ApplySQL; hook != nil {
		machine = onDiskHook{machine, func() { hook(s.node.opts.ID) }}
	}
	return s.withCause(s.raft.Start(machine)) // ErrClosed if the machine has failed meanwhile
}

// onDiskHook calls a test's hook before entries are applied.
type onDiskHook struct {
	sm.IOnDiskStateMachine
	hook func()
}

func (m onDiskHook) Update(entries []sm.Entry) ([]sm.Entry, error) {
	m.hook()
	return m.IOnDiskStateMachine.Update(entries)
}

// propose has an operation applied, or put into the lease queue.
func (s *sqlShard) propose(ctx context.Context, op *wire.EncodedOperation) (resultOrWaiter, error) {
	r, err := s.combiner.Do(ctx, op)
	return r, s.node.withCause(err)
}

// operationCodec makes entries of operations.
type operationCodec struct{ node, incarnation uint64 }

func (c operationCodec) OpenSession(nonce uint64) []byte {
	return wire.EncodeOpenSession(nonce, c.node, c.incarnation)
}

func (operationCodec) Encode(session, sequence, oldest uint64, ops []*wire.EncodedOperation) ([]byte, error) {
	return wire.EncodeEntry(session, sequence, oldest, ops), nil
}

func (operationCodec) Size(op *wire.EncodedOperation) int       { return op.Size() }
func (operationCodec) Exclusive(op *wire.EncodedOperation) bool { return op.Vacuum }
func (operationCodec) Remote(op *wire.EncodedOperation) bool    { return op.Remote }

// These methods, with those of shard, implement replica.Listener and
// replica.LeaseListener. The goroutine that applies entries calls them.

func (s *sqlShard) Applied(session, sequence uint64, results []wire.Result) {
	if s.combiner.Session() != session {
		return // the entry is another node's
	}
	returned := make([]resultOrWaiter, len(results))
	for i := range results {
		returned[i].Result = results[i]
		if results[i].Lease.State == wire.LeaseQueued {
			returned[i].waiter = s.leases.queued(results[i].Lease.ID)
		}
	}
	s.combiner.Applied(session, sequence, returned)
}

// Settled needs no session: the ids of waiters differ between nodes.
func (s *sqlShard) Settled(_, id uint64, result wire.Result) { s.leases.settled(id, result) }

func (s *sqlShard) Wanted(held wire.HeldLease) {
	if s.combiner.Session() == held.Session {
		s.leases.wanted(held)
	} else if node, _ := s.machine.LeaseHolder(); node == s.node.opts.ID {
		s.leases.previousIncarnationHolds()
	}
}

func (s *sqlShard) Recovered(held wire.HeldLease, waits func(uint64) bool) {
	s.leases.recovered(held, waits)
}
