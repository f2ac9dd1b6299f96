package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"testing/fstest"

	"github.com/hiqlite/hiqlite"
	_ "github.com/hiqlite/hiqlite/driver"
)

// openExample opens a cluster of one node in a temporary folder.
func openExample() (db *sql.DB, closeAll func()) {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	db, err = sql.Open("hiqlite", dir)
	if err != nil {
		log.Fatal(err)
	}
	return db, func() {
		db.Close()
		os.RemoveAll(dir)
	}
}

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	node, err := hiqlite.Open(ctx, hiqlite.Config{DataDir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()
	if err := node.Ready(ctx); err != nil {
		log.Fatal(err)
	}
	var sum int
	if err := node.DB().QueryRow("SELECT 20 + 22").Scan(&sum); err != nil {
		log.Fatal(err)
	}
	fmt.Println(sum)
	// Output: 42
}

func ExampleBatch() {
	db, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	results, err := hiqlite.Batch(ctx, db,
		hiqlite.Statement{SQL: "CREATE TABLE accounts(name TEXT PRIMARY KEY, balance INTEGER CHECK(balance >= 0))"},
		hiqlite.Statement{SQL: "INSERT INTO accounts VALUES(?, ?), (?, ?)", Args: []any{"ada", 100, "bob", 0}},
	)
	if err != nil {
		log.Fatal(err)
	}
	n, _ := results[1].RowsAffected()
	fmt.Println(n, "accounts")

	// The first statement could be done, the second cannot: neither is.
	_, err = hiqlite.Batch(ctx, db,
		hiqlite.Statement{SQL: "UPDATE accounts SET balance = balance + 500 WHERE name = 'bob'"},
		hiqlite.Statement{SQL: "UPDATE accounts SET balance = balance - 500 WHERE name = 'ada'"},
	)
	var e *hiqlite.Error
	if errors.As(err, &e) {
		fmt.Printf("statement %d: %v\n", e.Statement, e)
	}
	var balance int
	if err := db.QueryRow("SELECT balance FROM accounts WHERE name = 'bob'").Scan(&balance); err != nil {
		log.Fatal(err)
	}
	fmt.Println("bob has", balance)
	// Output:
	// 2 accounts
	// statement 1: constraint failed: CHECK constraint failed: balance >= 0 (275)
	// bob has 0
}

func ExampleRunTx() {
	db, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	if _, err := db.Exec("CREATE TABLE seats(n INTEGER PRIMARY KEY, who TEXT); INSERT INTO seats(n) VALUES(1),(2)"); err != nil {
		log.Fatal(err)
	}
	for _, who := range []string{"ada", "bob", "eve"} {
		err := hiqlite.RunTx(ctx, db, nil, func(tx *sql.Tx) error {
			var seat int
			if err := tx.QueryRow("SELECT n FROM seats WHERE who IS NULL ORDER BY n").Scan(&seat); err != nil {
				return err
			}
			if _, err := tx.Exec("UPDATE seats SET who=? WHERE n=?", who, seat); err != nil {
				return err
			}
			fmt.Println(who, "takes seat", seat)
			return nil
		})
		if errors.Is(err, sql.ErrNoRows) {
			fmt.Println("no seat for", who)
		} else if err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// ada takes seat 1
	// bob takes seat 2
	// no seat for eve
}

func ExampleWithConsistency() {
	db, closeAll := openExample()
	defer closeAll()
	// Sees every write acknowledged by any node before now.
	ctx := hiqlite.WithConsistency(context.Background(), hiqlite.Linearizable)
	var one int
	if err := db.QueryRowContext(ctx, "SELECT 1").Scan(&one); err != nil {
		log.Fatal(err)
	}
	fmt.Println(one)
	// Output: 1
}

func ExampleFrom() {
	db, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	client, err := hiqlite.From(ctx, db)
	if err != nil {
		log.Fatal(err)
	}
	if err := client.Ready(ctx); err != nil {
		log.Fatal(err)
	}
	status, err := client.Status(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("node", status.NodeID, "of", len(status.Members), "and the leader is", status.Leader)
	// Output: node 1 of 1 and the leader is 1
}

func ExampleCode() {
	db, closeAll := openExample()
	defer closeAll()
	ctx := context.Background()
	if _, err := db.ExecContext(ctx, "CREATE TABLE account(name TEXT UNIQUE)"); err != nil {
		log.Fatal(err)
	}
	for range 2 {
		_, err := db.ExecContext(ctx, "INSERT INTO account VALUES('ann')")
		switch {
		case err == nil:
			fmt.Println("inserted")
		case errors.Is(err, hiqlite.ErrConstraintUnique):
			fmt.Println("there is one already")
		case hiqlite.SafeToRetry(err):
			fmt.Println("nothing was applied: try again")
		default:
			log.Fatal(err)
		}
	}
	// Output:
	// inserted
	// there is one already
}

func ExampleMigrate() {
	db, closeAll := openExample()
	defer closeAll()

	// In a program these are files, brought along with go:embed.
	files := fstest.MapFS{
		"0001_users.sql": {Data: []byte("CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT NOT NULL);")},
		"0002_admin.sql": {Data: []byte("ALTER TABLE users ADD COLUMN admin INTEGER NOT NULL DEFAULT 0;\nINSERT INTO users(name, admin) VALUES('ada', 1);")},
	}
	for range 2 { // the second start finds nothing to do
		if err := hiqlite.Migrate(context.Background(), db, files); err != nil {
			log.Fatal(err)
		}
	}
	var name string
	if err := db.QueryRow("SELECT name FROM users WHERE admin").Scan(&name); err != nil {
		log.Fatal(err)
	}
	fmt.Println(name)
	// Output: ada
}
