package cluster

import _ "unsafe" // for go:linkname

// maxReplicateSize bounds, in bytes, the entries that a leader puts into one message
// to a follower, unless a single entry is larger. Dragonboat's own bound is 64 MiB.
// A leader sends that much for every heartbeat response of a follower that lacks
// entries, and heartbeat responses that were delayed arrive all at once. The bound
// is one of Dragonboat's soft settings, which it reads only from a file in the
// process's working folder.
const maxReplicateSize = 1 << 20

//go:linkname raftMaxEntrySize github.com/lni/dragonboat/v4/internal/raft.maxEntrySize
var raftMaxEntrySize uint64

// Dragonboat's packages are initialized before this one, and read the variable when
// a replica runs.
func init() { raftMaxEntrySize = min(raftMaxEntrySize, maxReplicateSize) }
