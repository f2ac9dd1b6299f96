package cluster

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// guarded returns the guard of node 1, whose log of shard 1 has the entries 1 to
// 10 of term 2 and 11 to 20 of term 3, of which 15 are committed.
func guarded(t *testing.T, dir string) (g *guard, damage chan error) {
	t.Helper()
	damage = make(chan error, 1)
	g, err := newGuard(Config{Dir: dir, Node: 1, Logger: slog.New(slog.DiscardHandler)}, fakeShards{damage})
	if err != nil {
		t.Fatal(err)
	}
	g.raftLog = &raftLog{}
	g.raftLog.ends.read(1, 1, 0, raftio.RaftState{})
	var entries []raftpb.Entry
	for i := uint64(1); i <= 20; i++ {
		entries = append(entries, raftpb.Entry{Index: i, Term: 2 + (i-1)/10})
	}
	g.raftLog.ends.saved([]raftpb.Update{{ShardID: 1, ReplicaID: 1, State: raftpb.State{Term: 3, Commit: 15}, EntriesToSave: entries}})
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

func TestGuardKnowsForgottenEntries(t *testing.T) {
	for _, test := range []struct {
		name string
		m    raftpb.Message
		want bool // it is damage
	}{
		{"a heartbeat at the log's end", raftpb.Message{Type: raftpb.Heartbeat, Term: 3, Commit: 20}, false},
		{"a heartbeat beyond", raftpb.Message{Type: raftpb.Heartbeat, Term: 3, Commit: 21}, true},
		{"new entries", raftpb.Message{Type: raftpb.Replicate, Term: 3, LogIndex: 20, LogTerm: 3, Entries: entriesOf(3, 21)}, false},
		{"the same entries again", raftpb.Message{Type: raftpb.Replicate, Term: 3, LogIndex: 8, LogTerm: 2, Entries: append(entriesOf(2, 9, 10), entriesOf(3, 11)...)}, false},
		{"others behind what is committed", raftpb.Message{Type: raftpb.Replicate, Term: 4, LogIndex: 15, LogTerm: 3, Entries: entriesOf(4, 16)}, false},
		{"others among what is committed", raftpb.Message{Type: raftpb.Replicate, Term: 4, LogIndex: 10, LogTerm: 2, Entries: entriesOf(4, 11)}, true},
		{"after another entry", raftpb.Message{Type: raftpb.Replicate, Term: 4, LogIndex: 12, LogTerm: 4}, true},
		{"late ones of an earlier term", raftpb.Message{Type: raftpb.Replicate, Term: 2, LogIndex: 10, LogTerm: 2, Entries: entriesOf(2, 11)}, false},
		{"a read index", raftpb.Message{Type: raftpb.ReadIndexResp, Term: 3, LogIndex: 15, Hint: 7}, false},
		{"a read index below what was applied", raftpb.Message{Type: raftpb.ReadIndexResp, Term: 3, LogIndex: 14, Hint: 7}, true},
		{"a read index that was not asked for", raftpb.Message{Type: raftpb.ReadIndexResp, Term: 3, LogIndex: 14, Hint: 8}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, damage := guarded(t, t.TempDir())
			g.sending([]raftpb.Message{{Type: raftpb.ReadIndex, ShardID: 1, To: 2, From: 1, Hint: 7}})
			test.m.ShardID, test.m.From, test.m.To = 1, 2, 1
			batch := raftpb.MessageBatch{Requests: []raftpb.Message{test.m}}
			g.received(&batch)
			if let := len(batch.Requests) == 1; let == test.want {
				t.Fatalf("let through: %v", let)
			}
			if !test.want {
				return
			}
			if err := <-damage; !errors.Is(err, ErrForgotten) {
				t.Error(err)
			}
			batch = raftpb.MessageBatch{Requests: []raftpb.Message{{Type: raftpb.Heartbeat, ShardID: 1}, {Type: raftpb.Heartbeat, ShardID: 2}}}
			if g.received(&batch); len(batch.Requests) != 1 || batch.Requests[0].ShardID != 2 {
				t.Error("a damaged shard takes messages, or others do not")
			}
			if out := g.sending([]raftpb.Message{{Type: raftpb.HeartbeatResp, ShardID: 1}}); len(out) != 0 {
				t.Error("a damaged shard sends messages")
			}
		})
	}
}

// A peer that comes back with less than it has acknowledged gets no vote, also
// after a restart of this node, and learns from the heartbeats what it had.
func TestGuardRemembersWhatPeersHad(t *testing.T) {
	dir := t.TempDir()
	g, _ := guarded(t, dir)
	g.sending([]raftpb.Message{{Type: raftpb.Heartbeat, ShardID: 1, To: 2, Commit: 14}})
	if err := g.save(); err != nil {
		t.Fatal(err)
	}
	g, _ = guarded(t, dir)
	let := func(m raftpb.Message) bool {
		m.ShardID, m.From = 1, 2
		batch := raftpb.MessageBatch{Requests: []raftpb.Message{m}}
		g.received(&batch)
		return len(batch.Requests) == 1
	}
	if let(raftpb.Message{Type: raftpb.RequestPreVote, LogIndex: 13, LogTerm: 3}) || let(raftpb.Message{Type: raftpb.RequestVote, LogIndex: 13, LogTerm: 3}) ||
		let(raftpb.Message{Type: raftpb.ReplicateResp, Reject: true, Hint: 13}) {
		t.Error("a peer that has forgotten an entry is listened to")
	}
	if !let(raftpb.Message{Type: raftpb.RequestVote, LogIndex: 14, LogTerm: 3}) || !let(raftpb.Message{Type: raftpb.ReplicateResp, Reject: true, Hint: 14}) {
		t.Error("a peer that has forgotten nothing is not listened to")
	}
	if let(raftpb.Message{Type: raftpb.RequestVote, LogIndex: 14, LogTerm: 9}) {
		t.Error("a candidate with another entry than the committed one is listened to")
	}
	sent := []raftpb.Message{{Type: raftpb.Heartbeat, ShardID: 1, To: 2}, {Type: raftpb.Heartbeat, ShardID: 1, To: 3}}
	out := g.sending(sent)
	if out[0].Commit != 14 || out[1].Commit != 0 || sent[0].Commit != 0 {
		t.Errorf("heartbeats say %d and %d, and Raft's own was made %d", out[0].Commit, out[1].Commit, sent[0].Commit)
	}
}

// A burst of heartbeat responses would have the leader send all again for each.
func TestGuardThinsBursts(t *testing.T) {
	g, _ := guarded(t, t.TempDir())
	batch := raftpb.MessageBatch{}
	for range 100 {
		batch.Requests = append(batch.Requests, raftpb.Message{Type: raftpb.HeartbeatResp, ShardID: 1, From: 2})
	}
	batch.Requests = append(batch.Requests, raftpb.Message{Type: raftpb.HeartbeatResp, ShardID: 1, From: 2, Hint: 5})
	g.received(&batch)
	if n := len(batch.Requests); n < 2 || n > 10 || batch.Requests[n-1].Hint != 5 {
		t.Errorf("%d of 101 responses are let through, the one that confirms a read index among them", n)
	}
}
