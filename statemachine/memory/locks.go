package memory

import (
	"iter"

	"github.com/hiqlite/hiqlite/internal/invariants"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// Locks is the machine of the lock shard: a lockTable, and the listeners on this node for
// changes of waiters.
type Locks struct {
	core
	lockTable
	restoring *lockTable                 // what a snapshot holds, while it is read
	listening map[waiterID]chan struct{} // on this node
}

// NewLocks returns a machine that holds nothing.
func NewLocks(cfg Config) *Locks {
	l := &Locks{listening: map[waiterID]chan struct{}{}}
	l.lockTable = newLockTable(&l.core.seen, l.notify)
	l.start(cfg, l)
	return l
}

// apply applies a command.
func (l *Locks) apply(c *wire.Command, session *wire.Session[wire.Outcome]) wire.Outcome {
	o := l.lockTable.apply(c, session)
	l.checkInvariants()
	return o
}

// advance moves the clock.
func (l *Locks) advance(now uint64) {
	l.lockTable.advance(now)
	l.checkInvariants()
}

// sessionOpened expires the owners that came through earlier incarnations of a
// node.
func (l *Locks) sessionOpened(node, incarnation uint64) {
	if incarnation > 0 {
		l.expireNode(node, incarnation-1)
		l.checkInvariants()
	}
}

func (l *Locks) nextAdvance() (atOnce bool, end uint64, any bool) { return l.ownerTimers.next() }

// Size returns about how many bytes of memory the locks take.
func (l *Locks) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	const each = 200 // bytes of an owner or a queue
	return int64(each * (len(l.queues) + len(l.owners)))
}

// Owned reports whether an owner that came through a node holds or waits for a
// lock.
func (l *Locks) Owned(node uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.owners {
		if o.node == node {
			return true
		}
	}
	return false
}

// Queue returns how many waiters the lock of key has, its holder included.
func (l *Locks) Queue(key string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.queues[key]; q != nil {
		return len(q.waiters)
	}
	return 0
}

// A WaiterState is the state of a waiter.
type WaiterState struct {
	wire.Outcome      // Waits or Done
	Exists       bool // there is such a waiter
}

// WatchWaiter returns a function that returns the present state of a waiter on this node,
// and a channel that receives a value when the state may have changed. The caller
// must call done when it does not listen any more. At most one caller listens for a
// waiter.
func (l *Locks) WatchWaiter(owner, id uint64) (now func() WaiterState, changed <-chan struct{}, done func()) {
	w := waiterID{owner, id}
	c := make(chan struct{}, 1)
	l.mu.Lock()
	l.listening[w] = c
	l.mu.Unlock()
	now = func() WaiterState {
		l.mu.Lock()
		defer l.mu.Unlock()
		o := l.owners[owner]
		if o == nil || o.waiters[id] == nil {
			return WaiterState{}
		}
		return WaiterState{o.waiters[id].find(w).outcome(), true}
	}
	done = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.listening, w)
	}
	return now, c, done
}

// notify notifies the listener for a waiter, if there is one on this node. The caller
// holds mu.
func (l *Locks) notify(w waiterID) {
	if c := l.listening[w]; c != nil {
		select {
		case c <- struct{}{}:
		default: // it has not received the last value yet
		}
	}
}

func (l *Locks) freeze() iter.Seq[wire.Record] { return l.records() }

func (l *Locks) beginRestore() {
	t := newLockTable(&l.core.seen, l.notify)
	l.restoring = &t
}

func (l *Locks) restore(r wire.Record) error { return l.restoring.restore(r) }

func (l *Locks) endRestore() error {
	table := l.restoring
	l.restoring = nil
	if invariants.Enabled {
		if err := table.validate(); err != nil {
			return err
		}
	}
	l.lockTable = *table
	for w := range l.listening { // any of them may have changed
		l.notify(w)
	}
	return nil
}
