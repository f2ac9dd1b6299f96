// An assembly file, though an empty one, lets the compiler accept the function
// without a body in database_test.go.
