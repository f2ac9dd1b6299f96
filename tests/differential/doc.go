// Package differential holds tests only: of random SQL, which modernc.org/sqlite
// and clusters of one node and of three are told alike.
//
// TestDifferential compares, statement by statement, what a program sees: rows,
// the names and types of columns, errors and their codes, RowsAffected,
// LastInsertId, changes() and last_insert_rowid(); and now and then all rows that
// are kept, of all nodes, also after a node was restarted or got a snapshot.
//
//	go test ./tests/differential -run Differential -duration 1h -failures 10
//	go test ./tests/differential -run Differential -seed 123 -rounds 1
//
// A round is a script of random statements, made from its seed alone. One that
// shows a difference is shortened and printed as SQL. TestPinned runs those that
// once did.
//
//   - The grammar: generator_test.go (expressions), query_test.go, write_test.go,
//     ddl_test.go. It knows the schema of the moment, which schema_test.go reads
//     from the reference, so that most statements succeed.
//   - A script: writer_test.go makes its steps, script_test.go says what they are,
//     runner_test.go runs and compares them, shrink_test.go shortens it.
//   - The databases: database_test.go; outcome_test.go has what they show.
//   - What differs on purpose: accepted_test.go, and where runner_test.go tells the
//     reference something else than a cluster: a script is all or nothing, a
//     transaction waits for its turn when it begins, a statement that fails in a
//     transaction has changed nothing.
package differential
