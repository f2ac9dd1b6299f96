package hiqlite

import (
	"context"
	"database/sql/driver"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
)

// A remoteTx is a transaction that is open in the session of a connection.
type remoteTx struct {
	c    *remoteConn
	ctx  context.Context // of BeginTx; it bounds Commit
	stop func() bool     // ends the wait for the end of ctx
}

// Begin is BeginTx without a context.
func (c *remoteConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx begins a transaction.
func (c *remoteConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.lostTx != nil && c.reported && c.tx == nil {
		c.lostTx = nil // as BEGIN does
	}
	r := &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Begin{Begin: &apiv1.Begin{ReadOnly: opts.ReadOnly, Isolation: int32(opts.Isolation)}}}
	if _, err := c.call(ctx, r, retryAlways, ""); err != nil {
		return nil, err
	}
	t := &remoteTx{c: c, ctx: ctx}
	session := c.session
	t.stop = context.AfterFunc(ctx, func() { session.Cancel(r.Id) })
	c.tx = t
	return t, nil
}

// Commit commits the transaction; see tx.Commit for its errors.
func (t *remoteTx) Commit() error {
	if t.c.tx != t {
		return errNoTransaction
	}
	sent := t.c.lostTx == nil && t.c.session != nil && !t.c.session.Ended()
	r := &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Commit{Commit: &apiv1.Commit{}}}
	_, err := t.c.write(t.ctx, r, retryNever, "")
	if t.c.lostTx != nil && sent && r.Origin != nil { // without an origin it was not sent
		err = t.c.commitOutcome(t.ctx, r.Origin, t.c.lostTx)
	}
	t.end()
	return err
}

// Rollback discards everything that was written.
func (t *remoteTx) Rollback() error {
	if t.c.tx != t {
		return errNoRollback
	}
	defer t.end()
	if t.c.lostTx != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), rollbackWait)
	defer cancel()
	_, err := t.c.call(ctx, &apiv1.SessionRequest{Request: &apiv1.SessionRequest_Rollback{Rollback: &apiv1.Rollback{}}}, retryNever, "")
	if t.c.lostTx != nil {
		return nil // it ended with its session
	}
	return err
}

func (t *remoteTx) end() {
	t.stop()
	t.c.tx, t.c.lostTx = nil, nil
}
