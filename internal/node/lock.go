package node

import (
	"context"
	"sync"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// A lockShard is the shard of the locks.
type lockShard struct {
	inMemoryShard
	machine *memory.Locks
	onClose shardapi.CloseHooks

	mu       sync.Mutex
	closed   bool           // no waiter is added any more; guarded by mu
	requests sync.WaitGroup // calls of Do that may add waiters; none begins once closed is set
}

var _ shardapi.Lock = (*lockShard)(nil)

func newLockShard(n *Node, incarnation uint64) *lockShard {
	s := &lockShard{}
	// Eager: the session of a new incarnation releases the locks of the earlier
	// ones, so it is opened at once.
	s.init(n, lockID, "lock", incarnation, cluster.CombinerConfig{Eager: true}, func(cfg memory.Config) inMemoryMachine {
		s.machine = memory.NewLocks(cfg)
		return s.machine
	})
	return s
}

// Do is inMemoryShard's. It adds no waiters once the node releases what it has.
func (s *lockShard) Do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	if c.Kind == wire.KindLockAcquire || c.Kind == wire.KindLockTry {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return wire.Outcome{}, s.withCause(ErrClosed)
		}
		s.requests.Add(1)
		s.mu.Unlock()
		defer s.requests.Done()
	}
	return s.inMemoryShard.Do(ctx, c)
}

func (s *lockShard) Await(ctx context.Context, owner, id uint64) (o wire.Outcome, ok bool, err error) {
	now, changed, done := s.machine.WatchWaiter(owner, id)
	defer done()
	for {
		w := now()
		if !w.Exists || w.Code != wire.Waits {
			return w.Outcome, w.Exists, nil
		}
		if err := s.wait(ctx, changed, nil); err != nil {
			return wire.Outcome{}, false, err
		}
	}
}

func (s *lockShard) CatchUp(ctx context.Context, granted wire.Outcome) error {
	if !granted.HolderLost {
		return s.node.follow(ctx, granted.Seen)
	}
	// The lock of an earlier holder expired, and that holder cannot tell any more
	// what it has written.
	return s.node.linearizeData(ctx)
}

func (s *lockShard) QueueLen(key string) int { return s.machine.Queue(key) }

func (s *lockShard) OnClose(f func()) (forget func()) { return s.onClose.OnClose(f) }

// releaseAll releases all locks that are held through this node, after it has
// told their holders.
func (s *lockShard) releaseAll(ctx context.Context) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.onClose.Close()
	requested := make(chan struct{})
	go func() { // ends with the combiner at the latest
		s.requests.Wait()
		close(requested)
	}()
	select {
	case <-requested: // no waiter is added any more
	case <-ctx.Done():
	}
	if s.machine.Owned(s.node.opts.ID) {
		_, _ = s.combiner.Do(ctx, wire.EncodeCommand(&wire.Command{Kind: wire.KindLockLeave, Seen: s.node.seen()}))
	}
}
