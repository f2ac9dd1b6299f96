package raftlog

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	_ "unsafe" // for go:linkname

	_ "github.com/lni/dragonboat/v4" // links newDefaultLog
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// newDefaultLog makes Dragonboat's own log, which is the model of ours.
//
//go:linkname newDefaultLog github.com/lni/dragonboat/v4/internal/logdb.NewDefaultLogDB
func newDefaultLog(config.NodeHostConfig, config.LogDBCallback, []string, []string) (raftio.ILogDB, error)

func openModel(t testing.TB, dir string) raftio.ILogDB {
	t.Helper()
	cfg := config.NodeHostConfig{Expert: config.ExpertConfig{
		Engine: config.EngineConfig{ExecShards: 4}, LogDB: config.GetTinyMemLogDBConfig(), FS: vfs.Default,
	}}
	cfg.Expert.LogDB.Shards = 4
	model, err := newDefaultLog(cfg, nil, []string{dir}, []string{dir})
	if err != nil {
		t.Fatal(err)
	}
	return model
}

// A history makes operations as Raft does.
type history struct {
	rng      *rand.Rand
	replicas []*past
	maxEntry int // bytes
}

// past is what a history did with a replica.
type past struct {
	node     raftio.NodeInfo
	state    raftpb.State
	boot     bool
	snapshot uint64
	removed  uint64
	last     uint64
	terms    map[uint64]uint64 // of entries
}

func newHistory(seed uint64) *history {
	h := &history{rng: rand.New(rand.NewPCG(seed, 1)), maxEntry: 300}
	for shard := range uint64(3) {
		h.replicas = append(h.replicas, &past{node: raftio.NodeInfo{ShardID: shard + 1, ReplicaID: 7}, terms: map[uint64]uint64{}})
	}
	return h
}

// A logOp is one call of a log. It can be repeated on another one.
type logOp struct {
	what string
	call func(raftio.ILogDB) error
}

// next makes the next operation.
func (h *history) next() logOp {
	r := h.replicas[h.rng.IntN(len(h.replicas))]
	if !r.boot {
		r.boot = true
		// The encoding of a map has no order.
		members := map[uint64]string{7: "a:1", 8: "b:1", 9: "c:1", 10: "d:1"}
		b := raftpb.Bootstrap{Addresses: members, Type: raftpb.RegularStateMachine}
		return logOp{fmt.Sprintf("bootstrap %v", r.node), func(l raftio.ILogDB) error {
			return l.SaveBootstrapInfo(r.node.ShardID, r.node.ReplicaID, b)
		}}
	}
	switch n := h.rng.IntN(20); {
	case n == 0 && r.state.Commit > r.snapshot+3:
		return h.snapshot(r)
	case n == 1 && r.snapshot > r.removed+2:
		r.removed += 1 + h.rng.Uint64N(r.snapshot-r.removed-1)
		node, index := r.node, r.removed
		return logOp{fmt.Sprintf("remove %v to %d", node, index), func(l raftio.ILogDB) error {
			if err := l.RemoveEntriesTo(node.ShardID, node.ReplicaID, index); err != nil {
				return err
			}
			done, err := l.CompactEntriesTo(node.ShardID, node.ReplicaID, index)
			if err == nil {
				<-done
			}
			return err
		}}
	case n == 2 && h.rng.IntN(4) == 0:
		return h.receiveSnapshot(r)
	default:
		return h.update(r)
	}
}

func (h *history) snapshot(r *past) logOp {
	r.snapshot = r.snapshot + 1 + h.rng.Uint64N(r.state.Commit-r.snapshot)
	u := raftpb.Update{ShardID: r.node.ShardID, ReplicaID: r.node.ReplicaID, Snapshot: h.snapshotOf(r, r.snapshot, r.terms[r.snapshot])}
	return logOp{fmt.Sprintf("snapshot %v %d", r.node, r.snapshot), func(l raftio.ILogDB) error {
		return l.SaveSnapshots([]raftpb.Update{u})
	}}
}

func (h *history) snapshotOf(r *past, index, term uint64) raftpb.Snapshot {
	members := raftpb.Membership{ConfigChangeId: 1, Addresses: map[uint64]string{7: "a:1", 8: "b:1", 9: "c:1"}, NonVotings: map[uint64]string{10: "d:1", 11: "e:1"}}
	return raftpb.Snapshot{Index: index, Membership: members, Term: term, ShardID: r.node.ShardID, Type: raftpb.RegularStateMachine, Filepath: strings.Repeat("f", h.rng.IntN(50))}
}

// receiveSnapshot replaces the log of a replica.
func (h *history) receiveSnapshot(r *past) logOp {
	r.state.Term++
	r.snapshot = r.last + 1 + h.rng.Uint64N(5)
	r.last, r.removed, r.state.Commit = r.snapshot, r.snapshot, r.snapshot
	r.terms = map[uint64]uint64{r.snapshot: r.state.Term}
	u := raftpb.Update{ShardID: r.node.ShardID, ReplicaID: r.node.ReplicaID, State: r.state, Snapshot: h.snapshotOf(r, r.snapshot, r.state.Term)}
	return logOp{fmt.Sprintf("receive %v %d", r.node, r.snapshot), func(l raftio.ILogDB) error {
		return l.SaveRaftState([]raftpb.Update{u}, r.node.ShardID)
	}}
}

// update appends entries, or overwrites some that are not committed.
func (h *history) update(r *past) logOp {
	u := raftpb.Update{ShardID: r.node.ShardID, ReplicaID: r.node.ReplicaID}
	first := r.last + 1
	if h.rng.IntN(5) == 0 || r.state.Term == 0 {
		r.state.Term++
		r.state.Vote = h.rng.Uint64N(3)
		first -= h.rng.Uint64N(r.last - r.state.Commit + 1)
	}
	n := h.rng.Uint64N(4) // with the old last entry gone if some are overwritten
	if first <= r.last && n == 0 {
		n = 1
	}
	for i := range n {
		u.EntriesToSave = append(u.EntriesToSave, raftpb.Entry{Term: r.state.Term, Index: first + i, Key: h.rng.Uint64(), Cmd: h.bytes()})
		r.terms[first+i] = r.state.Term
	}
	if n > 0 {
		r.last = first + n - 1
	}
	if r.last > r.state.Commit {
		r.state.Commit += h.rng.Uint64N(r.last - r.state.Commit + 1)
	}
	u.State = r.state
	return logOp{fmt.Sprintf("update %v %d+%d term %d", r.node, first, n, r.state.Term), func(l raftio.ILogDB) error {
		return l.SaveRaftState([]raftpb.Update{u}, r.node.ShardID)
	}}
}

func (h *history) bytes() []byte {
	b := make([]byte, h.rng.IntN(h.maxEntry))
	for i := range b {
		b[i] = byte(h.rng.Uint32())
	}
	return b
}

// contents is what a log says about all replicas.
type contents map[raftio.NodeInfo]string

// read reads all that Raft reads. A commit index is raised to that of the snapshot,
// because ours may be an older one.
func read(l raftio.ILogDB, nodes []*past) (contents, error) {
	all := contents{}
	for _, p := range nodes {
		var b strings.Builder
		boot, err := l.GetBootstrapInfo(p.node.ShardID, p.node.ReplicaID)
		if err != nil && !errors.Is(err, raftio.ErrNoBootstrapInfo) {
			return nil, err
		}
		fmt.Fprintf(&b, "bootstrap %v %v\n", boot.Addresses, err != nil)
		ss, err := l.GetSnapshot(p.node.ShardID, p.node.ReplicaID)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "snapshot %d %d %q %v\n", ss.Index, ss.Term, ss.Filepath, ss.Membership.Addresses)
		s, err := l.ReadRaftState(p.node.ShardID, p.node.ReplicaID, ss.Index)
		if err != nil && !errors.Is(err, raftio.ErrNoSavedLog) {
			return nil, err
		}
		fmt.Fprintf(&b, "state %d %d %v\n", s.State.Term, s.State.Vote, err != nil)
		if err == nil {
			last := s.FirstIndex + s.EntryCount - 1
			if s.EntryCount == 0 {
				last = ss.Index
			}
			fmt.Fprintf(&b, "last %d\n", last)
			entries, _, err := l.IterateEntries(nil, 0, p.node.ShardID, p.node.ReplicaID, ss.Index+1, last+1, math.MaxUint64)
			if err != nil {
				return nil, err
			}
			if uint64(len(entries)) != last-ss.Index {
				return nil, fmt.Errorf("%v: %d entries after %d, and the last is %d", p.node, len(entries), ss.Index, last)
			}
			for _, e := range entries {
				fmt.Fprintf(&b, "entry %d %d %d %x\n", e.Index, e.Term, e.Key, e.Cmd)
			}
		}
		all[p.node] = b.String()
	}
	return all, nil
}

func mustRead(t testing.TB, l raftio.ILogDB, nodes []*past) contents {
	t.Helper()
	c, err := read(l, nodes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A log answers as Dragonboat's own log does.
func TestAsDragonboatsLog(t *testing.T) {
	for seed := range uint64(testrun.Rounds(8, 40)) {
		h, sim, dir := newHistory(seed), newSimFS(), t.TempDir()
		ours, model := mustOpen(t, sim, Options{}), openModel(t, dir)
		for step := range 200 {
			op := h.next()
			if err := op.call(model); err != nil {
				t.Fatal(err)
			}
			if err := op.call(ours); err != nil {
				t.Fatalf("seed %d, step %d, %s: %v", seed, step, op.what, err)
			}
			switch h.rng.IntN(40) {
			case 0:
				if err := errors.Join(ours.Close(), model.Close()); err != nil {
					t.Fatal(err)
				}
				ours, model = mustOpen(t, sim, Options{}), openModel(t, dir)
			case 1:
				// The log of a process that was killed.
				sim = sim.killed()
				old := ours
				defer old.Close()
				ours = mustOpen(t, sim, Options{})
			}
			got, want := mustRead(t, ours, h.replicas), mustRead(t, model, h.replicas)
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d, step %d, %s:\n%v\nwant\n%v", seed, step, op.what, got, want)
			}
			compareLimits(t, h, ours, model)
		}
		if err := errors.Join(ours.Close(), model.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// compareLimits compares what is read with bounds.
func compareLimits(t *testing.T, h *history, ours, model raftio.ILogDB) {
	t.Helper()
	r := h.replicas[h.rng.IntN(len(h.replicas))]
	if r.last <= r.snapshot {
		return
	}
	low := r.snapshot + 1 + h.rng.Uint64N(r.last-r.snapshot)
	high := low + 1 + h.rng.Uint64N(r.last-low+1)
	limit := h.rng.Uint64N(2000)
	got, size, err := ours.IterateEntries(nil, 0, r.node.ShardID, r.node.ReplicaID, low, high, limit)
	want, wantSize, wantErr := model.IterateEntries(nil, 0, r.node.ShardID, r.node.ReplicaID, low, high, limit)
	if err != nil || wantErr != nil || size != wantSize || len(got) != len(want) {
		t.Fatalf("%v [%d,%d) up to %d bytes: %d entries, %d bytes, %v; want %d, %d, %v", r.node, low, high, limit, len(got), size, err, len(want), wantSize, wantErr)
	}
	if term, ok, err := ours.(*Log).Term(r.node.ShardID, r.node.ReplicaID, low); err != nil || !ok || term != want[0].Term {
		t.Fatalf("entry %d has term %d, %v, %v; want %d", low, term, ok, err, want[0].Term)
	}
}
