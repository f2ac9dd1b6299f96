package hiqlite

import (
	"fmt"
	"time"

	"github.com/hiqlite/hiqlite/internal/durable"
)

// A full disk would be met first by the Raft log, which takes what it could not
// write for written, or ends the process. So it is not let come to that:
//
//	free space         the node
//	from refuse on     takes part
//	below refuse       proposes nothing more
//	below stop         is paused: it takes no part, as if it were cut off, since
//	                   entries of other nodes would fill the disk too; reads of
//	                   its own rows go on
//
// With space again it takes part again, and is brought up to date.
type diskMarks struct{ refuse, stop int64 } // bytes

const (
	// A node refuses at a twentieth of its volume: at most mostReserved bytes,
	// and at least leastReserved, which the log and SQLite may write between two
	// looks. It stops at half of that.
	reservedShare = 20
	mostReserved  = 256 << 20
	leastReserved = 64 << 20

	// lookEvery is how often the free space is looked at.
	lookEvery = 100 * time.Millisecond
)

// marksOf returns the marks of a volume of so many bytes.
func marksOf(total int64) diskMarks {
	refuse := max(min(total/reservedShare, mostReserved), leastReserved)
	return diskMarks{refuse: refuse, stop: refuse / 2}
}

// diskSpace returns the free bytes of a folder's volume, and all; exchanged by
// tests.
var diskSpace = durable.Space

// watchDisk keeps the node from filling its disk.
func (n *Node) watchDisk() {
	for ok := true; ok; ok = n.sleep(lookEvery) {
		free, total, err := diskSpace(n.cfg.DataDir)
		if err != nil {
			continue // no reason to stop a node
		}
		marks := marksOf(total)
		n.diskLooked(free, marks)
	}
}

func (n *Node) diskLooked(free int64, marks diskMarks) {
	var now *diskLow
	if free < marks.refuse {
		now = &diskLow{free: free, marks: marks, stopped: free < marks.stop}
	}
	before := n.lowDisk.Load()
	if before != nil && before.stopped && now != nil {
		now.stopped = true // until there is as much as to write again
	}
	n.lowDisk.Store(now)
	stops, stopped := now != nil && now.stopped, before != nil && before.stopped
	switch {
	case stops && !stopped:
		n.host.Pause()
		n.cfg.Logger.Error("hiqlite: the node takes no part until there is more free disk space; it serves local reads",
			"node", n.cfg.NodeID, "folder", n.cfg.DataDir, "free_bytes", free, "needed_bytes", marks.refuse)
	case !stops && stopped:
		n.host.Resume()
		n.cfg.Logger.Info("hiqlite: there is free disk space again: the node takes part", "node", n.cfg.NodeID, "free_bytes", free)
	case now != nil && before == nil:
		n.cfg.Logger.Warn("hiqlite: the node refuses writes until there is more free disk space",
			"node", n.cfg.NodeID, "folder", n.cfg.DataDir, "free_bytes", free, "needed_bytes", marks.refuse)
	case now == nil && before != nil:
		n.cfg.Logger.Info("hiqlite: there is free disk space again: the node takes writes", "node", n.cfg.NodeID, "free_bytes", free)
	}
}

// diskLow says why writes are refused.
type diskLow struct {
	free    int64
	marks   diskMarks
	stopped bool // the node takes no part
}

// diskError refuses a write.
func (n *Node) diskError() error {
	low := n.lowDisk.Load()
	if low == nil {
		return nil
	}
	return fmt.Errorf("%w: %d MiB free in %s, a node writes from %d on; nothing was written: free some space, or write through another node", ErrDiskFull, low.free>>20, n.cfg.DataDir, low.marks.refuse>>20)
}

// pausedError says why the node takes no part, or nil if it does.
func (n *Node) pausedError() error {
	low := n.lowDisk.Load()
	if low == nil || !low.stopped {
		return nil
	}
	return fmt.Errorf("%w: %d MiB free in %s; the node takes part again from %d on", ErrDiskFull, low.free>>20, n.cfg.DataDir, low.marks.refuse>>20)
}
