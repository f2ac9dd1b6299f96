package hiqlite

import (
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// SetDiskSpace makes nodes believe in the space that f tells, until the returned
// function is called.
func SetDiskSpace(f func(dir string) (free, total int64, err error)) (restore func()) {
	before := diskSpace
	diskSpace = f
	return func() { diskSpace = before }
}

// DiskMarks returns below how many free bytes of a volume writes are refused, and
// below how many a node takes no part.
func DiskMarks(total int64) (refuse, stop int64) {
	m := marksOf(total)
	return m.refuse, m.stop
}

// SetCompaction makes nodes look at the log's size so often, and compact it from
// that size on, until the returned function is called.
func SetCompaction(every time.Duration, from int64) (restore func()) {
	beforeEvery, beforeFrom := compactEvery, compactFrom
	compactEvery, compactFrom = every, from
	return func() { compactEvery, compactFrom = beforeEvery, beforeFrom }
}

// Compact lets a node's log forget all but the last entries.
func (n *Node) Compact(keep uint64) error { return n.compactTo(keep) }

// Queued returns how many operations of all nodes wait for the write lease, as
// far as this node has applied.
func (n *Node) Queued() int { return n.replica.LeaseQueue() }

// SetApplyGate makes the SQL shard of each node opened from now on call gate
// before it applies entries, until the returned function is called.
func SetApplyGate(gate func(node uint64)) (restore func()) {
	before := sqlMachine
	sqlMachine = func(node uint64, replica sm.IOnDiskStateMachine) sm.IOnDiskStateMachine {
		return gated{replica, func() { gate(node) }}
	}
	return func() { sqlMachine = before }
}

type gated struct {
	sm.IOnDiskStateMachine
	gate func()
}

func (g gated) Update(entries []sm.Entry) ([]sm.Entry, error) {
	g.gate()
	return g.IOnDiskStateMachine.Update(entries)
}

// SetKVGate is SetApplyGate for the kv shard.
func SetKVGate(gate func(node uint64)) (restore func()) {
	before := kvMachine
	kvMachine = func(node uint64, replica sm.IConcurrentStateMachine) sm.IConcurrentStateMachine {
		return gatedKV{replica, func() { gate(node) }}
	}
	return func() { kvMachine = before }
}

type gatedKV struct {
	sm.IConcurrentStateMachine
	gate func()
}

func (g gatedKV) Update(entries []sm.Entry) ([]sm.Entry, error) {
	g.gate()
	return g.IConcurrentStateMachine.Update(entries)
}

// SetRetention makes nodes opened from now on keep less of what was told, until
// the returned function is called.
func SetRetention(r memory.Retention) (restore func()) {
	before := retention
	retention = r
	return func() { retention = before }
}

// Retention is what nodes keep of what was told.
func Retention() memory.Retention { return retention }

// CompactMemory writes snapshots of the shards in memory, and lets their logs
// forget all but the last entries.
func (n *Node) CompactMemory(keep uint64) error {
	for _, s := range n.memory.all {
		if err := s.shard.Compact(n.ctx, keep); err != nil {
			return err
		}
	}
	return nil
}

// SetFirstSteps sets the bound of writes' first tries, which is high for tests,
// until the returned function is called.
func SetFirstSteps(steps uint64) (restore func()) {
	before := firstSteps
	firstSteps = steps
	return func() { firstSteps = before }
}
