// Package consistency has only tests. They check what clients see while nodes, each
// in a process of its own, are killed and paused.
//
//   - Traffic: bank_test.go, append_test.go and register_test.go execute
//     transactions on all nodes and record their outcomes.
//   - Faults: faults_test.go kills and pauses nodes, in some cases when a worker is
//     at a certain point: inside a transaction, or during a commit.
//   - Models: bankmodel_test.go, appendmodel_test.go (a checker of serializability)
//     and registermodel_test.go (a model for porcupine) check the recorded
//     histories. models_test.go tests that the models find violations.
//   - Locks: fence_test.go takes locks on all nodes and writes the resources that
//     they guard, during the faults of fencefaults_test.go. fencemodel_test.go
//     checks the history, and fencecheck_test.go tests that model. lockends_test.go
//     tests when the locks of nodes that have ended are granted to others.
//     lockserver_test.go is the part of a node process that takes locks.
//   - lease_test.go measures how long dead and paused holders of the write lease
//     block other writers, and kept_test.go tests kept leases of paused nodes.
//
// server_test.go is the service that a node process runs, client_test.go sends
// requests to it, and cluster_test.go starts and ends the processes with the harness
// of tests/process.
//
// Every run prints the seed of its workload and faults. With
//
//	go test ./tests/consistency -run Bank -seed 123
//
// the workers do the same again, although the processes will not run with the same
// timing.
package consistency
