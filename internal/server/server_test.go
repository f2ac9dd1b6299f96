package server_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRemoteDatabase(t *testing.T) {
	c := hiqlitetest.NewCluster(t, 1)
	db := c.Remote(0).DB()
	ctx := testrun.Context(t)
	if _, err := db.ExecContext(ctx, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)"); err != nil {
		t.Fatal(err)
	}
	r, err := db.ExecContext(ctx, "INSERT INTO t(b) VALUES(?), (?)", "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := r.RowsAffected(); n != 2 {
		t.Errorf("%d rows", n)
	}
	var n int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&n); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
}
