package raftlog

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// An index is what the records of a log say when they are applied in order: the
// state of each replica, and where its entries are. Writing and opening both apply
// records to an index, so that what was written is what will be found.
type index struct {
	replicas map[raftio.NodeInfo]*replica
	oldest   uint64 // number of the oldest segment that is needed
}

// A replica is what the log holds about one replica.
//
// Invariants: the spans are in order and without gaps, the first one begins at or
// before base+1, and the last one ends at last. There is no span if base == last.
// While a log is being opened, the spans may have gaps: entries that are missing from
// the older segments are found in a newer one, to which they were copied.
type replica struct {
	state     raftpb.State
	snapshot  *raftpb.Snapshot  // the newest; nil: none
	bootstrap *raftpb.Bootstrap // nil: none
	base      uint64            // entries up to it are removed, or replaced by a snapshot
	last      uint64            // index of the last entry; base if there is none
	spans     []span
}

// A span says where consecutive entries are.
type span struct {
	first, last uint64
	term        uint64 // of all of them; 0: they differ
	place
}

// A place is where a record is.
type place struct {
	segment *segment
	offset  int64
	size    int64 // with header and padding
}

func newIndex() *index { return &index{replicas: map[raftio.NodeInfo]*replica{}, oldest: 1} }

func sortedNodes(replicas map[raftio.NodeInfo]*replica) []raftio.NodeInfo {
	return slices.SortedFunc(maps.Keys(replicas), func(a, b raftio.NodeInfo) int {
		return cmp.Or(cmp.Compare(a.ShardID, b.ShardID), cmp.Compare(a.ReplicaID, b.ReplicaID))
	})
}

// replica returns a replica, which is added if it is not known.
func (x *index) replica(node raftio.NodeInfo) *replica {
	r := x.replicas[node]
	if r == nil {
		r = new(replica)
		x.replicas[node] = r
	}
	return r
}

// apply applies a record that is at a place.
func (x *index) apply(rec *record, at place) error {
	switch rec.kind {
	case kindCheckpoint, kindClosed:
	case kindOldest:
		x.oldest = max(x.oldest, rec.index)
	case kindUpdate:
		return x.replica(rec.node).update(rec, at)
	case kindCopied:
		return x.replica(rec.node).copied(rec, at)
	case kindBootstrap:
		x.replica(rec.node).bootstrap = rec.bootstrap
	case kindSnapshot:
		if r := x.replica(rec.node); r.snapshot == nil || r.snapshot.Index < rec.snapshot.Index {
			r.snapshot = rec.snapshot
		}
	case kindRemoveTo:
		x.replica(rec.node).removeTo(rec.index)
	case kindRemoveData:
		x.forget(rec.node)
	case kindImport:
		x.forget(rec.node)
		r := x.replica(rec.node)
		r.bootstrap = &raftpb.Bootstrap{Join: true, Type: rec.snapshot.Type}
		r.state = raftpb.State{Term: rec.snapshot.Term, Commit: rec.snapshot.Index}
		r.restart(rec.snapshot)
	}
	return nil
}

func (x *index) forget(node raftio.NodeInfo) {
	if r := x.replicas[node]; r != nil {
		r.drop(0, len(r.spans))
		delete(x.replicas, node)
	}
}

// update applies an update.
func (r *replica) update(rec *record, at place) error {
	if rec.snapshot != nil {
		r.restart(rec.snapshot)
	}
	if !raftpb.IsEmptyState(rec.state) {
		r.state = rec.state
	}
	if rec.entries.empty() {
		return nil
	}
	first := rec.entries.first
	if r.base == 0 && r.last == 0 && len(r.spans) == 0 {
		r.base, r.last = first-1, first-1
	}
	if first > r.last+1 || first <= r.base {
		return fmt.Errorf("entry %d follows entry %d (entries up to %d are removed)", first, r.last, r.base)
	}
	r.truncate(first)
	r.spans = append(r.spans, span{first: first, last: rec.entries.last, term: rec.entries.term, place: at})
	at.segment.live += at.size
	r.last = rec.entries.last
	return nil
}

// restart makes the log begin after a snapshot.
func (r *replica) restart(snapshot *raftpb.Snapshot) {
	r.snapshot = snapshot
	r.drop(0, len(r.spans))
	r.base, r.last = snapshot.Index, snapshot.Index
}

// truncate removes the entries from an index on.
func (r *replica) truncate(first uint64) {
	keep := r.search(first)
	if first > r.base+1 && keep < len(r.spans) && r.spans[keep].first < first {
		r.spans[keep].last = first - 1
		keep++
	}
	r.drop(keep, len(r.spans))
	r.last = first - 1
}

// removeTo removes the entries up to an index.
func (r *replica) removeTo(index uint64) {
	index = min(index, r.last)
	if index <= r.base {
		return
	}
	r.base = index
	r.drop(0, r.search(index+1))
}

// copied moves entries to the record that they were copied to. All of them are
// needed at this point of the log.
func (r *replica) copied(rec *record, at place) error {
	first, last := rec.entries.first, rec.entries.last
	if last > r.last || last <= r.base {
		return fmt.Errorf("entries %d to %d were copied, but those after %d and up to %d are needed", first, last, r.base, r.last)
	}
	var spans []span
	moved := span{first: first, last: last, term: rec.entries.term, place: at}
	add := func(s span) {
		s.segment.live += s.size
		spans = append(spans, s)
	}
	for _, s := range r.spans {
		if s.first > last && moved.segment != nil {
			add(moved)
			moved.segment = nil
		}
		if s.last < first || s.first > last {
			add(s)
			continue
		}
		if s.first < first && first-1 > r.base {
			left := s
			left.last = first - 1
			add(left)
		}
		if s.last > last {
			if moved.segment != nil {
				add(moved)
				moved.segment = nil
			}
			right := s
			right.first = last + 1
			add(right)
		}
	}
	if moved.segment != nil {
		add(moved)
	}
	r.drop(0, len(r.spans))
	r.spans = spans
	return nil
}

// search returns the position of the span that holds an entry, or of the first span
// after it.
func (r *replica) search(index uint64) int {
	i, _ := slices.BinarySearchFunc(r.spans, index, func(s span, index uint64) int {
		return cmp.Compare(s.last, index)
	})
	return i
}

// drop removes the spans from, from+1, ..., to-1.
func (r *replica) drop(from, to int) {
	for _, s := range r.spans[from:to] {
		s.segment.live -= s.size
	}
	r.spans = slices.Delete(r.spans, from, to)
}

// check reports a violated invariant: an entry that is missing.
func (r *replica) check() error {
	next := r.base + 1
	for i, s := range r.spans {
		if s.last <= r.base {
			return fmt.Errorf("entries %d to %d are removed and still there", s.first, s.last)
		}
		if s.first > next || i > 0 && s.first != next {
			return fmt.Errorf("entries %d to %d are missing", next, s.first-1)
		}
		next = s.last + 1
	}
	if next != r.last+1 {
		return fmt.Errorf("entries %d to %d are missing", next, r.last)
	}
	return nil
}

// same reports whether two replicas agree about everything that a checkpoint has. Both
// were decoded. Their encodings may differ, because those of maps have no order.
func (r *replica) same(o *replica) bool {
	return r.base == o.base && r.last == o.last && raftpb.IsStateEqual(r.state, o.state) &&
		reflect.DeepEqual(r.snapshot, o.snapshot) && reflect.DeepEqual(r.bootstrap, o.bootstrap)
}
