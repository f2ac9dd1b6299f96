package cluster

import "errors"

var (
	// ErrNoLeader: no leader was known for as long as the caller waited. The request
	// was not carried out, unless ErrOutcomeUnknown is in the chain too.
	ErrNoLeader = errors.New("hiqlite: no leader")

	// ErrOutcomeUnknown: the operation was proposed, and may have been applied or be
	// applied later. It must not be repeated blindly.
	ErrOutcomeUnknown = errors.New("hiqlite: outcome unknown")

	// ErrClosed: the host, the shard or the combiner is closed.
	ErrClosed = errors.New("hiqlite: closed")

	// ErrUnreadable: files of the Raft folder are missing or cannot be read.
	ErrUnreadable = errors.New("hiqlite: the Raft log is unreadable")

	// ErrDiskFailed: the disk under the Raft folder failed while the host ran. All
	// shards of the host have ended, and Close may leave goroutines behind.
	ErrDiskFailed = errors.New("hiqlite: the disk of the Raft folder has failed")

	// ErrTooLarge: the operation does not fit into one entry of the log.
	ErrTooLarge = errors.New("hiqlite: too large")
)
