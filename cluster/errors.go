package cluster

import "errors"

var (
	// ErrNoLeader: no leader was known for as long as the caller waited. What
	// was asked for was not done, unless ErrOutcomeUnknown is in the chain too.
	ErrNoLeader = errors.New("hiqlite: no leader")

	// ErrOutcomeUnknown: the operation was proposed and may be, or become,
	// applied. It must not be repeated blindly.
	ErrOutcomeUnknown = errors.New("hiqlite: outcome unknown")

	// ErrClosed: the host, the shard or the combiner is closed.
	ErrClosed = errors.New("hiqlite: closed")

	// ErrUnreadable: files of the Raft folder are missing or cannot be read.
	ErrUnreadable = errors.New("hiqlite: the Raft log is unreadable")

	// ErrDiskFailed: the disk under the Raft folder failed while the host ran. All
	// its shards have ended, and Close will leave goroutines behind.
	ErrDiskFailed = errors.New("hiqlite: the disk of the Raft folder has failed")

	// ErrTooLarge: the operation does not fit into one entry of the log.
	ErrTooLarge = errors.New("hiqlite: too large")
)
