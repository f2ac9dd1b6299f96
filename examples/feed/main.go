// Feed shows new orders on two nodes while a third one inserts them:
//
//	go run ./examples/feed
//
// The node that inserts an order sends its id to all nodes by pubsub. A node that
// gets the message can read the row in its own database. One of the nodes is
// closed for a while; afterwards it continues after the last message that it has
// seen, and misses none.
//
// The file feed.go is what the programs of a real cluster have. This file opens three
// nodes in one process, inserts orders and checks what the feeds show.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hiqlite/hiqlite"
)

// The three nodes of this example run in one process. In a real cluster each
// program opens one of them, on a machine of its own.
var members = []hiqlite.Member{
	{ID: 1, RaftAddr: "127.0.0.1:8231"},
	{ID: 2, RaftAddr: "127.0.0.1:8232"},
	{ID: 3, RaftAddr: "127.0.0.1:8233"},
}

var countries = []string{"at", "de", "fr"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "feed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "feed-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	open := func(i int) (*hiqlite.Node, error) {
		id := members[i].ID
		return hiqlite.Open(ctx, hiqlite.Config{DataDir: filepath.Join(dir, fmt.Sprint(id)), NodeID: id, Nodes: members})
	}
	var nodes []*hiqlite.Node
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, n.Close())
		}
	}()
	for i := range members {
		n, err := open(i)
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
	}
	_, err = nodes[0].DB().ExecContext(ctx, "CREATE TABLE orders(id INTEGER PRIMARY KEY, country TEXT NOT NULL, what TEXT NOT NULL)")
	if err != nil {
		return err
	}

	two, three := &feed{id: 2}, &feed{id: 3}
	fmt.Println("node 1 inserts orders, nodes 2 and 3 follow")
	if err := insertAndFollow(ctx, nodes, []string{"tea", "coffee", "cake"}, two, three); err != nil {
		return err
	}
	fmt.Printf("node 3 is closed after message %d\n", three.last)
	if err := nodes[2].Close(); err != nil {
		return err
	}
	if err := insertAndFollow(ctx, nodes, []string{"milk", "bread", "jam", "salt"}, two); err != nil {
		return err
	}
	fmt.Println("node 3 is opened again")
	if nodes[2], err = open(2); err != nil {
		return err
	}
	if err := insertAndFollow(ctx, nodes, []string{"rice", "beans"}, two, three); err != nil {
		return err
	}
	if !slices.Equal(two.shown, three.shown) || len(two.shown) != 9 {
		return fmt.Errorf("node 2 has shown the orders %v, node 3 %v", two.shown, three.shown)
	}
	fmt.Printf("both have shown the same %d orders in the same order\n", len(two.shown))
	return nil
}

// insertAndFollow inserts orders through node 1 until all feeds have shown them.
func insertAndFollow(ctx context.Context, nodes []*hiqlite.Node, whats []string, feeds ...*feed) error {
	var before int
	if err := nodes[0].DB().QueryRowContext(ctx, "SELECT count(*) FROM orders").Scan(&before); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for i, what := range whats {
			if err := insertOrder(ctx, nodes[0], countries[i%len(countries)], what); err != nil {
				return err
			}
		}
		return nil
	})
	for _, f := range feeds {
		group.Go(func() error { return f.follow(ctx, nodes[f.id-1], before+len(whats)) })
	}
	return group.Wait()
}
