package cluster

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"

	"github.com/hiqlite/hiqlite/cluster/raftlog"
)

// logFolder is the folder of the Raft log, in the Raft folder.
const logFolder = "log"

// raftLog is a raftlog.Log as Dragonboat needs it.
//
// Dragonboat ends the program when its log returns an error. So once the host runs, a
// call that fails does not return: its goroutine, and those that wait for it, block
// until the program ends, and the host is told. The log then has what a loss of power
// would have left. Nothing was acknowledged that is not on disk.
//
// A raftlog.Log does not write an update that changes nothing but a commit index, so
// the commit index that it has may be an old one. ReadRaftState raises it to what is
// certainly committed: the entries in a snapshot, and those that a machine on disk has
// applied. Raft must not load a log that was compacted with a commit index before its
// snapshot, nor one whose machine has applied more than is committed.
type raftLog struct {
	*raftlog.Log
	applied func(shard uint64) uint64 // index that the shard's machine on disk has applied; 0 for other machines
	failed  func(error)               // is called when a call fails; more than once
	never   chan struct{}             // failed calls wait for it to be closed; only tests close it

	ends logEnds
}

// logFactory makes the raftLog of a host.
type logFactory struct {
	dir     string // the Raft folder
	storage string // its name
	host    *Host
}

func (logFactory) Name() string { return raftlog.Name }

func (f logFactory) Create(config.NodeHostConfig, config.LogDBCallback, []string, []string) (raftio.ILogDB, error) {
	log, err := raftlog.Open(filepath.Join(f.dir, logFolder), raftlog.Options{
		Storage: f.storage, SegmentSize: f.host.cfg.segmentSize, Logger: f.host.log, Failed: f.host.diskFailed,
	})
	if corrupt := new(raftlog.CorruptError); errors.As(err, &corrupt) {
		return nil, fmt.Errorf("%w: %w: put back a copy of the data folder", ErrUnreadable, err)
	} else if err != nil {
		return nil, err
	}
	l := newRaftLog(log, f.host)
	f.host.logCreated(l)
	return l, nil
}

func newRaftLog(log *raftlog.Log, h *Host) *raftLog {
	return &raftLog{Log: log, applied: h.applied, failed: h.diskFailed, never: make(chan struct{})}
}

// block does not return if err is an error.
func (l *raftLog) block(err error) {
	if err != nil {
		l.report(err)
		<-l.never
	}
}

// report tells the host about an error, unless it only says that the log is closed.
func (l *raftLog) report(err error) {
	if err != nil && !errors.Is(err, raftlog.ErrClosed) {
		l.failed(err)
	}
}

// SaveRaftState implements raftio.ILogDB.
func (l *raftLog) SaveRaftState(updates []raftpb.Update, worker uint64) error {
	l.block(l.Log.SaveRaftState(updates, worker))
	l.ends.saved(updates)
	return nil
}

// SaveSnapshots implements raftio.ILogDB.
func (l *raftLog) SaveSnapshots(updates []raftpb.Update) error {
	l.block(l.Log.SaveSnapshots(updates))
	return nil
}

// RemoveEntriesTo implements raftio.ILogDB.
func (l *raftLog) RemoveEntriesTo(shard, replica, index uint64) error {
	l.block(l.Log.RemoveEntriesTo(shard, replica, index))
	return nil
}

// IterateEntries implements raftio.ILogDB.
func (l *raftLog) IterateEntries(entries []raftpb.Entry, size, shard, replica, low, high, maxSize uint64) ([]raftpb.Entry, uint64, error) {
	entries, size, err := l.Log.IterateEntries(entries, size, shard, replica, low, high, maxSize)
	l.block(err)
	return entries, size, nil
}

// ReadRaftState implements raftio.ILogDB.
func (l *raftLog) ReadRaftState(shard, replica, snapshot uint64) (raftio.RaftState, error) {
	s, err := l.Log.ReadRaftState(shard, replica, snapshot)
	if err != nil && !errors.Is(err, raftio.ErrNoSavedLog) {
		return s, err
	}
	last := lastIndex(snapshot, s)
	if err == nil {
		s.State.Commit = max(s.State.Commit, snapshot, min(l.applied(shard), last))
	}
	l.ends.loaded(shard, replica, snapshot, s.State)
	return s, err
}
