package raftlog

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

const (
	// Name is the name of this kind of log, as Dragonboat records it in its folder.
	Name = "hiqlite-log"

	defaultSegmentSize = 16 << 20
	minSegmentSize     = 4 << 10
)

// ErrClosed is returned by the methods of a Log that is closed.
var ErrClosed = errors.New("the Raft log is closed")

// Options describe a Log.
type Options struct {
	// Storage names what the log belongs to, at most 128 bytes; empty: any. A folder
	// that belongs to another storage is not opened.
	Storage string

	// SegmentSize is the size of a segment in bytes; 0: 16 MiB.
	SegmentSize int64

	// Durability says what a call waits for.
	Durability Durability

	// Failed is called once, in a goroutine of its own, when the disk has failed. The
	// log is of no use afterwards. nil: not called.
	Failed func(error)

	Logger *slog.Logger // nil: slog.Default()

	// FS is the file system; nil: that of the operating system.
	FS FS
}

// A Log is a Raft log. Its methods may be called from any goroutine, except that
// Dragonboat calls SaveRaftState for one replica from one goroutine at a time.
type Log struct {
	opts Options
	fs   FS

	mu         sync.Mutex
	index      *index                            // what is on disk; guarded by mu
	queued     map[raftio.NodeInfo]*queuedStates // guarded by mu
	segments   []*segment                        // in order, the last one is written to; guarded by mu
	prepared   *segment                          // the next segment, or nil; guarded by mu
	spares     []string                          // files that the next segments take; guarded by mu
	pending    *batch                            // what the next write writes, or nil; guarded by mu
	writing    bool                              // a goroutine writes; guarded by mu
	owners     []chan struct{}                   // of callers of own that wait; guarded by mu
	ownersTurn bool                              // the next that writes is one of owners; guarded by mu
	err        error                             // why the log is of no use any more; guarded by mu
	closing    bool                              // Close was called; guarded by mu

	preparing sync.Mutex // held while a segment is prepared; taken before mu

	maintenance chan struct{} // asks for a segment to be prepared and others to be freed; holds one
	flush       chan struct{} // asks for a sync that nobody waits for; holds one
	stop        chan struct{} // closed by Close
	workers     sync.WaitGroup
	compacted   []chan struct{} // closed after the next maintenance; guarded by mu
}

// queuedStates are the states of a replica as of the last call, which may not be on
// disk yet. They are guarded by Log.mu.
type queuedStates struct {
	written raftpb.State // in a record
	latest  raftpb.State // only its commit index may differ from written
	last    uint64       // index of the last entry
}

var _ raftio.ILogDB = (*Log)(nil)

// Name implements raftio.ILogDB.
func (l *Log) Name() string { return Name }

// BinaryFormat implements raftio.ILogDB.
func (l *Log) BinaryFormat() uint32 { return formatVersion }

// Err returns why the log is of no use any more, or nil.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.usable()
}

// usable returns why the log cannot be used. The caller holds mu.
func (l *Log) usable() error {
	if l.err == nil && l.closing {
		return ErrClosed
	}
	return l.err
}

// fail records that the disk has failed, and returns the first error.
func (l *Log) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		if l.opts.Failed != nil {
			go l.opts.Failed(err)
		}
	}
	return l.err
}

// Close writes what is left, and closes the files. A log that was closed is opened
// without doubts about its last record.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return ErrClosed
	}
	l.closing = true
	l.mu.Unlock()
	close(l.stop)
	l.workers.Wait()

	l.own()
	defer l.disown()
	err := l.err
	if err == nil {
		b := newBatch()
		b.add(kindClosed, func(*writer) error { return nil })
		b.sync = true
		err = l.write(b)
	}
	l.mu.Lock()
	if l.err == nil {
		l.err = ErrClosed // for those that wait to write
	}
	l.mu.Unlock()
	return errors.Join(err, l.closeFiles())
}

// SaveRaftState implements raftio.ILogDB. It returns once the updates are as durable
// as the log's Durability says. A term, a vote, a snapshot and a change of members are
// always synced.
func (l *Log) SaveRaftState(updates []raftpb.Update, _ uint64) error {
	return l.append(func(b *batch) error {
		for i := range updates {
			u := updates[i] // a copy: its state may be completed
			q := l.queuedStates(raftio.NodeInfo{ShardID: u.ShardID, ReplicaID: u.ReplicaID})
			if !q.needs(&u) {
				continue
			}
			if err := q.follow(&u); err != nil {
				return fmt.Errorf("shard %d: %w", u.ShardID, err)
			}
			if err := b.add(kindUpdate, func(w *writer) error { return w.update(&u) }); err != nil {
				return fmt.Errorf("shard %d: %w", u.ShardID, err)
			}
			if q.changeVote(&u) || l.opts.Durability.Mode == Always || !raftpb.IsEmptySnapshot(u.Snapshot) || changesMembers(u.CommittedEntries) {
				b.sync = true
			}
		}
		return nil
	})
}

// needs reports whether an update changes more than the commit index. If so, it
// completes the state of the update with the latest commit index.
func (q *queuedStates) needs(u *raftpb.Update) bool {
	if !raftpb.IsEmptyState(u.State) {
		q.latest = u.State
	}
	if q.latest.Term == q.written.Term && q.latest.Vote == q.written.Vote &&
		len(u.EntriesToSave) == 0 && raftpb.IsEmptySnapshot(u.Snapshot) && !changesMembers(u.CommittedEntries) {
		return false
	}
	u.State = q.latest
	return true
}

// follow records the entries of an update. It refuses entries that do not follow those
// before, which would leave a hole in the log.
func (q *queuedStates) follow(u *raftpb.Update) error {
	last := q.last
	if !raftpb.IsEmptySnapshot(u.Snapshot) {
		last = u.Snapshot.Index
	}
	if n := len(u.EntriesToSave); n > 0 {
		if first := u.EntriesToSave[0].Index; last > 0 && first > last+1 {
			return fmt.Errorf("entry %d follows entry %d", first, last)
		}
		last = u.EntriesToSave[n-1].Index
	}
	q.last = last
	return nil
}

func changesMembers(entries []raftpb.Entry) bool {
	return slices.ContainsFunc(entries, func(e raftpb.Entry) bool { return e.Type == raftpb.ConfigChangeEntry })
}

// queuedStates returns the states of a replica. The caller holds mu.
func (l *Log) queuedStates(node raftio.NodeInfo) *queuedStates {
	q := l.queued[node]
	if q == nil {
		q = new(queuedStates)
		if r := l.index.replicas[node]; r != nil {
			q.written, q.latest, q.last = r.state, r.state, r.last
		}
		l.queued[node] = q
	}
	return q
}

// changeVote records the state of an update that is written, and reports whether it has
// another term or vote than the last one.
func (q *queuedStates) changeVote(u *raftpb.Update) bool {
	changed := q.written.Term != u.State.Term || q.written.Vote != u.State.Vote
	q.written = u.State
	return changed
}
