package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// The ids of the shards, which are stored in the Raft log.
const (
	sqlID    = 1
	kvID     = 2
	lockID   = 3
	pubsubID = 4
)

// A shard is this node's part of one replicated log: the log, the machine that
// applies its entries here, and the combiner that makes entries of this node's
// operations. It has what all kinds of shards have in common; sqlShard and
// inMemoryShard add how operations are encoded and answered.
type shard struct {
	node     *Node
	id       uint64
	name     string // sql, kv, lock or pubsub
	raft     *cluster.Shard
	machine  machine
	combiner combiner
	size     func() int64  // of what a snapshot of the machine holds, in bytes
	held     chan struct{} // capacity 1: an entry that holds proposals was applied
	caughtUp atomic.Bool   // this node has applied what was acknowledged before its start
	clients  sync.Map      // nonce -> chan uint64, of the calls of openSession
}

// A machine applies the entries of a shard on this node.
type machine interface {
	Applied() uint64           // index of the last entry that reads see
	Clock() statemachine.Clock // of the shard
	LogBytes() uint64          // of the entries applied since the start
	Err() error                // why it had to stop, or nil
	Fail(error)                // stops it
}

// A combiner is a *cluster.Combiner, without the types of its operations.
type combiner interface {
	SessionOpened(nonce, session uint64)
	SessionUnknown(session, sequence uint64)
	Hold(time.Duration)
	Close() error
}

// init makes the shard. The caller sets combiner.
func (s *shard) init(n *Node, id uint64, name string, machine machine) {
	s.node, s.id, s.name, s.machine, s.held = n, id, name, machine, make(chan struct{}, 1)
	cfg := cluster.ShardConfig{ID: id, Name: name, Failed: s.replicaFailed}
	if id == sqlID {
		cfg.Applied = machine.Applied
	}
	s.raft = n.host.NewShard(cfg)
}

// replicaFailed stops the machine because of what the Raft host has found.
func (s *shard) replicaFailed(err error) {
	switch {
	case errors.Is(err, cluster.ErrForgotten):
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	case errors.Is(err, cluster.ErrDiskFailed):
		err = fmt.Errorf("the disk of %s fails: %w; this program has to be started anew, once it works", s.node.opts.DataDir, err)
	}
	s.machine.Fail(err)
}

// linearize returns once this node has applied everything that was acknowledged
// in the shard before the call.
func (s *shard) linearize(ctx context.Context) error {
	ctx, cancel := s.node.Within(ctx)
	defer cancel()
	err := s.withCause(s.raft.ReadIndex(ctx))
	if err == nil && !s.caughtUp.Load() {
		s.caughtUp.Store(true)
	}
	return err
}

// leads reports whether this node leads the shard, as far as it knows.
func (s *shard) leads() bool { return s.raft.Leader().Node == s.node.opts.ID }

// ended reports whether this node takes no part in the shard any more.
func (s *shard) ended() bool {
	select {
	case <-s.raft.Done():
		return true
	default:
		return false
	}
}

// withCause adds to ErrClosed why the machine, or the node, stopped.
func (s *shard) withCause(err error) error {
	if failure := s.machine.Err(); failure != nil && s.id != sqlID && errors.Is(err, ErrClosed) {
		return fmt.Errorf("%w: %w", err, failure)
	}
	return s.node.withCause(err)
}

// checkLog makes sure, before the shard starts, that its log holds the entries
// that the machine has applied. Raft would otherwise give new entries the indexes
// of applied ones, and the machine would skip them. The node may also have voted
// for the missing entries, so that the others cannot be asked for them.
func (s *shard) checkLog(applied, term uint64) error {
	err := s.raft.CheckLog(applied, term)
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %w: files of different moments, or of another node, were put together; put back a copy of the whole folder that was made while the node was stopped",
		ErrDamaged, s.node.opts.DataDir, err)
}

// These methods implement what the listeners of all machines have in common. The
// goroutine that applies entries calls them.

func (s *shard) SessionOpened(nonce, session uint64) {
	if !s.clientSessionOpened(nonce, session) {
		s.combiner.SessionOpened(nonce, session)
	}
}

func (s *shard) SessionUnknown(session, sequence uint64) {
	s.combiner.SessionUnknown(session, sequence)
}

func (s *shard) Held(ms uint64) {
	s.combiner.Hold(time.Duration(ms) * time.Millisecond)
	select {
	case s.held <- struct{}{}:
	default:
	}
}

// Failed stops this node's replica of the shard. The entry being applied waits
// until it has returned.
func (s *shard) Failed(err error) {
	s.node.opts.Logger.Error("hiqlite: the node stops taking part in a shard", "node", s.node.opts.ID, "shard", s.name, "error", err)
	if err := s.raft.Stop(); err != nil {
		s.node.opts.Logger.Error("hiqlite: stopping a replica", "node", s.node.opts.ID, "shard", s.name, "error", err)
	}
}

// handoverHold is how long nodes propose nothing when a leader closes. The next
// leader, elected after some 20 ms, ends the hold early.
const handoverHold = 250 * time.Millisecond

// holdProposals asks all nodes, this one included, to propose nothing to the
// shards that this node leads. It returns when this node has applied that.
func (n *Node) holdProposals() {
	if n.alone() {
		return
	}
	var wait sync.WaitGroup
	for _, s := range n.shards {
		wait.Go(s.holdProposals)
	}
	wait.Wait()
}

func (s *shard) holdProposals() {
	if !s.leads() {
		return
	}
	select {
	case <-s.held: // by an earlier leader
	default:
	}
	if _, err := s.raft.Propose(wire.EncodeHold(uint64(handoverHold.Milliseconds())), handoverHold); err != nil {
		return
	}
	timer := time.NewTimer(handoverHold / 2)
	defer timer.Stop()
	select {
	case <-s.held:
	case <-timer.C: // there is no majority, and so nobody to hand over to
	}
}

// A ShardStatus describes a shard as this node sees it.
type ShardStatus struct {
	Name    string
	Leader  cluster.Leader
	Applied uint64
	Commit  uint64 // of the SQL shard; never less than Applied
	Err     error  // why this node takes no part in the shard, or nil
}

// Shards describes the node's shards, that of SQL first. It asks no other node.
func (n *Node) Shards(ctx context.Context) []ShardStatus {
	paused := n.pausedError()
	all := make([]ShardStatus, len(n.shards))
	for i, s := range n.shards {
		status := ShardStatus{Name: s.name, Leader: s.raft.Leader(), Applied: s.machine.Applied(), Err: s.machine.Err()}
		if status.Err == nil {
			status.Err = paused
		}
		status.Commit = status.Applied
		if s.id == sqlID {
			if commit, err := s.raft.Commit(ctx); err == nil { // an error only means that Raft is busy
				status.Commit = max(commit, status.Applied)
			}
		}
		all[i] = status
	}
	return all
}
