// Package api holds the schema of the API, hiqlite/v1/hiqlite.proto. The Go code
// that is generated from it is in the packages below.
package api

//go:generate go run generate.go
