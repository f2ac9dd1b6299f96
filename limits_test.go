package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file exceed the limits of a write: its size and its steps.

// A write, a script or a batch above the limit of an operation returns ErrTooLarge.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	s := newCheckedCluster(t, 1)
	const limit = 8 << 20
	big := strings.Repeat("x", limit)
	_, err := s.DB(0).ExecContext(testrun.Context(t), "INSERT INTO kept(v) VALUES(?)", big)
	_, errText := s.DB(0).ExecContext(testrun.Context(t), "INSERT INTO kept(v) VALUES('"+big+"')")
	var stmts []hiqlite.Statement
	for i := range 100 {
		stmts = append(stmts, hiqlite.Statement{SQL: "INSERT INTO kept(v) VALUES(?)", Args: []any{fmt.Sprint(i, big[:limit/100])}})
	}
	_, errBatch := hiqlite.Batch(testrun.Context(t), s.DB(0), stmts...)
	for what, err := range map[string]error{"argument": err, "text": errText, "batch": errBatch} {
		if !errors.Is(err, hiqlite.ErrTooLarge) || !strings.Contains(err.Error(), fmt.Sprint(limit)) || !strings.Contains(err.Error(), "smaller") {
			t.Errorf("%s: %v", what, err)
		}
		s.checkUnharmed(what)
	}
	if _, err := hiqlite.Batch(testrun.Context(t), s.DB(0), stmts[:90]...); err != nil {
		t.Errorf("below the limit: %v", err)
	}
	s.checkUnharmed("a large batch")
}

// A write that exceeds MaxSteps fails on all replicas, which then go on.
func TestEndlessWrite(t *testing.T) {
	t.Parallel()
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	s := newCheckedCluster(t, 3, func(cfg *hiqlite.Config) { cfg.MaxSteps = 1_000_000 })
	for _, text := range []string{"INSERT INTO kept(v) " + endlessWithoutRows, "INSERT INTO kept(v) " + endless, "DELETE FROM kept WHERE id IN (" + endless + ")", "INSERT INTO kept(v) VALUES('x'); " + endless} {
		_, err := s.DB(1).ExecContext(testrun.Context(t), text)
		wantCode(t, text, err, 9, "interrupted", "smaller parts")
		s.checkUnharmed(text)
	}
	s.WaitEqual()
}

// A write that runs for very long is stopped on all replicas soon after its context
// has ended, even if MaxSteps allows more. Otherwise all other writes would wait.
func TestLongWriteEndsWithItsContext(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	for _, size := range []int{1, 3} {
		c := newCluster(t, size, func(cfg *hiqlite.Config) { cfg.MaxSteps = 1 << 60; cfg.HookFirstSteps(20_000) })
		db := c.DB(size - 1)
		mustExec(t, db, "CREATE TABLE t(n)")
		for name, run := range map[string]func(ctx context.Context) error{
			"a write": func(ctx context.Context) error { _, err := db.ExecContext(ctx, "INSERT INTO t "+endless); return err },
			"a script": func(ctx context.Context) error {
				_, err := db.ExecContext(ctx, "INSERT INTO t VALUES(1); INSERT INTO t "+endless)
				return err
			},
			"a batch": func(ctx context.Context) error {
				_, err := hiqlite.Batch(ctx, db, hiqlite.Statement{SQL: "INSERT INTO t VALUES(2)"}, hiqlite.Statement{SQL: "INSERT INTO t " + endlessWithoutRows})
				return err
			},
			"a query": func(ctx context.Context) error {
				return db.QueryRowContext(ctx, "INSERT INTO t "+endless+" RETURNING n").Scan(new(int))
			},
			"a transaction": func(ctx context.Context) error {
				return hiqlite.RunTx(ctx, db, nil, func(tx *sql.Tx) error { _, err := tx.ExecContext(ctx, "INSERT INTO t "+endless); return err })
			},
		} {
			ctx, cancel := context.WithTimeout(testrun.Context(t), 300*time.Millisecond)
			if err := run(ctx); err == nil {
				t.Errorf("%s that does not end has succeeded", name)
			}
			cancel()
			for i := range c.Len() {
				mustExec(t, c.DB(i), "INSERT INTO t VALUES('others')")
			}
			if r := mustExec(t, db, "DELETE FROM t"); must(r.RowsAffected()) != int64(size) {
				t.Errorf("%s: the table has %d rows afterwards, want %d", name, must(r.RowsAffected()), size)
			}
		}
		c.WaitEqual()
	}
}

// A write that exceeds the bound of its first attempt is proposed again with a higher
// bound, and is applied once. If it exceeds MaxSteps, its error says what to do.
func TestLongWriteIsProposedAgain(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	for _, size := range []int{1, 3} {
		c := newCluster(t, size, func(cfg *hiqlite.Config) { cfg.MaxSteps = 2_000_000; cfg.HookFirstSteps(20_000) })
		db := c.DB(size - 1)
		mustExec(t, db, "CREATE TABLE t(n, r DEFAULT (random()))")
		const rows = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<20000) SELECT n FROM x"
		if n := must(mustExec(t, db, "INSERT INTO t(n) "+rows).RowsAffected()); n != 20000 {
			t.Errorf("%d rows were inserted, want 20000", n)
		}
		if n := must(mustExec(t, db, "UPDATE t SET n=n+1").RowsAffected()); n != 20000 {
			t.Errorf("%d rows were changed, want 20000", n)
		}
		results, err := hiqlite.Batch(testrun.Context(t), db, hiqlite.Statement{SQL: "DELETE FROM t WHERE n<=10001"}, hiqlite.Statement{SQL: "INSERT INTO t(n) SELECT n FROM t"})
		if err != nil || must(results[0].RowsAffected()) != 10000 || must(results[1].RowsAffected()) != 10000 {
			t.Errorf("the batch: %v", err)
		}
		_, err = db.ExecContext(testrun.Context(t), "INSERT INTO t(n) SELECT 1 FROM t a, t b")
		var e *hiqlite.Error
		if !errors.As(err, &e) || e.ExtendedCode != sqlite.CodeInterrupt || !strings.Contains(err.Error()+e.Hint, "max_steps") {
			t.Errorf("a write that exceeds MaxSteps: %v", err)
		}
		c.WaitEqual()
	}
}
