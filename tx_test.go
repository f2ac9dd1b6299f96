package hiqlite_test

import (
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sort"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file check what a transaction may do, and when it is too large.

func TestTransactionsReadWhatTheyWrite(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
		for i := range c.Len() {
			tx := mustBegin(t, c.DB(i))
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
			mustCommit(t, tx)
			if err := c.DB(i).QueryRow("SELECT v FROM t WHERE id=?", id).Scan(&v); err != nil {
				t.Error(err)
			}
			tx, err = c.DB(i).Begin()
			if err != nil {
				t.Fatal(err)
			}
			mustExec(t, tx, "DELETE FROM t")
			mustRollback(t, tx)
			if err := c.DB(i).QueryRow("SELECT v FROM t WHERE id=?", id).Scan(&v); err != nil {
				t.Error(err)
			}
		}
		c.WaitEqual()
	})
}

func TestTransactionUsedAfterItsEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, withoutTimeouts)
	db := c.DB(0)
	mustExec(t, db, "CREATE TABLE t(a)")
	for _, end := range []func(*sql.Tx) error{(*sql.Tx).Commit, (*sql.Tx).Rollback} {
		tx := mustBegin(t, db)
		mustExec(t, tx, "INSERT INTO t VALUES(1)")
		if err := end(tx); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{
			"Commit": tx.Commit(), "Rollback": tx.Rollback(),
			"Exec":    errorOf(tx.Exec("INSERT INTO t VALUES(2)")),
			"Query":   errorOf(tx.Query("SELECT 1")),
			"Prepare": errorOf(tx.Prepare("SELECT 1")),
		} {
			if !errors.Is(err, sql.ErrTxDone) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	if n := queryValue[int](t, db, "SELECT count(*) FROM t"); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

// database/sql ends a transaction only once. Programs that call the driver
// directly may do it twice.
func TestDriverTransactionEndedTwice(t *testing.T) {
	c := newCluster(t, 1, withoutTimeouts)
	err := mustConn(t, c.DB(0)).Raw(func(raw any) error {
		begin := func() driver.Tx {
			return must(raw.(driver.ConnBeginTx).BeginTx(testrun.Context(t), driver.TxOptions{}))
		}
		tx := begin()
		if err := tx.Commit(); err != nil {
			return err
		}
		wantCode(t, "a second Commit", tx.Commit(), 1, "no transaction is active")
		wantCode(t, "Rollback after Commit", tx.Rollback(), 1, "no transaction is active")
		next := begin() // which the calls on the ended transaction must not end
		wantCode(t, "Rollback during the next transaction", tx.Rollback(), 1, "no transaction is active")
		wantCode(t, "Commit during the next transaction", tx.Commit(), 1, "no transaction is active")
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
		mustExec(t, db, "CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB)")
		blob := make([]byte, 3<<20)
		rand.Read(blob) // so that zstd cannot compress it
		tx := mustBegin(t, db)
		mustExec(t, tx, "INSERT INTO t(b) VALUES(?)", blob)
		mustExec(t, tx, "SAVEPOINT a")
		mustExec(t, tx, "INSERT INTO t(b) VALUES(?)", blob)
		for range 2 {
			if _, err := tx.Exec("INSERT INTO t(b) VALUES(?)", blob); !errors.Is(err, hiqlite.ErrTooLarge) {
				t.Fatalf("the third: %v", err)
			} else if s := err.Error(); strings.Count(s, "hiqlite:") != 1 || strings.Count(s, "too large") != 1 || !strings.Contains(s, "smaller") {
				t.Fatalf("it says something twice: %v", err)
			}
		}
		if n := queryValue[int](t, tx, "SELECT count(*) FROM t"); n != 2 {
			t.Errorf("%d rows inside", n)
		}
		mustExec(t, tx, "ROLLBACK TO a") // makes room
		mustExec(t, tx, "INSERT INTO t(b) VALUES(?)", blob)
		mustExec(t, tx, "INSERT INTO t(id) VALUES(77)")
		mustCommit(t, tx)
		if n := queryValue[int](t, db, "SELECT count(*) FROM t"); n != 3 {
			t.Errorf("%d rows, want 3", n)
		}
		tx = mustBegin(t, db)
		if _, err := tx.Exec("INSERT INTO t(b) VALUES(?)", make([]byte, 9<<20)); !errors.Is(err, hiqlite.ErrTooLarge) {
			t.Errorf("a statement that alone is too large: %v", err)
		}
		mustCommit(t, tx)
		c.WaitEqual()
	})
}

// If Exec has accepted a write of a transaction, Commit does not fail because the operation
// is too large.
func TestLargestTransactionCanBeCommitted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, withoutTimeouts)
	db := c.DB(0)
	mustExec(t, db, "CREATE TABLE t(b)")
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
	c := newCluster(t, 1, withoutTimeouts)
	db := c.DB(0)
	mustExec(t, db, "CREATE TABLE t(a)")
	tx := mustBegin(t, db)
	mustExec(t, tx, "INSERT INTO t VALUES(1)")
	for _, text := range []string{"BEGIN", "BEGIN IMMEDIATE", "INSERT INTO t VALUES(2); BEGIN; COMMIT"} {
		_, err := tx.Exec(text)
		wantCode(t, text, err, 1, "cannot start a transaction within a transaction")
	}
	mustCommit(t, tx)
	conn := mustConn(t, db)
	mustExec(t, conn, "BEGIN")
	_, err := conn.BeginTx(testrun.Context(t), nil)
	wantCode(t, "BeginTx after BEGIN", err, 1, "cannot start a transaction within a transaction")
	_, err = conn.BeginTx(testrun.Context(t), &sql.TxOptions{ReadOnly: true})
	wantCode(t, "BeginTx of a read-only transaction after BEGIN", err, 1, "cannot start a transaction within a transaction")
	mustExec(t, conn, "INSERT INTO t VALUES(3)")
	mustExec(t, conn, "COMMIT")
	tx = must(conn.BeginTx(testrun.Context(t), nil)) // ended by the statement COMMIT
	mustExec(t, tx, "INSERT INTO t VALUES(4)")
	mustExec(t, tx, "COMMIT")
	wantCode(t, "Commit after COMMIT", tx.Commit(), 1, "cannot commit - no transaction is active")
	mustExec(t, conn, "INSERT INTO t VALUES(5)")
	if got := queryValue[string](t, db, "SELECT group_concat(a) FROM t"); got != "1,2,3,4,5" {
		t.Errorf("got %q, want %q", got, "1,2,3,4,5")
	}
}

func TestVacuumInATransaction(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, withoutTimeouts)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	tx := mustBegin(t, c.DB(0))
	mustExec(t, tx, "INSERT INTO t VALUES(1)")
	for _, text := range []string{"VACUUM", "INSERT INTO t VALUES(2); VACUUM"} {
		if _, err := tx.Exec(text); err == nil {
			t.Errorf("%s has succeeded", text)
		} else {
			wantCode(t, text, err, 1, "VACUUM")
		}
		if _, err := tx.Query(text); err == nil {
			t.Errorf("%s has succeeded", text)
		}
	}
	mustCommit(t, tx)
	if n := queryValue[int](t, c.DB(0), "SELECT count(*) FROM t"); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	mustExec(t, c.DB(0), "VACUUM")
}
