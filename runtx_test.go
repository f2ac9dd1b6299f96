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

// Transactions that collide are run again, others are not.
func TestRunTx(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *hiqlite.Config) { cfg.Conn.Deferred = true })
	mustExec(t, c.DB(0), "CREATE TABLE counter(n INTEGER)")
	mustExec(t, c.DB(0), "INSERT INTO counter VALUES(0)")
	for i := range c.Len() {
		c.WaitReady(i)
	}
	const each, workers = 5, 6
	var work sync.WaitGroup
	for i := range workers {
		work.Go(func() {
			db := c.DB(i % 3)
			for range each {
				err := hiqlite.RunTx(testrun.Context(t), db, nil, func(tx *sql.Tx) error {
					var n int // read first, so that the write may come too late
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
	ctx := hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable)
	if err := c.DB(0).QueryRowContext(ctx, "SELECT n FROM counter").Scan(&n); err != nil || n != each*workers {
		t.Errorf("the counter stands at %d, %v", n, err)
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
		t.Errorf("it ran %d times: %v", runs, err)
	}
	unknown := func(*sql.Tx) error { runs++; return errors.Join(hiqlite.ErrOutcomeUnknown, hiqlite.ErrTxExpired) }
	if err := hiqlite.RunTx(testrun.Context(t), c.DB(0), nil, unknown); !errors.Is(err, hiqlite.ErrOutcomeUnknown) || runs != 2 {
		t.Errorf("it ran %d times: %v", runs, err)
	}
	busy := func(*sql.Tx) error { runs++; return &hiqlite.Error{ExtendedCode: 5} }
	ctx, cancel := context.WithTimeout(testrun.Context(t), 0)
	defer cancel()
	if err := hiqlite.RunTx(ctx, c.DB(0), nil, busy); err == nil {
		t.Error("a context that has ended runs nothing")
	}
	if err := c.DB(0).QueryRow("SELECT n FROM counter").Scan(&n); err != nil || n != each*workers {
		t.Errorf("the counter stands at %d, %v", n, err)
	}
}

// The line about a forgotten transaction names the program, not RunTx.
func TestForgottenRunTx(t *testing.T) {
	t.Parallel()
	var log logged
	c := newCluster(t, 1, unhurried, func(cfg *hiqlite.Config) {
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		cfg.Conn.TxTimeout, cfg.Conn.TxTrace = 100*time.Millisecond, true
	})
	run(t, c.DB(0), "CREATE TABLE t(a)")
	ctx, cancel := context.WithCancel(testrun.Context(t))
	_ = hiqlite.RunTx(ctx, c.DB(0), nil, func(tx *sql.Tx) error {
		testrun.WaitFor(t, "its end", func() bool { return len(log.lines("a transaction was ended")) > 0 })
		cancel()
		return errors.New("enough")
	})
	for _, line := range log.lines("a transaction was ended") {
		if !strings.Contains(line, "_test.go") {
			t.Error(line)
		}
	}
}

// A transaction that takes longer than it may is not run again.
func TestSlowTransactionsAreNotRepeated(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) {
		cfg.Logger = slog.New(slog.DiscardHandler)
		cfg.Conn.TxTimeout = 20 * time.Millisecond
	})
	run(t, c.DB(0), "CREATE TABLE t(a)")
	runs := 0
	err := hiqlite.RunTx(testrun.Context(t), c.DB(0), nil, func(tx *sql.Tx) error {
		runs++
		var err error
		testrun.WaitFor(t, "its end", func() bool { _, err = tx.Exec("INSERT INTO t VALUES(1)"); return err != nil })
		return err
	})
	if !errors.Is(err, hiqlite.ErrTxExpired) || runs != 1 {
		t.Errorf("it ran %d times: %v", runs, err)
	}
}
