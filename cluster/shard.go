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
	// firstAttempt and attempt bound the first and the later tries of a request
	// that Raft may lose without a word: a new leader forgets read indexes, a
	// full queue or a connection that is still down drops messages. They double.
	firstAttempt = 250 * time.Millisecond
	attempt      = time.Second

	// pause stands between tries of a request that was refused at once (a
	// transfer is under way, a queue is full) when no event announces that it
	// would be taken now.
	pause = 20 * time.Millisecond

	// settle stands before a transfer of leadership. The target refuses, and
	// the leader then drops every proposal until an election timeout is over,
	// if it has not applied all it knows to be committed: give it the time for
	// the entries just written.
	settle = 10 * time.Millisecond
)

// Leader is who leads a shard, as this node knows it.
type Leader struct{ Node, Term uint64 } // Node 0: none known

// setLeader is called from Dragonboat's event goroutine.
func (s *Shard) setLeader(l Leader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l == s.leader || s.ctx.Err() != nil {
		return
	}
	if l.Node == 0 && s.leader.Node != 0 {
		s.lost = time.Now()
	}
	s.leader = l
	close(s.changed)
	s.changed = make(chan struct{})
}

// Leader returns who leads, as this node knows it. A node that is cut off keeps
// naming its leader for up to an election timeout.
func (s *Shard) Leader() Leader {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return Leader{}
	}
	return s.leader
}

// Leaderless returns for how long this node has known no leader; 0 if it does.
func (s *Shard) Leaderless() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leader.Node != 0 && s.ctx.Err() == nil {
		return 0
	}
	return time.Since(s.lost)
}

// LeaderChanged returns a channel that is closed at the next change of leader
// or term. To miss none, get it before calling Leader. After the shard is
// stopped it stays open: see Done.
func (s *Shard) LeaderChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Done returns a channel that is closed when the shard is stopped or its host
// is closed.
func (s *Shard) Done() <-chan struct{} { return s.ctx.Done() }

// WaitLeader returns once a leader is known. When ctx ends first the error is
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
			return s.noLeader(ctx)
		}
	}
}

// noLeader is why something that a leader has to answer was not answered before
// ctx ended. To cancel it is the caller's business, as long as there is a leader.
func (s *Shard) noLeader(ctx context.Context) error {
	err, leader := ctx.Err(), s.Leader().Node
	switch {
	case leader == 0:
		return fmt.Errorf("%w: %w", ErrNoLeader, err)
	case errors.Is(err, context.Canceled):
		return err
	}
	return fmt.Errorf("%w: node %d led and did not answer: %w", ErrNoLeader, leader, err)
}

// call runs f with the NodeHost, which cannot be closed meanwhile: f must not
// block for long. Before the shard runs the error is dragonboat.ErrShardNotReady.
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
		s.stop() // Dragonboat stops a replica that was removed from its shard
		return ErrClosed
	}
	return err
}

func isClosed(err error) bool {
	return errors.Is(err, dragonboat.ErrClosed) || errors.Is(err, dragonboat.ErrShardClosed) ||
		errors.Is(err, dragonboat.ErrShardNotFound)
}

// Propose hands cmd to Raft and returns at once; the outcome comes by the
// result's AppliedC within about timeout. cmd is copied. An error means that
// nothing was proposed; it is ErrClosed, or passes by itself
// (dragonboat.ErrSystemBusy, ErrShardNotReady). Most callers want a Combiner.
func (s *Shard) Propose(cmd []byte, timeout time.Duration) (*dragonboat.RequestState, error) {
	var rs *dragonboat.RequestState
	err := s.call(func(nh *dragonboat.NodeHost) (err error) {
		rs, err = nh.Propose(s.session, cmd, timeout)
		return err
	})
	return rs, err
}

// ReadIndex returns once this replica has applied everything that was committed
// anywhere before the call. It is retried, within a second or at once when the
// leader changes, until ctx ends: the error is then ErrNoLeader, wrapping that
// of ctx, unless ctx was cancelled while there was a leader. Without one it waits
// for one, as each try would just be dropped.
func (s *Shard) ReadIndex(ctx context.Context) error {
	if err := ctx.Err(); err != nil && s.Leader().Node != 0 {
		return err // nobody was asked
	}
	for patience := firstAttempt; ; patience = min(2*patience, attempt) {
		if ctx.Err() != nil {
			return s.noLeader(ctx)
		}
		if err := s.WaitLeader(ctx); err != nil {
			return err
		}
		changed := s.LeaderChanged()
		var rs *dragonboat.RequestState
		err := s.call(func(nh *dragonboat.NodeHost) (err error) {
			rs, err = nh.ReadIndex(s.cfg.ID, patience)
			return err
		})
		if err == ErrClosed {
			return err
		}
		if err == nil {
			select {
			case r := <-rs.AppliedC():
				rs.Release()
				if r.Completed() {
					return nil
				}
				if r.Timeout() {
					continue
				}
			case <-changed:
				continue // rs belongs to the former leader; the collector takes it
			case <-s.Done():
				return ErrClosed
			case <-ctx.Done():
				return s.noLeader(ctx)
			}
		}
		if err := s.sleep(ctx, changed, pause); err != nil && ctx.Err() != nil {
			return s.noLeader(ctx)
		}
	}
}

// sleep waits for d, less if the leader changes, ctx ends or the shard does.
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

// TransferLeadership returns once node `to` leads. A transfer to a node that
// does not answer, or that at this moment has committed entries to apply (as
// under a constant load of writes), expires silently after an election timeout
// and is asked for again, until ctx ends: the error is then that of ctx.
// Proposals made meanwhile are dropped by Raft and repeated by the combiner.
func (s *Shard) TransferLeadership(ctx context.Context, to uint64) error {
	if _, ok := s.host.cfg.Members[to]; !ok {
		return fmt.Errorf("hiqlite: node %d is not a member", to)
	}
	var asked time.Time
	for {
		changed := s.LeaderChanged()
		if s.Leader().Node == to {
			return nil
		}
		if time.Since(asked) >= attempt/2 {
			_ = s.sleep(ctx, nil, settle)
			err := s.call(func(nh *dragonboat.NodeHost) error {
				return nh.RequestLeaderTransfer(s.cfg.ID, replicaID(to))
			})
			if err != nil && !errors.Is(err, dragonboat.ErrSystemBusy) {
				return err
			}
			asked = time.Now()
		}
		if err := s.sleep(ctx, changed, attempt/2); errors.Is(err, ErrClosed) {
			return err
		} else if err != nil {
			return fmt.Errorf("hiqlite: leadership not transferred to node %d: %w", to, err)
		}
	}
}

// handOver gives up the lead to a peer that can be reached; best effort, until
// ctx ends. A leader that asked a dead peer to take over is stuck with it for an
// election timeout, hence the look before; whoever fails to take over, the
// others elect a leader after that time.
func (s *Shard) handOver(ctx context.Context, reachable []uint64) {
	for _, to := range reachable {
		_ = s.sleep(ctx, nil, settle)
		changed := s.LeaderChanged()
		if s.Leader().Node != s.host.cfg.Node {
			return
		}
		err := s.call(func(nh *dragonboat.NodeHost) error {
			return nh.RequestLeaderTransfer(s.cfg.ID, replicaID(to))
		})
		if err != nil || s.sleep(ctx, changed, handover/2) != nil {
			return
		}
	}
}

// Members returns the members of the shard, voting or not, as of the call: node
// id -> Raft address. Errors are those of ReadIndex.
func (s *Shard) Members(ctx context.Context) (map[uint64]string, error) {
	for {
		if err := s.WaitLeader(ctx); err != nil {
			return nil, err
		}
		members, err := s.members(ctx)
		switch {
		case err == nil:
			return members, nil
		case s.ctx.Err() != nil:
			return nil, ErrClosed
		case ctx.Err() != nil:
			return nil, s.noLeader(ctx)
		}
		_ = s.sleep(ctx, s.LeaderChanged(), pause)
	}
}

func (s *Shard) members(ctx context.Context) (map[uint64]string, error) {
	// Not a child of ctx: Dragonboat panics at errors of a context that are not the usual ones.
	asked, cancel := context.WithTimeout(context.Background(), attempt)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	defer context.AfterFunc(s.ctx, cancel)() // so that Close need not wait
	var members map[uint64]string
	err := s.call(func(nh *dragonboat.NodeHost) error {
		m, err := nh.SyncGetShardMembership(asked, s.cfg.ID)
		if err != nil {
			return err
		}
		members = make(map[uint64]string, len(m.Nodes)+len(m.NonVotings))
		for _, replicas := range []map[uint64]string{m.Nodes, m.NonVotings} {
			for replica, target := range replicas {
				members[nodeID(replica)] = s.host.reg.address(target)
			}
		}
		return nil
	})
	return members, err
}

// Compact lets the log forget the entries that lie more than keepEntries behind
// the applied index; a replica that needs older ones is sent a snapshot. It
// returns once that is recorded (the machine's Sync is called); the space is
// freed in the background. Nothing new to forget is not an error. When ctx ends
// first its error is returned, and the compaction may still happen.
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
			_ = s.sleep(ctx, nil, pause) // one at a time
			continue
		} else if err != nil {
			return err
		}
		select {
		case r := <-rs.AppliedC():
			if r.Completed() || r.Rejected() { // rejected: no entry since the last one
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

// Commit returns the index of the last entry that this node knows to be
// committed; 0 before the shard runs. It asks Raft's own goroutine: microseconds,
// unless that is busy.
func (s *Shard) Commit(ctx context.Context) (uint64, error) {
	var rs *dragonboat.RequestState
	err := s.call(func(nh *dragonboat.NodeHost) (err error) {
		// A range beyond every index has no entries, but its answer tells
		// where the committed ones end.
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

// LogEnd returns the index of the last entry that is in this node's log.
func (s *Shard) LogEnd() (uint64, error) {
	var last uint64
	err := s.call(func(nh *dragonboat.NodeHost) error {
		log, err := nh.GetLogReader(s.cfg.ID)
		if err == nil {
			_, last = log.GetRange()
		}
		return err
	})
	return last, err
}
