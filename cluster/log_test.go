package cluster

import (
	"sync"
	"testing"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// recordingLog is a log that keeps the updates that it is given.
type recordingLog struct {
	raftio.ILogDB
	saved []raftpb.Update
	state raftio.RaftState
}

func (l *recordingLog) SaveRaftState(updates []raftpb.Update, _ uint64) error {
	l.saved = append(l.saved, updates...)
	return nil
}

func (l *recordingLog) ReadRaftState(_, _, _ uint64) (raftio.RaftState, error) { return l.state, nil }

const onDisk, inMemory = 1, 2 // shards

// newTestLog returns a raftLog and the log that it writes to.
func newTestLog() (*raftLog, *recordingLog) {
	under, shards := &recordingLog{}, &sync.Map{}
	shards.Store(uint64(inMemory), true)
	return &raftLog{ILogDB: under, inMemory: shards, states: map[raftio.NodeInfo]*hardState{}}, under
}

func entries(kind raftpb.EntryType) []raftpb.Entry { return []raftpb.Entry{{Type: kind, Index: 9}} }

// Of a shard in memory, an update is not written if only its commit index has
// changed. The commit index is written with the next update.
func TestUpdatesOfCommitIndexesAreNotWritten(t *testing.T) {
	state := func(term, vote, commit uint64) raftpb.State {
		return raftpb.State{Term: term, Vote: vote, Commit: commit}
	}
	log, under := newTestLog()
	for _, step := range []struct {
		what   string
		u      raftpb.Update
		saved  bool
		commit uint64 // the commit index that is written
	}{
		{"the first state", raftpb.Update{State: state(1, 0, 1)}, true, 1},
		{"a commit index", raftpb.Update{State: state(1, 0, 2)}, false, 0},
		{"nothing", raftpb.Update{CommittedEntries: entries(raftpb.ApplicationEntry)}, false, 0},
		{"entries without a state", raftpb.Update{EntriesToSave: entries(raftpb.ApplicationEntry)}, true, 2},
		{"a commit index", raftpb.Update{State: state(1, 0, 3)}, false, 0},
		{"a vote", raftpb.Update{State: state(1, 2, 3)}, true, 3},
		{"a term", raftpb.Update{State: state(2, 2, 3)}, true, 3},
		{"a commit index", raftpb.Update{State: state(2, 2, 4)}, false, 0},
		{"a change of members that is committed", raftpb.Update{CommittedEntries: entries(raftpb.ConfigChangeEntry)}, true, 4},
		{"a commit index", raftpb.Update{State: state(2, 2, 5)}, false, 0},
		{"a snapshot", raftpb.Update{Snapshot: raftpb.Snapshot{Index: 5, Term: 2}}, true, 5},
	} {
		under.saved = nil
		step.u.ShardID, step.u.ReplicaID = inMemory, 1
		if err := log.SaveRaftState([]raftpb.Update{step.u}, 1); err != nil {
			t.Fatal(err)
		}
		if (len(under.saved) == 1) != step.saved {
			t.Fatalf("%s is written: %v", step.what, !step.saved)
		}
		if step.saved && under.saved[0].State.Commit != step.commit {
			t.Errorf("with %s the commit index %d is written, want %d", step.what, under.saved[0].State.Commit, step.commit)
		}
	}
	// All updates of a shard on disk are written unchanged.
	under.saved = nil
	u := raftpb.Update{ShardID: onDisk, ReplicaID: 1, State: state(1, 0, 7)}
	for range 2 {
		if err := log.SaveRaftState([]raftpb.Update{u}, 1); err != nil {
			t.Fatal(err)
		}
	}
	if len(under.saved) != 2 {
		t.Errorf("%d of 2 updates are written", len(under.saved))
	}
}

// The commit index of a shard in memory is never before its snapshot.
func TestCommitIndexIsNotBeforeSnapshot(t *testing.T) {
	log, under := newTestLog()
	under.state.State.Commit = 3
	for shard, want := range map[uint64]uint64{inMemory: 8, onDisk: 3} {
		s, err := log.ReadRaftState(shard, 1, 8)
		if err != nil || s.State.Commit != want {
			t.Errorf("shard %d: the commit index is %d, %v, want %d", shard, s.State.Commit, err, want)
		}
	}
	if s, err := log.ReadRaftState(inMemory, 1, 2); err != nil || s.State.Commit != 3 {
		t.Errorf("the commit index is %d, %v, want 3", s.State.Commit, err)
	}
}
