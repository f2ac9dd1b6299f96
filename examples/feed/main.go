// Feed shows new orders on two nodes as they are inserted through a third, and
// one of the two is away for a while:
//
//	go run ./examples/feed
//
// The node that inserts an order tells its id by pubsub. Whoever is told can
// read the row in its own SQL. The one that was away goes on behind the last
// message that it has seen, and misses none.
//
// A real cluster has one node in each process: here three are in this one.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/pubsub"
)

var countries = []string{"at", "de", "fr"}

// take inserts an order, and tells so on the channel of its country. A program
// that ends between the two has told nothing: who must not miss a row looks for
// those behind the last one from time to time.
func take(ctx context.Context, node *hiqlite.Node, country, what string) error {
	result, err := node.DB().ExecContext(ctx, "INSERT INTO orders(country, what) VALUES(?, ?)", country, what)
	if err != nil {
		return err
	}
	id, err := result.LastInsertId()
	if err != nil {
		return err
	}
	_, err = pubsub.Notify(ctx, node, "orders/"+country, strconv.AppendInt(nil, id, 10))
	return err
}

// A feed is what a program shows of the orders.
type feed struct {
	id    int     // of its node
	shown []int64 // ids
	last  uint64  // index of the last message, 0 for all; who restarts has it on disk
}

// follow shows orders until it has shown so many, and goes on where it was.
func (f *feed) follow(ctx context.Context, node *hiqlite.Node, until int) error {
	sub, err := f.listen(ctx, node)
	if err != nil {
		return err
	}
	defer sub.Close()
	for len(f.shown) < until {
		m, err := sub.Next(ctx)
		var lagged *pubsub.LaggedError
		if errors.As(err, &lagged) { // it was too slow; what comes next is behind that
			if err := f.reload(ctx, node, lagged.Resume); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		id, err := strconv.ParseInt(string(m.Payload), 10, 64)
		if err != nil {
			return err
		}
		if err := f.show(ctx, node, id, fmt.Sprintf("message %d on %s", m.Index, m.Channel)); err != nil {
			return err
		}
		f.last = m.Index
	}
	return nil
}

func (f *feed) listen(ctx context.Context, node *hiqlite.Node) (*pubsub.Subscription, error) {
	sub, err := pubsub.Listen(ctx, node, "orders/*", pubsub.After(f.last))
	if !errors.Is(err, pubsub.ErrTooOld) {
		return sub, err
	}
	// It was away for longer than messages are kept. Listen first and read then:
	// so nothing is between the two.
	if sub, err = pubsub.Listen(ctx, node, "orders/*"); err != nil {
		return nil, err
	}
	if err := f.reload(ctx, node, sub.Start()); err != nil {
		sub.Close()
		return nil, err
	}
	return sub, nil
}

// show shows an order, once.
func (f *feed) show(ctx context.Context, node *hiqlite.Node, id int64, why string) error {
	if slices.Contains(f.shown, id) {
		return nil
	}
	var what string
	// The row is there: it was inserted before the message was told.
	if err := node.DB().QueryRowContext(ctx, "SELECT what FROM orders WHERE id = ?", id).Scan(&what); err != nil {
		return err
	}
	f.shown = append(f.shown, id)
	fmt.Printf("  node %d, %s: order %d, %s\n", f.id, why, id, what)
	return nil
}

// reload shows what was missed, if the messages up to one are forgotten.
func (f *feed) reload(ctx context.Context, node *hiqlite.Node, last uint64) error {
	// Nobody has told that this node has these rows already: ask for that.
	rows, err := node.DB().QueryContext(hiqlite.WithConsistency(ctx, hiqlite.Linearizable), "SELECT id FROM orders ORDER BY id")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return err
		}
		if err := f.show(ctx, node, id, "read anew"); err != nil {
			return err
		}
	}
	f.last = last
	return rows.Err()
}

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
	members, err := freePorts(3)
	if err != nil {
		return err
	}
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
	fmt.Println("node 1 takes orders, nodes 2 and 3 follow")
	if err := exchange(ctx, nodes, []string{"tea", "coffee", "cake"}, two, three); err != nil {
		return err
	}
	fmt.Printf("node 3 goes away, having seen message %d\n", three.last)
	if err := nodes[2].Close(); err != nil {
		return err
	}
	if err := exchange(ctx, nodes, []string{"milk", "bread", "jam", "salt"}, two); err != nil {
		return err
	}
	fmt.Println("node 3 comes back")
	if nodes[2], err = open(2); err != nil {
		return err
	}
	if err := exchange(ctx, nodes, []string{"rice", "beans"}, two, three); err != nil {
		return err
	}
	if !slices.Equal(two.shown, three.shown) || len(two.shown) != 9 {
		return fmt.Errorf("node 2 has shown the orders %v, node 3 %v", two.shown, three.shown)
	}
	fmt.Printf("both have shown the same %d orders in the same order\n", len(two.shown))
	return nil
}

// exchange has node 1 take orders while feeds follow, until they have shown all.
func exchange(ctx context.Context, nodes []*hiqlite.Node, whats []string, feeds ...*feed) error {
	var before int
	if err := nodes[0].DB().QueryRowContext(ctx, "SELECT count(*) FROM orders").Scan(&before); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for i, what := range whats {
			if err := take(ctx, nodes[0], countries[i%len(countries)], what); err != nil {
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

func freePorts(n int) (members []hiqlite.Member, err error) {
	for id := range n {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // not before all are taken
		members = append(members, hiqlite.Member{ID: uint64(id + 1), RaftAddr: l.Addr().String()})
	}
	return members, nil
}
