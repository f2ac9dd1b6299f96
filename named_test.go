package hiqlite_test

import (
	"database/sql"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A name that a statement has not is ignored, wherever it runs; an argument by
// place is named in the error.
func TestSurplusArguments(t *testing.T) {
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		run(t, db, "CREATE TABLE t(a, b)")
		a, b, x := sql.Named("a", 1), sql.Named("b", 2), sql.Named("x", 3)
		look := func(q asker) {
			for _, args := range [][]any{{a, b, x}, {x, a, b}, {a, x, b, sql.Named("y", 4)}} {
				run(t, q, "INSERT INTO t VALUES(:a, :b)", args...)
				run(t, q, "INSERT INTO t VALUES(:a, 0); UPDATE t SET b=:b WHERE a=:a", args...)
				if n := one[int](t, q, "SELECT :a+:b", args...); n != 3 {
					t.Errorf("a read: %d", n)
				}
				if n := one[int](t, q, "SELECT :a; SELECT :b", args...); n == 0 {
					t.Errorf("a script that reads: %d", n)
				}
			}
			for _, text := range []string{"INSERT INTO t VALUES(:a, ?)", "SELECT :a, ?"} {
				if _, err := q.ExecContext(testrun.Context(t), text, a, 2, 3); err == nil || !strings.Contains(err.Error(), "argument 3") {
					t.Errorf("%s: %v", text, err)
				}
			}
		}
		look(db)
		tx := mustBegin(t, db)
		look(tx)
		commit(t, tx)
		if n := one[int](t, db, "SELECT count(*) FROM t WHERE a=1 AND b=2"); n != 12 {
			t.Errorf("%d rows", n)
		}
		c.WaitEqual()
	})
}
