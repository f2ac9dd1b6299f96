package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A long write keeps all other writes waiting, and an entry in the log cannot be
// called back. So Write first bounds an operation to firstSteps of SQLite's
// virtual machine, which few operations need. If that is not enough, every replica
// undoes the operation at the same step, other operations are applied, and
// Write tries again with stepsGrowth times as many steps, up to Options.MaxSteps,
// as long as its caller waits. A runaway statement whose caller has given up
// therefore ends within its last attempt. The earlier attempts take up to a third
// of a long write's time.
const (
	firstSteps  = 12_500_000 // 0.3 to 1.5 s
	stepsGrowth = 4
)

// Write has an operation applied and returns its result, in which no statement
// has failed. While a transaction has the write lease, the operation waits in the lease
// queue for up to busyTimeout.
//
// If the operation has an origin, Write may be called again with the same one, on any
// node, as long as the origin's session has sent nothing later: the operation is applied
// once, and each call that returns a result returns the same. Its error may then be
// ErrSessionUnknown.
//
// If Write returns both a result and an error, the operation has failed on the replicas,
// and each call returns this error. Otherwise an error only says what this call knows.
func (n *Node) Write(ctx context.Context, op *wire.Operation, busyTimeout time.Duration) (*wire.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	bounded, cancel := n.Within(ctx)
	defer cancel()
	op.Functions = n.functionsUsed(op)
	if op.Origin != nil {
		return n.writeOnce(bounded, op, busyTimeout)
	}
	for op.MaxSteps = min(n.opts.Hooks.FirstSteps, n.opts.MaxSteps); ; op.MaxSteps = n.moreSteps(op.MaxSteps) {
		began := time.Now()
		result, err := n.attempt(bounded, op, busyTimeout)
		switch {
		case err != nil:
			return nil, err
		case result.Err == nil:
			return result, nil
		case result.Err.Code != sqlite.CodeInterrupt || op.MaxSteps == n.opts.MaxSteps:
			return result, result.Err
		}
		if err := noTimeLeft(bounded, op.MaxSteps, time.Since(began)); err != nil {
			return nil, err
		}
	}
}

// moreSteps returns the bound of the attempt after one that was bounded to steps.
func (n *Node) moreSteps(steps uint64) uint64 { return min(steps*stepsGrowth, n.opts.MaxSteps) }

// writeOnce is Write for the operation of a remote client. Other nodes may attempt the
// same operation at the same time. The machine applies one of the attempts, and returns
// its result to all of them; only the result of the last attempt says that the operation
// takes too many steps.
func (n *Node) writeOnce(ctx context.Context, op *wire.Operation, busyTimeout time.Duration) (*wire.Result, error) {
	origin, began := *op.Origin, time.Now()
	for op.MaxSteps = min(n.opts.Hooks.FirstSteps, n.opts.MaxSteps); ; {
		op.Origin = &wire.Origin{Session: origin.Session, Sequence: origin.Sequence, Last: op.MaxSteps == n.opts.MaxSteps}
		result, err := n.attempt(ctx, op, busyTimeout-time.Since(began))
		switch {
		case err != nil:
			return nil, err
		case result.Admission != wire.Admitted:
			return nil, notAdmitted(result.Admission)
		case result.RetryAbove == 0 && result.Err != nil:
			return result, result.Err
		case result.RetryAbove == 0 && len(result.Statements) == len(op.Statements):
			return result, nil
		case result.RetryAbove == 0: // it was the commit of a transaction
			return nil, fmt.Errorf("%w: it was applied in another way, and its results are lost", ErrOutcomeUnknown)
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("%w: the attempts up to now were undone: %w", ErrOutcomeUnknown, err)
		}
		if result.Err != nil { // it took too many steps, here or on another node
			op.MaxSteps = n.moreSteps(max(op.MaxSteps, result.RetryAbove))
		}
	}
}

// noTimeLeft returns an error if ctx leaves no time for another attempt after one
// that was bounded to steps and took so long.
func noTimeLeft(ctx context.Context, steps uint64, took time.Duration) error {
	err := context.Cause(ctx)
	if deadline, ok := ctx.Deadline(); ok && err == nil && time.Until(deadline) < took {
		err = context.DeadlineExceeded
	}
	if err != nil {
		return fmt.Errorf("hiqlite: the write was undone because it was not done after %d steps, and there is no time for another attempt: %w", steps, err)
	}
	return nil
}

// attempt has an operation applied under the bound that it has, and returns its
// result, in which a statement may have failed.
func (n *Node) attempt(ctx context.Context, op *wire.Operation, busyTimeout time.Duration) (*wire.Result, error) {
	if err := n.RefusesWrites(); err != nil {
		return nil, err
	}
	leases := n.sql.leases
	var lease *Lease
	if op.Vacuum { // it needs an entry of its own, so it cannot wait in the lease queue
		var err error
		if lease, err = n.AcquireLease(ctx, busyTimeout); err != nil {
			return nil, err
		}
	} else {
		lease = leases.takeKept()
	}
	op.Lease = nil
	if lease != nil {
		op.Lease = &wire.Lease{Under: lease.ID}
	}
	op.StampMS = time.Now().UnixMilli()
	op.Seed = wire.NewSeed()
	began := time.Now()
	r, err := n.sql.propose(ctx, wire.EncodeOperation(op))
	switch {
	case lease == nil:
	case err == nil && op.Origin == nil:
		lease.applied(wire.LeaseResult{}, began) // the operation ended the lease
	default: // it may not have, or was a copy, which does not
		lease.Release()
	}
	if errors.Is(err, ErrTooLarge) {
		return nil, fmt.Errorf("%w; write in several smaller ones", err)
	}
	result := r.Result
	if err == nil && result.Lease.State == wire.LeaseQueued {
		result, err = leases.await(ctx, result.Lease.ID, r.waiter, busyTimeout, began)
	}
	if errors.Is(err, errNotHeard) && op.Origin != nil { // another node has removed it from the queue
		return &wire.Result{RetryAbove: 1}, nil
	}
	if err != nil {
		return nil, err
	}
	return &result, nil
}

// CommitUnder has the recording of a transaction applied that holds lease, whose
// holder must not use it afterwards. The errors:
//   - ErrTxExpired: another writer had the lease since; nothing is applied.
//   - ErrOutcomeUnknown: the recording may be, or become, applied.
//   - any other: nothing is applied.
func (n *Node) CommitUnder(ctx context.Context, lease *Lease, recording *wire.EncodedOperation) error {
	ctx, cancel := n.Within(ctx)
	defer cancel()
	proposed := time.Now()
	r, err := n.sql.propose(ctx, recording)
	if err != nil {
		lease.Release()
		return err
	}
	switch {
	case r.Admission != wire.Admitted:
		lease.Release()
		return notAdmitted(r.Admission)
	case r.Lease.ID != lease.ID && r.Lease.ID != 0: // the result is that of another commit with this origin
		lease.Release()
		return fmt.Errorf("%w: another commit of the same origin has the result; those of this one are lost", ErrOutcomeUnknown)
	}
	if r.Lease.State == wire.LeaseExpired {
		lease.Release() // a client may have asked for the outcome before, which ends no lease
	} else {
		lease.applied(r.Lease, proposed)
	}
	switch {
	case r.Lease.State == wire.LeaseExpired && n.Closed():
		return ErrClosed // Close has released the lease before
	case r.Lease.State == wire.LeaseExpired:
		return fmt.Errorf("%w: the other nodes did not hear from this one for too long, and have granted the lease to another transaction", ErrTxExpired)
	case r.Err != nil:
		return r.Err
	}
	return nil
}

// functionsUsed returns the program's functions that an operation may use.
func (n *Node) functionsUsed(op *wire.Operation) []wire.Function {
	if n.opts.Functions == nil {
		return nil
	}
	texts := make([]string, len(op.Statements))
	for i := range op.Statements {
		texts[i] = op.Statements[i].SQL
	}
	return n.opts.Functions.Used(texts...)
}
