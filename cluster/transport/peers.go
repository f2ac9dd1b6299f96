package transport

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// proofTime is how long a process with the id of a node that is connected already
	// has to wait until it is refused or accepted: so long may the connections of the
	// former process look alive after that has ended without a word.
	proofTime = 1200 * time.Millisecond
	// proofDelay is from when on a sign of life of the former process counts: before,
	// it may have been on its way while the process ended.
	proofDelay = 100 * time.Millisecond
	proofPoll  = 20 * time.Millisecond

	// maxConns bounds the connections from and to a node. A node has two lanes in
	// each direction and some snapshots, of which Dragonboat sends at most 128 at the
	// same time.
	maxConns = 256
)

// peers has the connections to other nodes, in both directions, that have passed
// their handshake.
//
//	a new connection of a node         what happens
//	of the process that is connected   it is added
//	nobody is connected                it is added
//	of another process                 the connected one has proofTime to show that it lives. If it does,
//	                                   the new one is refused. If it does not, its connections are closed
//	with another data folder than      it is refused
//	  when it took part
type peers struct {
	same func(node uint64, storage string, remember bool) (bool, error)

	mu    sync.Mutex
	nodes map[uint64]*peer // guarded by mu
}

// peer is a node of whose connections at least one is open.
type peer struct {
	instance string // of all conns
	conns    map[*conn]struct{}
}

func (p *peers) init(same func(uint64, string, bool) (bool, error)) {
	p.same, p.nodes = same, map[uint64]*peer{}
}

// add registers a connection, or returns a Refusal.
func (p *peers) add(ctx context.Context, c *conn) error {
	began := sinceStart(time.Now())
	for {
		others, err := p.tryAdd(c)
		if others == nil {
			return err
		}
		now := sinceStart(time.Now())
		for _, other := range others {
			if other.received() > began+int64(proofDelay) {
				return refuse(RefusedDuplicate, "node %d runs already, as another process that is connected from %s: stop one of them", c.peer.Node, hostOf(other.raw.RemoteAddr()))
			}
			if now > began+int64(proofTime) {
				other.close() // whoever uses it removes it
			}
		}
		if !sleepFor(ctx, proofPoll) {
			return ctx.Err()
		}
	}
}

// tryAdd registers a connection, unless the node is connected as another process:
// then it returns those connections.
func (p *peers) tryAdd(c *conn) (others []*conn, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[c.peer.Node]
	if n != nil && n.instance != c.peer.Instance {
		return slices.Collect(maps.Keys(n.conns)), nil
	}
	if same, err := p.same(c.peer.Node, c.peer.Storage, false); err != nil {
		return nil, err
	} else if !same {
		return nil, refuse(RefusedStorage, "node %d has another data folder than before: it has lost its log, or is of another cluster: put back its data folder; if that never took part, remove its name from raft/storage.json of the other nodes while they are stopped", c.peer.Node)
	}
	if n == nil {
		n = &peer{c.peer.Instance, map[*conn]struct{}{}}
		p.nodes[c.peer.Node] = n
	}
	if len(n.conns) >= maxConns {
		return nil, errTooMany
	}
	n.conns[c] = struct{}{}
	return nil, nil
}

// remove closes a connection and forgets it.
func (p *peers) remove(c *conn) {
	c.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.nodes[c.peer.Node]; n != nil {
		if delete(n.conns, c); len(n.conns) == 0 {
			delete(p.nodes, c.peer.Node)
		}
	}
}
