package cluster

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// newTestGuard returns the guard of node 1, whose log of shard 1 has the entries 1 to
// 10 of term 2 and 11 to 20 of term 3, of which 15 are committed.
func newTestGuard(t *testing.T, dir string) (g *guard, damage chan error) {
	t.Helper()
	damage = make(chan error, 1)
	g, err := newGuard(Config{Dir: dir, Node: 1, Logger: slog.New(slog.DiscardHandler)}, fakeShards{damage})
	if err != nil {
		t.Fatal(err)
	}
	g.raftLog = newTestLog(t, t.TempDir(), nil)
	if _, err := g.raftLog.ReadRaftState(1, 1, 0); !errors.Is(err, raftio.ErrNoSavedLog) {
		t.Fatal(err)
	}
	var entries []raftpb.Entry
	for i := uint64(1); i <= 20; i++ {
		entries = append(entries, raftpb.Entry{Index: i, Term: 2 + (i-1)/10})
	}
	u := raftpb.Update{ShardID: 1, ReplicaID: 1, State: raftpb.State{Term: 3, Commit: 15}, EntriesToSave: entries}
	if err := g.raftLog.SaveRaftState([]raftpb.Update{u}, 1); err != nil {
		t.Fatal(err)
	}
	return g, damage
}

// fakeShards are shards that have applied entry 15.
type fakeShards struct{ damage chan error }

func (f fakeShards) damaged(_ uint64, err error) { f.damage <- err }
func (f fakeShards) applied(uint64) uint64       { return 15 }
func (f fakeShards) shardName(uint64) string     { return "test" }

func entriesOf(term uint64, indexes ...uint64) (entries []raftpb.Entry) {
	for _, i := range indexes {
		entries = append(entries, raftpb.Entry{Index: i, Term: term})
	}
	return entries
}

func TestGuardNoticesLostEntries(t *testing.T) {
	for _, test := range []struct {
		name string
		m    raftpb.Message
		want bool // the guard reports damage
	}{
		{"a heartbeat with the last entry", raftpb.Message{Type: raftpb.Heartbeat, Term: 3, Commit: 20}, false},
		{"a heartbeat beyond the last entry", raftpb.Message{Type: raftpb.Heartbeat, Term: 3, Commit: 21}, true},
		{"new entries", raftpb.Message{Type: raftpb.Replicate, Term: 3, LogIndex: 20, LogTerm: 3, Entries: entriesOf(3, 21)}, false},
		{"the entries that are there", raftpb.Message{Type: raftpb.Replicate, Term: 3, LogIndex: 8, LogTerm: 2, Entries: append(entriesOf(2, 9, 10), entriesOf(3, 11)...)}, false},
		{"other entries after the committed ones", raftpb.Message{Type: raftpb.Replicate, Term: 4, LogIndex: 15, LogTerm: 3, Entries: entriesOf(4, 16)}, false},
		{"other entries at committed indexes", raftpb.Message{Type: raftpb.Replicate, Term: 4, LogIndex: 10, LogTerm: 2, Entries: entriesOf(4, 11)}, true},
		{"entries after another entry than the committed one", raftpb.Message{Type: raftpb.Replicate, Term: 4, LogIndex: 12, LogTerm: 4}, true},
		{"other entries in a message of an earlier term", raftpb.Message{Type: raftpb.Replicate, Term: 2, LogIndex: 10, LogTerm: 2, Entries: entriesOf(2, 11)}, false},
		{"a read index", raftpb.Message{Type: raftpb.ReadIndexResp, Term: 3, LogIndex: 15, Hint: 7}, false},
		{"a read index lower than the applied index", raftpb.Message{Type: raftpb.ReadIndexResp, Term: 3, LogIndex: 14, Hint: 7}, true},
		{"a read index that this node did not ask for", raftpb.Message{Type: raftpb.ReadIndexResp, Term: 3, LogIndex: 14, Hint: 8}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, damage := newTestGuard(t, t.TempDir())
			g.Sending([]raftpb.Message{{Type: raftpb.ReadIndex, ShardID: 1, To: 2, From: 1, Hint: 7}})
			test.m.ShardID, test.m.From, test.m.To = 1, 2, 1
			batch := raftpb.MessageBatch{Requests: []raftpb.Message{test.m}}
			g.Received(&batch)
			if let := len(batch.Requests) == 1; let == test.want {
				t.Fatalf("the message was let through: %v", let)
			}
			if !test.want {
				return
			}
			if err := <-damage; !errors.Is(err, ErrForgotten) {
				t.Error(err)
			}
			batch = raftpb.MessageBatch{Requests: []raftpb.Message{{Type: raftpb.Heartbeat, ShardID: 1}, {Type: raftpb.Heartbeat, ShardID: 2}}}
			if g.Received(&batch); len(batch.Requests) != 1 || batch.Requests[0].ShardID != 2 {
				t.Error("a damaged shard receives messages, or another shard does not")
			}
			if out := g.Sending([]raftpb.Message{{Type: raftpb.HeartbeatResp, ShardID: 1}}); len(out) != 0 {
				t.Error("a damaged shard sends messages")
			}
		})
	}
}

// Another node that has lost entries that it acknowledged gets no vote, also after a
// restart of this node, and learns from heartbeats what it had acknowledged.
func TestGuardRemembersAcknowledgedEntries(t *testing.T) {
	dir := t.TempDir()
	g, _ := newTestGuard(t, dir)
	g.Sending([]raftpb.Message{{Type: raftpb.Heartbeat, ShardID: 1, To: 2, Commit: 14}})
	if err := g.save(); err != nil {
		t.Fatal(err)
	}
	g, _ = newTestGuard(t, dir)
	let := func(m raftpb.Message) bool {
		m.ShardID, m.From = 1, 2
		batch := raftpb.MessageBatch{Requests: []raftpb.Message{m}}
		g.Received(&batch)
		return len(batch.Requests) == 1
	}
	if let(raftpb.Message{Type: raftpb.RequestPreVote, LogIndex: 13, LogTerm: 3}) || let(raftpb.Message{Type: raftpb.RequestVote, LogIndex: 13, LogTerm: 3}) ||
		let(raftpb.Message{Type: raftpb.ReplicateResp, Reject: true, Hint: 13}) {
		t.Error("a message of a node that has lost an entry was let through")
	}
	if !let(raftpb.Message{Type: raftpb.RequestVote, LogIndex: 14, LogTerm: 3}) || !let(raftpb.Message{Type: raftpb.ReplicateResp, Reject: true, Hint: 14}) {
		t.Error("a message of a node that has lost nothing was dropped")
	}
	if let(raftpb.Message{Type: raftpb.RequestVote, LogIndex: 14, LogTerm: 9}) {
		t.Error("a vote request of a candidate with another entry than the committed one was let through")
	}
	sent := []raftpb.Message{{Type: raftpb.Heartbeat, ShardID: 1, To: 2}, {Type: raftpb.Heartbeat, ShardID: 1, To: 3}}
	out := g.Sending(sent)
	if out[0].Commit != 14 || out[1].Commit != 0 || sent[0].Commit != 0 {
		t.Errorf("heartbeats have the commit indexes %d and %d, and Raft's own message was changed to %d", out[0].Commit, out[1].Commit, sent[0].Commit)
	}
}

// In a burst of heartbeat responses, only a few are let through, and those that
// confirm a read index.
func TestGuardDropsBursts(t *testing.T) {
	g, _ := newTestGuard(t, t.TempDir())
	batch := raftpb.MessageBatch{}
	for range 100 {
		batch.Requests = append(batch.Requests, raftpb.Message{Type: raftpb.HeartbeatResp, ShardID: 1, From: 2})
	}
	batch.Requests = append(batch.Requests, raftpb.Message{Type: raftpb.HeartbeatResp, ShardID: 1, From: 2, Hint: 5})
	g.Received(&batch)
	if n := len(batch.Requests); n < 2 || n > 10 || batch.Requests[n-1].Hint != 5 {
		t.Errorf("%d of 101 responses were let through, or not the one that confirms a read index", n)
	}
}
