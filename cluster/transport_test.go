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

// listener is a transport that keeps what it is sent.
type listener struct {
	*transport
	mu      sync.Mutex
	batches []raftpb.MessageBatch
	chunks  []raftpb.Chunk
	got     chan struct{}
}

func listen(t *testing.T, on string) *listener {
	t.Helper()
	g, err := newGuard(Config{Dir: t.TempDir(), Node: 1, Logger: slog.New(slog.DiscardHandler)}, fakeShards{})
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{got: make(chan struct{}, 100)}
	l.transport = transportFactory{listenOn: on, log: slog.New(slog.DiscardHandler), guard: g}.Create(config.NodeHostConfig{},
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

// freeAddress returns an address on a host that nobody listens on.
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
			l := listen(t, address)
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
				t.Errorf("%d batches came", len(l.batches))
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
			s.Close() // returns once they were read
			if len(l.chunks) != 2 || !bytes.Equal(l.chunks[1].Data, big) {
				t.Errorf("%d chunks came", len(l.chunks))
			}
		})
	}
}

// A node that restarts is sent messages on the connections that were made before,
// and on one that was dialled while nobody listened.
func TestTransportReconnects(t *testing.T) {
	address := freeAddress(t, "127.0.0.1")
	sender := listen(t, freeAddress(t, "127.0.0.1"))
	first := listen(t, address)
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
	time.Sleep(2 * redialEvery) // the first attempts are refused
	second := listen(t, address)
	fresh := <-dialled
	if fresh == nil {
		return
	}
	defer fresh.Close()
	for _, c := range []raftio.IConnection{fresh, stale} {
		for sent := 0; ; sent++ { // the kernel takes the first one for the connection that is gone
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

// What a stranger sends ends its connection, and nothing else.
func TestTransportSurvivesStrangers(t *testing.T) {
	address := freeAddress(t, "127.0.0.1")
	l := listen(t, address)
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
	// Its length alone costs no memory.
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

// A node whose own name does not resolve yet listens as soon as it does.
func TestTransportWaitsForItsName(t *testing.T) {
	address := freeAddress(t, "127.0.0.1")
	before := resolveListen
	t.Cleanup(func() { resolveListen = before })
	var mu sync.Mutex
	known := false
	resolveListen = func(ctx context.Context, cfg *net.ListenConfig, on string) (net.Listener, error) {
		mu.Lock()
		defer mu.Unlock()
		if !known {
			return nil, &net.DNSError{Err: "no such host", Name: on, IsNotFound: true}
		}
		return cfg.Listen(ctx, "tcp", address)
	}
	l := listen(t, "not-yet:8200")
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Fatal("somebody listens already")
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
		time.Sleep(10 * time.Millisecond) // between tries
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
