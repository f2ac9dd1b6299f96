// Package consistency holds tests only: of what clients see while nodes, which
// are processes here, are killed and paused.
//
//   - traffic: bank_test.go, append_test.go and register_test.go do transactions
//     from all nodes and write down what came of them.
//   - faults: faults_test.go kills and pauses nodes, some at a point that
//     traffic has reached: inside a transaction, or with a commit on its way.
//   - models: bankmodel_test.go, appendmodel_test.go (a checker of
//     serializability) and registermodel_test.go (porcupine's) judge what was
//     written down, and nothing else. models_test.go shows that they find what
//     they are for.
//   - locks: fence_test.go takes locks on all nodes and writes what they guard,
//     through the faults of fencefaults_test.go; fencemodel_test.go judges it, and fencecheck_test.go
//     the model. lockends_test.go asks when the locks of nodes that have ended
//     are free, and lockserver_test.go is what a node process does with them.
//   - lease_test.go measures what dead and paused holders of the write lease
//     cost the others.
//
// The rest is machinery: server_test.go is what a node process does, client_test.go
// sends it requests, cluster_test.go starts and ends such processes, by the harness
// of tests/process.
//
// Every run prints the seed of its workload and faults; with
//
//	go test ./tests/consistency -run Bank -seed 123
//
// the workers do the same again, though the processes will not meet in the same
// instants.
package consistency
