package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

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

// SAVEPOINT reads nothing: what others write before the first statement is not
// in the way, as with SQLite.
func TestSavepointReadsNothing(t *testing.T) {
	t.Parallel()
	for _, begin := range []string{"SAVEPOINT a", "BEGIN; SAVEPOINT a", "SAVEPOINT a; SAVEPOINT b; ROLLBACK TO b"} {
		t.Run(begin, func(t *testing.T) {
			p := newPair(t, "_txlock=deferred")
			others := p.open("_txlock=deferred")
			for i, c := range p.conns {
				run(t, c, "CREATE TABLE t(a)")
				run(t, c, begin)
				run(t, others[i], "INSERT INTO t VALUES(1)")
				if _, err := c.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(2)"); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			}
		})
	}
}
