package hiqlite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A write that runs for long keeps all others waiting, and what is in the log
// cannot be called back. So a write is first tried with a bound of firstSteps of
// SQLite's virtual machine, which most never come near. One that does is undone,
// on all replicas at the same step, and tried again with stepsGrowth times as
// many, others having had their turn, up to Config.MaxSteps: as long as its
// caller waits for it. So a runaway that nobody waits for any more ends within its
// last try. A long write pays for its earlier tries with a third of its time.
var firstSteps uint64 = 12_500_000 // 0.3 to 1.5 s, see DefaultMaxSteps; a variable for tests

const stepsGrowth = 4

// write has an operation applied and returns its result. It waits for its turn,
// while a transaction has the write lease, for as long as patience.
func (n *Node) write(ctx context.Context, op *wire.Operation, patience time.Duration) (*wire.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	bounded, cancel := n.within(ctx)
	defer cancel()
	op.Functions = n.functionsUsed(op)
	for op.MaxSteps = min(firstSteps, n.cfg.MaxSteps); ; op.MaxSteps = min(op.MaxSteps*stepsGrowth, n.cfg.MaxSteps) {
		began := time.Now()
		result, err := n.try(bounded, op, patience)
		switch {
		case err != nil:
			return nil, err
		case result.Err == nil:
			return result, nil
		case result.Err.Code != sqlite.CodeInterrupt || op.MaxSteps == n.cfg.MaxSteps:
			return nil, sqlError(result.Err)
		}
		if err := worthAnother(bounded, op.MaxSteps, time.Since(began)); err != nil {
			return nil, err
		}
	}
}

// worthAnother returns why a write that was not done within so many steps, which
// took so long, is not tried again.
func worthAnother(ctx context.Context, steps uint64, took time.Duration) error {
	err := context.Cause(ctx)
	if deadline, ok := ctx.Deadline(); ok && err == nil && time.Until(deadline) < took {
		err = context.DeadlineExceeded
	}
	if err != nil {
		return fmt.Errorf("hiqlite: the write was not done within %d steps, and was undone: %w", steps, err)
	}
	return nil
}

// try has an operation applied under the bound that it has, and returns its
// result, an error of its statements among them.
func (n *Node) try(ctx context.Context, op *wire.Operation, patience time.Duration) (*wire.Result, error) {
	if err := n.diskError(); err != nil {
		return nil, err
	}
	var g *grant
	if op.Vacuum { // it cannot be applied among others, when its turn comes
		var err error
		if g, err = n.leases.acquire(ctx, patience); err != nil {
			return nil, err
		}
	} else {
		g = n.leases.take()
	}
	op.Lease = nil
	if g != nil {
		op.Lease = &wire.Lease{Under: g.id}
	}
	op.StampMS = time.Now().UnixMilli()
	op.Seed = wire.NewSeed()
	began := time.Now()
	a, err := n.do(ctx, op)
	switch {
	case g == nil:
	case err == nil:
		n.leases.applied(g, wire.LeaseAnswer{}, began) // it ended with the operation
	default:
		n.leases.drop(g)
	}
	if errors.Is(err, ErrTooLarge) {
		return nil, fmt.Errorf("%w; write in several smaller ones", err)
	}
	result := a.Result
	if err == nil && result.Lease.State == wire.LeaseQueued {
		result, err = n.leases.await(ctx, result.Lease.ID, a.place, patience, began)
	}
	if err != nil {
		return nil, err
	}
	return &result, nil
}
