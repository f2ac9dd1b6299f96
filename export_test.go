package hiqlite

import (
	"time"

	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// This file gives the tests, which are in another package, access to the hooks of a
// node and to some of its methods.

// HookDiskSpace replaces the free and total space of the volume of a node by what f
// returns.
func (c *Config) HookDiskSpace(f func(dir string) (free, total int64, err error)) {
	c.hooks.DiskSpace = f
}

// HookCompaction sets how often a node checks the size of its logs, and from which size
// in bytes on it compacts them.
func (c *Config) HookCompaction(every time.Duration, from int64) {
	c.hooks.CompactEvery, c.hooks.CompactFrom = every, from
}

// HookSend makes a node ask f what becomes of each message to another node: after what
// time each copy of it is sent. Nil drops the message.
func (c *Config) HookSend(f func(from, to, shard uint64, kind string) []time.Duration) {
	c.hooks.Send = f
}

// HookApplySQL makes a node call f before it applies entries of the SQL shard.
func (c *Config) HookApplySQL(f func(node uint64)) { c.hooks.ApplySQL = f }

// HookApplyKV makes a node call f before it applies entries of the kv shard.
func (c *Config) HookApplyKV(f func(node uint64)) { c.hooks.ApplyKV = f }

// HookRetention sets how many messages a node keeps.
func (c *Config) HookRetention(r memory.Retention) { c.hooks.Retention = r }

// HookFirstSteps sets how many steps the first attempt of a write may take.
func (c *Config) HookFirstSteps(steps uint64) { c.hooks.FirstSteps = steps }

// HookLeaveWait sets how long a write that gives up waits until it has left the lease
// queue.
func (c *Config) HookLeaveWait(d time.Duration) { c.hooks.LeaveWait = d }

// DiskMarks returns, for a volume of total bytes, the free space below which a node
// refuses writes, and below which it is paused.
func DiskMarks(total int64) (refuse, stop int64) { return node.DiskMarks(total) }

// Compact removes all but the last entries from the log of the SQL shard.
func (n *Node) Compact(keep uint64) error { return n.node.Compact(false, keep) }

// CompactMemory writes snapshots of the in-memory shards, and removes all but the last
// entries from their logs.
func (n *Node) CompactMemory(keep uint64) error { return n.node.Compact(true, keep) }

// Queued returns how many operations of all nodes are in the lease queue, as far
// as this node has applied.
func (n *Node) Queued() int { return n.node.Machine().LeaseQueue() }

// ConnConfig returns the configuration of the connections of DB.
func (r *Remote) ConnConfig() ConnConfig { return r.cfg.Conn }
