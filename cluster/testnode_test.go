package cluster

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/statemachine"
)

// disk is the state of a test machine that survives a restart.
type disk struct {
	mu       sync.Mutex
	applied  uint64
	ops      []string // that were applied, in order
	sessions statemachine.Sessions[string]
	syncs    int
}

func newDisk() *disk {
	d := new(disk)
	d.sessions.Load(nil)
	return d
}

// counter is a machine on disk that counts operations. The result of an operation
// is the count.
type counter struct {
	t        testing.TB
	disk     *disk
	combiner *Combiner[string, string]
}

func (m *counter) Open(<-chan struct{}) (uint64, error) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	return m.disk.applied, nil
}

func (m *counter) Update(entries []sm.Entry) ([]sm.Entry, error) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	for i := range entries {
		e := decode(m.t, entries[i].Cmd)
		m.disk.applied = entries[i].Index
		if e.Nonce != 0 {
			m.disk.sessions.Open(entries[i].Index, 0, 0, 0)
			m.combiner.SessionOpened(e.Nonce, entries[i].Index)
			continue
		}
		s, verdict := m.disk.sessions.Admit(e.Session, e.Sequence, e.Oldest, 0)
		n := statemachine.Notification[string]{Verdict: verdict, Session: e.Session, Sequence: e.Sequence}
		switch verdict {
		case statemachine.Apply:
			for _, op := range e.Ops {
				m.disk.ops = append(m.disk.ops, op)
				n.Results = append(n.Results, strconv.Itoa(len(m.disk.ops)))
			}
			s.Results = n.Results
		case statemachine.Repeat:
			n.Results = s.ResultsOf(e.Sequence)
		}
		n.Deliver(combinerListener{m.combiner})
	}
	return entries, nil
}

// combinerListener notifies a combiner of entries.
type combinerListener struct{ *Combiner[string, string] }

func (combinerListener) Held(uint64)      {}
func (combinerListener) Failed(err error) { panic(err) }

func (m *counter) Lookup(any) (any, error) { return nil, nil }
func (m *counter) Sync() error {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	m.disk.syncs++
	return nil
}
func (m *counter) PrepareSnapshot() (any, error)                               { return nil, nil }
func (m *counter) SaveSnapshot(any, io.Writer, <-chan struct{}) error          { return sm.ErrSnapshotAborted }
func (m *counter) RecoverFromSnapshot(r io.Reader, done <-chan struct{}) error { return nil }
func (m *counter) Close() error                                                { return nil }

const testTick = 10 * time.Millisecond

// testNode is a node of a test cluster.
type testNode struct {
	t     testing.TB
	cfg   Config
	disk  *disk
	host  *Host
	shard *Shard

	combiner *Combiner[string, string]
	bounds   CombinerConfig      // of combiner
	around   func(s *Shard) raft // what the combiner uses instead of the shard; nil: the shard itself
}

func newMembers(t testing.TB, n int) map[uint64]string {
	t.Helper()
	addresses, err := loopback.Addresses(n)
	if err != nil {
		t.Fatal(err)
	}
	members := map[uint64]string{}
	for i, address := range addresses {
		members[uint64(i+1)] = address
	}
	return members
}

func newNodes(t testing.TB, n int) map[uint64]*testNode {
	members := newMembers(t, n)
	nodes := map[uint64]*testNode{}
	for id := range members {
		nodes[id] = &testNode{
			t:    t,
			cfg:  Config{Dir: filepath.Join(t.TempDir(), "raft"), Node: id, Members: members, Tick: testTick},
			disk: newDisk(),
		}
	}
	return nodes
}

func (n *testNode) start() {
	n.t.Helper()
	if err := n.shard.Start(n.create()); err != nil {
		n.t.Fatal(err)
	}
}

// create opens the host and makes the shard, its combiner and its machine. It does
// not start the shard.
func (n *testNode) create() *counter {
	n.t.Helper()
	var err error
	if n.host, err = Open(n.cfg); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(n.stop)
	n.shard = n.host.NewShard(ShardConfig{ID: 1})
	n.bounds.MaxEntryBytes = testEntryBytes
	var r raft = n.shard
	if n.around != nil {
		r = n.around(n.shard)
	}
	n.combiner = newCombiner[string, string](r, textCodec{}, n.bounds)
	return &counter{t: n.t, disk: n.disk, combiner: n.combiner}
}

func (n *testNode) stop() {
	n.combiner.Close()
	if err := n.host.Close(); err != nil {
		n.t.Error(err)
	}
}

// patience returns a context that ends long after a working cluster is done.
func patience(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (n *testNode) add() int {
	n.t.Helper()
	r, err := n.combiner.Do(patience(n.t), "add")
	if err != nil {
		n.t.Fatalf("node %d: %v", n.cfg.Node, err)
	}
	total, _ := strconv.Atoi(r)
	return total
}

func (n *testNode) total() int {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	return len(n.disk.ops)
}

func (n *testNode) wantTotal(want int) {
	n.t.Helper()
	if err := n.shard.ReadIndex(patience(n.t)); err != nil {
		n.t.Fatalf("node %d: %v", n.cfg.Node, err)
	}
	if got := n.total(); got != want {
		n.t.Fatalf("node %d: %d operations applied, want %d", n.cfg.Node, got, want)
	}
}

func (n *testNode) leader() uint64 {
	n.t.Helper()
	if err := n.shard.WaitLeader(patience(n.t)); err != nil {
		n.t.Fatal(err)
	}
	return n.shard.Leader().Node
}

// kill stops the node as the end of its process would: what it writes while it stops is
// lost. The node must not send any more.
func (n *testNode) kill() {
	n.t.Helper()
	left := filepath.Join(n.t.TempDir(), "raft")
	n.disk.mu.Lock() // so that the machine is not ahead of the copy of the log
	killed := &disk{applied: n.disk.applied, ops: slices.Clone(n.disk.ops)}
	killed.sessions.Load(n.disk.sessions.All())
	err := os.CopyFS(left, os.DirFS(n.cfg.Dir))
	n.disk.mu.Unlock()
	if err != nil {
		n.t.Fatal(err)
	}
	n.stop()
	n.cfg.Dir, n.disk = left, killed
}
