package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/lni/dragonboat/v4"
)

const (
	// firstAttemptTimeout bounds the first attempt of a request that Raft may lose
	// without a word: a new leader forgets the read indexes that its predecessor was
	// asked for, and a full queue or a broken connection drops messages. The bound
	// doubles with each attempt, up to attemptTimeout.
	firstAttemptTimeout = 250 * time.Millisecond
	attemptTimeout      = time.Second

	// retryPause is the time between attempts of a request that was refused at once
	// (because leadership is being transferred, or a queue is full), when no event
	// announces that it would be accepted.
	retryPause = 20 * time.Millisecond

	// settleTime is the time before leadership is transferred. A node refuses to
	// take over before it has applied all entries that it knows to be committed, and
	// the old leader then drops every proposal until an election timeout is over. The
	// pause lets the other node apply the entries that were just written.
	settleTime = 10 * time.Millisecond
)

// Leader is who leads a shard, as far as this node knows.
type Leader struct{ Node, Term uint64 } // Node 0: no leader is known

// setLeader is called from Dragonboat's event goroutine.
func (s *Shard) setLeader(l Leader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l == s.leader || s.ctx.Err() != nil {
		return
	}
	if l.Node == 0 && s.leader.Node != 0 {
		s.leaderLostAt = time.Now()
	}
	s.leader = l
	close(s.changed)
	s.changed = make(chan struct{})
}

// Leader returns who leads, as far as this node knows. A node that is cut off keeps
// naming its former leader for up to an election timeout.
func (s *Shard) Leader() Leader {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return Leader{}
	}
	return s.leader
}

// Leaderless returns for how long this node has not known a leader; 0 if it knows
// one.
func (s *Shard) Leaderless() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leader.Node != 0 && s.ctx.Err() == nil {
		return 0
	}
	return time.Since(s.leaderLostAt)
}

// LeaderChanged returns a channel that is closed when the leader or the term
// changes next. To miss no change, call it before Leader. The channel stays open
// when the shard ends: see Done.
func (s *Shard) LeaderChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Done returns a channel that is closed when the shard has ended.
func (s *Shard) Done() <-chan struct{} { return s.ctx.Done() }

// WaitLeader returns once a leader is known. If ctx ends first, the error is
// ErrNoLeader, wrapping that of ctx.
func (s *Shard) WaitLeader(ctx context.Context) error {
	for {
		changed := s.LeaderChanged()
		if s.ctx.Err() != nil {
			return ErrClosed
		}
		if s.Leader().Node != 0 {
			return nil
		}
		select {
		case <-changed:
		case <-s.Done():
		case <-ctx.Done():
			return s.unanswered(ctx)
		}
	}
}

// unanswered returns the error for a request that no leader answered before ctx
// ended. If a leader is known and the caller cancelled ctx, that is no lack of a
// leader: the error is that of ctx alone.
func (s *Shard) unanswered(ctx context.Context) error {
	err, leader := ctx.Err(), s.Leader().Node
	switch {
	case leader == 0:
		return fmt.Errorf("%w: %w", ErrNoLeader, err)
	case errors.Is(err, context.Canceled):
		return err
	}
	return fmt.Errorf("%w: node %d led and did not answer: %w", ErrNoLeader, leader, err)
}

// call calls f with the NodeHost, which is not closed before f returns, so f must not
// block for long. If the shard does not run yet, call returns
// dragonboat.ErrShardNotReady.
func (s *Shard) call(f func(nh *dragonboat.NodeHost) error) error {
	s.host.gate.RLock()
	defer s.host.gate.RUnlock()
	if s.host.nh == nil || s.ctx.Err() != nil {
		return ErrClosed
	}
	s.mu.Lock()
	phase := s.phase
	s.mu.Unlock()
	if phase != running {
		return dragonboat.ErrShardNotReady
	}
	err := f(s.host.nh)
	if isClosed(err) {
		s.stop() // the replica was removed from its shard, so Dragonboat has stopped it
		return ErrClosed
	}
	return err
}

func isClosed(err error) bool {
	return errors.Is(err, dragonboat.ErrClosed) || errors.Is(err, dragonboat.ErrShardClosed) ||
		errors.Is(err, dragonboat.ErrShardNotFound)
}

// Propose hands cmd to Raft and returns at once; the outcome arrives through
// AppliedC of the result, within about timeout. cmd is copied. An error means that
// nothing was proposed. It is ErrClosed, or an error that passes by itself:
// dragonboat.ErrSystemBusy or ErrShardNotReady. Most callers want a Combiner.
func (s *Shard) Propose(cmd []byte, timeout time.Duration) (*dragonboat.RequestState, error) {
	var rs *dragonboat.RequestState
	err := s.call(func(nh *dragonboat.NodeHost) (err error) {
		rs, err = nh.Propose(s.session, cmd, timeout)
		return err
	})
	return rs, err
}

// sleep waits for d, or until changed is closed, ctx ends, or the shard ends.
func (s *Shard) sleep(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	case <-s.Done():
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// transferLeadership transfers leadership to one of the other nodes that can be reached. It
// does its best until ctx ends. A leader that asks a dead node to take over drops
// every proposal for an election timeout, which is why the caller looks first
// which nodes can be reached. If the chosen node still does not take over, the
// other nodes elect a leader after that time.
func (s *Shard) transferLeadership(ctx context.Context, reachable []uint64) {
	for _, to := range reachable {
		_ = s.sleep(ctx, nil, settleTime)
		changed := s.LeaderChanged()
		if s.Leader().Node != s.host.cfg.Node {
			return
		}
		err := s.call(func(nh *dragonboat.NodeHost) error {
			return nh.RequestLeaderTransfer(s.cfg.ID, replicaID(to))
		})
		if err != nil || s.sleep(ctx, changed, transferTime/2) != nil {
			return
		}
	}
}

// Compact removes from the log the entries that are more than keepEntries before
// the applied index. A replica that needs older ones is sent a snapshot. Compact
// returns once that is recorded, after the machine's Sync; the space is freed in
// the background. It is not an error if there is nothing to remove. If ctx ends
// first, its error is returned, and the compaction may still happen.
func (s *Shard) Compact(ctx context.Context, keepEntries uint64) error {
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("hiqlite: compact: %w", err)
		}
		var rs *dragonboat.RequestState
		err := s.call(func(nh *dragonboat.NodeHost) (err error) {
			// For a machine on disk the "snapshot" is a record without data.
			rs, err = nh.RequestSnapshot(s.cfg.ID, dragonboat.SnapshotOption{
				OverrideCompactionOverhead: true,
				CompactionOverhead:         keepEntries,
			}, time.Minute)
			return err
		})
		if errors.Is(err, dragonboat.ErrSystemBusy) || errors.Is(err, dragonboat.ErrShardNotReady) {
			_ = s.sleep(ctx, nil, retryPause) // another compaction is running
			continue
		} else if err != nil {
			return err
		}
		select {
		case r := <-rs.AppliedC():
			if r.Completed() || r.Rejected() { // rejected: there is no entry since the last compaction
				return nil
			}
			if r.Terminated() {
				return ErrClosed
			}
			return errors.New("hiqlite: compact: aborted or timed out")
		case <-s.Done():
			return ErrClosed
		case <-ctx.Done():
		}
	}
}

// Commit returns the index of the last entry that this node knows to be committed,
// or 0 while the shard does not run yet. It asks Raft's own goroutine, which takes
// microseconds unless that goroutine is busy.
func (s *Shard) Commit(ctx context.Context) (uint64, error) {
	var rs *dragonboat.RequestState
	err := s.call(func(nh *dragonboat.NodeHost) (err error) {
		// There are no entries beyond every index, but the answer says where the
		// committed ones end.
		rs, err = nh.QueryRaftLog(s.cfg.ID, math.MaxUint64-1, math.MaxUint64, 0)
		return err
	})
	if errors.Is(err, dragonboat.ErrShardNotReady) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	select {
	case r := <-rs.AppliedC():
		if r.Terminated() {
			return 0, ErrClosed
		}
		_, logs := r.RaftLogs()
		return logs.LastIndex - 1, nil
	case <-s.Done():
		return 0, ErrClosed
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
