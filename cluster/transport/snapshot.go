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
	t    *Transport
	done bool // the last chunk was sent
	stop []func() bool
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
	// Before the first chunk, the database is copied to a file, which may take long.
	t.spawn(func() { t.sendAlive(c) })
	return &snapshotConn{conn: c, t: t, stop: []func() bool{context.AfterFunc(t.ctx, c.close), context.AfterFunc(ctx, c.close)}}, nil
}

// SendChunk implements raftio.ISnapshotConnection.
func (s *snapshotConn) SendChunk(chunk raftpb.Chunk) error {
	err := s.out.write(chunkFrame, &chunk)
	s.done = err == nil && chunk.IsLastChunk()
	return err
}

// Close waits until the other node has read everything: to close the connection at
// once would discard what it has not read. It does not wait if not all was sent, for
// whatever reason. Dragonboat's circuit breaker opens after Close has returned.
func (s *snapshotConn) Close() {
	if !s.done {
		s.t.links[s.peer.Node].snapshotFailed()
	} else if s.out.write(endFrame, nil) == nil {
		s.in.next(ackTimeout)
	}
	for _, stop := range s.stop {
		stop()
	}
	s.t.peers.remove(s.conn)
}

// receiveSnapshot hands the chunks of a snapshot to Dragonboat.
func (t *Transport) receiveSnapshot(c *conn) {
	for {
		kind, payload, err := c.in.next(acceptedSilence)
		if err != nil {
			return
		}
		switch kind {
		case chunkFrame:
			var chunk raftpb.Chunk
			if t.opts.Guard.Paused() || chunk.Unmarshal(payload) != nil || t.opts.NodeOf(chunk.From) != c.peer.Node || !t.chunk(chunk) {
				return
			}
		case aliveFrame:
		case endFrame:
			c.out.write(endFrame, nil)
			return
		default:
			return
		}
	}
}
