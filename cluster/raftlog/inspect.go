package raftlog

import (
	"errors"
	"os"
)

// A Record describes a record of a log.
type Record struct {
	Segment string // name of the file
	Offset  int64
	Size    int64 // with header and padding
	Kind    string

	Shard, Replica     uint64 // 0, 0: the record is about no replica
	First, Last        uint64 // indexes of its entries; 0, 0: none
	Term, Vote, Commit uint64 // the state, or 0, 0, 0
	Snapshot           uint64 // index of its snapshot; 0: none
	Index              uint64 // up to which entries are removed, or number of the oldest segment that is needed
}

func newRecord(s *segment, offset int64, h header, rec *record) Record {
	r := Record{
		Segment: segmentName(s.number), Offset: offset, Size: h.size(), Kind: rec.kind.String(),
		Shard: rec.node.ShardID, Replica: rec.node.ReplicaID,
		First: rec.entries.first, Last: rec.entries.last,
		Term: rec.state.Term, Vote: rec.state.Vote, Commit: rec.state.Commit,
		Index: rec.index,
	}
	if rec.snapshot != nil {
		r.Snapshot = rec.snapshot.Index
	}
	return r
}

// A Summary describes a log as a whole.
type Summary struct {
	Segments int
	Bytes    int64 // of the segments
	Needed   int64 // of records with entries that are needed
	Closed   bool  // the log was closed, and not ended by a crash
	Replicas []ReplicaSummary
}

// A ReplicaSummary describes what a log has of a replica.
type ReplicaSummary struct {
	Shard, Replica     uint64
	First, Last        uint64 // indexes of the entries; First is after Last if there are none
	Term, Vote, Commit uint64
	Snapshot           uint64 // index; 0: none
}

// Inspect reads a log that no Log has open, and changes nothing. It calls visit with
// each record in turn; visit may be nil. The error is a *CorruptError if the log is
// damaged.
func Inspect(dir string, visit func(Record)) (Summary, error) {
	fs := readOnly{folder(dir)}
	found, err := listFiles(fs)
	if err == nil && len(found.segments) == 0 {
		err = errors.New("there is no Raft log in " + dir)
	}
	if err != nil {
		return Summary{}, err
	}
	s := scan{fs: fs, index: newIndex(), visit: visit}
	err = s.run(found.segments)
	sum := Summary{Segments: len(s.segments), Closed: s.closed}
	for _, seg := range s.segments {
		sum.Bytes += seg.size
		sum.Needed += seg.live
		seg.file.Close()
	}
	for _, node := range sortedNodes(s.index.replicas) {
		r := s.index.replicas[node]
		sum.Replicas = append(sum.Replicas, ReplicaSummary{
			Shard: node.ShardID, Replica: node.ReplicaID, First: r.base + 1, Last: r.last,
			Term: r.state.Term, Vote: r.state.Vote, Commit: r.state.Commit,
		})
		if r.snapshot != nil {
			sum.Replicas[len(sum.Replicas)-1].Snapshot = r.snapshot.Index
		}
	}
	return sum, err
}

// readOnly is a folder whose files are opened for reading.
type readOnly struct{ folder }

func (f readOnly) Open(name string) (File, error) {
	file, err := os.Open(f.path(name))
	if err != nil {
		return nil, err
	}
	return osFile{file}, nil
}
