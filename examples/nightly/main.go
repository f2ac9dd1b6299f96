// Nightly runs a job once a night, although all three nodes of a cluster try to:
//
//	go run ./examples/nightly
//
// A lock lets one node work at a time. The fencing token of the lock, which is
// higher for each grant, is stored with what the job writes, so that a holder
// that has lost the lock cannot write any more. In the second night the example
// closes the node that works; another node does the job instead.
//
// The file worker.go is what a program of a real cluster has. This file opens three
// nodes in one process, lets all of them work, and checks what they wrote.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/lock"
)

// The three nodes of this example run in one process. In a real cluster each
// program opens one of them, on a machine of its own.
var members = []hiqlite.Member{
	{ID: 1, RaftAddr: "127.0.0.1:8211"},
	{ID: 2, RaftAddr: "127.0.0.1:8212"},
	{ID: 3, RaftAddr: "127.0.0.1:8213"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "nightly:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "nightly-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	nodes, err := openNodes(ctx, dir)
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, n.Close())
		}
	}()
	if err != nil {
		return err
	}
	if _, err := nodes[0].DB().ExecContext(ctx, schema); err != nil {
		return err
	}
	var workers []*worker
	for i, n := range nodes {
		workers = append(workers, &worker{id: uint64(i + 1), node: n, locks: lock.New(n)})
	}
	for night := 1; night <= nights; night++ {
		if err := tryAll(ctx, workers, night); err != nil {
			return fmt.Errorf("night %d: %w", night, err)
		}
	}
	return check(ctx, workers)
}

// tryAll lets all workers try to do the job at the same time. In the second night
// it closes the node of the worker that does it.
func tryAll(ctx context.Context, workers []*worker, night int) error {
	group, ctx := errgroup.WithContext(ctx)
	var closed atomic.Bool
	for _, w := range workers {
		if w.lost != nil {
			continue
		}
		w.midway = func(held *lock.Held) {
			if night != 2 || closed.Swap(true) {
				return
			}
			fmt.Printf("night %d: closing node %d in the middle of its work\n", night, w.id)
			w.lost = held
			group.Go(w.node.Close)
			<-held.Done() // so that the example prints the same each time
		}
		group.Go(func() error {
			err := w.nightly(ctx, night)
			if w.lost != nil && errors.Is(err, lock.ErrLost) {
				fmt.Printf("night %d: node %d stops: %v\n", night, w.id, context.Cause(w.lost.Context()))
				return nil
			}
			return err
		})
	}
	return group.Wait()
}

// check tries a late write with a lost lock, and checks what was written.
func check(ctx context.Context, workers []*worker) error {
	for _, w := range workers {
		if w.lost == nil {
			continue
		}
		// A statement that was sent before the lock was lost can arrive this late.
		db := workers[w.id%3].node.DB()
		result, err := db.ExecContext(ctx, insertTotal, 2, 0, w.id, int64(w.lost.Token()))
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		if err != nil || n != 0 {
			return fmt.Errorf("a late write of node %d changed %d rows: %w", w.id, n, err)
		}
		fmt.Printf("a late write with the token of node %d changes no row\n", w.id)
		return compare(ctx, db)
	}
	return errors.New("no node was closed")
}

// compare checks that each night has exactly one total, and that it is right.
func compare(ctx context.Context, db *sql.DB) error {
	var good, all int
	err := db.QueryRowContext(ctx, `
		SELECT count(*), (SELECT count(*) FROM totals) FROM totals
		JOIN (SELECT night, sum(cents) AS cents FROM sales GROUP BY night) USING(night, cents)`).Scan(&good, &all)
	if err == nil && (good != nights || all != nights) {
		err = fmt.Errorf("of %d totals %d are right, for %d nights", all, good, nights)
	}
	if err == nil {
		fmt.Printf("%d nights, %d totals, all right\n", nights, all)
	}
	return err
}

// openNodes opens the three nodes and waits until they are ready. It also returns
// the nodes that it has opened before an error.
func openNodes(ctx context.Context, dir string) (nodes []*hiqlite.Node, err error) {
	for _, m := range members {
		n, err := hiqlite.Open(ctx, hiqlite.Config{DataDir: filepath.Join(dir, fmt.Sprint(m.ID)), NodeID: m.ID, Nodes: members})
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		if err := n.Ready(ctx); err != nil {
			return nodes, err
		}
	}
	return nodes, nil
}
