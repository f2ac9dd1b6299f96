package hiqlite_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sort"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// hasCode fails unless err is SQLite's, with this code and these words.
func hasCode(t testing.TB, err error, code int, words ...string) {
	t.Helper()
	var e *hiqlite.Error
	if !errors.As(err, &e) || e.Code() != code {
		t.Errorf("%v is not an error with code %d", err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error %q lacks %q", err, w)
		}
	}
}

func mustConn(t testing.TB, db *sql.DB) *sql.Conn {
	t.Helper()
	c, err := db.Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestTransactionUsedAfterItsEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, unhurried)
	db := c.DB(0)
	run(t, db, "CREATE TABLE t(a)")
	for _, end := range []func(*sql.Tx) error{(*sql.Tx).Commit, (*sql.Tx).Rollback} {
		tx := mustBegin(t, db)
		run(t, tx, "INSERT INTO t VALUES(1)")
		if err := end(tx); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{
			"Commit": tx.Commit(), "Rollback": tx.Rollback(),
			"Exec":    second(tx.Exec("INSERT INTO t VALUES(2)")),
			"Query":   second(tx.Query("SELECT 1")),
			"Prepare": second(tx.Prepare("SELECT 1")),
		} {
			if !errors.Is(err, sql.ErrTxDone) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	if n := one[int](t, db, "SELECT count(*) FROM t"); n != 1 {
		t.Errorf("%d rows", n)
	}
}

func second[T any](_ T, err error) error { return err }

// database/sql does not let programs do this, other users of the driver may.
func TestDriverTransactionEndedTwice(t *testing.T) {
	c := newCluster(t, 1, unhurried)
	err := mustConn(t, c.DB(0)).Raw(func(raw any) error {
		begin := func() driver.Tx {
			return must(raw.(driver.ConnBeginTx).BeginTx(testrun.Context(t), driver.TxOptions{}))
		}
		tx := begin()
		if err := tx.Commit(); err != nil {
			return err
		}
		hasCode(t, tx.Commit(), 1, "no transaction is active")
		hasCode(t, tx.Rollback(), 1, "no transaction is active")
		next := begin()
		hasCode(t, tx.Rollback(), 1, "no transaction is active") // not that of the next one
		hasCode(t, tx.Commit(), 1, "no transaction is active")
		return next.Commit()
	})
	if err != nil {
		t.Error(err)
	}
}

func TestTransactionTooLarge(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		run(t, db, "CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB)")
		blob := make([]byte, 3<<20)
		rand.Read(blob) // zstd must not make it fit
		tx := mustBegin(t, db)
		run(t, tx, "INSERT INTO t(b) VALUES(?)", blob)
		run(t, tx, "SAVEPOINT a")
		run(t, tx, "INSERT INTO t(b) VALUES(?)", blob)
		for range 2 {
			if _, err := tx.Exec("INSERT INTO t(b) VALUES(?)", blob); !errors.Is(err, hiqlite.ErrTooLarge) {
				t.Fatalf("the third: %v", err)
			} else if s := err.Error(); strings.Count(s, "hiqlite:") != 1 || strings.Count(s, "too large") != 1 || !strings.Contains(s, "smaller") {
				t.Fatalf("it says something twice: %v", err)
			}
		}
		if n := one[int](t, tx, "SELECT count(*) FROM t"); n != 2 {
			t.Errorf("%d rows inside", n)
		}
		run(t, tx, "ROLLBACK TO a") // makes room
		run(t, tx, "INSERT INTO t(b) VALUES(?)", blob)
		run(t, tx, "INSERT INTO t(id) VALUES(77)")
		commit(t, tx)
		if n := one[int](t, db, "SELECT count(*) FROM t"); n != 3 {
			t.Errorf("%d rows", n)
		}
		tx = mustBegin(t, db)
		if _, err := tx.Exec("INSERT INTO t(b) VALUES(?)", make([]byte, 9<<20)); !errors.Is(err, hiqlite.ErrTooLarge) {
			t.Errorf("a statement that alone is too large: %v", err)
		}
		commit(t, tx)
		c.WaitEqual()
	})
}

// What Exec took, Commit can propose.
func TestLargestTransactionCanBeCommitted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, unhurried)
	db := c.DB(0)
	run(t, db, "CREATE TABLE t(b)")
	blob := make([]byte, 9<<20)
	rand.Read(blob)
	insert := func(size int) (*sql.Tx, error) {
		tx := mustBegin(t, db)
		_, err := tx.Exec("INSERT INTO t VALUES(?)", blob[:size])
		return tx, err
	}
	least := sort.Search(1<<20, func(i int) bool {
		tx, err := insert(8<<20 - 1<<19 + i)
		tx.Rollback()
		return err != nil
	}) + 8<<20 - 1<<19
	for size := least - 1; size > least-40; size -= 7 {
		tx, err := insert(size)
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestTransactionWithinATransaction(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, unhurried)
	db := c.DB(0)
	run(t, db, "CREATE TABLE t(a)")
	tx := mustBegin(t, db)
	run(t, tx, "INSERT INTO t VALUES(1)")
	for _, text := range []string{"BEGIN", "BEGIN IMMEDIATE", "INSERT INTO t VALUES(2); BEGIN; COMMIT"} {
		_, err := tx.Exec(text)
		hasCode(t, err, 1, "cannot start a transaction within a transaction")
	}
	commit(t, tx)
	conn := mustConn(t, db)
	run(t, conn, "BEGIN")
	_, err := conn.BeginTx(testrun.Context(t), nil)
	hasCode(t, err, 1, "cannot start a transaction within a transaction")
	_, err = conn.BeginTx(testrun.Context(t), &sql.TxOptions{ReadOnly: true})
	hasCode(t, err, 1, "cannot start a transaction within a transaction")
	run(t, conn, "INSERT INTO t VALUES(3)")
	run(t, conn, "COMMIT")
	tx = must(conn.BeginTx(testrun.Context(t), nil)) // ended by a text
	run(t, tx, "INSERT INTO t VALUES(4)")
	run(t, tx, "COMMIT")
	hasCode(t, tx.Commit(), 1, "cannot commit - no transaction is active")
	run(t, conn, "INSERT INTO t VALUES(5)")
	if got := one[string](t, db, "SELECT group_concat(a) FROM t"); got != "1,2,3,4,5" {
		t.Error(got)
	}
}

// Serializable satisfies every weaker level, and LevelLinearizable makes a
// transaction see what others have written before.
func TestIsolationLevels(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE t(a)")
		deferred := openDeferred(t, c)
		for level := sql.LevelDefault; level <= sql.LevelLinearizable; level++ {
			for i, n := range c.Nodes() {
				for _, db := range []*sql.DB{n.DB(), deferred[i]} {
					tx, err := db.BeginTx(testrun.Context(t), &sql.TxOptions{Isolation: level})
					if err != nil {
						t.Fatalf("%v: %v", level, err)
					}
					run(t, tx, "INSERT INTO t VALUES(?)", int(level))
					commit(t, tx)
					for j := range c.Len() {
						tx, err := c.DB(j).BeginTx(testrun.Context(t), &sql.TxOptions{Isolation: level, ReadOnly: true})
						if err != nil {
							t.Fatalf("%v, only reading: %v", level, err)
						}
						_, err = tx.Exec("INSERT INTO t VALUES(0)")
						hasCode(t, err, 8, "readonly")
						commit(t, tx)
					}
				}
			}
		}
		for _, level := range []sql.IsolationLevel{-1, sql.LevelLinearizable + 1} {
			_, err := c.DB(0).BeginTx(testrun.Context(t), &sql.TxOptions{Isolation: level})
			hasCode(t, err, 1, "not known", "serializable")
		}
		want := one[int](t, c.DB(0), "SELECT count(*) FROM t")
		for range 50 {
			mustExec(t, c.DB(0), "INSERT INTO t VALUES(9)")
			want++
			for i := range c.Len() {
				for _, db := range []*sql.DB{c.DB(i), deferred[i]} {
					tx, err := db.BeginTx(testrun.Context(t), &sql.TxOptions{Isolation: sql.LevelLinearizable, ReadOnly: db == c.DB(i)})
					if err != nil {
						t.Fatal(err)
					}
					if n := one[int](t, tx, "SELECT count(*) FROM t"); n != want {
						t.Errorf("node %d sees %d rows of %d", i+1, n, want)
					}
					commit(t, tx)
				}
			}
		}
	})
}

// openDeferred opens a database on each node whose transactions are deferred.
func openDeferred(t *testing.T, c *testCluster) (dbs []*sql.DB) {
	t.Helper()
	for _, n := range c.Nodes() {
		connector, err := n.ConnectorWith(hiqlite.ConnConfig{Deferred: true})
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(connector)
		t.Cleanup(func() { db.Close() })
		dbs = append(dbs, db)
	}
	return dbs
}

func TestReadOnlyTransactions(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		own, other := c.DB(0), c.DB(c.Len()-1)
		run(t, own, "CREATE TABLE t(a)")
		run(t, own, "INSERT INTO t VALUES(1)")
		writer := mustBegin(t, other) // is not in the way
		tx, err := own.BeginTx(testrun.Context(t), &sql.TxOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"INSERT INTO t VALUES(2)", "UPDATE t SET a=2", "DELETE FROM t", "CREATE TABLE u(a)", "DROP TABLE t", "PRAGMA user_version=3", "SELECT 1; INSERT INTO t VALUES(2)", "INSERT INTO t VALUES(2); DELETE FROM t"} {
			_, err := tx.Exec(text)
			hasCode(t, err, 8, "attempt to write a readonly database")
			_, err = tx.Query(text)
			hasCode(t, err, 8, "attempt to write a readonly database")
		}
		see := func() string { return one[string](t, tx, "SELECT group_concat(a) FROM t") }
		if got := see(); got != "1" {
			t.Error(got)
		}
		run(t, writer, "INSERT INTO t VALUES(3)")
		commit(t, writer)
		run(t, own, "INSERT INTO t VALUES(4)")
		run(t, other, "INSERT INTO t VALUES(5)")
		run(t, own, "INSERT INTO t VALUES(6)") // behind node 3's: that has arrived
		if got := see(); got != "1" {
			t.Errorf("it sees later rows: %s", got)
		}
		commit(t, tx)
		if got := one[string](t, own, "SELECT group_concat(a) FROM t"); got != "1,3,4,5,6" {
			t.Error(got)
		}
	})
}

func TestNothingUncommittedIsRead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(a)")
	run(t, c.DB(0), "INSERT INTO t VALUES(1)")
	c.WaitEqual() // local reads find it on all nodes
	for i := range c.Len() {
		tx := mustBegin(t, c.DB(i))
		run(t, tx, "UPDATE t SET a = 2")
		run(t, tx, "CREATE TABLE u(a)")
		for j := range c.Len() {
			for _, level := range []hiqlite.Consistency{hiqlite.Local, hiqlite.Linearizable} {
				ctx := hiqlite.WithConsistency(testrun.Context(t), level)
				var a, tables int
				if err := c.DB(j).QueryRowContext(ctx, "SELECT a, (SELECT count(*) FROM sqlite_schema WHERE name='u') FROM t").Scan(&a, &tables); err != nil || a != 1 || tables != 0 {
					t.Errorf("%v, on node %d of node %d's transaction: %d, %d tables, %v", level, j+1, i+1, a, tables, err)
				}
			}
		}
		rollBack(t, tx)
	}
}

func TestDeferredTransactions(t *testing.T) {
	c := newCluster(t, 3, unhurried, func(cfg *hiqlite.Config) { cfg.Conn.Deferred = true })
	own, other := c.DB(0), c.DB(1)
	run(t, own, "CREATE TABLE t(a)")
	changes := func() { // that have arrived on the first node
		run(t, other, "INSERT INTO t VALUES(1)")
		run(t, own, "INSERT INTO t VALUES(2)")
	}
	changes()
	for _, first := range []string{"", "BEGIN", "BEGIN DEFERRED TRANSACTION"} {
		t.Run("begun by "+first, func(t *testing.T) {
			var q asker
			begin := func() (end func(how string)) {
				if first == "" {
					tx := mustBegin(t, own)
					q = tx
					return func(how string) {
						if how == "COMMIT" {
							commit(t, tx)
						} else {
							rollBack(t, tx)
						}
					}
				}
				conn := mustConn(t, own)
				run(t, conn, first)
				q = conn
				return func(how string) { run(t, conn, how) }
			}
			end := begin()
			before := one[int](t, q, "SELECT count(*) FROM t")
			changes()
			_, err := q.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(3)")
			hasCode(t, err, 517, "database is locked")
			if n := one[int](t, q, "SELECT count(*) FROM t"); n != before {
				t.Errorf("%d rows, %d before", n, before)
			}
			changes() // the lease is free
			end("ROLLBACK")

			end = begin() // reads nothing
			changes()
			run(t, q, "INSERT INTO t VALUES(3)")
			end("COMMIT")

			end = begin() // nothing changes
			before = one[int](t, q, "SELECT count(*) FROM t")
			run(t, q, "INSERT INTO t VALUES(3)")
			if n := one[int](t, q, "SELECT count(*) FROM t"); n != before+1 {
				t.Errorf("%d rows, %d before", n, before)
			}
			end("COMMIT")

			end = begin() // writes nothing
			one[int](t, q, "SELECT count(*) FROM t")
			changes()
			end("COMMIT")
		})
	}
	conn := mustConn(t, own)
	run(t, conn, "BEGIN IMMEDIATE") // is not deferred
	ctx, cancel := context.WithTimeout(testrun.Context(t), 50e6)
	defer cancel()
	if _, err := other.ExecContext(ctx, "INSERT INTO t VALUES(9)"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	run(t, conn, "ROLLBACK")
	c.WaitEqual()
}

func TestBusyTimeoutBehindATransaction(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(a)")
	for holder := range c.Len() {
		tx := mustBegin(t, c.DB(holder))
		run(t, tx, "INSERT INTO t VALUES(1)")
		for i := range c.Len() {
			conn := mustConn(t, c.DB(i))
			run(t, conn, "PRAGMA busy_timeout = 30")
			named := fmt.Sprintf("node %d", holder+1)
			_, err := conn.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(2)")
			hasCode(t, err, 5, "database is locked (5) (SQLITE_BUSY)", named)
			_, err = conn.QueryContext(testrun.Context(t), "INSERT INTO t VALUES(2) RETURNING a")
			hasCode(t, err, 5, "database is locked (5) (SQLITE_BUSY)", named)
			_, err = conn.BeginTx(testrun.Context(t), nil)
			hasCode(t, err, 5, "database is locked (5) (SQLITE_BUSY)", named)
			_, err = conn.ExecContext(testrun.Context(t), "BEGIN")
			hasCode(t, err, 5, "database is locked (5) (SQLITE_BUSY)", named)
			run(t, conn, "PRAGMA busy_timeout = 0")
			_, err = conn.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(2)")
			hasCode(t, err, 5, "database is locked (5) (SQLITE_BUSY)", named)
			if n := one[int](t, conn, "SELECT count(*) FROM t WHERE a=2"); n != 0 {
				t.Errorf("%d rows of those that were refused", n)
			}
		}
		commit(t, tx)
		for i := range c.Len() {
			conn := mustConn(t, c.DB(i))
			run(t, conn, "PRAGMA busy_timeout = 60000")
			run(t, conn, "INSERT INTO t VALUES(3)")
		}
	}
	c.WaitReady(0)
	if got := one[string](t, c.DB(0), "SELECT group_concat(n) FROM (SELECT count(*) AS n FROM t GROUP BY a)"); got != "3,9" {
		t.Error(got)
	}
	c.WaitEqual()
}
