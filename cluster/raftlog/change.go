package raftlog

import (
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// appendSynced writes one record, and returns once it is durable.
func (l *Log) appendSynced(k kind, f func(*writer)) error {
	return l.append(func(b *batch) error {
		b.sync = true
		return b.add(k, func(w *writer) error {
			f(w)
			return nil
		})
	})
}

// SaveBootstrapInfo implements raftio.ILogDB.
func (l *Log) SaveBootstrapInfo(shard, id uint64, bootstrap raftpb.Bootstrap) error {
	return l.appendSynced(kindBootstrap, func(w *writer) {
		w.node(raftio.NodeInfo{ShardID: shard, ReplicaID: id})
		w.message(&bootstrap)
	})
}

// SaveSnapshots implements raftio.ILogDB. It saves what is known about snapshots that
// the replicas have made themselves.
func (l *Log) SaveSnapshots(updates []raftpb.Update) error {
	return l.append(func(b *batch) error {
		for _, u := range updates {
			if raftpb.IsEmptySnapshot(u.Snapshot) {
				continue
			}
			b.sync = true
			if err := b.add(kindSnapshot, func(w *writer) error {
				w.node(raftio.NodeInfo{ShardID: u.ShardID, ReplicaID: u.ReplicaID})
				w.message(&u.Snapshot)
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

// RemoveEntriesTo implements raftio.ILogDB. The entries up to index are not found any
// more. Their space is given back later.
func (l *Log) RemoveEntriesTo(shard, id, index uint64) error {
	// Nothing depends on the record: without it, the entries are found again.
	return l.append(func(b *batch) error {
		return b.add(kindRemoveTo, func(w *writer) error {
			w.node(raftio.NodeInfo{ShardID: shard, ReplicaID: id})
			w.uint(index)
			return nil
		})
	})
}

// CompactEntriesTo implements raftio.ILogDB. The channel that it returns is closed once
// the segments that RemoveEntriesTo made useless are freed.
func (l *Log) CompactEntriesTo(shard, id, index uint64) (<-chan struct{}, error) {
	done := make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return nil, err
	}
	l.compacted = append(l.compacted, done)
	l.signal(l.maintenance)
	return done, nil
}

// RemoveNodeData implements raftio.ILogDB. The log forgets a replica.
func (l *Log) RemoveNodeData(shard, id uint64) error {
	node := raftio.NodeInfo{ShardID: shard, ReplicaID: id}
	defer l.forgetQueued(node)
	return l.appendSynced(kindRemoveData, func(w *writer) { w.node(node) })
}

// ImportSnapshot implements raftio.ILogDB. The log of a replica begins anew, after a
// snapshot.
func (l *Log) ImportSnapshot(snapshot raftpb.Snapshot, id uint64) error {
	node := raftio.NodeInfo{ShardID: snapshot.ShardID, ReplicaID: id}
	defer l.forgetQueued(node)
	return l.appendSynced(kindImport, func(w *writer) {
		w.node(node)
		w.message(&snapshot)
	})
}

func (l *Log) forgetQueued(node raftio.NodeInfo) {
	l.mu.Lock()
	delete(l.queued, node)
	l.mu.Unlock()
}
