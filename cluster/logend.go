package cluster

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// A logEnd says where a shard's log ends on this node.
type logEnd struct {
	last      uint64 // index of the last entry on disk
	committed uint64 // index of the last entry known to be committed; may be beyond last
	term      uint64 // the latest term known here; never decreases
}

// logEnds has the ends of all logs, and the terms of entries saved since the start.
type logEnds struct {
	mu     sync.Mutex
	shards map[uint64]*shardEnd // guarded by mu
}

type shardEnd struct {
	logEnd
	replica uint64
	runs    []termRun // of entries saved since the start, by increasing index; at most maxRuns
}

// A termRun is a run of consecutive entries of the same term, which ends where the
// next run begins.
type termRun struct{ first, term uint64 }

// maxRuns bounds the runs that are kept in memory for a shard. The terms of entries
// before them are read from the log.
const maxRuns = 256

// loaded records what the log held at the start. A shard that is known already is
// left alone.
func (e *logEnds) loaded(shard, replica, snapshot uint64, s raftio.RaftState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.shards[shard] != nil {
		return
	}
	e.put(shard, &shardEnd{replica: replica, logEnd: logEnd{last: lastIndex(snapshot, s), committed: max(s.State.Commit, snapshot), term: s.State.Term}})
}

func (e *logEnds) put(shard uint64, s *shardEnd) *shardEnd {
	if e.shards == nil {
		e.shards = map[uint64]*shardEnd{}
	}
	e.shards[shard] = s
	return s
}

// lastIndex returns the index of the last entry, or that of the snapshot if there
// is no entry after it.
func lastIndex(snapshot uint64, s raftio.RaftState) uint64 {
	if s.EntryCount == 0 {
		return snapshot
	}
	return max(snapshot, s.FirstIndex+s.EntryCount-1)
}

// saved records what was written to disk.
func (e *logEnds) saved(updates []raftpb.Update) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range updates {
		u := &updates[i]
		s := e.shards[u.ShardID]
		if s == nil {
			s = e.put(u.ShardID, &shardEnd{replica: u.ReplicaID})
		}
		if ss := u.Snapshot; !raftpb.IsEmptySnapshot(ss) && ss.Index > s.last {
			s.last, s.runs = ss.Index, []termRun{{ss.Index, ss.Term}}
			s.committed = max(s.committed, ss.Index)
		}
		for j := range u.EntriesToSave {
			s.add(u.EntriesToSave[j].Index, u.EntriesToSave[j].Term)
		}
		s.committed = max(s.committed, u.State.Commit)
		s.term = max(s.term, u.State.Term)
	}
}

// add records an entry, which replaces all entries from its index on.
func (s *shardEnd) add(index, term uint64) {
	if index <= s.last {
		for len(s.runs) > 0 && s.runs[len(s.runs)-1].first >= index {
			s.runs = s.runs[:len(s.runs)-1]
		}
	}
	if n := len(s.runs); n == 0 || s.runs[n-1].term != term {
		if n == maxRuns {
			s.runs = append(s.runs[:0], s.runs[n/2:]...)
		}
		s.runs = append(s.runs, termRun{index, term})
	}
	s.last = index
}

// end returns where a shard's log ends. It returns false for a shard whose log was
// not read since the start.
func (l *raftLog) end(shard uint64) (logEnd, bool) {
	if l == nil {
		return logEnd{}, false
	}
	l.ends.mu.Lock()
	defer l.ends.mu.Unlock()
	s := l.ends.shards[shard]
	if s == nil {
		return logEnd{}, false
	}
	return s.logEnd, true
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
		if s.logEnd.term > 1 {
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
		if index := min(s.logEnd.committed, s.last); index > 0 {
			all[shard] = index
		}
	}
	return all
}

// term returns the term of an entry. It returns false if the log does not have the
// entry, or not any more.
func (l *raftLog) term(shard, index uint64) (uint64, bool) {
	if l == nil || index == 0 {
		return 0, false
	}
	l.ends.mu.Lock()
	s := l.ends.shards[shard]
	if s == nil || index > s.last {
		l.ends.mu.Unlock()
		return 0, false
	}
	replica := s.replica
	for i := len(s.runs) - 1; i >= 0; i-- {
		if s.runs[i].first <= index {
			defer l.ends.mu.Unlock()
			return s.runs[i].term, true
		}
	}
	l.ends.mu.Unlock()
	return l.readTerm(shard, replica, index)
}

// readTerm reads the term of an entry from the disk.
func (l *raftLog) readTerm(shard, replica, index uint64) (uint64, bool) {
	// Two entries are asked for, because Dragonboat panics when it is asked for a
	// single one that was removed, as those before a snapshot are.
	entries, _, err := l.ILogDB.IterateEntries(nil, 0, shard, replica, index, index+2, math.MaxUint64)
	if err == nil && len(entries) > 0 && entries[0].Index == index {
		return entries[0].Term, true
	}
	if ss, err := l.ILogDB.GetSnapshot(shard, replica); err == nil && ss.Index == index {
		return ss.Term, true
	}
	return 0, false
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
	state, err := log.ILogDB.ReadRaftState(s.cfg.ID, s.replica, snapshot.Index)
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
