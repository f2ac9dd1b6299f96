package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4"
	sm "github.com/lni/dragonboat/v4/statemachine"
)

// eachSize runs a test with a cluster of one node and with one of three. No shard
// has been started yet.
func eachSize(t *testing.T, test func(t *testing.T, nodes map[uint64]*testNode, machines map[uint64]*counter)) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) {
			nodes := newNodes(t, size)
			machines := map[uint64]*counter{}
			for id, n := range nodes {
				machines[id] = n.create()
			}
			test(t, nodes, machines)
		})
	}
}

// memoryCounter is a counter as a machine in memory.
type memoryCounter struct{ *counter }

func (m memoryCounter) SaveSnapshot(any, io.Writer, sm.ISnapshotFileCollection, <-chan struct{}) error {
	return sm.ErrSnapshotAborted
}

func (m memoryCounter) RecoverFromSnapshot(io.Reader, []sm.SnapshotFile, <-chan struct{}) error {
	return sm.ErrSnapshotStopped
}

func TestCreatedShardWaitsForItsStart(t *testing.T) {
	eachSize(t, func(t *testing.T, nodes map[uint64]*testNode, machines map[uint64]*counter) {
		var waiting []chan error
		for _, n := range nodes {
			wantNoLeader(t, n)
			for _, wait := range []func() error{
				func() error { return n.shard.WaitLeader(patience(t)) },
				func() error { return n.shard.ReadIndex(patience(t)) },
				func() error { return n.shard.Compact(patience(t), 1) },
				func() error { _, err := n.combiner.Do(patience(t), "add"); return err },
			} {
				done := make(chan error, 1)
				go func() { done <- wait() }()
				waiting = append(waiting, done)
			}
		}
		for id, n := range nodes {
			if err := n.shard.Start(machines[id]); err != nil {
				t.Fatal(err)
			}
		}
		for i, done := range waiting {
			if err := <-done; err != nil {
				t.Errorf("call %d before the start: %v", i, err)
			}
		}
		for _, n := range nodes {
			n.wantTotal(len(nodes))
			if !n.shard.Bootstrapped() {
				t.Error("a shard that has started is not bootstrapped")
			}
		}
	})
}

// wantNoLeader checks what the methods of a shard return that has not started.
func wantNoLeader(t *testing.T, n *testNode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, do := n.combiner.Do(ctx, "add")
	for i, err := range []error{n.shard.WaitLeader(ctx), n.shard.ReadIndex(ctx), do} {
		if !errors.Is(err, ErrNoLeader) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("call %d before the start: %v", i, err)
		}
	}
	if err := n.shard.Compact(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Compact before the start: %v", err)
	}
	if _, err := n.shard.Propose([]byte("x"), time.Second); err != dragonboat.ErrShardNotReady {
		t.Errorf("Propose before the start: %v", err)
	}
	if index, err := n.shard.Commit(ctx); index != 0 || err != nil {
		t.Errorf("before the start entry %d is committed, %v", index, err)
	}
	if n.shard.Bootstrapped() || n.shard.Leader() != (Leader{}) || n.shard.Leaderless() == 0 || n.shard.Term(1) != 0 || n.shard.Returns() != 0 {
		t.Error("a shard that has not started has a state")
	}
}

func TestStopBeforeStart(t *testing.T) {
	eachSize(t, func(t *testing.T, nodes map[uint64]*testNode, machines map[uint64]*counter) {
		for id, n := range nodes {
			done := make(chan error, 1)
			go func() { _, err := n.combiner.Do(patience(t), "add"); done <- err }()
			for range 2 {
				if err := n.shard.Stop(); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-done; !errors.Is(err, ErrClosed) || errors.Is(err, ErrOutcomeUnknown) {
				t.Error(err)
			}
			wantClosed(t, n)
			if err := n.shard.Start(machines[id]); err != ErrClosed {
				t.Errorf("a start after the end: %v", err)
			}
			if n.shard.Bootstrapped() {
				t.Error("a shard that was never started is bootstrapped")
			}
		}
		// The id is free for another shard of the same host.
		for id, n := range nodes {
			n.shard = n.host.NewShard(ShardConfig{ID: 1})
			n.combiner = NewCombiner[string, string](n.shard, &textCodec{}, CombinerConfig{MaxEntryBytes: testEntryBytes})
			machines[id].combiner = n.combiner
			if err := n.shard.Start(machines[id]); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range nodes {
			n.add()
		}
	})
}

func TestCloseEndsShardsThatNeverStarted(t *testing.T) {
	eachSize(t, func(t *testing.T, nodes map[uint64]*testNode, machines map[uint64]*counter) {
		for id, n := range nodes {
			done := make(chan error, 1)
			go func() { done <- n.shard.ReadIndex(patience(t)) }()
			if err := n.host.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != ErrClosed {
				t.Error(err)
			}
			<-n.shard.Done()
			wantClosed(t, n)
			late := n.host.NewShard(ShardConfig{ID: 2})
			if late.WaitLeader(patience(t)) != ErrClosed || n.shard.Start(machines[id]) != ErrClosed || late.Start(machines[id]) != ErrClosed || late.Stop() != nil {
				t.Error("a shard of a closed host has not ended")
			}
		}
	})
}

// openingMachine calls a function while Raft opens it, as part of Start.
type openingMachine struct {
	*counter
	opening func()
}

func (m *openingMachine) Open(stopped <-chan struct{}) (uint64, error) {
	m.opening()
	return m.counter.Open(stopped)
}

func TestStopDuringStart(t *testing.T) {
	eachSize(t, func(t *testing.T, nodes map[uint64]*testNode, machines map[uint64]*counter) {
		for id, n := range nodes {
			err := n.shard.Start(&openingMachine{machines[id], func() {
				if err := n.shard.Stop(); err != nil {
					t.Error(err)
				}
			}})
			if err != ErrClosed {
				t.Errorf("a start that was stopped: %v", err)
			}
			wantClosed(t, n)
		}
	})
}

// A machine that fails while it is opened stops its shard, and must not wait for
// the Close that waits for the start.
func TestStopAndCloseDuringStart(t *testing.T) {
	eachSize(t, func(t *testing.T, nodes map[uint64]*testNode, machines map[uint64]*counter) {
		for id, n := range nodes {
			closed := make(chan error, 1)
			err := n.shard.Start(&openingMachine{machines[id], func() {
				go func() { closed <- n.host.Close() }()
				<-n.shard.Done()
				time.Sleep(time.Millisecond) // Close is likely to wait for the gate by now
				if err := n.shard.Stop(); err != nil {
					t.Error(err)
				}
			}})
			if err != ErrClosed {
				t.Errorf("a start that was stopped: %v", err)
			}
			if err := <-closed; err != nil {
				t.Error(err)
			}
		}
	})
}

// failingMachine stops its shard as soon as it should apply something, and
// applies nothing.
type failingMachine struct {
	memoryCounter
	shard *Shard
}

func (m failingMachine) Update(entries []sm.Entry) ([]sm.Entry, error) {
	if err := m.shard.Stop(); err != nil {
		m.t.Error(err)
	}
	return entries, nil
}

// failingDiskMachine is a failingMachine on disk.
type failingDiskMachine struct {
	*counter
	failingMachine failingMachine
}

func (m failingDiskMachine) Update(entries []sm.Entry) ([]sm.Entry, error) {
	return m.failingMachine.Update(entries)
}

func TestStopInUpdate(t *testing.T) {
	for _, inMemory := range []bool{false, true} {
		t.Run(fmt.Sprintf("memory=%v", inMemory), func(t *testing.T) {
			eachSize(t, func(t *testing.T, nodes map[uint64]*testNode, machines map[uint64]*counter) {
				ended := make(chan error, len(nodes))
				for id, n := range nodes {
					machine := failingMachine{memoryCounter{machines[id]}, n.shard}
					var err error
					if inMemory {
						err = n.shard.StartInMemory(machine)
					} else {
						err = n.shard.Start(failingDiskMachine{machines[id], machine})
					}
					if err != nil && err != ErrClosed {
						t.Fatal(err)
					}
					go func() { _, err := n.combiner.Do(patience(t), "add"); ended <- err }()
				}
				for range len(nodes)/2 + 1 { // the others have no majority any more
					if err := <-ended; !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
				}
			})
		})
	}
}

func TestDiskFailure(t *testing.T) {
	eachSize(t, func(t *testing.T, nodes map[uint64]*testNode, machines map[uint64]*counter) {
		failures := make(chan error, 10)
		for id, n := range nodes {
			never := n.shard
			n.shard = n.host.NewShard(ShardConfig{ID: 1, Failed: func(err error) { failures <- err }})
			if err := n.shard.Start(machines[id]); err != nil {
				t.Fatal(err)
			}
			cause := errors.New("the disk is on fire")
			n.host.diskFailed(cause)
			if err := <-failures; !errors.Is(err, ErrDiskFailed) || !errors.Is(err, cause) {
				t.Error(err)
			}
			wantClosed(t, n)
			for _, s := range []*Shard{never, n.host.NewShard(ShardConfig{ID: 2, Failed: func(err error) { failures <- err }})} {
				if err := s.Start(machines[id]); !errors.Is(err, cause) {
					t.Errorf("a start on a failed disk: %v", err)
				}
				if err := s.WaitLeader(patience(t)); err != ErrClosed {
					t.Error(err)
				}
			}
		}
		if len(failures) != 0 {
			t.Errorf("Failed was called too often: %v", <-failures)
		}
	})
}

func TestMachineInMemory(t *testing.T) {
	eachSize(t, func(t *testing.T, nodes map[uint64]*testNode, machines map[uint64]*counter) {
		for id, n := range nodes {
			if err := n.shard.StartInMemory(memoryCounter{machines[id]}); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range nodes {
			n.add()
		}
		for _, n := range nodes {
			n.wantTotal(len(nodes))
		}
		leader := nodes[nodes[1].leader()]
		if err := leader.shard.Stop(); err != nil {
			t.Fatal(err)
		}
		wantClosed(t, leader)
	})
}
