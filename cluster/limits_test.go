package cluster

import "testing"

// With a version of Dragonboat that has its bounds in other variables, nothing would be
// set.
func TestLimitsAreSet(t *testing.T) {
	for name, v := range map[string]struct{ got, want uint64 }{
		"maxEntrySize":      {raftMaxEntrySize, maxReplicateSize},
		"entrySliceSize":    {raftEntrySliceSize, entrySliceSize},
		"minEntrySliceSize": {raftMinEntrySliceSize, minEntrySliceSize},
	} {
		if v.got != v.want {
			t.Errorf("Dragonboat's %s is %d, not %d", name, v.got, v.want)
		}
	}
}
