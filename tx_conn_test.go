package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// onlyOne makes a node's pool have one connection.
func onlyOne(c *testCluster, n int) *sql.DB {
	db := c.DB(n)
	db.SetMaxOpenConns(1)
	return db
}

// What leaves its caller's hands inside a transaction is rolled back before
// anybody else gets the connection, and nobody has to wait for it.
func TestConnectionsGivenBackInsideATransaction(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		last := (c.Leader() + 1) % c.Len()
		db, other := onlyOne(c, last), c.DB(c.Leader())
		run(t, db, "CREATE TABLE t(a)")
		for i, open := range [][]string{
			{"BEGIN"}, {"BEGIN", "INSERT INTO t VALUES(-1)"}, {"BEGIN IMMEDIATE", "SELECT * FROM t"}, {"SAVEPOINT s"}, {"SAVEPOINT s", "INSERT INTO t VALUES(-1)"}, {"BEGIN DEFERRED", "SELECT * FROM t"},
			{"BEGIN", "SAVEPOINT s", "INSERT INTO t VALUES(-1)", "RELEASE s"}, {"BEGIN; INSERT INTO t VALUES(-1)"}, {"BEGIN", "CREATE TABLE left_open(a)"}, {"BEGIN", "PRAGMA defer_foreign_keys=ON"},
		} {
			conn, err := db.Conn(testrun.Context(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range open {
				run(t, conn, text)
			}
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			run(t, other, "INSERT INTO t VALUES(?)", 2*i) // the lease was given back
			run(t, db, "INSERT INTO t VALUES(?)", 2*i+1)
			ctx := hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable)
			for n := range c.Len() {
				var rows, least int
				if err := c.DB(n).QueryRowContext(ctx, "SELECT count(*), min(a) FROM t").Scan(&rows, &least); err != nil || rows != 2*i+2 || least != 0 {
					t.Errorf("after %q, node %d has %d rows from %d on, %v", open, n+1, rows, least, err)
				}
			}
			_, err = db.ExecContext(testrun.Context(t), "COMMIT")
			hasCode(t, err, 1, "cannot commit - no transaction is active")
			_, err = db.ExecContext(testrun.Context(t), "ROLLBACK")
			hasCode(t, err, 1, "cannot rollback - no transaction is active")
			if n := one[int](t, db, "PRAGMA defer_foreign_keys"); n != 0 {
				t.Errorf("after %q: defer_foreign_keys is %d", open, n)
			}
		}
		c.WaitEqual()
	})
}

// BEGIN by sql.DB gives its connection back at once, and does nothing.
func TestBeginOfADatabase(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := onlyOne(c, 0)
		run(t, db, "CREATE TABLE t(a)")
		for _, text := range []string{"BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT s", "BEGIN; INSERT INTO t VALUES(0)"} {
			run(t, db, text)
			run(t, db, "INSERT INTO t VALUES(1)")
		}
		run(t, db, "BEGIN; INSERT INTO t VALUES(1); COMMIT")
		if rows, err := db.Query("BEGIN"); err != nil {
			t.Error(err)
		} else {
			rows.Close()
		}
		for i := range c.Len() {
			ctx := hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable)
			var rows, sum int
			if err := c.DB(i).QueryRowContext(ctx, "SELECT count(*), sum(a) FROM t").Scan(&rows, &sum); err != nil || rows != 5 || sum != 5 {
				t.Errorf("node %d: %d rows, sum %d, %v", i+1, rows, sum, err)
			}
		}
	})
}

// A transaction that has expired is over for its connection too, once the
// program has been told.
func TestConnectionsWorkAgainAfterATransactionExpired(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		run(t, c.DB(0), "CREATE TABLE t(a)")
		connector, err := c.Node(0).ConnectorWith(hiqlite.ConnConfig{TxTimeout: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(connector)
		defer db.Close()
		db.SetMaxOpenConns(1)
		expired := func() *sql.Conn {
			conn, err := db.Conn(testrun.Context(t))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.ExecContext(testrun.Context(t), "BEGIN"); err != nil {
				t.Fatal(err)
			}
			_, _ = conn.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(-1)") // it may be over already
			run(t, c.DB(0), "DELETE FROM t")                                        // waits until it is
			return conn
		}
		isOver := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, hiqlite.ErrTxExpired) {
				t.Errorf("%s: %v", what, err)
			}
		}
		exec := func(conn *sql.Conn, text string) error {
			_, err := conn.ExecContext(context.Background(), text)
			return err
		}

		conn := expired() // given back before anybody was told
		conn.Close()
		run(t, db, "INSERT INTO t VALUES(1)")

		conn = expired()
		isOver("a statement", exec(conn, "INSERT INTO t VALUES(-1)"))
		isOver("another", exec(conn, "SELECT * FROM t"))
		run(t, conn, "ROLLBACK")
		run(t, conn, "INSERT INTO t VALUES(2)")
		conn.Close()

		conn = expired()
		isOver("COMMIT", exec(conn, "COMMIT"))
		run(t, conn, "INSERT INTO t VALUES(3)")
		conn.Close()

		conn = expired()
		_ = exec(conn, "SELECT 1") // tells, if the INSERT did not
		isOver("a statement", exec(conn, "INSERT INTO t VALUES(-1)"))
		begin := exec(conn, "BEGIN")
		run(t, conn, "ROLLBACK")
		run(t, conn, "INSERT INTO t VALUES(4)")
		if begin != nil {
			t.Errorf("BEGIN, when the program was told: %v", begin)
		}
		conn.Close()

		conn = expired()
		isOver("a statement", exec(conn, "DELETE FROM t"))
		conn.Close() // without a word
		run(t, db, "INSERT INTO t VALUES(5)")
		if got := one[string](t, c.DB(0), "SELECT group_concat(a) FROM t"); got != "5" {
			t.Errorf("the rows are %s", got) // expired deletes what was there before
		}
		c.WaitEqual()
	})
}
