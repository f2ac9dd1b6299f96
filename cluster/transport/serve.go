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
			if c.out.write(aliveFrame, nil) != nil {
				c.close()
				return
			}
		case <-c.done:
			return
		}
	}
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
// at the other end.
func (t *Transport) filter(from uint64, batch *raftpb.MessageBatch) {
	kept := batch.Requests[:0]
	for _, m := range batch.Requests {
		if !local[m.Type] && m.To != 0 && t.opts.NodeOf(m.To) == t.opts.Node && t.opts.NodeOf(m.From) == from {
			kept = append(kept, m)
		}
	}
	batch.Requests = kept
}

// local has the types of messages that a node sends only to itself.
var local = map[raftpb.MessageType]bool{
	raftpb.LocalTick: true, raftpb.Election: true, raftpb.LeaderHeartbeat: true, raftpb.Unreachable: true, raftpb.SnapshotStatus: true,
	raftpb.CheckQuorum: true, raftpb.BatchedReadIndex: true, raftpb.InstallSnapshot: true, raftpb.ConfigChangeEvent: true,
}
