// Cache keeps prices in a kv bucket in front of SQL, on three nodes in this
// process:
//
//	go run ./examples/cache
//
// The bucket is the same on all nodes, and to read it is to read this node's
// memory. A node that changes a price tells all of them so by pubsub, and each
// one that is told drops the price from the bucket: by then it can read the new
// row itself.
//
// A real cluster has one node in each process: what is a shop here.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/kv"
	"github.com/hiqlite/hiqlite/pubsub"
)

// keep bounds how long a price is wrong if a program ends between the UPDATE and
// the Notify that follows.
const keep = time.Minute

// A shop knows prices.
type shop struct {
	node   *hiqlite.Node
	prices *kv.Bucket[int] // in cents
	sub    *pubsub.Subscription

	// filling is held, for reading, from the SELECT of a price until it is in
	// the bucket; and for writing while it is dropped. Otherwise a price that was
	// read just before it changed could be put there just after that was told.
	filling sync.RWMutex

	hits, misses atomic.Int64
}

func newShop(ctx context.Context, node *hiqlite.Node) (*shop, error) {
	prices, err := kv.New[int](node, "prices")
	if err != nil {
		return nil, err
	}
	sub, err := pubsub.Listen(ctx, node, "price-changed")
	if err != nil {
		return nil, err
	}
	return &shop{node: node, prices: prices, sub: sub}, nil
}

// price asks the cache, and only if it does not know, SQL.
func (s *shop) price(ctx context.Context, item string) (cents int, err error) {
	cents, ok, err := s.prices.Get(ctx, item)
	if err != nil {
		return 0, err
	}
	if ok {
		s.hits.Add(1)
		return cents, nil
	}
	s.misses.Add(1)
	s.filling.RLock()
	defer s.filling.RUnlock()
	if cents, err = s.sqlPrice(ctx, item); err != nil {
		return 0, err
	}
	return cents, s.prices.PutTTL(ctx, item, cents, keep)
}

func (s *shop) sqlPrice(ctx context.Context, item string) (cents int, err error) {
	err = s.node.DB().QueryRowContext(ctx, "SELECT cents FROM prices WHERE item = ?", item).Scan(&cents)
	return cents, err
}

// setPrice changes a price, and then tells all nodes, this one included.
func (s *shop) setPrice(ctx context.Context, item string, cents int) error {
	if _, err := s.node.DB().ExecContext(ctx, "UPDATE prices SET cents = ? WHERE item = ?", cents, item); err != nil {
		return err
	}
	_, err := pubsub.Notify(ctx, s.node, "price-changed", []byte(item))
	return err
}

// forget drops prices that have changed, until ctx ends, and calls dropped.
func (s *shop) forget(ctx context.Context, dropped func(item string) error) error {
	for {
		m, err := s.sub.Next(ctx)
		if errors.Is(err, pubsub.ErrLagged) { // it missed some: any price may have changed
			if err := s.drop(func() error { return s.prices.Clear(ctx) }); err != nil {
				return err
			}
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		item := string(m.Payload)
		err = s.drop(func() error { _, err := s.prices.Delete(ctx, item); return err })
		if err == nil {
			err = dropped(item)
		}
		if err != nil {
			return err
		}
	}
}

func (s *shop) drop(f func() error) error {
	s.filling.Lock()
	defer s.filling.Unlock()
	return f()
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
	nodes, err := openThree(ctx, dir)
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
	for _, n := range nodes { // the others have these rows a moment later: wait for that
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
	told := make(chan string, len(shops))
	for i, s := range shops {
		group.Go(func() error {
			return s.forget(listening, func(item string) error {
				cents, err := s.sqlPrice(listening, item)
				told <- fmt.Sprintf("node %d was told that %s has changed, and reads %d cents in its own SQL", i+1, item, cents)
				return err
			})
		})
	}

	if err := sell(ctx, shops, map[string]int{"coffee": 250, "tea": 220, "cake": 390}); err != nil {
		return err
	}
	fmt.Println("node 1 makes coffee 300 cents")
	if err := shops[0].setPrice(ctx, "coffee", 300); err != nil {
		return err
	}
	for range shops {
		select {
		case line := <-told:
			fmt.Println(line)
		case <-listening.Done(): // one has failed
			return errors.Join(group.Wait(), ctx.Err())
		}
	}
	if err := sell(ctx, shops, map[string]int{"coffee": 300, "tea": 220, "cake": 390}); err != nil {
		return err
	}
	stop()
	return group.Wait()
}

// sell asks all shops for all prices, many times, and checks them.
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

// openThree opens three nodes on free ports of this machine. What it opened it
// returns, with an error too.
func openThree(ctx context.Context, dir string) (nodes []*hiqlite.Node, err error) {
	members, err := freePorts(3)
	if err != nil {
		return nil, err
	}
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
