package node

import (
	"errors"
	"sync"
	"time"
)

const (
	// compactEvery is how often the size of a log is checked.
	compactEvery = 5 * time.Second
	// compactFrom and compactAlways bound the size, in bytes, of the log since the
	// last compaction. Between them the log is compacted when it is larger than
	// the state. A node that was away for less is brought up to date by the log,
	// one that was away for more by a snapshot.
	compactFrom   = 64 << 20
	compactAlways = 1 << 30
)

// A compactor removes entries from a shard's log that no node needs any more.
type compactor struct {
	shard   *shard
	from    int64
	compact func(keep uint64) error // removes all but the last keep entries

	bytes, applied uint64 // LogBytes and Applied as of the last compaction
}

// compactLogs keeps the logs of all shards short. Each shard has a goroutine of
// its own, because the snapshot of a large cache takes long.
func (n *Node) compactLogs() {
	var wait sync.WaitGroup
	for _, s := range n.shards {
		c := &compactor{shard: s, from: n.opts.Hooks.CompactFrom, compact: func(keep uint64) error { return n.compact(s, keep) }}
		wait.Go(func() {
			for n.sleep(n.opts.Hooks.CompactEvery) {
				if err := c.compactIfGrown(); err != nil && !n.Closed() && !errors.Is(err, ErrClosed) {
					n.opts.Logger.Warn("hiqlite: compacting the log", "node", n.opts.ID, "shard", s.name, "error", err)
				}
			}
		})
	}
	wait.Wait()
}

// compactIfGrown compacts the log if it has grown enough since the last compaction.
func (c *compactor) compactIfGrown() error {
	bytes, applied := c.shard.machine.LogBytes(), c.shard.machine.Applied()
	if c.applied == 0 {
		c.applied = applied
	}
	grown := bytes - c.bytes
	if grown < uint64(c.from) || grown < uint64(min(c.shard.size(), compactAlways)) {
		return nil
	}
	// A quarter of the entries stays, for nodes that have not applied the last ones yet.
	if err := c.compact((applied - c.applied) / 4); err != nil {
		return err
	}
	c.bytes, c.applied = bytes, applied
	return nil
}

// compact removes all but the last keep entries from a shard's log.
func (n *Node) compact(s *shard, keep uint64) error {
	if s.id == sqlID {
		defer n.sql.machine.Compacting()()
	}
	return s.raft.Compact(n.ctx, keep)
}

// Compact removes all but the last keep entries from the log of the SQL shard, or from
// the logs of the in-memory shards.
func (n *Node) Compact(inMemory bool, keep uint64) error {
	for _, s := range n.shards {
		if (s.id != sqlID) == inMemory {
			if err := n.compact(s, keep); err != nil {
				return err
			}
		}
	}
	return nil
}
