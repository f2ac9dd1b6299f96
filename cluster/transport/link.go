package transport

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

const (
	// maxUrgentBytes and maxBulkBytes bound what waits to be sent on a lane. A leader
	// does not wait for answers before it sends more entries, so a slow network fills
	// the queue; what does not fit is dropped, and sent again when Raft has learned of
	// it.
	maxUrgentBytes = 1 << 20
	maxBulkBytes   = 16 << 20

	// maxQueued is how long a message waits for a connection. Raft repeats what
	// matters, and an old backlog would be sent beside its repetition.
	maxQueued = 300 * time.Millisecond
)

// A link sends messages to one other node, for all shards and all of Dragonboat's
// streams. It has two lanes, each with a connection of its own, so that what keeps a
// leader is not delayed by entries, or by a packet that was lost among them:
//
//	message                                        lane
//	Replicate, and whatever else has entries       bulk
//	heartbeats and votes, with their answers       both: the first copy counts
//	votes before an election, what confirms a      urgent; bulk if only that has a connection
//	  read index, and all others
//
// connect.go has the states of a lane.
type link struct {
	t      *Transport
	node   uint64
	bulk   *queue
	urgent *queue

	header  atomic.Pointer[raftpb.MessageBatch] // what Dragonboat puts into each batch, without messages
	refusal atomic.Pointer[refusedError]        // why the node refuses this one; nil: it does not
	snaps   atomic.Uint32                       // snapshots that failed; see Epoch

	mu       sync.Mutex
	learned  string                     // where the node has said it is; "": as configured; guarded by mu
	replicas map[raftio.NodeInfo]uint64 // replica of the node -> this node's replica that has sent it entries; guarded by mu
}

func newLink(t *Transport, node uint64) *link {
	l := &link{t: t, node: node, replicas: map[raftio.NodeInfo]uint64{}}
	l.bulk = newQueue(l, bulkLane, maxBulkBytes)
	l.urgent = newQueue(l, urgentLane, maxUrgentBytes)
	return l
}

// start begins to connect.
func (l *link) start() {
	l.t.spawn(l.urgent.run)
	l.t.spawn(l.bulk.run)
}

// up reports whether the node is connected and not silent.
func (l *link) up() bool { return l.urgent.isUp() || l.bulk.isUp() }

// send queues messages, as the hook of the test says.
func (l *link) send(all []raftpb.Message) {
	hook := l.t.opts.Hooks.Send
	if hook == nil {
		l.queue(all)
		return
	}
	for _, m := range all {
		for _, after := range hook(l.t.opts.Node, l.node, m.ShardID, m.Type.String()) {
			if after == 0 {
				l.queue([]raftpb.Message{m})
				continue
			}
			l.t.spawn(func() {
				if sleepFor(l.t.ctx, after) {
					l.queue([]raftpb.Message{m})
				}
			})
		}
	}
}

// queue queues messages on their lanes.
func (l *link) queue(all []raftpb.Message) {
	bulk, urgent := make([]raftpb.Message, 0, len(all)), make([]raftpb.Message, 0, len(all))
	bulkUp, urgentUp := l.bulk.isUp(), l.urgent.isUp()
	for _, m := range all {
		switch {
		case m.Type == raftpb.Replicate || len(m.Entries) > 0:
			bulk = append(bulk, m)
			continue
		case keepsLeader(&m):
			bulk, urgent = append(bulk, m), append(urgent, m)
		case bulkUp && !urgentUp:
			bulk = append(bulk, m)
		default:
			urgent = append(urgent, m)
		}
	}
	l.urgent.add(urgent)
	l.unreachable(l.bulk.add(bulk))
}

// keepsLeader reports whether a message decides who leads, and does no harm if it
// arrives twice.
func keepsLeader(m *raftpb.Message) bool {
	switch m.Type {
	case raftpb.Heartbeat, raftpb.HeartbeatResp:
		return m.Hint == 0 // one with a hint confirms a read index; there can be many of them
	case raftpb.RequestVote, raftpb.RequestVoteResp:
		return true // they have a term; votes before an election of the same term can be of an earlier attempt
	}
	return false
}

// unreachable tells Raft that entries for replicas were not sent: then a leader
// probes what they have, instead of assuming that they got all it has sent.
// Dragonboat's own transport means to do so too, but names the wrong replica.
func (l *link) unreachable(lost []raftpb.Message) {
	if len(lost) == 0 {
		return
	}
	told := map[raftio.NodeInfo]bool{}
	batch := raftpb.MessageBatch{DeploymentId: l.t.deploy, BinVer: raftio.TransportBinVersion}
	for _, m := range lost {
		if to := raftio.GetNodeInfo(m.ShardID, m.To); !told[to] {
			told[to] = true
			batch.Requests = append(batch.Requests, raftpb.Message{Type: raftpb.Unreachable, ShardID: m.ShardID, From: m.To, To: m.From})
		}
	}
	l.t.handle(batch)
}

// calledFrom is called when the node has made a connection to this one: so it lives,
// and can be dialled at once.
func (l *link) calledFrom(c *conn) {
	// Without an identity, anybody could say that the node has moved.
	if address := reachableAs(c.peer.Address, c.raw.RemoteAddr()); l.t.opts.Identity != nil && address != "" {
		l.mu.Lock()
		l.learned = address
		l.mu.Unlock()
	}
	l.urgent.wake()
	l.bulk.wake()
}

// forget forgets that the node has said that it is at an address, where somebody else
// is. It has no effect on the configured address.
func (l *link) forget(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.learned == address {
		l.learned = ""
	}
}

// addresses returns where the node may be.
func (l *link) addresses() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	configured := l.t.opts.Members[l.node]
	if l.learned == "" || l.learned == configured {
		return []string{configured}
	}
	return []string{configured, l.learned}
}

// dialOnce connects to the node, at any of its addresses.
func (l *link) dialOnce(ctx context.Context, as lane) (c *conn, err error) {
	for _, address := range l.addresses() {
		if c, err = l.t.dial(ctx, l.node, address, as); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// refused remembers and logs that the node refuses this one.
func (l *link) refused(err *refusedError) {
	if former := l.refusal.Swap(err); former == nil || former.Reason != err.Reason {
		l.t.opts.Log.Error("hiqlite: another node refuses the connections of this node", "node", l.t.opts.Node, "other", l.node, "reason", err.Reason)
	}
}

// snapshotFailed is called when a snapshot could not be sent.
func (l *link) snapshotFailed() { l.snaps.Add(1) }

// epochs is how many addresses of a node Dragonboat gets to see.
const epochs = 64

// Address returns an address of a node for Dragonboat. It changes when a snapshot
// could not be sent: Dragonboat then sends nothing at all to that address for up to a
// second.
func (t *Transport) Address(node uint64) string {
	if l := t.links[node]; l != nil {
		return fmt.Sprintf("%s/%d", Target(node), l.snaps.Load()%epochs)
	}
	return Target(node)
}
