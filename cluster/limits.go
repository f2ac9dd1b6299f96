package cluster

import _ "unsafe" // for go:linkname

// replicateSize bounds, in bytes, the entries that a leader puts into one
// message to a follower, if it is not a single larger entry. Dragonboat's own
// bound is 64 MiB: a follower that comes back after a while is sent that much
// for each heartbeat that it answers, and heartbeats that were held up arrive
// all at once. It is one of Dragonboat's soft settings, which it reads only from
// a file in the working folder of the process.
const replicateSize = 1 << 20

//go:linkname raftMaxEntrySize github.com/lni/dragonboat/v4/internal/raft.maxEntrySize
var raftMaxEntrySize uint64

// Dragonboat's packages are initialized before this one, and read it when a
// replica runs.
func init() { raftMaxEntrySize = min(raftMaxEntrySize, replicateSize) }
