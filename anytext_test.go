package hiqlite_test

import (
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// SQLite calls a file malformed and a statement that it cannot read back: the
// latter is the statement's error, alone and in a transaction, and no node
// stops, neither now nor at its next start.
func TestAStatementsErrorIsNotTheDisks(t *testing.T) {
	t.Parallel()
	const malformed = "CREATE VIEW IF NOT EXISTS IF AS SELECT null"
	eachSize(t, func(t *testing.T, nodes *testCluster) {
		c := sturdy{nodes}
		mustExec(t, c.DB(0), "CREATE TABLE kept(id INTEGER PRIMARY KEY, v TEXT UNIQUE)")
		mustExec(t, c.DB(0), "INSERT INTO kept(v) VALUES('a'),('b'),('c')")
		db := c.DB(0)
		_, err := db.ExecContext(testrun.Context(t), malformed)
		refusal(t, malformed, err, 11, "malformed database schema (IF)")
		c.unharmed(malformed)

		tx, err := db.BeginTx(testrun.Context(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec("INSERT INTO kept(v) VALUES('d')"); err != nil {
			t.Fatal(err)
		}
		_, err = tx.Exec(malformed)
		refusal(t, malformed, err, 11, "malformed database schema (IF)")
		// In plain SQLite the COMMIT fails.
		if err := tx.Commit(); err == nil {
			t.Error("the transaction was committed")
		}
		c.unharmed(malformed + " in a transaction")
		var n int
		if err := db.QueryRowContext(hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable), "SELECT count(*) FROM kept").Scan(&n); err != nil || n != 3 {
			t.Errorf("%d rows, %v", n, err)
		}
		for i := range c.Len() {
			c.Stop(i)
		}
		for i := range c.Len() {
			c.Start(i)
		}
		c.unharmed("a restart")
	})
}
