package replica

import (
	"encoding/binary"
	"fmt"
	"hash/crc64"
)

// ErrDiverged says that this replica has applied other entries than the leader.
var ErrDiverged = fmt.Errorf("%w: this replica has applied other entries than the leader's", ErrDamaged)

// appliedHistory is a checksum over all entries that a replica has applied, from the
// first on. If two replicas have the same checksum at an index, they have applied the
// same entries up to it. The leader's checksum is in its clock advances.
//
// Raft alone does not detect every difference. It assumes that entries with the same index
// and term are the same; but a node whose folder was replaced by an older copy may use a
// term for a second time.
type appliedHistory struct {
	index, sum uint64                      // as of the last entry applied
	past       [historyKept]appliedEntries // by index, modulo its length
}

type appliedEntries struct{ index, sum uint64 }

// historyKept is the number of entries whose checksums a replica keeps: more than the
// leader applies between proposing a clock advance and applying it.
const historyKept = 4096

var historyTable = crc64.MakeTable(crc64.ECMA)

// begin sets the history of a replica that was opened at index.
func (h *appliedHistory) begin(index, sum uint64) {
	*h = appliedHistory{}
	h.set(index, sum)
}

func (h *appliedHistory) set(index, sum uint64) {
	h.index, h.sum = index, sum
	h.past[index%historyKept] = appliedEntries{index, sum}
}

// add adds an entry to the checksum. It ignores entries without a command: they are
// Raft's own, and Dragonboat does not pass them to every replica.
func (h *appliedHistory) add(index uint64, cmd []byte) {
	sum := h.sum
	if len(cmd) > 0 {
		var number [8]byte
		binary.LittleEndian.PutUint64(number[:], index)
		sum = crc64.Update(sum, historyTable, number[:])
		sum = crc64.Update(sum, historyTable, cmd)
	}
	h.set(index, sum)
}

// check compares the checksum of another replica at an index with that of this one. It
// accepts any checksum of an entry that was applied long ago, or before this replica was
// opened, since those are not kept.
func (h *appliedHistory) check(index, sum uint64) error {
	kept := h.past[index%historyKept]
	if index == 0 || kept.index != index || kept.sum == sum {
		return nil
	}
	return fmt.Errorf("%w: up to entry %d; older copies of some data folders were put back: on all nodes, put back copies that were made while all nodes were stopped", ErrDiverged, index)
}
