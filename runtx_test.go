package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// RunTx runs a transaction again if it has failed because of another one, and not
// after any other error.
func TestRunTx(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *hiqlite.Config) { cfg.Conn.Deferred = true })
	mustExec(t, c.DB(0), "CREATE TABLE counter(n INTEGER)")
	mustExec(t, c.DB(0), "INSERT INTO counter VALUES(0)")
	c.WaitReady()
	const each, workers = 5, 6
	var work sync.WaitGroup
	for i := range workers {
		work.Go(func() {
			db := c.DB(i % 3)
			for range each {
				err := hiqlite.RunTx(testrun.Context(t), db, nil, func(tx *sql.Tx) error {
					var n int // read first, so that the write fails if another transaction commits in between
					if err := tx.QueryRow("SELECT n FROM counter").Scan(&n); err != nil {
						return err
					}
					_, err := tx.Exec("UPDATE counter SET n=?", n+1)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	var n int
	ctx := linearizable(t)
	if err := c.DB(0).QueryRowContext(ctx, "SELECT n FROM counter").Scan(&n); err != nil || n != each*workers {
		t.Errorf("the counter is %d, want %d, %v", n, each*workers, err)
	}
	mine := errors.New("mine")
	runs := 0
	err := hiqlite.RunTx(testrun.Context(t), c.DB(0), nil, func(tx *sql.Tx) error {
		runs++
		if _, err := tx.Exec("UPDATE counter SET n=0"); err != nil {
			return err
		}
		return mine
	})
	if !errors.Is(err, mine) || runs != 1 {
		t.Errorf("the transaction ran %d times, want once: %v", runs, err)
	}
	unknown := func(*sql.Tx) error { runs++; return errors.Join(hiqlite.ErrOutcomeUnknown, hiqlite.ErrTxExpired) }
	if err := hiqlite.RunTx(testrun.Context(t), c.DB(0), nil, unknown); !errors.Is(err, hiqlite.ErrOutcomeUnknown) || runs != 2 {
		t.Errorf("the transaction of unknown outcome ran %d times, want once: %v", runs-1, err)
	}
	busy := func(*sql.Tx) error { runs++; return &hiqlite.Error{ExtendedCode: 5} }
	ctx, cancel := context.WithTimeout(testrun.Context(t), 0)
	defer cancel()
	if err := hiqlite.RunTx(ctx, c.DB(0), nil, busy); err == nil || runs != 2 {
		t.Errorf("with a context that has ended, the transaction ran %d times, want not at all: %v", runs-2, err)
	}
	if err := c.DB(0).QueryRow("SELECT n FROM counter").Scan(&n); err != nil || n != each*workers {
		t.Errorf("the counter is %d, want %d, %v", n, each*workers, err)
	}
}

// The log line about a transaction that was ended by its TxTimeout names the line of
// the program that called RunTx, not a line of RunTx itself.
func TestLogNamesTheCallerOfRunTx(t *testing.T) {
	t.Parallel()
	var log logBuffer
	c := newCluster(t, 1, withoutTimeouts, func(cfg *hiqlite.Config) {
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		cfg.Conn.TxTimeout, cfg.Conn.TxTrace = 100*time.Millisecond, true
	})
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	ctx, cancel := context.WithCancel(testrun.Context(t))
	_ = hiqlite.RunTx(ctx, c.DB(0), nil, func(tx *sql.Tx) error {
		testrun.WaitFor(t, "the end of the transaction", func() bool { return len(log.lines("a transaction was ended")) > 0 })
		cancel()
		return errors.New("enough")
	})
	for _, line := range log.lines("a transaction was ended") {
		if !strings.Contains(line, "_test.go") {
			t.Error(line)
		}
	}
}

// A transaction that has exceeded its TxTimeout is not run again: it would exceed it
// again.
func TestExpiredTransactionsAreNotRunAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) {
		cfg.Logger = slog.New(slog.DiscardHandler)
		cfg.Conn.TxTimeout = 20 * time.Millisecond
	})
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	runs := 0
	err := hiqlite.RunTx(testrun.Context(t), c.DB(0), nil, func(tx *sql.Tx) error {
		runs++
		var err error
		testrun.WaitFor(t, "the end of the transaction", func() bool { _, err = tx.Exec("INSERT INTO t VALUES(1)"); return err != nil })
		return err
	})
	if !errors.Is(err, hiqlite.ErrTxExpired) || runs != 1 {
		t.Errorf("the transaction ran %d times, want once: %v", runs, err)
	}
}
