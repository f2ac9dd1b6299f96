package cluster

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"
)

// peers keeps what is known of the other nodes.
type peers struct {
	mu      sync.Mutex
	heard   map[uint64]time.Time // node -> when a message of it came last
	dialled map[string]attempted // address -> how the last attempt to connect ended
}

type attempted struct {
	at  time.Time
	err error
}

func (p *peers) hear(all []raftpb.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.heard == nil {
		p.heard = map[uint64]time.Time{}
	}
	for i := range all {
		p.heard[nodeID(all[i].From)] = time.Now()
	}
}

func (p *peers) dial(address string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dialled == nil {
		p.dialled = map[string]attempted{}
	}
	p.dialled[address] = attempted{time.Now(), err}
}

// A Peer is another node, as this one sees it.
type Peer struct {
	Node    uint64
	Address string
	Heard   time.Time // when a message of it came last; zero: never
	Err     error     // why the last attempt to connect to it failed; nil: it did not, or something came since
}

// Peers returns the other nodes, by id.
func (h *Host) Peers() (all []Peer) {
	p := &h.guard.peers
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, node := range slices.SortedFunc(maps.Keys(h.cfg.Members), cmp.Compare) {
		if node != h.cfg.Node {
			address := h.cfg.Members[node]
			peer := Peer{Node: node, Address: address, Heard: p.heard[node]}
			if last := p.dialled[address]; last.at.After(peer.Heard) {
				peer.Err = last.err
			}
			all = append(all, peer)
		}
	}
	return all
}
