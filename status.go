package hiqlite

import (
	"context"
	"slices"
)

// A Status is the state of a node, and of the cluster as the node sees it. Leader, Term,
// Applied and Commit are those of the SQL shard.
type Status struct {
	NodeID        uint64
	Leader        uint64 // node id; 0: no leader is known
	Term          uint64
	Applied       uint64 // index of the last entry that this node has applied, and that its reads see
	Commit        uint64 // index of the last entry known to be committed
	Members       []Member
	DatabaseBytes int64
	WALBytes      int64 // of SQLite's write-ahead log
	Shards        []ShardStatus
}

// A ShardStatus is the state of one shard on a node.
type ShardStatus struct {
	Name    string // sql, kv, lock or pubsub
	Leader  uint64 // node id; 0: no leader is known
	Term    uint64
	Applied uint64 // index of the last entry that this node has applied
	Error   string // why this node takes no part in the shard, until it is started again or has free disk space; "": it takes part
}

// Status returns the node's status, without asking other nodes.
func (n *Node) Status(ctx context.Context) (Status, error) {
	if err := ctx.Err(); err != nil {
		return Status{}, err
	}
	if err := n.node.Err(); err != nil {
		return Status{}, err
	}
	s := Status{NodeID: n.cfg.NodeID, Members: slices.Clone(n.cfg.Nodes)}
	for _, shard := range n.node.Shards(ctx) {
		status := ShardStatus{Name: shard.Name, Leader: shard.Leader.Node, Term: shard.Leader.Term, Applied: shard.Applied}
		if shard.Err != nil {
			status.Error = shard.Err.Error()
		}
		if shard.Name == "sql" {
			s.Leader, s.Term, s.Applied, s.Commit = status.Leader, status.Term, shard.Applied, shard.Commit
		}
		s.Shards = append(s.Shards, status)
	}
	s.DatabaseBytes, s.WALBytes = n.node.Machine().Size()
	return s, nil
}
