package cluster

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"
)

// peers records what this node knows about the others.
type peers struct {
	mu         sync.Mutex
	receivedAt map[uint64]time.Time // node -> when its last message was received; guarded by mu
	dials      map[uint64]dialEnd   // node -> how the last attempt to connect ended; guarded by mu
}

type dialEnd struct {
	at  time.Time
	err error
}

func (p *peers) received(all []raftpb.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.receivedAt == nil {
		p.receivedAt = map[uint64]time.Time{}
	}
	for i := range all {
		p.receivedAt[nodeID(all[i].From)] = time.Now()
	}
}

func (p *peers) dialled(node uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dials == nil {
		p.dials = map[uint64]dialEnd{}
	}
	p.dials[node] = dialEnd{time.Now(), err}
}

// A Peer is another node, as this one sees it.
type Peer struct {
	Node    uint64
	Address string
	Heard   time.Time // when its last message was received; zero: never
	Err     error     // why the last attempt to connect to it failed; nil: it did not fail, or a message was received since
}

// Peers returns the other nodes, ordered by id.
func (h *Host) Peers() (all []Peer) {
	p := &h.guard.peers
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, node := range slices.SortedFunc(maps.Keys(h.cfg.Members), cmp.Compare) {
		if node != h.cfg.Node {
			peer := Peer{Node: node, Address: h.cfg.Members[node], Heard: p.receivedAt[node]}
			if last := p.dials[node]; last.at.After(peer.Heard) {
				peer.Err = last.err
			}
			all = append(all, peer)
		}
	}
	return all
}
