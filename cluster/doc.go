// Package cluster replicates logs with Raft. It is the only package that knows
// Dragonboat. It moves bytes and knows no SQL: what an entry means is decided by the
// state machine that the caller starts a [Shard] with, and by the [Codec] that the
// caller gives to [NewCombiner].
//
// What the package guarantees:
//
//   - A [Combiner] applies an operation at most once. It reports an operation as
//     applied only with the result of this node's own machine, as not applied only
//     if the operation is and will be in no log, and otherwise returns
//     [ErrOutcomeUnknown].
//   - A shard can be used as soon as [Host.NewShard] has made it. Before it is started
//     it behaves like a shard without a leader. A shard that was stopped, or whose host
//     was closed, returns [ErrClosed].
//   - A node that notices that a Raft log has lost entries does not let committed
//     entries be overwritten: if it may be its own log, its replica stops with
//     [ErrForgotten]; another node gets no vote from it.
//   - A disk that fails under a running host does not end the process: all shards end,
//     and their owners are told ([ErrDiskFailed]).
//   - What is wrong with the Config, the folder, its log and snapshots or the port is
//     returned as an error, before the node takes part. Dragonboat itself reports such
//     faults by panics in its own goroutines, which end the process.
//
// Reading the source:
//
//	host.go, close.go          Open and Close of the one Dragonboat NodeHost of a node
//	folder.go                  checks of the Raft folder before it is opened
//	lifecycle.go, shard.go     one replicated log: its life, and its methods
//	combiner.go, loop.go       many callers' operations become few entries; begin with the table of states
//	window.go, pace.go         the entries in flight, and when another one may be made
//	propose.go, mailbox.go     how they are proposed until they are answered, and the machine's answers
//	log.go, logend.go          the log on disk, and where each shard's log ends
//	guard.go, acknowledged.go  inspects messages for logs that have lost entries
//	peers.go                   what is known of other nodes
//	snapshots.go               checks snapshot files
//	registry.go                the addresses of replicas
//	storage.go, lone.go        the name of the data folder, and the transport of a node that is alone
//	diskwatch.go               keeps a failing disk from ending the process
//	limits.go, syncdata_*.go   settings that Dragonboat does not export, and fdatasync
//	logger.go                  Dragonboat's log lines
//
// Dragonboat reads dragonboat-soft-settings.json and dragonboat-hard-settings.json
// from the process's working folder when the program is loaded, before any code of
// this package runs. Files of these names there change its settings; do not keep
// any.
package cluster
