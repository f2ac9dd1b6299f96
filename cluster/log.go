package cluster

import (
	"errors"
	"slices"
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
// write, and sync, that nothing has changed but the commit index: that goes with
// the next entry. Dragonboat does so for each entry, and the next one waits for
// it.
//
// Raft needs an entry, the term and the vote on disk before they are told, and
// these are. The commit index it learns again from the next leader. What is
// committed is not forgotten by that: it is in the logs of a majority. Three
// things rely on the one on disk:
//   - A log that was compacted must not be reloaded with one before its snapshot.
//     ReadRaftState sees to that: a snapshot holds nothing that is not committed.
//   - A node must not campaign with a change of members that is committed but not
//     applied. So with one among what is committed the index is written.
//   - A machine on disk must not have applied more than its log says is
//     committed. Such shards are left alone.
type raftLog struct {
	raftio.ILogDB
	memory *sync.Map // shard id -> true

	mu     sync.Mutex
	states map[raftio.NodeInfo]*hardState // since the start

	ends ends
}

// A hardState is what Raft keeps beside its entries.
type hardState struct {
	saved  raftpb.State // as it was last written
	latest raftpb.State // as it is
}

// logFactory makes a raftLog; it knows which shards are in memory, and tells
// which log it has made.
type logFactory struct {
	memory  *sync.Map
	disk    *diskWatch
	created func(*raftLog)
}

func (logFactory) Name() string { return defaultLogName }

func (f logFactory) Create(cfg config.NodeHostConfig, cb config.LogDBCallback, dirs, wals []string) (raftio.ILogDB, error) {
	cfg.Expert.FS = f.disk.wrapped()
	log, err := newDefaultLog(cfg, cb, dirs, wals)
	if err != nil {
		return nil, err
	}
	// Dragonboat does this with its own type only.
	if check, ok := log.(interface{ SelfCheckFailed() (bool, error) }); ok {
		failed, err := check.SelfCheckFailed()
		if err == nil && failed {
			err = errors.New("the log was written by an incompatible version")
		}
		if err != nil {
			return nil, errors.Join(err, log.Close())
		}
	}
	l := &raftLog{ILogDB: log, memory: f.memory, states: map[raftio.NodeInfo]*hardState{}}
	f.created(l)
	return l, nil
}

// SaveRaftState implements raftio.ILogDB.
func (l *raftLog) SaveRaftState(updates []raftpb.Update, worker uint64) error {
	needed := make([]raftpb.Update, 0, len(updates))
	l.mu.Lock()
	for _, u := range updates {
		if _, ok := l.memory.Load(u.ShardID); !ok || l.needed(&u) {
			needed = append(needed, u)
		}
	}
	l.mu.Unlock()
	if len(needed) > 0 {
		if err := l.ILogDB.SaveRaftState(needed, worker); err != nil {
			return err
		}
	}
	l.ends.saved(updates)
	return nil
}

// needed reports whether an update of a shard in memory has more than a commit
// index. One that does gets the commit indexes that were left out before it.
func (l *raftLog) needed(u *raftpb.Update) bool {
	replica := raftio.GetNodeInfo(u.ShardID, u.ReplicaID)
	s := l.states[replica]
	if s == nil {
		s = new(hardState)
		l.states[replica] = s
	}
	if !raftpb.IsEmptyState(u.State) {
		s.latest = u.State
	}
	if s.latest.Term == s.saved.Term && s.latest.Vote == s.saved.Vote &&
		len(u.EntriesToSave) == 0 && raftpb.IsEmptySnapshot(u.Snapshot) && !changesMembers(u.CommittedEntries) {
		return false
	}
	u.State, s.saved = s.latest, s.latest
	return true
}

func changesMembers(entries []raftpb.Entry) bool {
	return slices.ContainsFunc(entries, func(e raftpb.Entry) bool { return e.Type == raftpb.ConfigChangeEntry })
}

// ReadRaftState implements raftio.ILogDB.
func (l *raftLog) ReadRaftState(shard, replica, snapshot uint64) (raftio.RaftState, error) {
	s, err := l.ILogDB.ReadRaftState(shard, replica, snapshot)
	if _, ok := l.memory.Load(shard); ok && err == nil {
		s.State.Commit = max(s.State.Commit, snapshot)
	}
	if err == nil || errors.Is(err, raftio.ErrNoSavedLog) {
		l.ends.read(shard, replica, snapshot, s)
	}
	return s, err
}
