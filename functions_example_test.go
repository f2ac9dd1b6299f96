package hiqlite_test

import (
	"context"
	"database/sql/driver"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/hiqlite/hiqlite"
)

// A function in Go that an index uses. It is deterministic, so writes may use
// it, and every node of the cluster has to bring it along.
func ExampleFunction() {
	dir, err := os.MkdirTemp("", "hiqlite")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	node, err := hiqlite.Open(ctx, hiqlite.Config{
		DataDir: filepath.Join(dir, "data"),
		Functions: []hiqlite.Function{{
			Name: "slug", NArgs: 1, Version: 1, Deterministic: true,
			Scalar: func(args []driver.Value) (driver.Value, error) {
				title, ok := args[0].(string)
				if !ok {
					return nil, fmt.Errorf("slug() takes a text, not %T", args[0])
				}
				return strings.Join(strings.Fields(strings.ToLower(title)), "-"), nil
			},
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()
	db := node.DB()
	if _, err := db.ExecContext(ctx, `CREATE TABLE post(title TEXT); CREATE UNIQUE INDEX post_slug ON post(slug(title))`); err != nil {
		log.Fatal(err)
	}
	if _, err := db.ExecContext(ctx, `INSERT INTO post VALUES('Hello  World')`); err != nil {
		log.Fatal(err)
	}
	_, err = db.ExecContext(ctx, `INSERT INTO post VALUES('hello world')`)
	fmt.Println(err)
	// Output: constraint failed: UNIQUE constraint failed: index 'post_slug' (2067)
}
