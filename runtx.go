package hiqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	// maxRuns bounds how often RunTx runs a transaction.
	maxRuns = 20
	// minPause and maxPause bound the wait before it is run again; it doubles.
	minPause = 2 * time.Millisecond
	maxPause = 250 * time.Millisecond
)

// RunTx runs fn in a transaction and commits it, unless fn returns an error: then
// it is rolled back, and the error is RunTx's. It is run again, up to 20 times
// and while ctx lasts, if it failed for a reason that has to do with others and
// is known not to have been applied: SQLITE_BUSY, SQLITE_BUSY_SNAPSHOT and
// ErrTxExpired, from Begin, from fn or from Commit; not if it took longer than
// tx_timeout. So fn must do nothing that
// cannot be repeated, apart from the transaction, and must not end it itself.
//
// An ErrOutcomeUnknown is returned and never repeated: what fn did may be
// applied. A panic of fn's rolls back and goes on.
func RunTx(ctx context.Context, db *sql.DB, opts *sql.TxOptions, fn func(*sql.Tx) error) error {
	pause := minPause
	for run := 1; ; run++ {
		err := runOnce(ctx, db, opts, fn)
		if err == nil || !repeatable(err) {
			return err
		}
		if run == maxRuns {
			return fmt.Errorf("hiqlite: the transaction failed %d times: %w", run, err)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		}
		pause = min(2*pause, maxPause)
	}
}

func runOnce(ctx context.Context, db *sql.DB, opts *sql.TxOptions, fn func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, opts)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after Commit it does nothing
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}
