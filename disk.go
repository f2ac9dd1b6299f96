package hiqlite

import (
	"fmt"
	"time"

	"github.com/hiqlite/hiqlite/statemachine"
)

// A full disk would be met first by the Raft log, which takes what it could not
// write for written, or ends the process. So it is not let come to that.
const (
	// refuseBelow is the free space, in bytes, under which this node proposes
	// nothing more.
	refuseBelow = 256 << 20
	// stopBelow is the free space under which it stops taking part: entries of
	// other nodes would fill the disk too. More than what the log and SQLite
	// write between two looks.
	stopBelow = 128 << 20
	// lookEvery is how often the free space is looked at.
	lookEvery = 500 * time.Millisecond
)

// freeSpace is exchanged by tests.
var freeSpace = statemachine.FreeSpace

// watchDisk keeps the node from filling its disk.
func (n *Node) watchDisk() {
	for n.sleep(lookEvery) {
		free, err := freeSpace(n.cfg.DataDir)
		if err != nil {
			continue // no reason to stop a node
		}
		low := free < refuseBelow
		if n.lowDisk.Swap(low) != low {
			n.cfg.Logger.Warn("hiqlite: free disk space", "node", n.cfg.NodeID, "bytes", free, "writes_refused", low)
		}
		if free < stopBelow {
			err := fmt.Errorf("%w: %d MiB free in %s, a node needs %d", ErrDiskFull, free>>20, n.cfg.DataDir, stopBelow>>20)
			for _, s := range n.memory.all {
				s.replica.Fail(err)
			}
			n.replica.Fail(err)
			return
		}
	}
}

// diskError refuses a write.
func (n *Node) diskError() error {
	if !n.lowDisk.Load() {
		return nil
	}
	return fmt.Errorf("%w: less than %d MiB free in %s; nothing was written: free some space, or write through another node", ErrDiskFull, refuseBelow>>20, n.cfg.DataDir)
}
