package hiqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hiqlite/hiqlite/internal/connapi"
)

const (
	// maxRuns is how often RunTx runs a transaction at most.
	maxRuns = 20
	// minPause is the wait before the second run. It doubles with each run, up to
	// maxPause.
	minPause = 2 * time.Millisecond
	maxPause = 250 * time.Millisecond
)

// RunTx runs fn in a transaction and commits the transaction. If fn returns an error,
// RunTx rolls back and returns that error.
//
// RunTx runs the transaction again, up to 20 times and as long as ctx lasts, if it
// failed because of other transactions and nothing of it was applied: that is, if
// Begin, fn or Commit returned SQLITE_BUSY, SQLITE_BUSY_SNAPSHOT or ErrTxExpired. It
// does not repeat a transaction that took longer than tx_timeout. Because fn may run
// several times, whatever it does outside of the transaction must be repeatable. fn
// must not commit or roll back itself.
//
// A deferred transaction that failed with SQLITE_BUSY_SNAPSHOT runs again as one that
// is not deferred, so that it does not fail for that reason again.
//
// RunTx returns ErrOutcomeUnknown and does not repeat the transaction then, since it
// may have been applied. If fn panics, RunTx rolls back and passes the panic on.
func RunTx(ctx context.Context, db *sql.DB, opts *sql.TxOptions, fn func(*sql.Tx) error) error {
	pause := minPause
	for run := 1; ; run++ {
		err := runOnce(ctx, db, opts, fn)
		if err == nil || !repeatable(err) {
			return err
		}
		if errors.Is(err, ErrBusySnapshot) {
			// Others cannot change rows between the reads and the writes of a
			// transaction that has the write lease from its beginning.
			ctx = connapi.WithoutDeferring(ctx)
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
