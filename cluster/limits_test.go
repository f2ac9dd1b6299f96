package cluster

import "testing"

// A build against a Dragonboat that has its bound elsewhere would set nothing.
func TestReplicateSizeIsSet(t *testing.T) {
	if raftMaxEntrySize != replicateSize {
		t.Errorf("Dragonboat's bound is %d bytes, not %d", raftMaxEntrySize, replicateSize)
	}
}
