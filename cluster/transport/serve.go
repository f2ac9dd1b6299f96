package transport

import (
	"context"
	"net"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"
)

// serve reads frames from a connection that was accepted, until it ends, or a frame
// is invalid.
func (t *Transport) serve(raw net.Conn) {
	defer context.AfterFunc(t.ctx, func() { raw.Close() })()
	leave := t.gate.enter(raw)
	late := time.AfterFunc(handshakeTimeout, func() { raw.Close() })
	c, err := t.welcome(raw)
	evicted := leave()
	if !late.Stop() && err != nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		raw.Close()
		if !evicted && t.ctx.Err() == nil {
			t.gate.refused(raw.RemoteAddr(), err)
		}
		return
	}
	defer t.peers.remove(c)
	t.links[c.peer.Node].calledFrom(c)
	if c.peer.Lane == snapshotLane {
		t.receiveSnapshot(c)
		return
	}
	if t.spawn(func() { t.sendAlive(c) }) {
		t.receive(c)
	}
}

// welcome passes a connection that was accepted through its handshake.
func (t *Transport) welcome(raw net.Conn) (*conn, error) {
	c, err := t.newConn(t.ctx, raw, true)
	if err != nil {
		return nil, err
	}
	if c.peer, err = c.expectHello(); err != nil {
		return nil, err
	}
	if err := t.admit(t.ctx, c); err != nil {
		c.refuse(err)
		return nil, err
	}
	if err := c.greet(t.hello(c.peer.Lane)); err != nil {
		t.peers.remove(c)
		return nil, err
	}
	c.in.limit = maxFrame
	return c, nil
}

// sendAlive lets the other side see that this node lives. It does not answer what it
// sends, because an answer would wait behind what was sent before.
func (t *Transport) sendAlive(c *conn) {
	ticker := time.NewTicker(aliveInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if t.writeAlive(c) != nil {
				c.close()
				return
			}
		case <-c.done:
			return
		}
	}
}

// writeAlive writes an aliveFrame. Its payload says whether this node has taken part
// in the cluster.
func (t *Transport) writeAlive(c *conn) error {
	if t.opts.TookPart() {
		return c.out.write(aliveFrame, bytesOf{1})
	}
	return c.out.write(aliveFrame, nil)
}

// alive is called with the payload of an aliveFrame, by the goroutine that reads the
// connection. It returns false if the connection has to end.
func (t *Transport) alive(c *conn, payload []byte) bool {
	if len(payload) == 0 || payload[0] != 1 || c.bound {
		return true
	}
	same, err := t.sameStorage(c.peer.Node, c.peer.Storage, true)
	if err != nil {
		return true // a full disk, for example; the next aliveFrame tries again
	}
	c.bound = same
	return same
}

// receive delivers the messages of a lane.
func (t *Transport) receive(c *conn) {
	for {
		kind, payload, err := c.in.next(acceptedSilence)
		if err != nil {
			return
		}
		switch kind {
		case aliveFrame:
			if !t.alive(c, payload) {
				return
			}
		case batchFrame:
			var batch raftpb.MessageBatch
			if batch.Unmarshal(payload) != nil {
				return
			}
			t.filter(c.peer.Node, &batch)
			t.opts.Guard.Received(&batch)
			if len(batch.Requests) > 0 {
				t.handle(batch)
			}
		case refusalFrame:
			if r, err := readRefusal(payload); err == nil {
				t.links[c.peer.Node].refused(&refusedError{c.peer, r})
			}
			return
		default:
			return
		}
	}
}

// filter removes messages at which Dragonboat panics, or that are not from the node
// at the other end. It also removes the address of that node: Dragonboat would send
// the replicas that the messages name as their senders to this address, whatever it
// is, and the registry knows better.
func (t *Transport) filter(from uint64, batch *raftpb.MessageBatch) {
	kept := batch.Requests[:0]
	for _, m := range batch.Requests {
		hasTerm, known := exchanged[m.Type]
		if known && hasTerm == (m.Term != 0) && (m.Type != raftpb.LeaderTransfer || m.Hint != 0) &&
			m.To != 0 && t.opts.NodeOf(m.To) == t.opts.Node && t.opts.NodeOf(m.From) == from {
			kept = append(kept, m)
		}
	}
	batch.Requests, batch.SourceAddress = kept, ""
}

// exchanged has the types of messages that nodes send to each other, and whether
// they have a term. At all others, and at a term that should or should not be there,
// Dragonboat may panic, or take the message for one that the node has sent to itself.
var exchanged = map[raftpb.MessageType]bool{
	raftpb.Replicate: true, raftpb.ReplicateResp: true, raftpb.Heartbeat: true, raftpb.HeartbeatResp: true,
	raftpb.RequestVote: true, raftpb.RequestVoteResp: true, raftpb.RequestPreVote: true, raftpb.RequestPreVoteResp: true,
	raftpb.ReadIndexResp: true, raftpb.TimeoutNow: true, raftpb.NoOP: true,
	raftpb.Propose: false, raftpb.ReadIndex: false, raftpb.LeaderTransfer: false, raftpb.SnapshotReceived: false,
}
