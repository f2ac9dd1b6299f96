package cluster

import "testing"

// With a version of Dragonboat that has its bound in another variable, nothing would
// be set.
func TestMaxReplicateSizeIsSet(t *testing.T) {
	if raftMaxEntrySize != maxReplicateSize {
		t.Errorf("Dragonboat's bound is %d bytes, not %d", raftMaxEntrySize, maxReplicateSize)
	}
}
