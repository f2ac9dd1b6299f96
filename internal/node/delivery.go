package node

import (
	"context"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// A delivery hands the events or messages that a machine emits to one reader, in
// their order.
type delivery[T any] struct {
	shard   *shard
	source  source
	fetch   func() ([]T, error) // returns what the source has, without waiting
	ordered bool                // items are delivered when reads see what was written before them
	seen    func(T) wire.Seen   // what that is

	closed  context.Context // ends with Close
	close   context.CancelFunc
	reading chan struct{} // capacity 1: held by the call of next that reads; guards buffer
	buffer  []T           // fetched and not yet delivered
}

// A source is where a machine keeps what it emits for one reader.
type source interface {
	Ready() <-chan struct{} // receives a value when there is something to fetch
	Close()
}

func newDelivery[T any](s *shard, from source, ordered bool, seen func(T) wire.Seen) *delivery[T] {
	d := &delivery[T]{shard: s, source: from, ordered: ordered, seen: seen, reading: make(chan struct{}, 1)}
	d.closed, d.close = context.WithCancel(context.Background())
	return d
}

var errDeliveryClosed = fmt.Errorf("%w: the watcher or subscription", ErrClosed)

func (d *delivery[T]) Close() {
	d.close()
	d.source.Close()
}

// ended returns why nothing is delivered any more, or nil.
func (d *delivery[T]) ended() error {
	switch {
	case d.closed.Err() != nil:
		return errDeliveryClosed
	case d.shard.node.Closed():
		return d.shard.withCause(ErrClosed)
	}
	return nil
}

// next waits for the next item and returns it. An item that was not returned
// because ctx ended is returned by the next call.
func (d *delivery[T]) next(ctx context.Context) (item T, err error) {
	if err := ctx.Err(); err != nil {
		return item, err
	}
	select {
	case d.reading <- struct{}{}:
		defer func() { <-d.reading }()
	case <-ctx.Done():
		return item, ctx.Err()
	case <-d.closed.Done():
		return item, errDeliveryClosed
	}
	if err := d.fill(ctx); err != nil {
		return item, err
	}
	if d.ordered {
		err := d.shard.node.follow(ctx, d.seen(d.buffer[0]), d.closed)
		if err != nil && ctx.Err() == nil && d.closed.Err() != nil {
			err = errDeliveryClosed
		}
		if err != nil {
			return item, err
		}
	}
	item = d.buffer[0]
	d.buffer = d.buffer[1:]
	return item, nil
}

// fill waits until the buffer is not empty. The caller holds reading.
func (d *delivery[T]) fill(ctx context.Context) (err error) {
	if err := d.ended(); err != nil {
		return err
	}
	for len(d.buffer) == 0 {
		if d.buffer, err = d.fetch(); err != nil {
			return err
		}
		if len(d.buffer) > 0 {
			return nil
		}
		if err := d.shard.wait(ctx, d.source.Ready(), d.closed.Done()); err != nil {
			return err
		}
		if err := d.ended(); err != nil {
			return err
		}
	}
	return nil
}

// wait waits until ready or closed can be received from. The error is that of ctx,
// or ErrClosed if the shard or the node ends first.
func (s *shard) wait(ctx context.Context, ready, closed <-chan struct{}) error {
	select {
	case <-ready:
		return nil
	case <-closed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.raft.Done():
		return s.withCause(ErrClosed)
	case <-s.node.ctx.Done():
		return s.withCause(ErrClosed)
	}
}
