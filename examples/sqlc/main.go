// Sqlc keeps a library with code that sqlc generates from SQL, on a cluster of
// one node:
//
//	go run ./examples/sqlc
//
// The tables are in schema.sql and the queries in query.sql. sqlc generates the
// package library from them, for SQLite. On a cluster of three nodes, only the
// DSN in run differs; see package driver.
package main

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"os"

	_ "github.com/hiqlite/hiqlite/driver"
	"github.com/hiqlite/hiqlite/examples/sqlc/library"
)

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate

//go:embed schema.sql
var schema string

func main() {
	dir, err := os.MkdirTemp("", "sqlc-")
	if err == nil {
		err = errors.Join(run(context.Background(), dir), os.RemoveAll(dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sqlc:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string) (err error) {
	db, err := sql.Open("hiqlite", dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return err
	}

	english := "wrote in English"
	if err := add(ctx, db, "Joseph Conrad", &english, map[string]int64{"Lord Jim": 1900, "Nostromo": 1904}); err != nil {
		return err
	}
	if err := add(ctx, db, "Anna Seghers", nil, map[string]int64{"Transit": 1944}); err != nil {
		return err
	}
	// The author exists already, so the book is not added either.
	fmt.Println("again:", add(ctx, db, "Joseph Conrad", nil, map[string]int64{"Victory": 1915}))

	queries := library.New(db)
	books, err := queries.Books(ctx)
	if err != nil {
		return err
	}
	for _, b := range books {
		fmt.Printf("%d  %s, %s\n", b.Year, b.Title, b.Author)
	}
	deleted, err := queries.DeleteAuthor(ctx, "Anna Seghers")
	fmt.Println("authors deleted:", deleted)
	return err
}

// add adds an author with all of the books, or nothing.
func add(ctx context.Context, db *sql.DB, name string, bio *string, books map[string]int64) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit
	queries := library.New(tx)
	author, err := queries.CreateAuthor(ctx, library.CreateAuthorParams{Name: name, Bio: bio})
	if err != nil {
		return err
	}
	for title, year := range books {
		if err := queries.CreateBook(ctx, library.CreateBookParams{AuthorID: author.ID, Title: title, Year: year}); err != nil {
			return err
		}
	}
	return tx.Commit()
}
