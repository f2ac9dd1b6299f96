package cluster

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

func TestThreeNodes(t *testing.T) {
	nodes := newNodes(t, 3)
	nodes[3].start()
	ctx, cancel := context.WithTimeout(t.Context(), 20*testTick)
	defer cancel()
	if err := nodes[3].shard.WaitLeader(ctx); !errors.Is(err, ErrNoLeader) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("with one of three nodes: %v", err)
	}
	if err := nodes[3].shard.ReadIndex(ctx); !errors.Is(err, ErrNoLeader) {
		t.Fatalf("with one of three nodes: %v", err)
	}
	if _, err := nodes[3].combiner.Do(ctx, "add"); !errors.Is(err, ErrNoLeader) || errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("with one of three nodes: %v", err)
	}
	nodes[1].start()
	if got := nodes[1].add(); got != 1 {
		t.Fatalf("with two of three nodes: got %d", got)
	}
	nodes[2].start()
	for range 5 {
		for _, n := range nodes {
			n.add()
		}
	}
	for _, n := range nodes {
		n.wantTotal(16)
	}

	// The leader is closed while the other nodes write. It transfers leadership, and no
	// write fails.
	leader := nodes[nodes[1].leader()]
	var stop atomic.Bool
	var done atomic.Int64
	var wg sync.WaitGroup
	for _, n := range nodes {
		if n == leader {
			continue
		}
		for range 3 {
			wg.Go(func() {
				for !stop.Load() {
					n.add()
					done.Add(1)
				}
			})
		}
	}
	leader.stop()
	for _, n := range nodes {
		if n != leader {
			if l := n.leader(); l == leader.cfg.Node {
				<-n.shard.LeaderChanged()
			}
			n.add()
			done.Add(1)
		}
	}
	stop.Store(true)
	wg.Wait()
	want := 16 + int(done.Load())
	for _, n := range nodes {
		if n != leader {
			n.wantTotal(want)
		}
	}

	// It starts again in the same folder.
	leader.start()
	if !leader.shard.Bootstrapped() || leader.host.NewShard(ShardConfig{ID: 2}).Bootstrapped() {
		t.Fatal("Bootstrapped")
	}
	leader.wantTotal(want)
	leader.add()
}

func TestAllRestartAtOtherAddresses(t *testing.T) {
	nodes := newNodes(t, 3)
	for _, n := range nodes {
		n.start()
	}
	for _, n := range nodes {
		n.add()
	}
	for _, n := range nodes {
		n.stop()
	}
	moved := newMembers(t, len(nodes))
	for _, n := range nodes {
		n.cfg.Members = moved
		n.start()
	}
	for _, n := range nodes {
		n.add()
	}
	for _, n := range nodes {
		n.wantTotal(6)
	}
}

// listening returns how many TCP ports this process listens on.
func listening(t *testing.T) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		return 0
	}
	inodes := map[string]bool{}
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(data), "\n") {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	n := 0
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && inodes[link] {
			n++
		}
	}
	return n
}

func TestSingleNode(t *testing.T) {
	before := listening(t)
	n := newNodes(t, 1)[1]
	l, err := net.Listen("tcp", n.cfg.Members[1]) // the node must not need its port
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n.cfg.Tick = 0
	n.start()
	if got := listening(t); runtime.GOOS == "linux" && got != before+1 {
		t.Fatalf("%d ports are open, want %d", got, before+1)
	}
	for range 10 {
		n.add()
	}
	n.wantTotal(10)

	// To compact again, when there is nothing to remove, is no error.
	for range 2 {
		if err := n.shard.Compact(patience(t), 3); err != nil {
			t.Fatal(err)
		}
	}
	if n.disk.syncs == 0 {
		t.Fatal("Compact did not sync the machine")
	}
	n.stop()
	n.start()
	n.add()
	n.wantTotal(11)

	// A folder cannot be opened twice in one process.
	if _, err := Open(n.cfg); err == nil || !strings.Contains(err.Error(), "already open") {
		t.Fatal(err)
	}
	for _, s := range []*Shard{n.shard, n.host.NewShard(ShardConfig{ID: 1})} {
		if err := s.Start(nil); err == nil || !strings.Contains(err.Error(), "already started") {
			t.Fatalf("started a shard twice: %v", err)
		}
	}

	// A shard is stopped while its host runs.
	for range 2 {
		if err := n.shard.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	<-n.shard.Done()
	wantClosed(t, n)
}

// wantClosed checks what the methods of a shard return that has ended.
func wantClosed(t *testing.T, n *testNode) {
	t.Helper()
	ctx := patience(t)
	_, propose := n.shard.Propose([]byte("x"), time.Second)
	_, do := n.combiner.Do(ctx, "x")
	for i, err := range []error{
		n.shard.WaitLeader(ctx), n.shard.ReadIndex(ctx), n.shard.Compact(ctx, 1), propose, do,
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("call %d of a shard that has ended: %v", i, err)
		}
	}
	if n.shard.Leader() != (Leader{}) {
		t.Error("a shard that has ended has a leader")
	}
}

func TestCloseIsIdempotent(t *testing.T) {
	n := newNodes(t, 1)[1]
	n.start()
	n.add()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := n.host.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantClosed(t, n)
	if n.shard.Bootstrapped() {
		t.Error("Bootstrapped after Close")
	}
	if err := n.host.NewShard(ShardConfig{ID: 2}).Start(nil); err != ErrClosed {
		t.Error(err)
	}
}

// Calls that are in progress when the host is closed return ErrClosed.
func TestCloseUnderLoad(t *testing.T) {
	n := newNodes(t, 1)[1]
	n.start()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				if _, err := n.combiner.Do(patience(t), "add"); err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
		wg.Go(func() {
			for {
				if err := n.shard.ReadIndex(patience(t)); err != nil {
					if err != ErrClosed {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	n.add()
	n.stop()
	wg.Wait()
}

func TestTargets(t *testing.T) {
	for _, node := range []uint64{1, 2, 1000, maxNode} {
		if got, ok := targetNode(nodeTarget(node)); !ok || got != node {
			t.Errorf("node %d: %s is of node %d", node, nodeTarget(node), got)
		}
		if nodeID(replicaID(node)) != node {
			t.Errorf("node %d: replica %d", node, replicaID(node))
		}
	}
	// The target is in every folder and every membership, so it can never change.
	if got := nodeTarget(258); got != "6869716c-6974-6500-0000-000000000102" {
		t.Error(got)
	}
	for _, bad := range []string{"", "127.0.0.1:1", "6869716c-6974-6501-0000-000000000102"} {
		if _, ok := targetNode(bad); ok {
			t.Errorf("%q is a node", bad)
		}
	}
}

// A cluster that works logs nothing.
func TestLogsNothing(t *testing.T) {
	var buf strings.Builder
	var mu sync.Mutex
	log.SetOutput(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return buf.Write(p)
	}))
	defer log.SetOutput(os.Stderr)
	nodes := newNodes(t, 3)
	for range 2 {
		for _, n := range nodes {
			n.start()
		}
		for _, n := range nodes {
			n.add()
		}
		for _, n := range nodes {
			n.stop()
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if buf.Len() > 0 {
		t.Error("logged: " + buf.String())
	}
}

// Dragonboat's changes to package log are undone.
func TestStandardLogIsUnchanged(t *testing.T) {
	if log.Writer() != os.Stderr || log.Flags() != log.LstdFlags {
		t.Errorf("%T %b", log.Writer(), log.Flags())
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func BenchmarkThreeNodes(b *testing.B) {
	nodes := newNodes(b, 3)
	for _, n := range nodes {
		n.start()
	}
	for _, yields := range []int{-1, 1, 2, 4, 8, 16} {
		b.Run(fmt.Sprint("yields=", yields), func(b *testing.B) {
			n := nodes[nodes[1].leader()]
			n.combiner.cfg.Yields = yields
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := n.combiner.Do(context.Background(), "add"); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// While there is a leader, the error of a context that has ended is not ErrNoLeader.
func TestEndedContextIsNotErrNoLeader(t *testing.T) {
	n := newNodes(t, 1)[1]
	n.start()
	n.leader()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	for _, ctx := range []context.Context{cancelled, late} {
		if err := n.shard.ReadIndex(ctx); err != ctx.Err() {
			t.Errorf("%v, want %v", err, ctx.Err())
		}
	}
}

// Nodes that are closed, or killed, while their logs begin new segments, remove old ones
// and copy entries, start again with all that was applied.
func TestRestartsWithManySegments(t *testing.T) {
	nodes := newNodes(t, 3)
	var killed atomic.Uint64 // the node that neither sends nor receives
	for _, n := range nodes {
		n.cfg.segmentSize = 8 << 10
		n.cfg.Hooks.Send = func(from, to, _ uint64, _ string) []time.Duration {
			if dead := killed.Load(); from == dead || to == dead {
				return nil
			}
			return []time.Duration{0}
		}
		n.start()
	}
	total := 0
	for round := range testrun.Rounds(6, 30) {
		victim := nodes[uint64(round)%3+1]
		other := nodes[uint64(round+1)%3+1]
		for i := range 150 {
			total++
			if got := other.add(); got != total {
				t.Fatalf("round %d: operation %d has the result %d", round, total, got)
			}
			if i == 100 {
				if err := other.shard.Compact(patience(t), 10); err != nil {
					t.Fatal(err)
				}
			}
		}
		victim.wantTotal(total)
		if round%2 == 1 {
			killed.Store(victim.cfg.Node)
			victim.kill()
		} else {
			victim.stop()
		}
		for range 50 {
			total++
			other.add()
		}
		killed.Store(0)
		victim.start()
		victim.wantTotal(total)
	}
	for _, n := range nodes {
		n.wantTotal(total)
		if segments, err := filepath.Glob(filepath.Join(n.cfg.Dir, logFolder, "*.log")); err != nil || len(segments) < 2 {
			t.Errorf("node %d has the segments %v, %v", n.cfg.Node, segments, err)
		}
	}
}
