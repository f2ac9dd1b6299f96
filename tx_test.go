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

func TestVacuumInATransaction(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, unhurried)
	run(t, c.DB(0), "CREATE TABLE t(a)")
	tx := mustBegin(t, c.DB(0))
	run(t, tx, "INSERT INTO t VALUES(1)")
	for _, text := range []string{"VACUUM", "INSERT INTO t VALUES(2); VACUUM"} {
		if _, err := tx.Exec(text); err == nil {
			t.Errorf("%s: no error", text)
		} else {
			hasCode(t, err, 1, "VACUUM")
		}
		if _, err := tx.Query(text); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
	commit(t, tx)
	if n := one[int](t, c.DB(0), "SELECT count(*) FROM t"); n != 1 {
		t.Errorf("%d rows", n)
	}
	run(t, c.DB(0), "VACUUM")
}
