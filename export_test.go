package hiqlite

import "time"

// SetFreeSpace makes nodes believe in the free space that f tells, until the
// returned function is called.
func SetFreeSpace(f func(dir string) (int64, error)) (restore func()) {
	before := freeSpace
	freeSpace = f
	return func() { freeSpace = before }
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
