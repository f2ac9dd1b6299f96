package cluster

import (
	"sync"
	_ "unsafe" // for go:linkname

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// newDefaultLog is Dragonboat's own log, which it gives to nobody but itself. A
// build against a Dragonboat without this function fails to link.
//
//go:linkname newDefaultLog github.com/lni/dragonboat/v4/internal/logdb.NewDefaultLogDB
func newDefaultLog(config.NodeHostConfig, config.LogDBCallback, []string, []string) (raftio.ILogDB, error)

// defaultLogName is what Dragonboat writes into a folder with its default log.
const defaultLogName = "sharded-pebble"

// raftLog is Dragonboat's default log, but for shards in memory it does not
// write, and sync, that nothing has changed but the commit index. Dragonboat
// does so once for each entry, and the next one waits for it.
//
// Raft needs an entry, the term and the vote on disk before they are told, and
// these are. The commit index it learns again from the next leader. What is
// committed is not forgotten by that: it is in the logs of a majority. Two things
// rely on the one on disk: a log that was compacted must not be reloaded with one
// before its snapshot, which ReadRaftState sees to, as a snapshot holds nothing
// that is not committed; and a machine on disk must not have applied more than
// its log says is committed, so such shards are left alone.
type raftLog struct {
	raftio.ILogDB
	memory *sync.Map // shard id -> true

	mu    sync.Mutex
	saved map[raftio.NodeInfo]raftpb.State // as of the last write since the start
}

// logFactory makes a raftLog; it knows which shards are in memory.
type logFactory struct{ memory *sync.Map }

func (logFactory) Name() string { return defaultLogName }

func (f logFactory) Create(cfg config.NodeHostConfig, cb config.LogDBCallback, dirs, wals []string) (raftio.ILogDB, error) {
	log, err := newDefaultLog(cfg, cb, dirs, wals)
	if err != nil {
		return nil, err
	}
	return &raftLog{ILogDB: log, memory: f.memory, saved: map[raftio.NodeInfo]raftpb.State{}}, nil
}

// SaveRaftState implements raftio.ILogDB.
func (l *raftLog) SaveRaftState(updates []raftpb.Update, worker uint64) error {
	needed := make([]raftpb.Update, 0, len(updates))
	l.mu.Lock()
	for _, u := range updates {
		if l.needed(u) {
			needed = append(needed, u)
		}
	}
	l.mu.Unlock()
	if len(needed) == 0 {
		return nil
	}
	return l.ILogDB.SaveRaftState(needed, worker)
}

// needed reports whether an update has more than a commit index.
func (l *raftLog) needed(u raftpb.Update) bool {
	if _, ok := l.memory.Load(u.ShardID); !ok {
		return true
	}
	replica := raftio.GetNodeInfo(u.ShardID, u.ReplicaID)
	last, known := l.saved[replica]
	sameState := raftpb.IsEmptyState(u.State) || known && u.State.Term == last.Term && u.State.Vote == last.Vote
	if sameState && len(u.EntriesToSave) == 0 && raftpb.IsEmptySnapshot(u.Snapshot) {
		return false
	}
	if !raftpb.IsEmptyState(u.State) {
		l.saved[replica] = u.State
	}
	return true
}

// ReadRaftState implements raftio.ILogDB.
func (l *raftLog) ReadRaftState(shard, replica, snapshot uint64) (raftio.RaftState, error) {
	s, err := l.ILogDB.ReadRaftState(shard, replica, snapshot)
	if err == nil {
		s.State.Commit = max(s.State.Commit, snapshot)
	}
	return s, err
}
