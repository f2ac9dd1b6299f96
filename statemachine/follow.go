package statemachine

import (
	"context"
	"sync"
	"sync/atomic"
)

// Followers are the goroutines that wait until a replica has applied an entry.
type Followers struct {
	waiting atomic.Int64

	mu      sync.Mutex
	applied chan struct{} // closed by the next Wake; nil: nobody waits
}

// Wait returns once applied has reached index. The error is that of ctx, or why
// the replica stopped.
func (f *Followers) Wait(ctx context.Context, applied *atomic.Uint64, index uint64, failure *Failure) error {
	if applied.Load() >= index {
		return nil
	}
	f.waiting.Add(1)
	defer f.waiting.Add(-1)
	for {
		f.mu.Lock()
		if f.applied == nil {
			f.applied = make(chan struct{})
		}
		wake := f.applied
		f.mu.Unlock()
		if applied.Load() >= index { // the index may have moved before the channel existed
			return nil
		}
		select {
		case <-wake:
		case <-failure.stopped:
			return failure.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Wake makes all followers compare the applied index again. The caller has changed
// it before.
func (f *Followers) Wake() {
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

// Waiting returns how many goroutines wait.
func (f *Followers) Waiting() int { return int(f.waiting.Load()) }
