package cluster

import (
	"sync"
	"testing"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// recordingLog is a log that keeps what it was last told to write.
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

func newRecordedLog() (*raftLog, *recordingLog) {
	under, memory := &recordingLog{}, &sync.Map{}
	memory.Store(uint64(inMemory), true)
	return &raftLog{ILogDB: under, memory: memory, states: map[raftio.NodeInfo]*hardState{}}, under
}

func entries(kind raftpb.EntryType) []raftpb.Entry { return []raftpb.Entry{{Type: kind, Index: 9}} }

// Only a commit index alone is left out, of a shard in memory; and it goes with
// the next update, so that the one on disk is behind by one entry at most.
func TestOnlyCommitIndexesAreLeftOut(t *testing.T) {
	state := func(term, vote, commit uint64) raftpb.State {
		return raftpb.State{Term: term, Vote: vote, Commit: commit}
	}
	log, under := newRecordedLog()
	for _, step := range []struct {
		what   string
		u      raftpb.Update
		saved  bool
		commit uint64 // that is written
	}{
		{"the first state", raftpb.Update{State: state(1, 0, 1)}, true, 1},
		{"a commit index", raftpb.Update{State: state(1, 0, 2)}, false, 0},
		{"nothing", raftpb.Update{CommittedEntries: entries(raftpb.ApplicationEntry)}, false, 0},
		{"entries, with no news of the state", raftpb.Update{EntriesToSave: entries(raftpb.ApplicationEntry)}, true, 2},
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
			t.Errorf("with %s goes the commit index %d, want %d", step.what, under.saved[0].State.Commit, step.commit)
		}
	}
	// Of a shard on disk all is written as it is.
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

// A log that was compacted is not read with a commit index before its snapshot.
func TestTheCommitIndexIsNotBeforeTheSnapshot(t *testing.T) {
	log, under := newRecordedLog()
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
