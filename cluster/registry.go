package cluster

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/google/uuid"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"

	"github.com/hiqlite/hiqlite/cluster/transport"
)

// maxNode is the largest node id. The upper half of a replica id is reserved for an
// incarnation number, which a node that lost its disk will need to rejoin.
const maxNode = 1<<32 - 1

// replicaID returns the id of the node's replica, in every shard.
func replicaID(node uint64) uint64 { return node }

// nodeID returns the node of a replica.
func nodeID(replica uint64) uint64 { return replica & maxNode }

// targetPrefix is the first half of every NodeHostID. Dragonboat accepts any UUID
// and stores it in the folder and in the replicated membership, so the prefix must
// never change.
const targetPrefix = "hiqlite\x00"

// nodeTarget returns the NodeHostID of a node: a UUID whose last eight bytes are the
// node id. The replicated membership stores it instead of an address, so that
// addresses may change between starts.
func nodeTarget(node uint64) string {
	var id uuid.UUID
	copy(id[:8], targetPrefix)
	binary.BigEndian.PutUint64(id[8:], node)
	return id.String()
}

// targetNode is the inverse of nodeTarget.
func targetNode(target string) (uint64, bool) {
	id, err := uuid.Parse(target)
	if err != nil || string(id[:8]) != targetPrefix {
		return 0, false
	}
	return binary.BigEndian.Uint64(id[8:]), true
}

// registry tells Dragonboat where each replica is: on which node, whose address only
// the transport knows. Dragonboat asks for it once per message.
type registry struct {
	targets sync.Map                 // raftio.NodeInfo -> NodeHostID
	address func(node uint64) string // an address of the node for Dragonboat
	keys    map[uint64]string        // node -> key of Dragonboat's queue for it; never written after newRegistry
}

var (
	_ config.NodeRegistryFactory = (*registry)(nil)
	_ raftio.INodeRegistry       = (*registry)(nil)
)

func newRegistry(members map[uint64]string, address func(node uint64) string) *registry {
	r := &registry{address: address, keys: map[uint64]string{}}
	for node := range members {
		r.keys[node] = transport.Target(node)
	}
	return r
}

// Create implements config.NodeRegistryFactory.
func (r *registry) Create(string, uint64, config.TargetValidator) (raftio.INodeRegistry, error) {
	return r, nil
}

func (r *registry) Close() error { return nil }

// Add implements raftio.INodeRegistry. If a replica is added again with another
// target, the new target replaces the old one; Dragonboat's own registry panics.
func (r *registry) Add(shard, replica uint64, target string) {
	r.targets.Store(raftio.GetNodeInfo(shard, replica), target)
}

func (r *registry) Remove(shard, replica uint64) {
	r.targets.Delete(raftio.GetNodeInfo(shard, replica))
}

func (r *registry) RemoveShard(shard uint64) {
	r.targets.Range(func(key, _ any) bool {
		if key.(raftio.NodeInfo).ShardID == shard {
			r.targets.Delete(key)
		}
		return true
	})
}

// Resolve implements raftio.INodeRegistry. It returns the address of a replica, and
// the key of the queue in which messages to it wait.
func (r *registry) Resolve(shard, replica uint64) (address, key string, err error) {
	node := nodeID(replica)
	if target, ok := r.targets.Load(raftio.GetNodeInfo(shard, replica)); ok {
		if n, ok := targetNode(target.(string)); ok {
			node = n
		}
	} else {
		return "", "", fmt.Errorf("hiqlite: replica %d of shard %d is not a member", replica, shard)
	}
	key, ok := r.keys[node]
	if !ok {
		return "", "", fmt.Errorf("hiqlite: no address is configured for node %d", node)
	}
	return r.address(node), key, nil
}
