package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hiqlite/hiqlite"
)

// A database says which database a command uses.
type database struct {
	dsn string // "": that of the environment
	// mustExist refuses a data folder that is not there, which a mistyped name would
	// otherwise create.
	mustExist bool
}

func (d *database) flag(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&d.dsn, "dsn", "", `the database: a data folder, "env:" or "hiqlite://host:port,..." (default $HIQLITE_DSN, or env:)`)
}

// name returns the DSN.
func (d *database) name() string {
	if d.dsn != "" {
		return d.dsn
	}
	if dsn := os.Getenv("HIQLITE_DSN"); dsn != "" {
		return dsn
	}
	return "env:"
}

// open opens the database. The caller has to close it.
func (d *database) open() (*sql.DB, error) {
	name := d.name()
	folder, _, _ := strings.Cut(strings.TrimPrefix(name, "file:"), "?")
	if d.mustExist && !strings.Contains(folder, "://") && folder != "env:" {
		if _, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) {
			return nil, usageError(fmt.Errorf("there is no data folder %s", folder))
		}
	}
	db, err := sql.Open("hiqlite", name)
	if err != nil {
		return nil, usageError(err)
	}
	return db, nil
}

// with opens the database, calls f with its client, and closes the database.
func (d *database) with(ctx context.Context, f func(db *sql.DB, client hiqlite.Client) error) (err error) {
	db, err := d.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	client, err := hiqlite.From(ctx, db)
	if err != nil {
		return err
	}
	return f(db, client)
}
