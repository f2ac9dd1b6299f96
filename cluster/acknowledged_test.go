package cluster

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/raftpb"
)

// A log that ends before what its node has acknowledged has lost entries, unless the
// message that says so may have been sent earlier.
func TestLateMessageIsNoLoss(t *testing.T) {
	now := time.Now()
	var a acknowledged
	for _, ack := range []struct{ index, term uint64 }{{10, 3}, {15, 3}, {12, 3}, {15, 5}, {20, 5}, {25, 5}} {
		a = a.add(ack.index, ack.term, now)
	}
	loaded := acknowledged{index: 25}
	for _, test := range []struct {
		name      string
		a         acknowledged
		kind      raftpb.MessageType
		term, end uint64
		committed uint64
		after     time.Duration
		want      bool
	}{
		{"a complete log", a, raftpb.RequestVote, 9, 25, 30, 0, false},
		{"a log that lacks entries that are not committed", a, raftpb.RequestVote, 9, 22, 22, 0, false},
		{"a vote of a later term", a, raftpb.RequestVote, 6, 24, 30, 0, true},
		{"a vote of the term itself", a, raftpb.RequestVote, 5, 24, 30, 0, false},
		{"a vote of the term, of a log that lacks what was acknowledged before", a, raftpb.RequestVote, 5, 14, 30, 0, true},
		{"a vote of an earlier term", a, raftpb.RequestVote, 4, 14, 30, 0, false},
		{"a vote before an election of a later term", a, raftpb.RequestPreVote, 7, 24, 30, 0, true},
		{"a vote before the election after the term", a, raftpb.RequestPreVote, 6, 24, 30, 0, false},
		{"the same, repeated until it cannot be late", a, raftpb.RequestPreVote, 6, 24, 30, 2 * maxLateness, true},
		{"a rejection in the term", a, raftpb.ReplicateResp, 5, 24, 30, 0, false},
		{"a rejection in a later term", a, raftpb.ReplicateResp, 6, 24, 30, 0, true},
		{"a vote of an earlier term that cannot be late", a, raftpb.RequestVote, 2, 14, 30, 2 * maxLateness, true},
		{"a vote after a restart of this node", loaded, raftpb.RequestVote, 2, 24, 30, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := &raftpb.Message{Type: test.kind, Term: test.term}
			if got := test.a.provesLoss(m, test.end, test.committed, now.Add(test.after)); got != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

// Messages about a log arrive a second time when the log has grown and other nodes have
// led. That is not taken for a log that has lost entries.
func TestLateCopiesAreNotReported(t *testing.T) {
	var mu sync.Mutex
	var logged strings.Builder
	nodes := newNodes(t, 3)
	for _, n := range nodes {
		n.cfg.Logger = slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return logged.Write(p)
		}), nil))
		n.cfg.Hooks.Send = func(_, _, _ uint64, kind string) []time.Duration {
			switch kind {
			case raftpb.RequestVote.String(), raftpb.RequestPreVote.String(), raftpb.ReplicateResp.String():
				return []time.Duration{0, 20 * testTick}
			}
			return []time.Duration{0}
		}
		n.start()
	}
	late := func() (late int) {
		for _, n := range nodes {
			n.host.guard.mu.Lock()
			late += n.host.guard.state(1).late
			n.host.guard.mu.Unlock()
		}
		return late
	}
	reported := func() string {
		mu.Lock()
		defer mu.Unlock()
		return logged.String()
	}
	ctx := patience(t)
	for round := uint64(0); late() < 6 && reported() == ""; round++ {
		if ctx.Err() != nil {
			t.Fatalf("after %d changes of the leader, %d messages were late", round, late())
		}
		nodes[1].add()
		// The request may be refused while another one is underway.
		_ = nodes[nodes[1].leader()].shard.call(func(nh *dragonboat.NodeHost) error {
			return nh.RequestLeaderTransfer(1, replicaID(1+round%3))
		})
		for _, n := range nodes {
			n.add()
		}
	}
	if lines := reported(); lines != "" {
		t.Error("logged: " + lines)
	}
}
