// Package differential has tests that run random SQL on modernc.org/sqlite and on
// clusters of one node and of three, and compare them.
//
// TestDifferential compares what a program sees of each statement: rows, the names and
// types of columns, errors and their codes, RowsAffected, LastInsertId, changes() and
// last_insert_rowid(). From time to time it compares all rows of all nodes, also after a
// restart of a node and after a snapshot.
//
//	go test ./tests/differential -run Differential -duration 1h -failures 10
//	go test ./tests/differential -run Differential -seed 123 -rounds 1
//
// A round is a script of random statements, which depends on its seed alone. A script
// that shows a difference is shortened and printed as SQL. TestPinned runs scripts that
// have shown a difference before.
//
//   - The grammar: generator_test.go (expressions), query_test.go, write_test.go,
//     ddl_test.go. schema_test.go reads the schema from the reference, so that most
//     statements succeed.
//   - A script: writer_test.go makes its steps, script_test.go defines them,
//     runner_test.go runs and compares them, shrink_test.go shortens the script.
//   - The databases: database_test.go; outcome_test.go has the results of statements.
//   - Intended differences: accepted_test.go has deviations, and runner_test.go runs some
//     statements differently on the reference: a script is atomic, a transaction waits
//     for the write lease when it begins, a statement that fails in a transaction has
//     changed nothing, and TEMP views and triggers are loaded again.
package differential
