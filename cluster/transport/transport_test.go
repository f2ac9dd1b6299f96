package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

func TestTransportCarriesMessages(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1", "localhost"} {
		for _, secure := range []string{"", " with TLS"} {
			t.Run(host+secure, func(t *testing.T) {
				members := newMembers(t, host, 2)
				var options []func(*Options)
				if secure != "" {
					options = append(options, withSecret(t, "s"))
				}
				one, two := start(t, 1, members, options...), start(t, 2, members, options...)
				one.waitUp(2)
				c, err := one.GetConnection(t.Context(), one.Address(2))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				big := bytes.Repeat([]byte("x"), 3<<20)
				batch := raftpb.MessageBatch{SourceAddress: "a", DeploymentId: 5, Requests: []raftpb.Message{
					{Type: raftpb.Replicate, From: 1, To: 2, Term: 1, ShardID: 1, Entries: []raftpb.Entry{{Index: 1, Cmd: big}}},
					{Type: raftpb.Replicate, From: 1, To: 2, Term: 1, ShardID: 1, Commit: 7}, {Type: raftpb.Replicate, From: 1, To: 2, Term: 1, ShardID: 1, Commit: 8}}}
				if err := c.SendMessageBatch(batch); err != nil {
					t.Fatal(err)
				}
				<-two.got
				<-two.got
				if len(two.batches) != 2 || !bytes.Equal(two.batches[0].Requests[0].Entries[0].Cmd, big) || len(two.batches[1].Requests) != 2 || two.batches[1].Requests[1].Commit != 8 || two.batches[1].DeploymentId != 5 {
					t.Errorf("%d batches were received", len(two.batches))
				}
				s, err := one.GetSnapshotConnection(t.Context(), one.Address(2))
				if err != nil {
					t.Fatal(err)
				}
				for i := range uint64(2) {
					if err := s.SendChunk(raftpb.Chunk{ChunkId: i, ChunkCount: 2, From: 1, Data: big}); err != nil {
						t.Fatal(err)
					}
				}
				s.Close() // returns once they are read
				if len(two.chunks) != 2 || !bytes.Equal(two.chunks[1].Data, big) {
					t.Errorf("%d chunks were received", len(two.chunks))
				}
			})
		}
	}
}

// Messages reach a node that has restarted, both over a connection that Dragonboat
// got before the restart and over one that it got while the node did not listen.
func TestTransportReconnects(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	sender := start(t, 1, members)
	first := start(t, 2, members)
	stale, err := sender.GetConnection(t.Context(), sender.Address(2))
	if err != nil {
		t.Fatal(err)
	}
	defer stale.Close()
	sender.waitFor(first)
	first.Close()
	testrun.WaitFor(t, "the sender to notice", func() bool { return len(sender.Reachable()) == 0 })
	fresh, err := sender.GetConnection(t.Context(), sender.Address(2))
	if err != nil {
		t.Fatalf("connecting to a node that does not run: %v", err)
	}
	defer fresh.Close()
	send := func(c raftio.IConnection) error {
		return c.SendMessageBatch(raftpb.MessageBatch{Requests: []raftpb.Message{{Type: raftpb.Heartbeat, ShardID: 1, Term: 1, From: 1, To: 2}}})
	}
	for _, c := range []raftio.IConnection{fresh, stale} {
		if err := send(c); err != nil {
			t.Fatalf("sending to a node that does not run: %v", err)
		}
	}
	second := start(t, 2, members)
	began := time.Now()
	for _, c := range []raftio.IConnection{fresh, stale} {
		before := second.messages(raftpb.Heartbeat)
		testrun.WaitFor(t, "a message to arrive at a node that has restarted", func() bool {
			if err := send(c); err != nil {
				t.Fatalf("sending to a node that has restarted: %v", err)
			}
			return second.messages(raftpb.Heartbeat) > before
		})
	}
	t.Logf("after %v", time.Since(began))
}

// BenchmarkRoundTrip measures an entry on its way to another node, and the answer.
func BenchmarkRoundTrip(b *testing.B) {
	for _, secure := range []bool{false, true} {
		for _, size := range []int{100, 1000, 10000} {
			b.Run(fmt.Sprintf("tls=%v/bytes=%d", secure, size), func(b *testing.B) {
				members := newMembers(b, "127.0.0.1", 2)
				var options []func(*Options)
				if secure {
					options = append(options, withSecret(b, "a"))
				}
				one, two := start(b, 1, members, options...), start(b, 2, members, options...)
				one.waitUp(2)
				two.waitUp(1)
				entry := raftpb.Message{Type: raftpb.Replicate, ShardID: 1, Entries: []raftpb.Entry{{Index: 1, Term: 1, Cmd: make([]byte, size)}}}
				for b.Loop() {
					one.send(2, entry)
					<-two.got
					two.send(1, raftpb.Message{Type: raftpb.ReplicateResp, ShardID: 1})
					<-one.got
				}
				one.mu.Lock()
				two.mu.Lock()
				one.batches, two.batches = nil, nil
				two.mu.Unlock()
				one.mu.Unlock()
			})
		}
	}
}

// A node that comes back calls, and is dialled at once.
func TestTransportDialsWhoCalls(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	one := start(t, 1, members)
	testrun.WaitFor(t, "an attempt that fails", func() bool { return one.dialError(2) != nil })
	var waited []time.Duration
	for range 10 {
		two := start(t, 2, members)
		began := time.Now()
		testrun.WaitFor(t, "both directions", func() bool { return len(one.Reachable()) == 1 && len(two.Reachable()) == 1 })
		waited = append(waited, time.Since(began))
		two.Close()
		testrun.WaitFor(t, "the end of the connections", func() bool { return len(one.Reachable()) == 0 })
	}
	t.Logf("connected after %v", waited)
}

// A node that does not answer any more, without a word, is noticed, and Raft is told
// that what was sent to it may be lost. When it answers again, it is connected.
func TestTransportNoticesSilence(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	way := newProxy(t, members[2])
	seen := map[uint64]string{1: members[1], 2: way.address}
	one, two := start(t, 1, seen), start(t, 2, members)
	one.waitUp(2)
	one.send(2, raftpb.Message{Type: raftpb.Replicate, ShardID: 7})
	<-two.got
	way.hold(true)
	began := time.Now()
	testrun.WaitFor(t, "the silence to be noticed", func() bool { return len(one.Reachable()) == 0 })
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	} else {
		t.Logf("noticed after %v", took)
	}
	testrun.WaitFor(t, "Raft to be told", func() bool {
		one.mu.Lock()
		defer one.mu.Unlock()
		return len(one.told) > 0 && one.told[0].ShardID == 7 && one.told[0].From == 2 && one.told[0].To == 1
	})
	one.send(2, raftpb.Message{Type: raftpb.Replicate, ShardID: 8}) // dropped, not kept
	testrun.WaitFor(t, "Raft to be told again", func() bool {
		one.mu.Lock()
		defer one.mu.Unlock()
		return one.told[len(one.told)-1].ShardID == 8
	})
	way.hold(false)
	one.waitFor(two)
	if n := two.messages(raftpb.Replicate); n != 1 {
		t.Errorf("%d messages with entries arrived, and one was sent while there was a connection", n)
	}
}

// A snapshot whose first chunk takes long arrives, and the messages to a node go on
// when one fails.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	members := newMembers(t, "127.0.0.1", 2)
	one, two := start(t, 1, members), start(t, 2, members)
	one.waitUp(2)
	before := one.Address(2)
	slow, err := one.GetSnapshotConnection(t.Context(), before)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(acceptedSilence + time.Second) // while the database is copied
	for i := range uint64(2) {
		if err := slow.SendChunk(raftpb.Chunk{ChunkId: i, ChunkCount: 2, From: 1}); err != nil {
			t.Fatal(err)
		}
	}
	slow.Close()
	if len(two.chunks) != 2 || one.Address(2) != before {
		t.Errorf("%d chunks were received, and the address is %s", len(two.chunks), one.Address(2))
	}
	// The database cannot be read to its end: Dragonboat closes the connection, and then
	// sends nothing to the address that it had for it.
	failed, err := one.GetSnapshotConnection(t.Context(), before)
	if err != nil {
		t.Fatal(err)
	}
	if err := failed.SendChunk(raftpb.Chunk{ChunkCount: 2, From: 1}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if failed.Close(); time.Since(began) > ackTimeout/2 {
		t.Errorf("closing took %v", time.Since(began))
	}
	if one.Address(2) == before {
		t.Error("the address is the same after a snapshot has failed")
	}
	if c, err := one.GetConnection(t.Context(), one.Address(2)); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	// Dragonboat ends: it waits for the connections of its snapshots.
	ctx, cancel := context.WithCancel(t.Context())
	ended, err := one.GetSnapshotConnection(ctx, one.Address(2))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	testrun.WaitFor(t, "the connection to end", func() bool { return ended.SendChunk(raftpb.Chunk{ChunkCount: 2, From: 1}) != nil })
	ended.Close()
	one.waitFor(two)
}

// What waits for a connection is bounded, and messages that are old are not sent.
func TestQueueIsBounded(t *testing.T) {
	l := newLink(&Transport{}, 2)
	for range 100 {
		l.urgent.add([]raftpb.Message{{Type: raftpb.Propose, Entries: []raftpb.Entry{{Cmd: make([]byte, 100<<10)}}}})
	}
	if l.urgent.bytes > maxUrgentBytes || len(l.urgent.all) < 5 {
		t.Errorf("%d messages of %d bytes wait", len(l.urgent.all), l.urgent.bytes)
	}
	for i := range l.urgent.all {
		l.urgent.all[i].at = time.Now().Add(-maxQueued - time.Millisecond)
	}
	l.urgent.add([]raftpb.Message{{Type: raftpb.RequestVote}})
	l.urgent.connected(&conn{})
	if len(l.urgent.all) != 1 || l.urgent.all[0].m.Type != raftpb.RequestVote || l.urgent.bytes > 1<<10 {
		t.Errorf("%d messages of %d bytes are sent to a new connection", len(l.urgent.all), l.urgent.bytes)
	}
	l.bulk.connected(&conn{})
	lost := 0
	for range 100 {
		lost += len(l.bulk.add([]raftpb.Message{{Type: raftpb.Replicate, Entries: []raftpb.Entry{{Cmd: make([]byte, 1<<20)}}}}))
	}
	if l.bulk.bytes > maxBulkBytes || lost+len(l.bulk.all) != 100 || lost == 0 {
		t.Errorf("%d messages of %d bytes wait, %d were reported as lost", len(l.bulk.all), l.bulk.bytes, lost)
	}
	if n := len(l.bulk.disconnected()) + lost; n != 100 || l.bulk.bytes != 0 {
		t.Errorf("%d messages were reported as lost, and %d bytes are left", n, l.bulk.bytes)
	}
}

// Invalid data ends the connection that it came from, and nothing else.
func TestTransportSurvivesInvalidFrames(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	one, two := start(t, 1, members), start(t, 2, members)
	frame := func(kind byte, size uint32, payload string) string {
		head := append([]byte(frameMagic), kind)
		head = binary.LittleEndian.AppendUint32(head, size)
		return string(binary.LittleEndian.AppendUint32(head, crc32.Checksum([]byte(payload), castagnoli))) + payload
	}
	whole := func(kind byte, payload string) string { return frame(kind, uint32(len(payload)), payload) }
	greeting := whole(helloFrame, string(hello{Version: protocolVersion, Node: 2, Instance: two.instance, Storage: "folder-2", Lane: bulkLane}.marshal()))
	for _, sent := range []string{
		"GET / HTTP/1.1\r\n\r\n", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		frame(helloFrame, 1<<32-1, ""), frame(helloFrame, maxHello+1, ""), whole(helloFrame, "junk"), whole(helloFrame, "{}"), whole(batchFrame, ""), whole(99, ""),
		greeting + frame(batchFrame, 1<<32-1, ""), greeting + frame(batchFrame, maxFrame+1, ""), greeting + whole(batchFrame, "junk"), greeting + whole(chunkFrame, "junk"),
		greeting + whole(99, ""), greeting + greeting, greeting + frame(batchFrame, 3, "abc")[:15] + "xyz",
	} {
		c, err := net.Dial("tcp", members[1])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(sent)); err != nil {
			t.Fatal(err)
		}
		closes(t, c)
		c.Close()
	}
	// A header that announces a large payload costs no memory.
	huge, err := net.Dial("tcp", members[1])
	if err != nil {
		t.Fatal(err)
	}
	defer huge.Close()
	huge.Write([]byte(greeting + frame(batchFrame, maxFrame, "")))
	two.waitFor(one)
	one.waitFor(two)
}

// Messages at which Dragonboat panics do not reach it, nor do those of others.
func TestTransportFiltersMessages(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 3)
	one, two := start(t, 1, members), start(t, 2, members)
	one.waitUp(2)
	c, err := one.GetConnection(t.Context(), Target(2))
	if err != nil {
		t.Fatal(err)
	}
	var all []raftpb.Message
	for kind := range raftpb.MessageType(40) {
		hasTerm, known := exchanged[kind]
		m := raftpb.Message{Type: kind, From: 1, To: 2, Hint: 1}
		if !known || hasTerm {
			all = append(all, m) // without a term
		}
		if m.Term = 1; !known || !hasTerm {
			all = append(all, m)
		}
	}
	all = append(all, raftpb.Message{Type: raftpb.HeartbeatResp, Term: 1, From: 3, To: 2}, raftpb.Message{Type: raftpb.HeartbeatResp, Term: 1, From: 1, To: 3}, raftpb.Message{Type: raftpb.HeartbeatResp, Term: 1, From: 1},
		raftpb.Message{Type: raftpb.HeartbeatResp, Term: 1, To: 2}, raftpb.Message{Type: raftpb.LeaderTransfer, From: 1, To: 2}, raftpb.Message{Type: raftpb.ReadIndex, From: 1, To: 2})
	if err := c.SendMessageBatch(raftpb.MessageBatch{SourceAddress: "another node's", Requests: all}); err != nil {
		t.Fatal(err)
	}
	testrun.WaitFor(t, "the only message", func() bool { return two.messages(raftpb.ReadIndex) == 1 })
	for _, b := range two.batches {
		if b.SourceAddress != "" {
			t.Errorf("Dragonboat would send the answers to %q", b.SourceAddress)
		}
		for _, m := range b.Requests {
			if m.Type != raftpb.ReadIndex {
				t.Errorf("%s from %d to %d was received", m.Type, m.From, m.To)
			}
		}
	}
}

// A node whose own name does not resolve yet listens as soon as the name does.
func TestTransportWaitsForItsName(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	address := members[2]
	var mu sync.Mutex
	known := false
	one := start(t, 1, members)
	start(t, 2, members, func(o *Options) {
		o.Listen = "not-yet:8200"
		o.Hooks.Listen = func(ctx context.Context, cfg *net.ListenConfig, name string) (net.Listener, error) {
			mu.Lock()
			defer mu.Unlock()
			if !known {
				return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
			}
			return listenTCP(ctx, cfg, address)
		}
	})
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Fatal("the node listens although its name does not resolve yet")
	}
	mu.Lock()
	known = true
	mu.Unlock()
	one.waitUp(2)
}

// The hook drops, repeats, delays and so reorders messages.
func TestHooks(t *testing.T) {
	members := newMembers(t, "127.0.0.1", 2)
	one := start(t, 1, members, func(o *Options) {
		o.Hooks.Send = func(from, to, shard uint64, kind string) []time.Duration {
			if from != 1 || to != 2 {
				t.Errorf("the hook is called for a message from %d to %d", from, to)
			}
			switch shard {
			case 1:
				return nil
			case 2:
				return []time.Duration{0, 0}
			case 3:
				return []time.Duration{20 * time.Millisecond}
			}
			return []time.Duration{0}
		}
	})
	two := start(t, 2, members)
	one.waitUp(2)
	var all []raftpb.Message
	for shard := uint64(1); shard <= 4; shard++ {
		all = append(all, raftpb.Message{Type: raftpb.Replicate, ShardID: shard})
	}
	one.send(2, all...)
	testrun.WaitFor(t, "four messages", func() bool { return two.messages(raftpb.Replicate) == 4 })
	var shards []uint64
	for _, b := range two.batches {
		for _, m := range b.Requests {
			shards = append(shards, m.ShardID)
		}
	}
	if len(shards) != 4 || shards[0] != 2 || shards[1] != 2 || shards[2] != 4 || shards[3] != 3 {
		t.Errorf("messages of the shards %v arrived", shards)
	}
}

func TestAddresses(t *testing.T) {
	for address, valid := range map[string]bool{
		"10.0.0.1:8200": true, "[::1]:8291": true, "[fe80::1%eth0]:8291": true, "host:8200": true, "node_1.app_default:8200": true,
		"node-1.example.org.:8200": true, "localhost:http": true,
		"::1:8291": false, "host": false, ":8200": false, "host:0": false, "host:65536": false, "host:x y": false, "": false,
	} {
		if err := CheckAddress(address); (err == nil) != valid {
			t.Errorf("%q: %v", address, err)
		}
	}
}
