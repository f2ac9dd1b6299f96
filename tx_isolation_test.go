package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file check what transactions see of each other.

// Transactions are serializable, which satisfies every weaker level. With
// LevelLinearizable, a transaction also sees all writes that were acknowledged
// before it began, on any node.
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
					mustExec(t, tx, "INSERT INTO t VALUES(?)", int(level))
					mustCommit(t, tx)
					for j := range c.Len() {
						tx, err := c.DB(j).BeginTx(testrun.Context(t), &sql.TxOptions{Isolation: level, ReadOnly: true})
						if err != nil {
							t.Fatalf("%v, read-only: %v", level, err)
						}
						_, err = tx.Exec("INSERT INTO t VALUES(0)")
						wantCode(t, "a write in a read-only transaction", err, 8, "readonly")
						mustCommit(t, tx)
					}
				}
			}
		}
		for _, level := range []sql.IsolationLevel{-1, sql.LevelLinearizable + 1} {
			_, err := c.DB(0).BeginTx(testrun.Context(t), &sql.TxOptions{Isolation: level})
			wantCode(t, fmt.Sprint("isolation level ", int(level)), err, 1, "not known", "serializable")
		}
		want := queryValue[int](t, c.DB(0), "SELECT count(*) FROM t")
		for range 50 {
			mustExec(t, c.DB(0), "INSERT INTO t VALUES(9)")
			want++
			for i := range c.Len() {
				for _, db := range []*sql.DB{c.DB(i), deferred[i]} {
					tx, err := db.BeginTx(testrun.Context(t), &sql.TxOptions{Isolation: sql.LevelLinearizable, ReadOnly: db == c.DB(i)})
					if err != nil {
						t.Fatal(err)
					}
					if n := queryValue[int](t, tx, "SELECT count(*) FROM t"); n != want {
						t.Errorf("node %d sees %d rows of %d", i+1, n, want)
					}
					mustCommit(t, tx)
				}
			}
		}
	})
}

// openDeferred opens a sql.DB on each node, whose transactions are deferred.
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

// A read-only transaction sees one state of the rows, refuses writes, and does not
// wait for the holder of the write lease.
func TestReadOnlyTransactions(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		own, other := c.DB(0), c.DB(c.Len()-1)
		mustExec(t, own, "CREATE TABLE t(a)")
		mustExec(t, own, "INSERT INTO t VALUES(1)")
		writer := mustBegin(t, other) // does not block the read-only transaction
		tx, err := own.BeginTx(testrun.Context(t), &sql.TxOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"INSERT INTO t VALUES(2)", "UPDATE t SET a=2", "DELETE FROM t", "CREATE TABLE u(a)", "DROP TABLE t", "PRAGMA user_version=3", "SELECT 1; INSERT INTO t VALUES(2)", "INSERT INTO t VALUES(2); DELETE FROM t"} {
			_, err := tx.Exec(text)
			wantCode(t, "Exec of "+text, err, 8, "attempt to write a readonly database")
			_, err = tx.Query(text)
			wantCode(t, "Query of "+text, err, 8, "attempt to write a readonly database")
		}
		rows := func() string { return queryValue[string](t, tx, "SELECT group_concat(a) FROM t") }
		if got := rows(); got != "1" {
			t.Errorf("got %q, want %q", got, "1")
		}
		mustExec(t, writer, "INSERT INTO t VALUES(3)")
		mustCommit(t, writer)
		mustExec(t, own, "INSERT INTO t VALUES(4)")
		mustExec(t, other, "INSERT INTO t VALUES(5)")
		mustExec(t, own, "INSERT INTO t VALUES(6)") // is applied after the other node's row, so this node has both
		if got := rows(); got != "1" {
			t.Errorf("the read-only transaction sees later rows: %s", got)
		}
		mustCommit(t, tx)
		if got := queryValue[string](t, own, "SELECT group_concat(a) FROM t"); got != "1,3,4,5,6" {
			t.Errorf("got %q, want %q", got, "1,3,4,5,6")
		}
	})
}

func TestNothingUncommittedIsRead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, withoutTimeouts)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(1)")
	c.WaitEqual() // local reads find the table on all nodes
	for i := range c.Len() {
		tx := mustBegin(t, c.DB(i))
		mustExec(t, tx, "UPDATE t SET a = 2")
		mustExec(t, tx, "CREATE TABLE u(a)")
		for j := range c.Len() {
			for _, level := range []hiqlite.Consistency{hiqlite.Local, hiqlite.Linearizable} {
				ctx := hiqlite.WithConsistency(testrun.Context(t), level)
				var a, tables int
				if err := c.DB(j).QueryRowContext(ctx, "SELECT a, (SELECT count(*) FROM sqlite_schema WHERE name='u') FROM t").Scan(&a, &tables); err != nil || a != 1 || tables != 0 {
					t.Errorf("%v, on node %d of node %d's transaction: %d, %d tables, %v", level, j+1, i+1, a, tables, err)
				}
			}
		}
		mustRollback(t, tx)
	}
}

// A deferred transaction takes the write lease with its first write. This write
// fails if rows have changed since the transaction first read.
func TestDeferredTransactions(t *testing.T) {
	c := newCluster(t, 3, withoutTimeouts, func(cfg *hiqlite.Config) { cfg.Conn.Deferred = true })
	own, other := c.DB(0), c.DB(1)
	mustExec(t, own, "CREATE TABLE t(a)")
	changes := func() { // of another node, which the first node has applied afterwards
		mustExec(t, other, "INSERT INTO t VALUES(1)")
		mustExec(t, own, "INSERT INTO t VALUES(2)")
	}
	changes()
	for _, first := range []string{"", "BEGIN", "BEGIN DEFERRED TRANSACTION"} {
		t.Run("begun by "+first, func(t *testing.T) {
			var q querier
			begin := func() (end func(how string)) {
				if first == "" {
					tx := mustBegin(t, own)
					q = tx
					return func(how string) {
						if how == "COMMIT" {
							mustCommit(t, tx)
						} else {
							mustRollback(t, tx)
						}
					}
				}
				conn := mustConn(t, own)
				mustExec(t, conn, first)
				q = conn
				return func(how string) { mustExec(t, conn, how) }
			}
			end := begin()
			before := queryValue[int](t, q, "SELECT count(*) FROM t")
			changes()
			_, err := q.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(3)")
			wantCode(t, "a write after others changed rows", err, 517, "database is locked")
			if n := queryValue[int](t, q, "SELECT count(*) FROM t"); n != before {
				t.Errorf("%d rows, %d before", n, before)
			}
			changes() // would wait if the failed write held the lease
			end("ROLLBACK")

			end = begin() // reads nothing
			changes()
			mustExec(t, q, "INSERT INTO t VALUES(3)")
			end("COMMIT")

			end = begin() // nothing changes
			before = queryValue[int](t, q, "SELECT count(*) FROM t")
			mustExec(t, q, "INSERT INTO t VALUES(3)")
			if n := queryValue[int](t, q, "SELECT count(*) FROM t"); n != before+1 {
				t.Errorf("%d rows, %d before", n, before)
			}
			end("COMMIT")

			end = begin() // writes nothing
			queryValue[int](t, q, "SELECT count(*) FROM t")
			changes()
			end("COMMIT")
		})
	}
	conn := mustConn(t, own)
	mustExec(t, conn, "BEGIN IMMEDIATE") // takes the lease at once
	ctx, cancel := context.WithTimeout(testrun.Context(t), 50e6)
	defer cancel()
	if _, err := other.ExecContext(ctx, "INSERT INTO t VALUES(9)"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	mustExec(t, conn, "ROLLBACK")
	c.WaitEqual()
}

// SAVEPOINT does not read, as in SQLite. So a write that another connection commits
// before the first statement does not make the transaction fail.
func TestSavepointReadsNothing(t *testing.T) {
	t.Parallel()
	for _, begin := range []string{"SAVEPOINT a", "BEGIN; SAVEPOINT a", "SAVEPOINT a; SAVEPOINT b; ROLLBACK TO b"} {
		t.Run(begin, func(t *testing.T) {
			p := newPair(t, "_txlock=deferred")
			others := p.open("_txlock=deferred")
			for i, c := range p.conns {
				mustExec(t, c, "CREATE TABLE t(a)")
				mustExec(t, c, begin)
				mustExec(t, others[i], "INSERT INTO t VALUES(1)")
				if _, err := c.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(2)"); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			}
		})
	}
}
