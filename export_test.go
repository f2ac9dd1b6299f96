package hiqlite

import (
	"time"

	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// The functions below change what the nodes of a Config meet, for tests.

// HookDiskSpace makes a node believe in the space that f returns.
func (c *Config) HookDiskSpace(f func(dir string) (free, total int64, err error)) {
	c.hooks.DiskSpace = f
}

// HookCompaction makes a node check the size of its logs so often, and compact
// them from that size in bytes on.
func (c *Config) HookCompaction(every time.Duration, from int64) {
	c.hooks.CompactEvery, c.hooks.CompactFrom = every, from
}

// HookApplySQL has f called before entries of the SQL shard are applied.
func (c *Config) HookApplySQL(f func(node uint64)) { c.hooks.ApplySQL = f }

// HookApplyKV has f called before entries of the kv shard are applied.
func (c *Config) HookApplyKV(f func(node uint64)) { c.hooks.ApplyKV = f }

// HookRetention makes a node keep other messages than by default.
func (c *Config) HookRetention(r memory.Retention) { c.hooks.Retention = r }

// HookFirstSteps sets the bound of the first attempt of a write.
func (c *Config) HookFirstSteps(steps uint64) { c.hooks.FirstSteps = steps }

// DiskMarks returns the free space of a volume of so many bytes, below which a
// node refuses writes, and below which it is paused.
func DiskMarks(total int64) (refuse, stop int64) { return node.DiskMarks(total) }

// Compact removes all but the last entries from the log of the SQL shard.
func (n *Node) Compact(keep uint64) error { return n.node.Compact(false, keep) }

// CompactMemory does that for the in-memory shards, after a snapshot.
func (n *Node) CompactMemory(keep uint64) error { return n.node.Compact(true, keep) }

// Queued returns how many operations of all nodes are in the lease queue, as far
// as this node has applied.
func (n *Node) Queued() int { return n.node.Machine().LeaseQueue() }
