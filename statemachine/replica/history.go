package replica

import (
	"encoding/binary"
	"fmt"
	"hash/crc64"
)

// ErrDiverged: this replica has applied other entries than the leader's.
var ErrDiverged = fmt.Errorf("%w: this replica has applied other entries than the leader's", ErrDamaged)

// appliedHistory is a checksum over all entries that a replica has applied, from the
// first on. Where two replicas have the same at an index, they have applied the
// same entries up to there. The leader tells its own with its ticks.
//
// Raft alone does not find all differences: it takes entries with the same index
// and term for the same, but a node of which an older copy was put back may use
// a term for a second time.
type appliedHistory struct {
	index, sum uint64                      // as of the last entry applied
	past       [historyKept]appliedEntries // by index, modulo its length
}

type appliedEntries struct{ index, sum uint64 }

// historyKept is for how many entries a replica can tell what it was: more than
// the leader applies while a tick is on its way.
const historyKept = 4096

var historyTable = crc64.MakeTable(crc64.ECMA)

// begin makes the history that of a replica as it was opened.
func (h *appliedHistory) begin(index, sum uint64) {
	*h = appliedHistory{}
	h.set(index, sum)
}

func (h *appliedHistory) set(index, sum uint64) {
	h.index, h.sum = index, sum
	h.past[index%historyKept] = appliedEntries{index, sum}
}

// add takes an entry in. One without a command is Raft's own, which not every
// replica is shown.
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

// check compares what another replica had at an index. It knows nothing about
// those that were applied long ago, or before the replica was opened.
func (h *appliedHistory) check(index, sum uint64) error {
	own := h.past[index%historyKept]
	if index == 0 || own.index != index || own.sum == sum {
		return nil
	}
	return fmt.Errorf("%w: up to entry %d; older copies of some data folders were put back: on all nodes, put back copies that were made while all nodes were stopped", ErrDiverged, index)
}
