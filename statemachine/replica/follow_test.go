package replica

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// Many calls of WaitApplied wait at once. Each returns when reads see its entry, and not
// before.
func TestWaitApplied(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	ctx := context.Background()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for _, index := range []uint64{0, 1, m.index} { // returns at once, even if the context has ended
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
				t.Errorf("WaitApplied of entry %d returned at entry %d", index, m.SQL.Applied())
			}
		})
	}
	for range entries {
		m.must("INSERT INTO t VALUES(1)")
	}
	wait.Wait()
	if n := m.followers.Waiting(); n != 0 {
		t.Errorf("%d calls still wait", n)
	}
}

// A call whose context ends returns, and the others keep waiting.
func TestWaitAppliedEndsWithItsContext(t *testing.T) {
	m := newMachine(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	next := m.SQL.Applied() + 1
	left, stayed := make(chan error, 1), make(chan error, 1)
	go func() { left <- m.WaitApplied(ctx, next) }()
	go func() { stayed <- m.WaitApplied(context.Background(), next) }()
	cancel(errors.New("cause"))
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	select {
	case err := <-stayed:
		t.Errorf("the other call returned %v", err)
	default:
	}
	m.must("CREATE TABLE t(a)")
	if err := <-stayed; err != nil {
		t.Error(err)
	}
}

// When a replica stops, all calls return its error, because it will not apply their
// entries.
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
			t.Errorf("the error is %v", err)
		}
	}
	if err := m.WaitApplied(context.Background(), m.SQL.Applied()+1); !errors.Is(err, why) {
		t.Errorf("the error of a later call is %v", err)
	}
	if err := m.WaitApplied(context.Background(), m.SQL.Applied()); err != nil {
		t.Errorf("the error for an applied entry is %v", err)
	}
}
