package cluster

import (
	"errors"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"

	"github.com/hiqlite/hiqlite/cluster/raftlog"
)

const onDisk, inMemory = 1, 2 // shards

// newTestLog returns a log whose machine on disk has applied the given indexes, by
// shard.
func newTestLog(t *testing.T, dir string, applied map[uint64]uint64) *raftLog {
	t.Helper()
	log, err := raftlog.Open(dir, raftlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() }) // it may be closed already
	return &raftLog{
		Log: log, applied: func(shard uint64) uint64 { return applied[shard] },
		failed: func(error) {}, never: make(chan struct{}),
	}
}

// The log may have an old commit index. What Raft loads is not before the snapshot,
// nor before what the machine has applied, nor beyond the log.
func TestLoadedCommitIndex(t *testing.T) {
	dir := t.TempDir()
	log := newTestLog(t, dir, nil)
	entries := make([]raftpb.Entry, 10)
	for i := range entries {
		entries[i] = raftpb.Entry{Term: 1, Index: uint64(i) + 1}
	}
	for _, shard := range []uint64{onDisk, inMemory} {
		for _, u := range []raftpb.Update{
			{State: raftpb.State{Term: 1, Commit: 3}, EntriesToSave: entries},
			{State: raftpb.State{Term: 1, Commit: 9}}, // is not written
		} {
			u.ShardID, u.ReplicaID = shard, 1
			if err := log.SaveRaftState([]raftpb.Update{u}, shard); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		shard, snapshot, applied, want uint64
	}{
		{inMemory, 0, 0, 3},
		{inMemory, 2, 0, 3},
		{inMemory, 8, 0, 8},
		{onDisk, 0, 3, 3},
		{onDisk, 0, 7, 7},
		{onDisk, 5, 4, 5},
		{onDisk, 0, 11, 10}, // CheckLog refuses this one before
	} {
		log := newTestLog(t, dir, map[uint64]uint64{onDisk: test.applied})
		s, err := log.ReadRaftState(test.shard, 1, test.snapshot)
		if err != nil || s.State.Commit != test.want {
			t.Errorf("shard %d, snapshot %d, applied %d: commit index %d, %v; want %d", test.shard, test.snapshot, test.applied, s.State.Commit, err, test.want)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A call that fails does not return, because Dragonboat would end the program.
func TestFailedCallsDoNotReturn(t *testing.T) {
	log := newTestLog(t, t.TempDir(), nil)
	failures := make(chan error, 1)
	log.failed = func(err error) { failures <- err }
	returned := make(chan struct{})
	go func() {
		// Entries with a gap between them.
		log.SaveRaftState([]raftpb.Update{{ShardID: 1, ReplicaID: 1, EntriesToSave: []raftpb.Entry{{Index: 1}, {Index: 3}}}}, 1)
		close(returned)
	}()
	if err := <-failures; err == nil || errors.Is(err, raftlog.ErrClosed) {
		t.Error(err)
	}
	select {
	case <-returned:
		t.Error("a failed write returned")
	case <-time.After(10 * time.Millisecond):
	}
	close(log.never)
	<-returned
}
