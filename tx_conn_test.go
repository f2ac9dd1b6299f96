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

// The tests of this file leave transactions open on connections that go back to the pool.

// A connection that goes back into the pool inside a transaction rolls it back
// first: the next user of the connection finds no transaction, and other writers
// do not have to wait for its end.
func TestConnectionsGivenBackInsideATransaction(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		last := (c.Leader() + 1) % c.Len()
		db, other := singleConn(c, last), c.DB(c.Leader())
		mustExec(t, db, "CREATE TABLE t(a)")
		for i, open := range [][]string{
			{"BEGIN"}, {"BEGIN", "INSERT INTO t VALUES(-1)"}, {"BEGIN IMMEDIATE", "SELECT * FROM t"}, {"SAVEPOINT s"}, {"SAVEPOINT s", "INSERT INTO t VALUES(-1)"}, {"BEGIN DEFERRED", "SELECT * FROM t"},
			{"BEGIN", "SAVEPOINT s", "INSERT INTO t VALUES(-1)", "RELEASE s"}, {"BEGIN; INSERT INTO t VALUES(-1)"}, {"BEGIN", "CREATE TABLE left_open(a)"}, {"BEGIN", "PRAGMA defer_foreign_keys=ON"},
		} {
			conn, err := db.Conn(testrun.Context(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range open {
				mustExec(t, conn, text)
			}
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			mustExec(t, other, "INSERT INTO t VALUES(?)", 2*i) // would wait if the write lease were still held
			mustExec(t, db, "INSERT INTO t VALUES(?)", 2*i+1)
			ctx := linearizable(t)
			for n := range c.Len() {
				var rows, least int
				if err := c.DB(n).QueryRowContext(ctx, "SELECT count(*), min(a) FROM t").Scan(&rows, &least); err != nil || rows != 2*i+2 || least != 0 {
					t.Errorf("after %q, node %d has %d rows from %d on, %v", open, n+1, rows, least, err)
				}
			}
			_, err = db.ExecContext(testrun.Context(t), "COMMIT")
			wantCode(t, "COMMIT", err, 1, "cannot commit - no transaction is active")
			_, err = db.ExecContext(testrun.Context(t), "ROLLBACK")
			wantCode(t, "ROLLBACK", err, 1, "cannot rollback - no transaction is active")
			if n := queryValue[int](t, db, "PRAGMA defer_foreign_keys"); n != 0 {
				t.Errorf("after %q: defer_foreign_keys is %d", open, n)
			}
		}
		c.WaitEqual()
	})
}

// sql.DB returns a connection to its pool after each statement. So a BEGIN through
// sql.DB is rolled back at once and has no effect.
func TestBeginThroughThePoolHasNoEffect(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := singleConn(c, 0)
		mustExec(t, db, "CREATE TABLE t(a)")
		for _, text := range []string{"BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT s", "BEGIN; INSERT INTO t VALUES(0)"} {
			mustExec(t, db, text)
			mustExec(t, db, "INSERT INTO t VALUES(1)")
		}
		mustExec(t, db, "BEGIN; INSERT INTO t VALUES(1); COMMIT")
		if rows, err := db.Query("BEGIN"); err != nil {
			t.Error(err)
		} else {
			rows.Close()
		}
		for i := range c.Len() {
			ctx := linearizable(t)
			var rows, sum int
			if err := c.DB(i).QueryRowContext(ctx, "SELECT count(*), sum(a) FROM t").Scan(&rows, &sum); err != nil || rows != 5 || sum != 5 {
				t.Errorf("node %d: %d rows, sum %d, %v", i+1, rows, sum, err)
			}
		}
	})
}

// When a transaction has expired, its connection returns ErrTxExpired until the
// program has ended the transaction. Then the connection works again.
func TestConnectionsWorkAfterATransactionExpired(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE t(a)")
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
			_, _ = conn.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(-1)") // fails if the transaction has expired already
			mustExec(t, c.DB(0), "DELETE FROM t")                                   // waits until the transaction has expired
			return conn
		}
		wantExpired := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, hiqlite.ErrTxExpired) {
				t.Errorf("%s: %v, want ErrTxExpired", what, err)
			}
		}
		exec := func(conn *sql.Conn, text string) error {
			_, err := conn.ExecContext(context.Background(), text)
			return err
		}

		conn := expired() // and goes back into the pool before a statement has returned the error
		conn.Close()
		mustExec(t, db, "INSERT INTO t VALUES(1)")

		conn = expired()
		wantExpired("a statement", exec(conn, "INSERT INTO t VALUES(-1)"))
		wantExpired("another statement", exec(conn, "SELECT * FROM t"))
		mustExec(t, conn, "ROLLBACK")
		mustExec(t, conn, "INSERT INTO t VALUES(2)")
		conn.Close()

		conn = expired()
		wantExpired("COMMIT", exec(conn, "COMMIT"))
		mustExec(t, conn, "INSERT INTO t VALUES(3)")
		conn.Close()

		conn = expired()
		_ = exec(conn, "SELECT 1") // returns ErrTxExpired, if the INSERT did not
		wantExpired("a statement", exec(conn, "INSERT INTO t VALUES(-1)"))
		begin := exec(conn, "BEGIN")
		mustExec(t, conn, "ROLLBACK")
		mustExec(t, conn, "INSERT INTO t VALUES(4)")
		if begin != nil {
			t.Errorf("BEGIN, after a statement has returned ErrTxExpired: %v", begin)
		}
		conn.Close()

		conn = expired()
		wantExpired("a statement", exec(conn, "DELETE FROM t"))
		conn.Close() // without ROLLBACK
		mustExec(t, db, "INSERT INTO t VALUES(5)")
		if got := queryValue[string](t, c.DB(0), "SELECT group_concat(a) FROM t"); got != "5" {
			t.Errorf("the rows are %s, want 5: expired deletes the earlier ones", got)
		}
		c.WaitEqual()
	})
}
