package transport

import (
	"context"
	"time"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// ackTimeout bounds the wait for the answer to an endFrame.
const ackTimeout = 10 * time.Second

// snapshotConn sends the chunks of a snapshot, on a connection of its own.
type snapshotConn struct {
	*conn
	t      *Transport
	failed bool
	stop   func() bool
}

// GetSnapshotConnection implements raftio.ITransport.
func (t *Transport) GetSnapshotConnection(ctx context.Context, target string) (raftio.ISnapshotConnection, error) {
	l, err := t.link(target)
	if err != nil {
		return nil, err
	}
	c, err := l.dialOnce(ctx, snapshotLane)
	if err != nil {
		l.snapshotFailed()
		return nil, err
	}
	c.in.limit = maxHello
	return &snapshotConn{conn: c, t: t, stop: context.AfterFunc(t.ctx, c.close)}, nil
}

// SendChunk implements raftio.ISnapshotConnection.
func (s *snapshotConn) SendChunk(chunk raftpb.Chunk) error {
	err := s.out.write(chunkFrame, &chunk)
	if err != nil && !s.failed {
		s.failed = true
		s.t.links[s.peer.Node].snapshotFailed()
	}
	return err
}

// Close waits until the other node has read everything. To close the connection at
// once would discard what it has not read.
func (s *snapshotConn) Close() {
	if !s.failed && s.out.write(endFrame, nil) == nil {
		s.in.next(ackTimeout)
	}
	s.stop()
	s.t.peers.remove(s.conn)
}

// receiveSnapshot hands the chunks of a snapshot to Dragonboat.
func (t *Transport) receiveSnapshot(c *conn) {
	for {
		kind, payload, err := c.in.next(chunkSilence)
		if err != nil {
			return
		}
		switch kind {
		case chunkFrame:
			var chunk raftpb.Chunk
			if t.opts.Guard.Paused() || chunk.Unmarshal(payload) != nil || t.opts.NodeOf(chunk.From) != c.peer.Node || !t.chunk(chunk) {
				return
			}
		case endFrame:
			c.out.write(endFrame, nil)
			return
		default:
			return
		}
	}
}
