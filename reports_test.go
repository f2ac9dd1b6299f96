package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// Each test of this file tries a bug that users of other drivers of SQLite, of replicated
// SQLite or of database/sql have reported in public. Its comment names the reports.

// mattn/go-sqlite3 #764 and #488: a context that ends while a transaction begins
// left the transaction open on the pooled connection, and one that ended after
// a statement interrupted the next one.
func TestReportBeginUnderAnEndingContext(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		db.SetMaxOpenConns(1)
		mustExec(t, db, "CREATE TABLE t(n)")
		for i := range 100 {
			ctx, cancel := context.WithCancel(t.Context())
			go cancel()
			if tx, err := db.BeginTx(ctx, nil); err == nil {
				_, _ = tx.Exec("INSERT INTO t VALUES(-1)")
				_ = tx.Rollback()
			}
			cancel()
			tx, err := db.BeginTx(testrun.Context(t), nil)
			if err != nil {
				t.Fatalf("round %d: the next transaction: %v", i, err)
			}
			if _, err := tx.Exec("INSERT INTO t VALUES(?)", i); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			if err := tx.Commit(); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
		}
		var n, least int
		if err := db.QueryRow("SELECT count(*), min(n) FROM t").Scan(&n, &least); err != nil || n != 100 || least != 0 {
			t.Errorf("%d rows, of which the least is %d, want 100 from 0 on, %v", n, least, err)
		}
	})
}

// golang/go #34775: a statement of a transaction whose context had ended was executed
// after the rollback, outside of the transaction, and was not undone.
func TestReportStatementsAfterTheRollback(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, "CREATE TABLE t(n)")
		var committed, unknown [200]bool
		for i := range committed {
			ctx, cancel := context.WithCancel(t.Context())
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			var work sync.WaitGroup
			work.Go(cancel)
			for range 3 {
				_, _ = tx.Exec("INSERT INTO t VALUES(?)", i)
			}
			err = tx.Commit()
			work.Wait()
			committed[i], unknown[i] = err == nil, errors.Is(err, hiqlite.ErrOutcomeUnknown)
		}
		mustExec(t, db, "INSERT INTO t VALUES(-1)") // is applied after all writes that may still be proposed
		for i := range committed {
			switch n := rowsWith(t, db, i); {
			case committed[i] && n == 3, !committed[i] && n == 0, unknown[i] && n == 3:
			default:
				t.Errorf("transaction %d, committed %v, unknown %v, has %d rows", i, committed[i], unknown[i], n)
			}
		}
	})
}

func rowsWith(t *testing.T, db *sql.DB, n int) (rows int) {
	t.Helper()
	ctx := linearizable(t)
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM t WHERE n = ?", n).Scan(&rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

// glebarez/go-sqlite #157: white space after the last semicolon made a query
// fail.
func TestReportSpaceAfterTheSemicolon(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, "CREATE TABLE t(n);\n\t ")
		for _, end := range []string{"; ", ";\n", ";;\t\n;", "; -- the end", ";/* the end */ ", "\n-- no semicolon\n"} {
			if r, err := db.Exec("INSERT INTO t VALUES(?)"+end, 1); err != nil {
				t.Errorf("Exec ending in %q: %v", end, err)
			} else if n, _ := r.RowsAffected(); n != 1 {
				t.Errorf("Exec ending in %q affects %d rows", end, n)
			}
			var n int
			if err := db.QueryRow("SELECT 7" + end).Scan(&n); err != nil || n != 7 {
				t.Errorf("Query ending in %q: %d, %v", end, n, err)
			}
		}
	})
}

// mattn/go-sqlite3 #1284 and #1447: after another connection had changed the schema, a
// query returned the old columns.
func TestReportColumnsAfterAnotherChangedTheSchema(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db, other := c.DB(0), c.DB(c.Len()-1)
		mustExec(t, db, "CREATE TABLE foo(id INTEGER PRIMARY KEY, title TEXT)")
		mustExec(t, db, "INSERT INTO foo VALUES(1, 'one')")
		ctx := linearizable(t)
		held, err := other.PrepareContext(ctx, "SELECT * FROM foo")
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		columns := func(rows *sql.Rows, err error) string {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			names, err := rows.Columns()
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(names, " ")
		}
		for _, step := range []struct{ change, want string }{
			{"", "id title"},
			{"ALTER TABLE foo RENAME COLUMN title TO name", "id name"},
			{"ALTER TABLE foo ADD COLUMN extra DEFAULT 3", "id name extra"},
			{"ALTER TABLE foo DROP COLUMN name", "id extra"},
			{"DROP TABLE foo; CREATE TABLE foo(a, b)", "a b"},
			{"DROP TABLE foo; CREATE VIEW foo AS SELECT 1 AS only", "only"},
		} {
			if step.change != "" {
				mustExec(t, db, step.change)
			}
			if got := columns(other.QueryContext(ctx, "SELECT * FROM foo")); got != step.want {
				t.Errorf("after %q: %s, want %s", step.change, got, step.want)
			}
			if got := columns(held.QueryContext(ctx)); got != step.want {
				t.Errorf("prepared before, after %q: %s, want %s", step.change, got, step.want)
			}
		}
	})
}

// mattn/go-sqlite3 #240: ALTER TABLE while rows are read made Scan panic.
func TestReportAlterWhileRowsAreRead(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, "CREATE TABLE test(id INTEGER PRIMARY KEY, name TEXT); INSERT INTO test(name) VALUES('Bart'), ('Lisa'), ('Maggie')")
		rows, err := db.Query("SELECT * FROM test ORDER BY id")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var names []string
		for rows.Next() {
			var id int
			var name string
			if err := rows.Scan(&id, &name); err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
			if len(names) == 1 {
				mustExec(t, db, "ALTER TABLE test ADD COLUMN data DEFAULT 'missing'")
			}
		}
		if err := rows.Err(); err != nil || !slices.Equal(names, []string{"Bart", "Lisa", "Maggie"}) {
			t.Errorf("read %v, %v", names, err)
		}
	})
}

// rqlite #382: a dump could not be loaded, because it begins a transaction.
func TestReportDumpWithATransaction(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, `PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE foo (id INTEGER NOT NULL PRIMARY KEY, name TEXT);
INSERT INTO "foo" VALUES(1,'fiona');
INSERT INTO "foo" VALUES(2,'fiona2222');
COMMIT;`)
		var n int
		if err := db.QueryRow("SELECT count(*) FROM foo").Scan(&n); err != nil || n != 2 {
			t.Errorf("%d rows, want 2, %v", n, err)
		}
	})
}

// rqlite #1010: a start that failed emptied the database.
func TestReportFailedStartKeepsTheData(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n); INSERT INTO t VALUES(1), (2), (3)")
	if err := c.Node(2).Ready(testrun.Context(t)); err != nil {
		t.Fatal(err)
	}
	c.Stop(2)
	taken, err := net.Listen("tcp", c.Config(2).Nodes[2].RaftAddr)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if node, err := hiqlite.Open(testrun.Context(t), c.Config(2)); err == nil {
			node.Close()
			t.Fatal("the node started, though its port is taken")
		}
	}
	taken.Close()
	c.Start(2)
	c.WaitReady(2)
	var n int
	if err := c.DB(2).QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 3 {
		t.Errorf("%d rows, want 3, %v", n, err)
	}
}

// glebarez/go-sqlite #89, mattn/go-sqlite3 #274 and zombiezen/go-sqlite #128:
// goroutines that write, some of them in transactions that read first, got
// "database is locked".
func TestReportManyWriters(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER); INSERT INTO account VALUES(1, 0)")
		var work sync.WaitGroup
		const writers, rounds = 12, 10
		for w := range writers {
			db := c.DB(w % c.Len())
			work.Go(func() {
				for range rounds {
					if w%2 == 0 {
						if _, err := db.ExecContext(testrun.Context(t), "UPDATE account SET balance = balance + 1 WHERE id = 1"); err != nil {
							t.Errorf("a write: %v", err)
						}
						continue
					}
					tx, err := db.BeginTx(testrun.Context(t), nil)
					if err != nil {
						t.Errorf("begin: %v", err)
						continue
					}
					var balance int
					err = tx.QueryRow("SELECT balance FROM account WHERE id = 1").Scan(&balance)
					if err == nil {
						_, err = tx.Exec("UPDATE account SET balance = ? WHERE id = 1", balance+1)
					}
					if err := errors.Join(err, tx.Commit()); err != nil {
						t.Errorf("a transaction: %v", err)
					}
				}
			})
		}
		work.Wait()
		var balance int
		// The last write may have been made through another node.
		ctx := linearizable(t)
		if err := c.DB(0).QueryRowContext(ctx, "SELECT balance FROM account").Scan(&balance); err != nil || balance != writers*rounds {
			t.Errorf("the balance is %d, %v; want %d", balance, err, writers*rounds)
		}
	})
}

// gogf/gf #4858 and golang/go #18961: a result of which rows were missing looked like a
// complete one.
func TestReportTruncatedRowsAreAnError(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		rows, err := db.QueryContext(ctx, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 100000000) SELECT i FROM n")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		read := 0
		for rows.Next() {
			if read++; read == 1000 {
				cancel()
			}
		}
		if err := rows.Err(); !errors.Is(err, context.Canceled) {
			t.Errorf("after %d rows: %v", read, err)
		}
		if err := db.QueryRow("SELECT abs(-9223372036854775808)").Scan(new(int)); err == nil {
			t.Error("an error of the first row is lost")
		}
		rows, err = db.Query("SELECT abs(i) FROM (SELECT 1 AS i UNION ALL SELECT -9223372036854775808)")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for read = 0; rows.Next(); read++ {
		}
		if err := rows.Err(); err == nil || !strings.Contains(err.Error(), "integer overflow") || read != 1 {
			t.Errorf("an error after %d rows: %v", read, err)
		}
	})
}

// golang/go #9373, lib/pq #72: unsigned integers from 2^63 on. SQLite has none,
// so they stay an error; nothing is stored that would compare wrongly.
func TestReportUnsignedIntegers(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, "CREATE TABLE t(n INTEGER)")
		mustExec(t, db, "INSERT INTO t VALUES(?)", uint64(math.MaxInt64))
		if _, err := db.Exec("INSERT INTO t VALUES(?)", uint64(math.MaxUint64)); err == nil {
			t.Error("2^64-1 was stored")
		}
		if _, err := hiqlite.Batch(t.Context(), db, hiqlite.Statement{SQL: "INSERT INTO t VALUES(?)", Args: []any{uint64(math.MaxUint64)}}); err == nil {
			t.Error("2^64-1 was stored by a batch")
		}
		var got string
		if err := db.QueryRow("SELECT group_concat(n) FROM t").Scan(&got); err != nil || got != fmt.Sprint(math.MaxInt64) {
			t.Errorf("the table holds %s, %v", got, err)
		}
	})
}
