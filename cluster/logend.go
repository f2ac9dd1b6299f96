package cluster

import (
	"errors"
	"fmt"
	"sync"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// logEnds has what Raft knows of the ends of all logs.
type logEnds struct {
	mu     sync.Mutex
	shards map[uint64]*shardEnd // guarded by mu
}

type shardEnd struct {
	replica   uint64
	committed uint64 // index of the last entry known to be committed; may be beyond the log
	term      uint64 // the latest term known here; never decreases
}

// A logEnd says where a shard's log ends on this node.
type logEnd struct {
	last      uint64 // index of the last entry on disk
	committed uint64 // as in shardEnd
	term      uint64
}

// loaded records what the log held at the start. A shard that is known already is
// left alone.
func (e *logEnds) loaded(shard, replica, snapshot uint64, s raftpb.State) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.shards[shard] == nil {
		*e.shard(shard, replica) = shardEnd{replica: replica, committed: max(s.Commit, snapshot), term: s.Term}
	}
}

// shard returns what is known about a shard. The caller holds mu.
func (e *logEnds) shard(shard, replica uint64) *shardEnd {
	if e.shards == nil {
		e.shards = map[uint64]*shardEnd{}
	}
	s := e.shards[shard]
	if s == nil {
		s = &shardEnd{replica: replica}
		e.shards[shard] = s
	}
	return s
}

// saved records what was written to disk.
func (e *logEnds) saved(updates []raftpb.Update) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range updates {
		u := &updates[i]
		s := e.shard(u.ShardID, u.ReplicaID)
		s.committed = max(s.committed, u.Snapshot.Index, u.State.Commit)
		s.term = max(s.term, u.State.Term)
	}
}

// lastIndex returns the index of the last entry, or that of the snapshot if there
// is no entry after it.
func lastIndex(snapshot uint64, s raftio.RaftState) uint64 {
	if s.EntryCount == 0 {
		return snapshot
	}
	return max(snapshot, s.FirstIndex+s.EntryCount-1)
}

// end returns where a shard's log ends. It returns false for a shard whose log was
// not read since the start.
func (l *raftLog) end(shard uint64) (logEnd, bool) {
	s, ok := l.known(shard)
	if !ok {
		return logEnd{}, false
	}
	return logEnd{last: l.Last(shard, s.replica), committed: s.committed, term: s.term}, true
}

// known returns what Raft knows of the end of a shard's log.
func (l *raftLog) known(shard uint64) (shardEnd, bool) {
	if l == nil {
		return shardEnd{}, false
	}
	l.ends.mu.Lock()
	defer l.ends.mu.Unlock()
	if s := l.ends.shards[shard]; s != nil {
		return *s, true
	}
	return shardEnd{}, false
}

// tookPart reports whether this node may have voted or acknowledged entries, in any
// shard. A log begins with term 1, and the first election has term 2.
func (l *raftLog) tookPart() bool {
	if l == nil {
		return false
	}
	l.ends.mu.Lock()
	defer l.ends.mu.Unlock()
	for _, s := range l.ends.shards {
		if s.term > 1 {
			return true
		}
	}
	return false
}

// committed returns, by shard, the index of the last entry that is on disk and
// known to be committed.
func (l *raftLog) committed() map[uint64]uint64 {
	all := map[uint64]uint64{}
	if l == nil {
		return all
	}
	l.ends.mu.Lock()
	defer l.ends.mu.Unlock()
	for shard, s := range l.ends.shards {
		if index := min(s.committed, l.Last(shard, s.replica)); index > 0 {
			all[shard] = index
		}
	}
	return all
}

// term returns the term of an entry. It returns false if the log does not have the
// entry, or not any more.
func (l *raftLog) term(shard, index uint64) (uint64, bool) {
	s, ok := l.known(shard)
	if !ok || index == 0 {
		return 0, false
	}
	return l.readTerm(shard, s.replica, index)
}

// readTerm returns the term of a replica's entry.
func (l *raftLog) readTerm(shard, replica, index uint64) (uint64, bool) {
	term, ok, err := l.Log.Term(shard, replica, index)
	l.report(err)
	return term, ok && err == nil
}

// Term returns the term of an entry, or 0 if the log does not have the entry any
// more. It may be called from the machine's Update, for the entries handed to
// it.
func (s *Shard) Term(index uint64) uint64 {
	term, _ := s.host.raftLog.term(s.cfg.ID, index)
	return term
}

// CheckLog reports, before the shard is started, why its log does not fit a machine
// whose last applied entry has the given index and term. A term of 0 is one that
// the machine does not know; a machine in memory has applied nothing, 0 and 0. If a
// log ended before the applied index, Raft would write new entries up to that index
// and the machine would never apply them.
func (s *Shard) CheckLog(applied, term uint64) error {
	log := s.host.raftLog
	snapshot, err := log.GetSnapshot(s.cfg.ID, s.replica)
	if err != nil {
		return fmt.Errorf("the Raft log of shard %s cannot be read: %w", s.cfg.Name, err)
	}
	state, err := log.Log.ReadRaftState(s.cfg.ID, s.replica, snapshot.Index)
	if err != nil && !errors.Is(err, raftio.ErrNoSavedLog) {
		return fmt.Errorf("the Raft log of shard %s cannot be read: %w", s.cfg.Name, err)
	}
	last := lastIndex(snapshot.Index, state)
	if err := s.checkSnapshotExists(snapshot); err != nil {
		return err
	}
	switch had := s.host.guard.committed(s.cfg.ID); {
	case last < had:
		return fmt.Errorf("the Raft log of shard %s ends at entry %d, but had entry %d", s.cfg.Name, last, had)
	case state.State.Commit > last:
		return fmt.Errorf("the Raft log of shard %s ends at entry %d, but entry %d was committed", s.cfg.Name, last, state.State.Commit)
	case applied > last:
		return fmt.Errorf("the Raft log ends at entry %d, but the database holds entry %d", last, applied)
	case applied == 0 || term == 0:
		return nil
	}
	if logged, ok := log.readTerm(s.cfg.ID, s.replica, applied); ok && logged != term {
		return fmt.Errorf("the database holds entry %d of term %d, but the Raft log has another one there, of term %d", applied, term, logged)
	}
	return nil
}
