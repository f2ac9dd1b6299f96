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

// newDefaultLog makes Dragonboat's own log, which Dragonboat does not export. A
// build against a version without this function fails to link.
//
//go:linkname newDefaultLog github.com/lni/dragonboat/v4/internal/logdb.NewDefaultLogDB
func newDefaultLog(config.NodeHostConfig, config.LogDBCallback, []string, []string) (raftio.ILogDB, error)

// defaultLogName is the name that Dragonboat writes into a folder with its default
// log.
const defaultLogName = "sharded-pebble"

// raftLog is Dragonboat's default log with one difference: it does not write (and
// sync) an update of a shard in memory in which only the commit index has changed.
// It writes that commit index with the next update. Dragonboat would write it for
// each entry, and the next entry would wait for that.
//
// Raft must have an entry, the term and the vote on disk before it tells other
// nodes, and these are always written. It learns the commit index again from the
// next leader, and no committed entry is lost, because committed entries are in the
// logs of a majority. Three things rely on the commit index on disk:
//   - Raft must not load a log that was compacted with a commit index before its
//     snapshot. ReadRaftState raises the commit index to that of the snapshot, which
//     holds only committed entries.
//   - A node must not campaign if a change of members is committed and it has not
//     applied it. So the commit index is written if there is a change of members among
//     the committed entries.
//   - A machine on disk must not have applied more than its log says is committed.
//     All updates of such shards are written.
type raftLog struct {
	raftio.ILogDB
	inMemory *sync.Map // shard id -> true

	mu     sync.Mutex
	states map[raftio.NodeInfo]*hardState // of updates since the start; guarded by mu

	ends logEnds
}

// A hardState is what Raft stores beside its entries.
type hardState struct {
	saved  raftpb.State // as it was last written
	latest raftpb.State // as of the last update; only its commit index may differ from saved
}

// logFactory makes the raftLog of a host.
type logFactory struct {
	inMemory *sync.Map
	disk     *diskWatch
	created  func(*raftLog) // is called with the log
}

func (logFactory) Name() string { return defaultLogName }

func (f logFactory) Create(cfg config.NodeHostConfig, cb config.LogDBCallback, dirs, wals []string) (raftio.ILogDB, error) {
	cfg.Expert.FS = f.disk.wrapped()
	log, err := newDefaultLog(cfg, cb, dirs, wals)
	if err != nil {
		return nil, err
	}
	// Dragonboat checks this itself only for logs of its own type.
	if check, ok := log.(interface{ SelfCheckFailed() (bool, error) }); ok {
		failed, err := check.SelfCheckFailed()
		if err == nil && failed {
			err = errors.New("the log was written by an incompatible version")
		}
		if err != nil {
			return nil, errors.Join(err, log.Close())
		}
	}
	l := &raftLog{ILogDB: log, inMemory: f.inMemory, states: map[raftio.NodeInfo]*hardState{}}
	f.created(l)
	return l, nil
}

// SaveRaftState implements raftio.ILogDB.
func (l *raftLog) SaveRaftState(updates []raftpb.Update, worker uint64) error {
	needed := make([]raftpb.Update, 0, len(updates))
	l.mu.Lock()
	for _, u := range updates {
		if _, ok := l.inMemory.Load(u.ShardID); !ok || l.mustWrite(&u) {
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

// mustWrite reports whether an update of a shard in memory changes more than the
// commit index. If so it adds to the update the latest commit index, which earlier
// updates may have left out. The caller holds mu.
func (l *raftLog) mustWrite(u *raftpb.Update) bool {
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
	if _, ok := l.inMemory.Load(shard); ok && err == nil {
		s.State.Commit = max(s.State.Commit, snapshot)
	}
	if err == nil || errors.Is(err, raftio.ErrNoSavedLog) {
		l.ends.loaded(shard, replica, snapshot, s)
	}
	return s, err
}
