// Cluster starts three servers, each a process of its own, and a client that has no
// data. While the client writes, the server that leads is killed:
//
//	go run ./examples/cluster
//
// The client only sees that one insert takes longer. In the end nothing is left: the
// servers are stopped, and their files are removed.
//
// The file servers.go has what an operator does. This file has what a program does:
// it opens a database by a remote DSN, and uses it as any other.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hiqlite/hiqlite"
	_ "github.com/hiqlite/hiqlite/driver"
	"github.com/hiqlite/hiqlite/lock"
)

const (
	inserts   = 200
	killAfter = 100 // inserts
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute) // the command may have to be compiled first
	defer cancel()
	dir, err := os.MkdirTemp("", "cluster-")
	if err != nil {
		return err
	}
	s := &servers{dir: dir}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.build(ctx); err != nil {
		return err
	}
	for i := range s.processes {
		if err := s.start(i); err != nil {
			return err
		}
	}
	fmt.Println("three servers have been started")

	// Any of the nodes is enough: the client learns the others.
	db, err := sql.Open("hiqlite", "hiqlite://127.0.0.1:8231,127.0.0.1:8232?secret_file="+s.secretFile("secret_api"))
	if err != nil {
		return err
	}
	defer db.Close()
	return work(ctx, db, s)
}

// work writes rows, and kills the leader while it does.
func work(ctx context.Context, db *sql.DB, s *servers) error {
	client, err := hiqlite.From(ctx, db)
	if err != nil {
		return err
	}
	if err := client.Ready(ctx); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, "CREATE TABLE event(id INTEGER PRIMARY KEY, text TEXT)"); err != nil {
		return err
	}
	var slowest time.Duration
	killed := 0 // index
	for i := range inserts {
		if i == killAfter {
			status, err := client.Status(ctx)
			if err != nil {
				return err
			}
			killed = int(status.Leader) - 1
			s.kill(killed)
			fmt.Printf("after %d inserts, server %d, the leader, was killed\n", i, killed+1)
		}
		began := time.Now()
		if _, err := db.ExecContext(ctx, "INSERT INTO event(text) VALUES(?)", fmt.Sprint("event ", i)); err != nil {
			return fmt.Errorf("insert %d: %w", i, err)
		}
		slowest = max(slowest, time.Since(began))
	}
	fmt.Printf("%d inserts succeeded; the slowest took %v\n", inserts, slowest.Round(time.Millisecond))

	if err := s.start(killed); err != nil {
		return err
	}
	held, err := lock.New(client).Lock(ctx, "report") // caches, locks and channels work as well
	if err != nil {
		return err
	}
	var rows, distinct int
	err = db.QueryRowContext(hiqlite.WithConsistency(ctx, hiqlite.Linearizable), "SELECT count(*), count(DISTINCT text) FROM event").Scan(&rows, &distinct)
	if err = errors.Join(err, held.Unlock(ctx)); err != nil {
		return err
	}
	if rows != inserts || distinct != inserts {
		return fmt.Errorf("there are %d rows, %d of them different, instead of %d", rows, distinct, inserts)
	}
	fmt.Printf("each of the %d rows is there once, and server %d has been started again\n", rows, killed+1)
	return nil
}
