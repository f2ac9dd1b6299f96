package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/pubsub"
)

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
