package node

import (
	"fmt"
	"time"
)

// A full disk would stop the node until its program is restarted
// (cluster/diskwatch.go). So the node stops writing before the disk is full:
//
//	free space            the node
//	refuse and more       takes part
//	less than refuse      proposes nothing that takes space
//	less than stop        is paused: it takes no part in the cluster, because
//	                      entries of other nodes would fill the disk too; reads
//	                      of its own rows go on
//
// A paused node takes part again when there is as much free space as refuse. The other
// nodes then bring it up to date.
type diskMarks struct{ refuse, stop int64 } // bytes

const (
	// refuse is a twentieth of the volume, between minReserved, which the log and
	// SQLite may write between two checks, and maxReserved. stop is half of it.
	reservedShare = 20
	maxReserved   = 256 << 20
	minReserved   = 64 << 20

	// diskInterval is how often the free space is checked.
	diskInterval = 100 * time.Millisecond
)

func marksOf(total int64) diskMarks {
	refuse := max(min(total/reservedShare, maxReserved), minReserved)
	return diskMarks{refuse: refuse, stop: refuse / 2}
}

// DiskMarks returns, for a volume of total bytes, the free space below which a node
// refuses writes, and the free space below which it is paused.
func DiskMarks(total int64) (refuse, stop int64) {
	m := marksOf(total)
	return m.refuse, m.stop
}

// lowDisk says why writes are refused.
type lowDisk struct {
	free   int64
	marks  diskMarks
	paused bool
}

// watchDisk checks the free space until the node closes.
func (n *Node) watchDisk() {
	for ok := true; ok; ok = n.sleep(diskInterval) {
		free, total, err := n.opts.Hooks.DiskSpace(n.opts.DataDir)
		if err == nil { // that the space is not known is no reason to stop a node
			n.setFreeSpace(free, marksOf(total))
		}
	}
}

func (n *Node) setFreeSpace(free int64, marks diskMarks) {
	before := n.lowDisk.Load()
	wasPaused := before != nil && before.paused
	var now *lowDisk
	if free < marks.refuse {
		now = &lowDisk{free: free, marks: marks, paused: wasPaused || free < marks.stop}
	}
	n.lowDisk.Store(now)
	paused := now != nil && now.paused
	switch {
	case paused && !wasPaused:
		n.host.Pause()
		n.opts.Logger.Error("hiqlite: the node takes no part until there is more free disk space; it serves local reads",
			"node", n.opts.ID, "folder", n.opts.DataDir, "free_bytes", free, "needed_bytes", marks.refuse)
	case !paused && wasPaused:
		n.host.Resume()
		n.opts.Logger.Info("hiqlite: there is free disk space again: the node takes part", "node", n.opts.ID, "free_bytes", free)
	case now != nil && before == nil:
		n.opts.Logger.Warn("hiqlite: the node refuses writes until there is more free disk space",
			"node", n.opts.ID, "folder", n.opts.DataDir, "free_bytes", free, "needed_bytes", marks.refuse)
	case now == nil && before != nil:
		n.opts.Logger.Info("hiqlite: there is free disk space again: the node takes writes", "node", n.opts.ID, "free_bytes", free)
	}
}

// RefusesWrites returns why the node refuses writes, or nil.
func (n *Node) RefusesWrites() error {
	low := n.lowDisk.Load()
	if low == nil {
		return nil
	}
	return fmt.Errorf("%w: %d MiB are free in %s, and a node needs %d MiB to write; nothing was written: free some space, or write through another node", ErrDiskFull, low.free>>20, n.opts.DataDir, low.marks.refuse>>20)
}

// pausedError returns why the node takes no part in the cluster, or nil.
func (n *Node) pausedError() error {
	low := n.lowDisk.Load()
	if low == nil || !low.paused {
		return nil
	}
	return fmt.Errorf("%w: %d MiB are free in %s; the node takes part again once %d MiB are free", ErrDiskFull, low.free>>20, n.opts.DataDir, low.marks.refuse>>20)
}
