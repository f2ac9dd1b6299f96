package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"
)

// readPause is how long calls of ReadIndex gather while an earlier request is not
// answered yet. On a local network an answer comes sooner, so that there is one request
// at a time; over a distance, several are under way.
const readPause = time.Millisecond

// sharedReads lets calls of ReadIndex that wait at the same time share requests. A
// call takes part in the first request that begins after it.
type sharedReads struct {
	ctx context.Context             // ends with the shard
	ask func(context.Context) error // makes a request

	mu      sync.Mutex
	next    *sharedRead // has not begun; nil: nobody waits for it
	running bool        // a goroutine makes requests
}

// A sharedRead is one request.
type sharedRead struct {
	ctx     context.Context // ends when nobody waits any more
	cancel  context.CancelFunc
	waiting int           // calls that wait; guarded by sharedReads.mu
	done    chan struct{} // closed when the request is answered
	err     error         // set before done is closed
}

// ReadIndex returns once this replica has applied everything that was committed
// anywhere before the call. It asks again, within a second, or at once when the
// leader changes, until ctx ends. The error is then ErrNoLeader, wrapping that of
// ctx, unless ctx was cancelled while there was a leader. Without a leader it
// waits for one, because Raft would drop the request.
func (s *Shard) ReadIndex(ctx context.Context) error {
	if err := ctx.Err(); err != nil && s.Leader().Node != 0 {
		return err // no leader was asked
	} else if err != nil {
		return s.unanswered(ctx)
	}
	r := s.reads.join()
	defer s.reads.leave(r)
	select {
	case <-r.done:
		return r.err
	case <-s.Done():
		return ErrClosed
	case <-ctx.Done():
		return s.unanswered(ctx)
	}
}

// join returns the next request.
func (s *sharedReads) join() *sharedRead {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.next
	if r == nil {
		r = &sharedRead{done: make(chan struct{})}
		r.ctx, r.cancel = context.WithCancel(s.ctx)
		s.next = r
	}
	r.waiting++
	if !s.running {
		s.running = true
		go s.run()
	}
	return r
}

// leave ends a request for which nobody waits any more.
func (s *sharedReads) leave(r *sharedRead) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.waiting--; r.waiting > 0 {
		return
	}
	r.cancel()
	if s.next == r {
		s.next = nil
	}
}

// run makes requests while somebody waits for one.
func (s *sharedReads) run() {
	pause := time.NewTimer(readPause)
	defer pause.Stop()
	for {
		s.mu.Lock()
		r := s.next
		s.next = nil
		s.running = r != nil
		s.mu.Unlock()
		if r == nil {
			return
		}
		go func() {
			r.err = s.ask(r.ctx)
			close(r.done)
		}()
		pause.Reset(readPause)
		select {
		case <-r.done:
		case <-pause.C:
		}
	}
}

// readIndex is ReadIndex for one request.
func (s *Shard) readIndex(ctx context.Context) error {
	for patience := firstAttemptTimeout; ; patience = min(2*patience, attemptTimeout) {
		if err := s.WaitLeader(ctx); err != nil {
			return err
		}
		changed := s.LeaderChanged()
		var rs *dragonboat.RequestState
		err := s.call(func(nh *dragonboat.NodeHost) (err error) {
			rs, err = nh.ReadIndex(s.cfg.ID, patience)
			return err
		})
		if err == ErrClosed {
			return err
		}
		if err == nil {
			select {
			case r := <-rs.AppliedC():
				rs.Release()
				if r.Completed() {
					return nil
				}
				if r.Timeout() {
					continue
				}
			case <-changed:
				continue // rs was for the former leader; the garbage collector takes it
			case <-s.Done():
				return ErrClosed
			case <-ctx.Done():
				return s.unanswered(ctx)
			}
		}
		if err := s.sleep(ctx, changed, retryPause); err != nil && ctx.Err() != nil {
			return s.unanswered(ctx)
		}
	}
}
