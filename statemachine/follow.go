package statemachine

import (
	"context"
	"sync"
	"sync/atomic"
)

// followers wait for the replica to apply what others wrote.
type followers struct {
	waiting atomic.Int64

	mu      sync.Mutex
	applied chan struct{} // closed at the next apply; nil: nobody waits
}

// WaitApplied returns once reads on this replica see the entry at index. The
// error is that of ctx, or why the replica stopped.
func (r *SQL) WaitApplied(ctx context.Context, index uint64) error {
	return r.followers.wait(ctx, &r.visible, index, &r.failure)
}

// wait waits until visible has come to index.
func (f *followers) wait(ctx context.Context, visible *atomic.Uint64, index uint64, replica *failure) error {
	if visible.Load() >= index {
		return nil
	}
	f.waiting.Add(1)
	defer f.waiting.Add(-1)
	for {
		f.mu.Lock()
		if f.applied == nil {
			f.applied = make(chan struct{})
		}
		applied := f.applied
		f.mu.Unlock()
		if visible.Load() >= index { // before the channel was there
			return nil
		}
		select {
		case <-applied:
		case <-replica.stopped:
			return replica.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tell wakes those who wait.
func (f *followers) tell() {
	if f.waiting.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.applied != nil {
		close(f.applied)
		f.applied = nil
	}
}
