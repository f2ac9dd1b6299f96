package raftlog

import (
	"fmt"
	"hash/crc32"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// ListNodeInfo implements raftio.ILogDB. It returns the replicas that were
// bootstrapped.
func (l *Log) ListNodeInfo() ([]raftio.NodeInfo, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	nodes := []raftio.NodeInfo{}
	for _, node := range sortedNodes(l.index.replicas) {
		if l.index.replicas[node].bootstrap != nil {
			nodes = append(nodes, node)
		}
	}
	return nodes, l.usable()
}

// view calls f with a replica, if the log can be used and knows the replica.
func (l *Log) view(shard, id uint64, f func(*replica)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	if r := l.index.replicas[raftio.NodeInfo{ShardID: shard, ReplicaID: id}]; r != nil {
		f(r)
	}
	return nil
}

// GetBootstrapInfo implements raftio.ILogDB.
func (l *Log) GetBootstrapInfo(shard, id uint64) (raftpb.Bootstrap, error) {
	var found *raftpb.Bootstrap
	if err := l.view(shard, id, func(r *replica) { found = r.bootstrap }); err != nil {
		return raftpb.Bootstrap{}, err
	}
	if found == nil {
		return raftpb.Bootstrap{}, raftio.ErrNoBootstrapInfo
	}
	return *found, nil
}

// GetSnapshot implements raftio.ILogDB. The index of the snapshot is 0 if there is
// none.
func (l *Log) GetSnapshot(shard, id uint64) (raftpb.Snapshot, error) {
	var found raftpb.Snapshot
	err := l.view(shard, id, func(r *replica) {
		if r.snapshot != nil {
			found = *r.snapshot
		}
	})
	return found, err
}

// ReadRaftState implements raftio.ILogDB. The entries that it counts are those from
// the snapshot on.
func (l *Log) ReadRaftState(shard, id, snapshot uint64) (raftio.RaftState, error) {
	s := raftio.RaftState{FirstIndex: snapshot}
	err := l.view(shard, id, func(r *replica) {
		s.State = r.state
		if r.last > max(snapshot, r.base) {
			s.FirstIndex = max(snapshot, r.base+1)
			s.EntryCount = r.last - s.FirstIndex + 1
		}
	})
	if err == nil && raftpb.IsEmptyState(s.State) {
		return raftio.RaftState{}, raftio.ErrNoSavedLog
	}
	return s, err
}

// Last returns the index of a replica's last entry, or of the snapshot that its log
// begins after.
func (l *Log) Last(shard, id uint64) uint64 {
	var last uint64
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.index.replicas[raftio.NodeInfo{ShardID: shard, ReplicaID: id}]; r != nil {
		last = r.last
	}
	return last
}

// Term returns the term of an entry. It returns false if the log does not have the
// entry, or not any more.
func (l *Log) Term(shard, id, index uint64) (uint64, bool, error) {
	var term uint64
	var found bool
	err := l.view(shard, id, func(r *replica) {
		if i := r.search(index); index > r.base && i < len(r.spans) && r.spans[i].first <= index {
			term, found = r.spans[i].term, true
		} else if r.snapshot != nil && r.snapshot.Index == index {
			term, found = r.snapshot.Term, true
		}
	})
	if err != nil || !found || term != 0 {
		return term, found, err
	}
	entries, _, err := l.IterateEntries(nil, 0, shard, id, index, index+1, 0)
	if err != nil || len(entries) == 0 {
		return 0, false, err
	}
	return entries[0].Term, true, nil
}

// IterateEntries implements raftio.ILogDB. It appends the entries from low up to, but
// not including, high, until their size exceeds maxSize. It appends fewer if the log
// does not have all of them.
func (l *Log) IterateEntries(entries []raftpb.Entry, size, shard, id, low, high, maxSize uint64) ([]raftpb.Entry, uint64, error) {
	for low < high {
		s, ok, err := l.acquire(shard, id, low)
		if err != nil || !ok {
			return entries, size, err
		}
		var more bool
		entries, size, more, err = s.read(entries, size, low, high, maxSize)
		l.release(s.segment)
		if err != nil {
			if why := l.Err(); why != nil {
				return nil, 0, why // the file may have been closed
			}
			return nil, 0, fmt.Errorf("shard %d: %w", shard, err)
		}
		if !more {
			break
		}
		low = s.last + 1
	}
	return entries, size, nil
}

// acquire returns the span that holds an entry, whose segment is then not freed
// before release is called.
func (l *Log) acquire(shard, id, index uint64) (span, bool, error) {
	var s span
	err := l.view(shard, id, func(r *replica) {
		if i := r.search(index); index > r.base && i < len(r.spans) && r.spans[i].first <= index {
			s = r.spans[i]
			s.segment.readers++
		}
	})
	return s, s.segment != nil, err
}

func (l *Log) release(s *segment) {
	l.mu.Lock()
	s.readers--
	free := s.freed && s.readers == 0
	l.mu.Unlock()
	if free {
		l.free(s)
	}
}

// read appends the entries of a span from low on. It returns whether entries after
// the span are wanted too.
func (s span) read(entries []raftpb.Entry, size, low, high, maxSize uint64) ([]raftpb.Entry, uint64, bool, error) {
	rec, payload, err := s.place.read()
	if err != nil {
		return nil, 0, false, err
	}
	more := true
	err = eachEntry(payload, rec.entries, func(e *raftpb.Entry) bool {
		if e.Index >= high || e.Index > s.last {
			return false
		}
		if e.Index >= low {
			size += uint64(e.SizeUpperLimit())
			entries = append(entries, *e)
			more = size <= maxSize
		}
		return more
	})
	return entries, size, more, err
}

// read reads a record, and checks it.
func (p place) read() (record, []byte, error) {
	fail := func(err error) (record, []byte, error) {
		return record{}, nil, &CorruptError{Segment: segmentName(p.segment.number), Offset: p.offset, Err: err}
	}
	b := make([]byte, p.size)
	if _, err := p.segment.file.ReadAt(b, p.offset); err != nil {
		return fail(err)
	}
	h, ok := parseHeader(b, p.segment.number)
	if !ok || h.size() != p.size {
		return fail(errHeader)
	}
	payload := b[recordHeader:][:h.length]
	if crc32.Checksum(payload, castagnoli) != h.sum {
		return fail(errSum)
	}
	rec, err := decode(h.kind, payload)
	if err != nil {
		return fail(err)
	}
	return rec, payload, nil
}
