// Package cluster hosts Raft: it is the only package that knows Dragonboat.
// It moves bytes and knows no SQL; what an entry means is for the state
// machine that the caller hands to [Host.StartShard] and for the [Codec] that
// it hands to [NewCombiner].
//
// Reading the source: host.go opens the one Dragonboat NodeHost of a node
// and close.go closes it, folder.go checks its folder first, shard.go is one replicated log,
// combiner.go and flight.go turn many callers' operations into few entries
// with exactly-once semantics, log.go is the log on disk, snapshots.go checks
// snapshot files, registry.go maps replicas to addresses, transport.go carries
// messages to other nodes (lone.go: to none), guard.go looks at them for logs
// that have lost entries, with logend.go, which knows how far the own logs reach,
// faultfs.go keeps a failing disk from ending the program, limits.go bounds a
// leader's memory, logger.go sends Dragonboat's logging to
// slog.
//
// Dragonboat is fail-stop: it panics in its own goroutines, which ends the
// process. What can be found out before (a bad folder, a taken port, a folder
// opened twice) is checked here and returned as an error.
//
// Dragonboat reads dragonboat-soft-settings.json and
// dragonboat-hard-settings.json from the process's working folder when the
// program is loaded, before any code here runs. Files of these names there
// change its settings; do not keep any.
package cluster
