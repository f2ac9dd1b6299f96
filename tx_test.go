package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

func TestTransactionsReadWhatTheyWrite(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
		for i := range c.Len() {
			tx, err := c.DB(i).BeginTx(testrun.Context(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			r, err := tx.Exec("INSERT INTO t(v) VALUES(?)", "a")
			if err != nil {
				t.Fatal(err)
			}
			id, _ := r.LastInsertId()
			var v string
			if err := tx.QueryRow("SELECT v FROM t WHERE id=?", id).Scan(&v); err != nil || v != "a" {
				t.Fatalf("%q, %v", v, err)
			}
			for j := range c.Len() {
				var n int
				if err := c.DB(j).QueryRow("SELECT count(*) FROM t WHERE id=?", id).Scan(&n); err != nil || n != 0 {
					t.Errorf("node %d sees %d uncommitted rows, %v", j+1, n, err)
				}
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := c.DB(i).QueryRow("SELECT v FROM t WHERE id=?", id).Scan(&v); err != nil {
				t.Error(err)
			}
			tx, err = c.DB(i).Begin()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("DELETE FROM t"); err != nil {
				t.Fatal(err)
			}
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			if err := c.DB(i).QueryRow("SELECT v FROM t WHERE id=?", id).Scan(&v); err != nil {
				t.Error(err)
			}
		}
		c.WaitEqual()
	})
}

// Tools that empty a database drop all tables that sqlite_master lists.
func TestDroppingAllTables(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE a(x); CREATE TABLE b(x); INSERT INTO a VALUES(1)")
		err := hiqlite.RunTx(testrun.Context(t), c.DB(0), nil, func(tx *sql.Tx) error {
			rows, err := tx.Query("SELECT name FROM sqlite_master WHERE type='table'")
			if err != nil {
				return err
			}
			defer rows.Close()
			var names []string
			for rows.Next() {
				var name string
				if err := rows.Scan(&name); err != nil {
					return err
				}
				names = append(names, name)
			}
			for _, name := range names {
				if _, err := tx.Exec("DROP TABLE " + name); err != nil {
					return err
				}
			}
			return rows.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		mustExec(t, c.DB(0), "DROP TABLE sqlite_hiqlite")
		var n int
		if err := c.DB(0).QueryRow("SELECT count(*) FROM sqlite_master WHERE name IN ('a', 'b')").Scan(&n); err != nil || n != 0 {
			t.Errorf("%d tables are left, %v", n, err)
		}
		mustExec(t, c.DB(0), "CREATE TABLE a(x)")
		c.WaitEqual()
		c.Stop(0)
		c.Start(0) // what makes writes apply once is still there
		c.WaitReady(0)
		c.WaitEqual()
	})
}

// A node closes at once, too, when it has just kept a lease for a next
// transaction, or has one to give back.
func TestCloseAfterTransactions(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	for range 5 {
		for i := range 3 { // the later ones find a lease that was kept
			tx := mustBegin(t, c.DB(0))
			if _, err := tx.Exec("CREATE TABLE IF NOT EXISTS t(a)"); err != nil {
				t.Fatal(err)
			}
			if i < 2 {
				if err := tx.Commit(); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.Stop(0)
		c.Start(0)
		c.WaitReady(0)
	}
}

func mustBegin(t testing.TB, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(testrun.Context(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// Three nodes come up with migrations, each at its own time: all are ready with
// the schema in place.
func TestNodesMigrateAtTheirStart(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{
		"1_accounts.sql": {Data: []byte("CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER)")},
		"2_first.sql":    {Data: []byte("INSERT INTO account(balance) VALUES(7)")},
	}
	c := newCluster(t, 3, func(cfg *hiqlite.Config) { cfg.Migrations = files })
	for i := range c.Len() {
		var n, sum int
		if err := c.DB(i).QueryRow("SELECT count(*), sum(balance) FROM account").Scan(&n, &sum); err != nil || n != 1 || sum != 7 {
			t.Errorf("node %d: %d rows, sum %d, %v", i+1, n, sum, err)
		}
	}
	c.WaitEqual()
	c.Stop(2)
	c.Configure(2, func(cfg *hiqlite.Config) {
		cfg.Migrations = fstest.MapFS{"1_accounts.sql": {Data: []byte("CREATE TABLE other(id)")}, "2_first.sql": files["2_first.sql"]}
	})
	c.Start(2)
	if err := c.Node(2).Ready(testrun.Context(t)); err == nil || !strings.Contains(err.Error(), "1_accounts.sql") {
		t.Errorf("an altered migration: %v", err)
	}
}

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

// Texts are classified by the transaction itself once it has TEMP objects, or has
// changed the schema: changes() answered 0 after that.
func TestCountersSurviveClassification(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		conn := mustConn(t, c.DB(0))
		for _, text := range []string{
			"CREATE TABLE t(a)", "CREATE TEMP TABLE x(a)", "BEGIN", "CREATE TABLE u(a)", "INSERT INTO u VALUES(1),(2),(3)", "UPDATE u SET a = changes()",
			"INSERT INTO t VALUES(0),(0)", "UPDATE t SET a = changes() WHERE a = 0", "UPDATE t SET a = a * 100 + changes() * 10 + last_insert_rowid()", "COMMIT",
		} {
			if _, err := conn.ExecContext(testrun.Context(t), text); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
		if got := one[string](t, c.DB(0), "SELECT (SELECT group_concat(a) FROM u) || ' ' || (SELECT group_concat(a) FROM t)"); got != "3,3,3 222,222" {
			t.Error(got)
		}
	})
}
