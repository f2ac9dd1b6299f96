// Feed shows new orders on two nodes while a third one inserts them:
//
//	go run ./examples/feed
//
// The node that inserts an order sends its id to all nodes by pubsub. A node that
// gets the message can read the row in its own database. One of the nodes is
// closed for a while; afterwards it continues after the last message that it has
// seen, and misses none.
//
// The function insertOrder and the type feed are what the programs of a real
// cluster have. The rest of the file opens three nodes in one process.
package main

import (
	"context"
	"errors"
	"fmt"
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

// The three nodes of this example run in one process. In a real cluster each
// program opens one of them, on a machine of its own.
var members = []hiqlite.Member{
	{ID: 1, RaftAddr: "127.0.0.1:8231"},
	{ID: 2, RaftAddr: "127.0.0.1:8232"},
	{ID: 3, RaftAddr: "127.0.0.1:8233"},
}

var countries = []string{"at", "de", "fr"}

// insertOrder inserts an order, and then sends its id to the channel of its
// country. If the program ends in between, nobody is notified. A subscriber that
// must not miss a row has to look for new rows from time to time as well.
func insertOrder(ctx context.Context, node *hiqlite.Node, country, what string) error {
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

// A feed shows orders in the order of their messages.
type feed struct {
	id    int     // of its node
	shown []int64 // the ids of the orders
	last  uint64  // index of the last message that was shown; a real program keeps it on disk
}

// follow shows orders until count of them have been shown. It starts after the
// last message that was shown before.
func (f *feed) follow(ctx context.Context, node *hiqlite.Node, count int) error {
	sub, err := f.listen(ctx, node)
	if err != nil {
		return err
	}
	defer sub.Close()
	for len(f.shown) < count {
		m, err := sub.Next(ctx)
		var lagged *pubsub.LaggedError
		if errors.As(err, &lagged) { // the subscription was too slow; it continues after lagged.Resume
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
	// The feed was away for longer than messages are kept. Listen first and read
	// the table afterwards, so that no order is missed in between.
	if sub, err = pubsub.Listen(ctx, node, "orders/*"); err != nil {
		return nil, err
	}
	if err := f.reload(ctx, node, sub.Start()); err != nil {
		sub.Close()
		return nil, err
	}
	return sub, nil
}

// show shows an order, unless it has been shown.
func (f *feed) show(ctx context.Context, node *hiqlite.Node, id int64, why string) error {
	if slices.Contains(f.shown, id) {
		return nil
	}
	var what string
	// The row is on this node: it was inserted before the message was sent.
	if err := node.DB().QueryRowContext(ctx, "SELECT what FROM orders WHERE id = ?", id).Scan(&what); err != nil {
		return err
	}
	f.shown = append(f.shown, id)
	fmt.Printf("  node %d, %s: order %d, %s\n", f.id, why, id, what)
	return nil
}

// reload shows all orders of the table. The messages up to last have been
// forgotten.
func (f *feed) reload(ctx context.Context, node *hiqlite.Node, last uint64) error {
	// No message says that this node has the rows already, so ask for a
	// linearizable read.
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
		if err := f.show(ctx, node, id, "read from the table"); err != nil {
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
