package hiqlitetest_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/hiqlite/hiqlite/hiqlitetest"
)

// A ledger is the program under test.
type ledger struct{ db *sql.DB }

func (l ledger) create(ctx context.Context) error {
	_, err := l.db.ExecContext(ctx, "CREATE TABLE entry(id INTEGER PRIMARY KEY, amount INTEGER NOT NULL)")
	return err
}

func (l ledger) add(ctx context.Context, amount int) error {
	_, err := l.db.ExecContext(ctx, "INSERT INTO entry(amount) VALUES(?)", amount)
	return err
}

func (l ledger) sum(ctx context.Context) (sum int, err error) {
	err = l.db.QueryRowContext(ctx, "SELECT coalesce(sum(amount), 0) FROM entry").Scan(&sum)
	return sum, err
}

// TestLedgerWithoutALeader uses the ledger on every node while the leader is
// stopped and started again.
func TestLedgerWithoutALeader(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 3)
	if err := (ledger{c.DB(0)}).create(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.WaitReady() // the other nodes have the table too

	leader := c.Leader()
	c.Stop(leader)
	for i := range c.Len() {
		if c.Running(i) {
			if err := (ledger{c.DB(i)}).add(t.Context(), 10); err != nil {
				t.Errorf("node %d, without the leader: %v", i, err)
			}
		}
	}

	c.Start(leader)
	c.WaitReady() // it has read what it missed
	for i := range c.Len() {
		if sum, err := (ledger{c.DB(i)}).sum(t.Context()); err != nil || sum != 20 {
			t.Errorf("node %d: the sum is %d, %v, want 20", i, sum, err)
		}
	}
	c.WaitEqual()
}

// The test of this file, as go test runs it.
func ExampleNewCluster() {
	var t *testing.T // the argument of a test function
	TestLedgerWithoutALeader(t)
}
