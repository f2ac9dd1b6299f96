// Package statemachine holds what the machines of all shards have in common:
// sessions, which make each entry apply once; the shard's clock; waiting for an
// entry to be applied; and stopping after a failure of this machine. Package
// replica has the SQL machine, package memory the three in-memory machines.
//
// All of them keep these promises:
//
//   - Apply is a pure function of the log and the state. It reads no clock, draws
//     no random number and does not depend on the iteration order of a map, so
//     all replicas of a shard hold the same data.
//   - A problem of this machine alone, such as a full disk or a damaged file, is
//     never the result of an operation. The replica stops and applies the entry
//     again after the next start.
package statemachine
