package hiqlite_test

import (
	"database/sql"
	"testing"
)

func TestTransactionsReadWhatTheyWrite(t *testing.T) {
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.db(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
		for i := range c.nodes {
			tx, err := c.db(i).BeginTx(patient(t), nil)
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
			for j := range c.nodes {
				var n int
				if err := c.db(j).QueryRow("SELECT count(*) FROM t WHERE id=?", id).Scan(&n); err != nil || n != 0 {
					t.Errorf("node %d sees %d uncommitted rows, %v", j+1, n, err)
				}
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := c.db(i).QueryRow("SELECT v FROM t WHERE id=?", id).Scan(&v); err != nil {
				t.Error(err)
			}
			tx, err = c.db(i).Begin()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("DELETE FROM t"); err != nil {
				t.Fatal(err)
			}
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			if err := c.db(i).QueryRow("SELECT v FROM t WHERE id=?", id).Scan(&v); err != nil {
				t.Error(err)
			}
		}
		c.equal()
	})
}

func mustBegin(t testing.TB, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(patient(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}
