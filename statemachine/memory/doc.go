// Package memory holds the machines of the three in-memory shards: KV (buckets of
// entries and counters), Locks, and Messages (what was published on channels).
//
// They keep the promises of package statemachine, and these:
//
//   - What readers of this node have registered (watchers, subscriptions, listeners
//     for locks) is notified by the apply goroutine, but never changes what a command
//     does.
//   - Versions of entries, fencing tokens of locks and indexes of messages are counted
//     by the machine, grow, and are never used twice.
//   - A duration (of an entry, a lock's owner, a message) ends only by clock advances
//     in the log, and never early; see timers.
package memory
