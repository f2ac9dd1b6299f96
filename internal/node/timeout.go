package node

import (
	"context"
	"fmt"
	"time"
)

// Within bounds ctx by Options.Timeout, unless it has a deadline.
func (n *Node) Within(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	return &timeoutContext{ctx, n.opts.Timeout}, cancel
}

// A timeoutContext ends with an error that names the option whose bound was
// reached, because the caller has set none.
type timeoutContext struct {
	context.Context
	timeout time.Duration
}

func (c *timeoutContext) Err() error {
	if err := c.Context.Err(); err != context.DeadlineExceeded {
		return err
	}
	return timeoutError(c.timeout)
}

type timeoutError time.Duration

func (e timeoutError) Error() string {
	return fmt.Sprintf("hiqlite.Config.Timeout (%v) is over", time.Duration(e))
}

func (timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

type linearizableKey struct{}

// WithLinearizable returns a context whose reads are linearizable, or not.
func WithLinearizable(ctx context.Context, linearizable bool) context.Context {
	return context.WithValue(ctx, linearizableKey{}, linearizable)
}

// Linearizable returns what WithLinearizable has set. ok is false if it was not
// called.
func Linearizable(ctx context.Context) (linearizable, ok bool) {
	linearizable, ok = ctx.Value(linearizableKey{}).(bool)
	return linearizable, ok
}
