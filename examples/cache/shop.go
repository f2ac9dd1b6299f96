package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/kv"
	"github.com/hiqlite/hiqlite/pubsub"
)

// maxStale is how long a cached price can stay wrong if a program ends between
// the UPDATE and the Notify that follows.
const maxStale = time.Minute

// A shop sells at the prices of the database.
type shop struct {
	node   *hiqlite.Node
	prices *kv.Bucket[int] // in cents
	sub    *pubsub.Subscription

	// filling is read-locked from the SELECT of a price until it is in the
	// bucket, and locked while a price is deleted. Otherwise a price that was read
	// just before it changed could be put into the bucket just after the deletion.
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

// price returns the price from the cache or, if it is not there, from SQL.
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
	return cents, s.prices.PutTTL(ctx, item, cents, maxStale)
}

func (s *shop) sqlPrice(ctx context.Context, item string) (cents int, err error) {
	err = s.node.DB().QueryRowContext(ctx, "SELECT cents FROM prices WHERE item = ?", item).Scan(&cents)
	return cents, err
}

// setPrice changes a price, and then notifies all nodes, including this one.
func (s *shop) setPrice(ctx context.Context, item string, cents int) error {
	if _, err := s.node.DB().ExecContext(ctx, "UPDATE prices SET cents = ? WHERE item = ?", cents, item); err != nil {
		return err
	}
	_, err := pubsub.Notify(ctx, s.node, "price-changed", []byte(item))
	return err
}

// invalidate deletes changed prices from the bucket, and calls deleted for each,
// until ctx ends.
func (s *shop) invalidate(ctx context.Context, deleted func(item string) error) error {
	for {
		m, err := s.sub.Next(ctx)
		if errors.Is(err, pubsub.ErrLagged) { // messages were missed: any price may have changed
			if err := s.remove(func() error { return s.prices.Clear(ctx) }); err != nil {
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
		err = s.remove(func() error { _, err := s.prices.Delete(ctx, item); return err })
		if err == nil {
			err = deleted(item)
		}
		if err != nil {
			return err
		}
	}
}

func (s *shop) remove(f func() error) error {
	s.filling.Lock()
	defer s.filling.Unlock()
	return f()
}
