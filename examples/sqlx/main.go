// Sqlx keeps accounts with github.com/jmoiron/sqlx, on a cluster of one node:
//
//	go run ./examples/sqlx
//
// On a cluster of three nodes, only the DSN in run differs; see package driver.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/jmoiron/sqlx"

	_ "github.com/hiqlite/hiqlite/driver"
)

const schema = `
	CREATE TABLE accounts(
		owner   TEXT PRIMARY KEY,
		balance INTEGER NOT NULL CHECK (balance >= 0),
		opened  DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP
	);
	CREATE TABLE transfers(payer TEXT NOT NULL, payee TEXT NOT NULL, amount INTEGER NOT NULL)`

type account struct {
	Owner   string
	Balance int64
	Opened  string
}

type transfer struct {
	Payer, Payee string
	Amount       int64
}

func main() {
	dir, err := os.MkdirTemp("", "sqlx-")
	if err == nil {
		err = errors.Join(run(context.Background(), dir), os.RemoveAll(dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sqlx:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string) (err error) {
	db, err := sqlx.Open("hiqlite", dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return err
	}

	// sqlx makes one statement of many structs.
	opening := []account{{Owner: "ann", Balance: 100}, {Owner: "bob", Balance: 20}}
	if _, err := db.NamedExecContext(ctx, "INSERT INTO accounts(owner, balance) VALUES(:owner, :balance)", opening); err != nil {
		return err
	}

	for _, t := range []transfer{{"ann", "bob", 70}, {"ann", "bob", 50}} {
		if err := t.book(ctx, db); err != nil {
			fmt.Printf("%s cannot pay %d: %v\n", t.Payer, t.Amount, err)
		} else {
			fmt.Printf("%s paid %s %d\n", t.Payer, t.Payee, t.Amount)
		}
	}

	var accounts []account
	if err := db.SelectContext(ctx, &accounts, "SELECT * FROM accounts ORDER BY owner"); err != nil {
		return err
	}
	for _, a := range accounts {
		fmt.Printf("%s has %d since %s\n", a.Owner, a.Balance, a.Opened)
	}
	var count int
	if err := db.GetContext(ctx, &count, "SELECT count(*) FROM transfers"); err != nil {
		return err
	}
	fmt.Println("transfers:", count)
	return nil
}

// book moves the money and records the transfer, or does neither.
func (t transfer) book(ctx context.Context, db *sqlx.DB) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit
	for _, statement := range []string{
		"INSERT INTO transfers VALUES(:payer, :payee, :amount)",
		"UPDATE accounts SET balance = balance + :amount WHERE owner = :payee",
		"UPDATE accounts SET balance = balance - :amount WHERE owner = :payer",
	} {
		if _, err := tx.NamedExecContext(ctx, statement, t); err != nil {
			return err
		}
	}
	return tx.Commit()
}
