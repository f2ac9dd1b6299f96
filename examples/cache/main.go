// Cache keeps prices in a kv bucket in front of SQL, on three nodes:
//
//	go run ./examples/cache
//
// The bucket has the same entries on all nodes, and a Get reads the memory of the
// own node. A node that changes a price notifies all nodes by pubsub, and each of
// them deletes the price from the bucket. When it is notified, it can already
// read the new row in its own database.
//
// The file shop.go is what a program of a real cluster has. This file opens three
// nodes in one process and asks them for prices.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hiqlite/hiqlite"
)

// The three nodes of this example run in one process. In a real cluster each
// program opens one of them, on a machine of its own.
var members = []hiqlite.Member{
	{ID: 1, RaftAddr: "127.0.0.1:8221"},
	{ID: 2, RaftAddr: "127.0.0.1:8222"},
	{ID: 3, RaftAddr: "127.0.0.1:8223"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cache:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "cache-")
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
	_, err = nodes[0].DB().ExecContext(ctx, `
		CREATE TABLE prices(item TEXT PRIMARY KEY, cents INTEGER NOT NULL);
		INSERT INTO prices VALUES('coffee', 250), ('tea', 220), ('cake', 390)`)
	if err != nil {
		return err
	}
	for _, n := range nodes { // the other nodes have the rows a moment later
		if err := n.Ready(ctx); err != nil {
			return err
		}
	}
	return demonstrate(ctx, nodes)
}

func demonstrate(ctx context.Context, nodes []*hiqlite.Node) error {
	var shops []*shop
	for _, n := range nodes {
		s, err := newShop(ctx, n)
		if err != nil {
			return err
		}
		defer s.sub.Close()
		shops = append(shops, s)
	}
	listening, stop := context.WithCancel(ctx)
	defer stop()
	group, listening := errgroup.WithContext(listening)
	notified := make(chan string, len(shops))
	for i, s := range shops {
		group.Go(func() error {
			return s.invalidate(listening, func(item string) error {
				cents, err := s.sqlPrice(listening, item)
				notified <- fmt.Sprintf("node %d was notified that %s has changed, and reads %d cents in its own database", i+1, item, cents)
				return err
			})
		})
	}

	if err := sell(ctx, shops, map[string]int{"coffee": 250, "tea": 220, "cake": 390}); err != nil {
		return err
	}
	fmt.Println("node 1 sets the price of coffee to 300 cents")
	if err := shops[0].setPrice(ctx, "coffee", 300); err != nil {
		return err
	}
	for range shops {
		select {
		case line := <-notified:
			fmt.Println(line)
		case <-listening.Done(): // one of the goroutines has failed
			return errors.Join(group.Wait(), ctx.Err())
		}
	}
	if err := sell(ctx, shops, map[string]int{"coffee": 300, "tea": 220, "cake": 390}); err != nil {
		return err
	}
	stop()
	return group.Wait()
}

// sell asks all shops for all prices, many times, and checks the answers.
func sell(ctx context.Context, shops []*shop, want map[string]int) error {
	const times = 1000
	for i, s := range shops {
		s.hits.Store(0)
		s.misses.Store(0)
		for range times {
			for item, cents := range want {
				got, err := s.price(ctx, item)
				if err != nil {
					return err
				}
				if got != cents {
					return fmt.Errorf("node %d says that %s is %d cents, not %d", i+1, item, got, cents)
				}
			}
		}
		fmt.Printf("node %d was asked for %d prices: %d hits, %d misses\n", i+1, times*len(want), s.hits.Load(), s.misses.Load())
	}
	return nil
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
