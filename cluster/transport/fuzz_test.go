package transport

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"
)

// bytesConn is a connection on which somebody has sent bytes.
type bytesConn struct {
	net.Conn
	io.Reader
}

func (c bytesConn) Read(p []byte) (int, error)       { return c.Reader.Read(p) }
func (c bytesConn) SetReadDeadline(time.Time) error  { return nil }
func (c bytesConn) SetWriteDeadline(time.Time) error { return nil }
func (c bytesConn) Write(p []byte) (int, error)      { return len(p), nil }

// FuzzFrames reads frames and what is in them, as a node does before and after a
// handshake. Nothing may panic or take more memory than what was sent.
func FuzzFrames(f *testing.F) {
	frame := func(kind byte, payload []byte) []byte {
		head := append([]byte(frameMagic), kind)
		head = binary.LittleEndian.AppendUint32(head, uint32(len(payload)))
		return append(binary.LittleEndian.AppendUint32(head, crc32.Checksum(payload, castagnoli)), payload...)
	}
	batch, err := (&raftpb.MessageBatch{Requests: []raftpb.Message{{Type: raftpb.Replicate, From: 2, To: 1, Entries: []raftpb.Entry{{Cmd: []byte("x")}}}}}).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	chunk, err := (&raftpb.Chunk{ShardID: 1, ReplicaID: 1, From: 2, Data: []byte("x")}).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	greeting := frame(helloFrame, hello{Version: protocolVersion, Node: 2, Instance: "i", Storage: "s", Address: "[::1]:8200", Lane: bulkLane}.marshal())
	for _, seed := range [][]byte{
		nil, greeting, frame(refusalFrame, refuse(RefusedNode, "no").marshal()), frame(helloFrame, []byte("{}")), frame(helloFrame, []byte("junk")),
		bytes.Join([][]byte{greeting, frame(aliveFrame, nil), frame(batchFrame, batch), frame(chunkFrame, chunk), frame(endFrame, nil)}, nil),
		[]byte("GET / HTTP/1.1\r\n\r\n"), append(append([]byte(frameMagic), batchFrame), 255, 255, 255, 255, 0, 0, 0, 0),
	} {
		f.Add(seed)
	}
	t := &Transport{opts: Options{Node: 1, NodeOf: func(replica uint64) uint64 { return replica }}}
	f.Fuzz(func(test *testing.T, sent []byte) {
		over := bytesConn{Reader: bytes.NewReader(sent)}
		c := &conn{in: newFrameReader(over), out: &frameWriter{conn: over}}
		peer, err := c.expectHello()
		if err != nil {
			return
		}
		if again, err := readHello(peer.marshal()); err != nil || again != peer {
			test.Errorf("%+v becomes %+v, %v", peer, again, err)
		}
		reachableAs(peer.Address, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		c.in.limit = maxFrame
		for {
			kind, payload, err := c.in.next(time.Second)
			if err != nil {
				break
			}
			if len(payload) > len(sent) {
				test.Errorf("a payload of %d bytes, of %d that were sent", len(payload), len(sent))
			}
			switch kind {
			case batchFrame:
				var batch raftpb.MessageBatch
				if batch.Unmarshal(payload) == nil {
					t.filter(peer.Node, &batch)
				}
			case chunkFrame:
				var chunk raftpb.Chunk
				chunk.Unmarshal(payload)
			case refusalFrame:
				readRefusal(payload)
			}
		}
		if cap(c.in.buf) > 2*len(sent)+2*ioPart {
			test.Errorf("%d bytes of memory for %d that were sent", cap(c.in.buf), len(sent))
		}
	})
}

// FuzzHello decodes what a peer says of itself, and why it refuses a node.
func FuzzHello(f *testing.F) {
	f.Add([]byte(hello{Version: protocolVersion, Node: 2, Instance: "i", Storage: "s", Address: "[::1]:8200", Lane: bulkLane}.marshal()))
	f.Add([]byte(refuse(RefusedNode, "no").marshal()))
	f.Add([]byte(`{"Node":18446744073709551616}`))
	f.Add([]byte(`{"Version":-1,"Node":1,"Instance":"\ud800","Address":":0"}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if h, err := readHello(payload); err == nil {
			if h.Node == 0 || h.Instance == "" || len(h.Address) > maxHelloText {
				t.Errorf("%+v is accepted", h)
			}
			if again, err := readHello(h.marshal()); err != nil || again != h {
				t.Errorf("%+v becomes %+v, %v", h, again, err)
			}
			reachableAs(h.Address, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		}
		if r, err := readRefusal(payload); err == nil && len(r.marshal()) > maxHello {
			t.Errorf("a refusal of %d bytes", len(r.marshal()))
		}
	})
}
