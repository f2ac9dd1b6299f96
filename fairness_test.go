package hiqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// queued waits until so many operations wait for the write lease.
func queued(t testing.TB, n *hiqlite.Node, count int) {
	t.Helper()
	testrun.WaitFor(t, fmt.Sprintf("a queue of %d", count), func() bool { return n.Queued() == count })
}

// What waits for the write lease has its turn in the order in which it came,
// whichever node it came from and whether it is a transaction or a plain write.
func TestFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, who TEXT)")
	ctx := testrun.Context(t)
	exec := func(db *sql.DB, who string) error {
		_, err := db.ExecContext(ctx, "INSERT INTO t(who) VALUES(?)", who)
		return err
	}
	batch := func(db *sql.DB, who string) error {
		_, err := hiqlite.Batch(ctx, db, hiqlite.Statement{SQL: "INSERT INTO t(who) VALUES(?)", Args: []any{who}})
		return err
	}
	transaction := func(db *sql.DB, who string) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("INSERT INTO t(who) VALUES(?)", who); err != nil {
			return err
		}
		return tx.Commit()
	}
	given := func(db *sql.DB, who string) error { // in vain
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		return tx.Rollback()
	}
	kinds := []struct {
		name string
		run  func(db *sql.DB, who string) error
	}{{"exec", exec}, {"transaction", transaction}, {"transaction", transaction}, {"given up", given}, {"batch", batch}, {"exec", exec}, {"transaction", transaction}}

	holder := mustBegin(t, c.DB(0))
	run(t, holder, "INSERT INTO t(who) VALUES('holder')")
	want := []string{"holder"}
	var work sync.WaitGroup
	const rounds = 21
	errs := make([]error, rounds)
	for i := range rounds {
		kind, node := kinds[i%len(kinds)], []int{1, 2, 0}[i%3]
		who := fmt.Sprintf("%d: %s of node %d", i, kind.name, node+1)
		if kind.name != "given up" {
			want = append(want, who)
		}
		work.Go(func() { errs[i] = kind.run(c.DB(node), who) })
		queued(t, c.Node(0), i+1)
	}
	commit(t, holder)
	work.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	var got []string
	linear := hiqlite.WithConsistency(ctx, hiqlite.Linearizable)
	rows, err := c.DB(0).QueryContext(linear, "SELECT who FROM t ORDER BY id")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var who string
		if err := rows.Scan(&who); err != nil {
			t.Fatal(err)
		}
		got = append(got, who)
	}
	if !slices.Equal(got, want) {
		t.Errorf("came:\n%s\nserved:\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	c.WaitEqual()
}

// Who leaves the queue leaves the others where they are.
func TestQueueThatSomeLeave(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, who INT)")
	holder := mustBegin(t, c.DB(1))
	impatient, leave := context.WithCancel(testrun.Context(t))
	ctx := testrun.Context(t)
	var work sync.WaitGroup
	const rounds = 12
	errs := make([]error, rounds)
	for i := range rounds {
		waits := ctx
		if i%3 != 0 {
			waits = impatient
		}
		work.Go(func() {
			if i%2 == 0 {
				_, errs[i] = c.DB(i%3).ExecContext(waits, "INSERT INTO t(who) VALUES(?)", i)
				return
			}
			tx, err := c.DB(i%3).BeginTx(waits, nil)
			if err == nil {
				_, _ = tx.Exec("INSERT INTO t(who) VALUES(?)", i)
				err = tx.Commit()
			}
			errs[i] = err
		})
		queued(t, c.Node(0), i+1)
	}
	leave()
	queued(t, c.Node(0), rounds/3)
	commit(t, holder)
	work.Wait()
	for i, err := range errs {
		if i%3 == 0 && err != nil || i%3 != 0 && !strings.Contains(fmt.Sprint(err), context.Canceled.Error()) {
			t.Errorf("%d: %v", i, err)
		}
	}
	run(t, c.DB(0), "INSERT INTO t(who) VALUES(100)")
	if got := one[string](t, c.DB(0), "SELECT group_concat(who) FROM (SELECT who FROM t ORDER BY id)"); got != "0,3,6,9,100" {
		t.Error(got)
	}
	c.WaitEqual()
}

// Nobody is turned away who has patience.
func TestCrowdOfTransactions(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE sums(id INTEGER PRIMARY KEY, n INT)")
	run(t, c.DB(0), "INSERT INTO sums VALUES(1, 0), (2, 0)")
	const clients, each = 30, 34 // more than a thousand
	all(t, clients, func(i int) error {
		db := c.DB(i % 3)
		for range each {
			ctx := testrun.Context(t)
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return fmt.Errorf("begin: %w", err)
			}
			var n int // read, and written back: nothing may come between
			if err := tx.QueryRow("SELECT n FROM sums WHERE id = 1").Scan(&n); err != nil {
				return fmt.Errorf("read: %w", err)
			}
			if _, err := tx.Exec("UPDATE sums SET n = ? WHERE id = 1", n+1); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			if err := tx.Commit(); err != nil {
				return fmt.Errorf("commit: %w", err)
			}
			if i%5 == 0 {
				if _, err := db.ExecContext(ctx, "UPDATE sums SET n = n + 1 WHERE id = 2"); err != nil {
					return fmt.Errorf("plain write: %w", err)
				}
			}
		}
		return nil
	})
	for i := range c.Len() {
		c.WaitReady(i)
		if got := one[string](t, c.DB(i), "SELECT group_concat(n) FROM sums"); got != fmt.Sprintf("%d,%d", clients*each, clients/5*each) {
			t.Errorf("node %d: %s", i+1, got)
		}
	}
	c.WaitEqual()
}
