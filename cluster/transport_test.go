package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// recordingTransport is a transport that keeps what it receives.
type recordingTransport struct {
	*transport
	mu      sync.Mutex
	batches []raftpb.MessageBatch
	chunks  []raftpb.Chunk
	got     chan struct{} // a batch was received
}

// startTransport starts a transport that listens on an address, by default with
// listenTCP.
func startTransport(t *testing.T, address string, listen listenFunc) *recordingTransport {
	t.Helper()
	g, err := newGuard(Config{Dir: t.TempDir(), Node: 1, Logger: slog.New(slog.DiscardHandler)}, fakeShards{})
	if err != nil {
		t.Fatal(err)
	}
	l := &recordingTransport{got: make(chan struct{}, 100)}
	l.transport = transportFactory{listenOn: address, listen: listen, log: slog.New(slog.DiscardHandler), guard: g}.Create(config.NodeHostConfig{},
		func(b raftpb.MessageBatch) {
			l.mu.Lock()
			l.batches = append(l.batches, b)
			l.mu.Unlock()
			l.got <- struct{}{}
		},
		func(c raftpb.Chunk) bool {
			l.mu.Lock()
			l.chunks = append(l.chunks, c)
			l.mu.Unlock()
			return c.ChunkId < 2
		}).(*transport)
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// freeAddress returns an address of a host on which nobody listens.
func freeAddress(t *testing.T, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skipf("this machine has no %s: %v", host, err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestTransportCarriesMessages(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1", "localhost"} {
		t.Run(host, func(t *testing.T) {
			address := freeAddress(t, host)
			l := startTransport(t, address, nil)
			c, err := l.GetConnection(context.Background(), address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			big := bytes.Repeat([]byte("x"), 3<<20)
			batch := raftpb.MessageBatch{SourceAddress: "a", DeploymentId: 5, Requests: []raftpb.Message{
				{Type: raftpb.Replicate, ShardID: 1, Entries: []raftpb.Entry{{Index: 1, Cmd: big}}}, {Type: raftpb.Heartbeat, ShardID: 1, Commit: 7},
				{Type: raftpb.Heartbeat, ShardID: 1, Commit: 8}}}
			if err := c.SendMessageBatch(batch); err != nil {
				t.Fatal(err)
			}
			<-l.got
			<-l.got
			if len(l.batches) != 2 || !bytes.Equal(l.batches[0].Requests[0].Entries[0].Cmd, big) || len(l.batches[1].Requests) != 2 || l.batches[1].Requests[1].Commit != 8 || l.batches[1].DeploymentId != 5 {
				t.Errorf("%d batches were received", len(l.batches))
			}
			s, err := l.GetSnapshotConnection(context.Background(), address)
			if err != nil {
				t.Fatal(err)
			}
			for i := range uint64(2) {
				if err := s.SendChunk(raftpb.Chunk{ChunkId: i, Data: big}); err != nil {
					t.Fatal(err)
				}
			}
			s.Close() // returns once they are read
			if len(l.chunks) != 2 || !bytes.Equal(l.chunks[1].Data, big) {
				t.Errorf("%d chunks were received", len(l.chunks))
			}
		})
	}
}

// Messages reach a node that has restarted, both over a connection that was made
// before its restart and over one that was dialled while it did not listen.
func TestTransportReconnects(t *testing.T) {
	address := freeAddress(t, "127.0.0.1")
	sender := startTransport(t, freeAddress(t, "127.0.0.1"), nil)
	first := startTransport(t, address, nil)
	send := func(c raftio.IConnection) error {
		return c.SendMessageBatch(raftpb.MessageBatch{Requests: []raftpb.Message{{Type: raftpb.Heartbeat, ShardID: 1}}})
	}
	stale, err := sender.GetConnection(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer stale.Close()
	if err := send(stale); err != nil {
		t.Fatal(err)
	}
	<-first.got
	first.Close()

	dialled := make(chan raftio.IConnection, 1)
	go func() {
		c, err := sender.GetConnection(t.Context(), address)
		if err != nil {
			t.Errorf("dialling a node that restarts: %v", err)
		}
		dialled <- c
	}()
	time.Sleep(2 * redialPause) // the first attempts are refused
	second := startTransport(t, address, nil)
	fresh := <-dialled
	if fresh == nil {
		return
	}
	defer fresh.Close()
	for _, c := range []raftio.IConnection{fresh, stale} {
		for sent := 0; ; sent++ { // the kernel still accepts the first one, for the broken connection
			if err := send(c); err != nil {
				t.Fatalf("message %d to a node that has restarted: %v", sent, err)
			}
			select {
			case <-second.got:
			case <-time.After(10 * time.Millisecond):
				if sent < 1000 {
					continue
				}
				t.Fatal("no message arrives at a node that has restarted")
			}
			break
		}
	}
}

// Invalid data ends the connection that it came from, and nothing else.
func TestTransportSurvivesInvalidFrames(t *testing.T) {
	address := freeAddress(t, "127.0.0.1")
	l := startTransport(t, address, nil)
	frame := func(kind byte, size uint32, payload string) string {
		head := append([]byte(frameMagic), kind)
		head = binary.LittleEndian.AppendUint32(head, size)
		return string(binary.LittleEndian.AppendUint32(head, crc32.Checksum([]byte(payload), castagnoli))) + payload
	}
	for _, sent := range []string{
		"GET / HTTP/1.1\r\n\r\n", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		frame(batchFrame, 1<<32-1, ""), frame(batchFrame, 4, "junk"), frame(chunkFrame, 4, "junk"), frame(99, 0, ""),
		frame(batchFrame, 3, "abc")[:15] + "xyz",
	} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(sent)); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q: %v", sent, err)
		}
		c.Close()
	}
	// A header that announces a large payload costs no memory.
	huge, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer huge.Close()
	huge.Write([]byte(frame(batchFrame, maxFrame, "")))
	c, err := l.GetConnection(context.Background(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SendMessageBatch(raftpb.MessageBatch{Requests: []raftpb.Message{{Type: raftpb.Heartbeat}}}); err != nil {
		t.Fatal(err)
	}
	<-l.got
}

// A node whose own name does not resolve yet listens as soon as the name does.
func TestTransportWaitsForItsName(t *testing.T) {
	address := freeAddress(t, "127.0.0.1")
	var mu sync.Mutex
	known := false
	l := startTransport(t, "not-yet:8200", func(ctx context.Context, cfg *net.ListenConfig, name string) (net.Listener, error) {
		mu.Lock()
		defer mu.Unlock()
		if !known {
			return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
		}
		return listenTCP(ctx, cfg, address)
	})
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Fatal("the node listens although its name does not resolve yet")
	}
	mu.Lock()
	known = true
	mu.Unlock()
	deadline := time.Now().Add(time.Minute)
	for {
		c, err := l.GetConnection(context.Background(), address)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // between attempts
	}
}

func TestAddresses(t *testing.T) {
	for address, valid := range map[string]bool{
		"10.0.0.1:8200": true, "[::1]:8291": true, "[fe80::1%eth0]:8291": true, "host:8200": true, "node_1.app_default:8200": true,
		"node-1.example.org.:8200": true, "localhost:http": true,
		"::1:8291": false, "host": false, ":8200": false, "host:0": false, "host:65536": false, "host:x y": false, "": false,
	} {
		if err := checkAddress(address); (err == nil) != valid {
			t.Errorf("%q: %v", address, err)
		}
	}
}
