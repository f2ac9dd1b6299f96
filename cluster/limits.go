package cluster

import _ "unsafe" // for go:linkname

// These are soft settings of Dragonboat, which it reads only from a file in the
// process's working folder. Dragonboat's packages are initialized before this one, and
// read the variables when a replica runs.

const (
	// maxReplicateSize bounds, in bytes, the entries that a leader puts into one message
	// to a follower, unless a single entry is larger. Dragonboat's own bound is 64 MiB.
	// A leader sends that much for every heartbeat response of a follower that lacks
	// entries, and heartbeat responses that were delayed arrive all at once.
	maxReplicateSize = 1 << 20

	// entrySliceSize is for how many entries Dragonboat allocates memory at once, in each
	// replica, and minEntrySliceSize the number below which it allocates anew. Its own
	// sizes are 512 and 96: with one entry in flight, it would allocate 40 KB for each
	// entry on each node.
	entrySliceSize    = 16
	minEntrySliceSize = 4
)

//go:linkname raftMaxEntrySize github.com/lni/dragonboat/v4/internal/raft.maxEntrySize
var raftMaxEntrySize uint64

//go:linkname raftEntrySliceSize github.com/lni/dragonboat/v4/internal/raft.entrySliceSize
var raftEntrySliceSize uint64

//go:linkname raftMinEntrySliceSize github.com/lni/dragonboat/v4/internal/raft.minEntrySliceSize
var raftMinEntrySliceSize uint64

func init() {
	raftMaxEntrySize = min(raftMaxEntrySize, maxReplicateSize)
	raftEntrySliceSize = min(raftEntrySliceSize, entrySliceSize)
	raftMinEntrySliceSize = min(raftMinEntrySliceSize, minEntrySliceSize)
}
