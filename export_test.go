package hiqlite

// SetFreeSpace makes nodes believe in the free space that f tells, until the
// returned function is called.
func SetFreeSpace(f func(dir string) (int64, error)) (restore func()) {
	before := freeSpace
	freeSpace = f
	return func() { freeSpace = before }
}

// Compact lets a node's log forget all but the last entries.
func (n *Node) Compact(keep uint64) error { return n.compactTo(keep) }
