package replica

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// Whoever waits returns once reads see the entry, not before, many at once.
func TestWaitApplied(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	ctx := context.Background()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for _, index := range []uint64{0, 1, m.index} { // at once, whatever the context
		if err := m.WaitApplied(ended, index); err != nil {
			t.Errorf("for entry %d: %v", index, err)
		}
	}
	if err := m.WaitApplied(ended, m.index+1); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	const entries, waiters = 20, 5
	first := m.index
	var wait sync.WaitGroup
	for i := range entries * waiters {
		wait.Go(func() {
			index := first + 1 + uint64(i%entries)
			if err := m.WaitApplied(ctx, index); err != nil {
				t.Errorf("for entry %d: %v", index, err)
			}
			if m.SQL.Applied() < index {
				t.Errorf("entry %d is told at %d", index, m.SQL.Applied())
			}
		})
	}
	for range entries {
		m.must("INSERT INTO t VALUES(1)")
	}
	wait.Wait()
	if n := m.followers.Waiting(); n != 0 {
		t.Errorf("%d wait", n)
	}
}

// One whose context ends leaves, the others stay.
func TestWaitAppliedEndsWithItsContext(t *testing.T) {
	m := newMachine(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	next := m.SQL.Applied() + 1
	left, stayed := make(chan error, 1), make(chan error, 1)
	go func() { left <- m.WaitApplied(ctx, next) }()
	go func() { stayed <- m.WaitApplied(context.Background(), next) }()
	cancel(errors.New("cause"))
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("it says %v", err)
	}
	select {
	case err := <-stayed:
		t.Errorf("the other one returned: %v", err)
	default:
	}
	m.must("CREATE TABLE t(a)")
	if err := <-stayed; err != nil {
		t.Error(err)
	}
}

// A replica that stops will never apply what they wait for, and says why.
func TestWaitAppliedEndsWithTheReplica(t *testing.T) {
	m := newMachine(t)
	const waiters = 5
	out, next := make(chan error, waiters), m.SQL.Applied()+1
	for range waiters {
		go func() { out <- m.WaitApplied(context.Background(), next) }()
	}
	why := errors.New("out of order")
	m.Fail(why)
	<-m.failed
	for range waiters {
		if err := <-out; !errors.Is(err, why) {
			t.Errorf("it says %v", err)
		}
	}
	if err := m.WaitApplied(context.Background(), m.SQL.Applied()+1); !errors.Is(err, why) {
		t.Errorf("afterwards it says %v", err)
	}
	if err := m.WaitApplied(context.Background(), m.SQL.Applied()); err != nil {
		t.Errorf("for what was applied: %v", err)
	}
}
