package hiqlite

import (
	"context"
	"slices"
)

// A Status describes a node as it sees itself and the cluster. Leader, Term,
// Applied and Commit are of the SQL database.
type Status struct {
	NodeID        uint64
	Leader        uint64 // node id; 0: none known
	Term          uint64
	Applied       uint64 // index of the last entry that reads on this node see
	Commit        uint64 // index of the last entry known to be committed
	Members       []Member
	DatabaseBytes int64
	WALBytes      int64 // of SQLite's write-ahead log
	Shards        []ShardStatus
}

// A ShardStatus describes one of a node's replicated logs.
type ShardStatus struct {
	Name    string // sql, kv, lock or pubsub
	Leader  uint64 // node id; 0: none known
	Term    uint64
	Applied uint64 // index of the last entry that this node has applied
	Error   string // why this node takes no part in it, for good or until there is free disk space; "": it does
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
