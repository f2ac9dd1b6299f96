package hiqlite_test

import (
	"database/sql"
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

func TestMain(m *testing.M) {
	process.Serve(openCompacting)
	testrun.MoreParallel()
	goleak.VerifyTestMain(m)
}

// A testCluster is a cluster of nodes in this process.
type testCluster struct {
	*hiqlitetest.Cluster
	t testing.TB
}

// newCluster starts a cluster and waits until every node is ready.
func newCluster(t testing.TB, size int, change ...func(*hiqlite.Config)) *testCluster {
	t.Helper()
	var options []hiqlitetest.Option
	for _, f := range change {
		options = append(options, hiqlitetest.WithConfig(f))
	}
	return &testCluster{hiqlitetest.NewCluster(t, size, options...), t}
}

// eachSize runs a test on a cluster of one node and on one of three.
func eachSize(t *testing.T, test func(t *testing.T, c *testCluster), change ...func(*hiqlite.Config)) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) { test(t, newCluster(t, size, change...)) })
	}
}

// freePorts returns addresses of this machine for n nodes.
func freePorts(t testing.TB, n int) []string {
	t.Helper()
	addresses, err := loopback.Addresses(n)
	if err != nil {
		t.Fatal(err)
	}
	return addresses
}

func mustExec(t testing.TB, db *sql.DB, query string, args ...any) sql.Result {
	t.Helper()
	r, err := db.ExecContext(testrun.Context(t), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return r
}

func TestWriteThenRead(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
		for i := range c.Len() {
			r := mustExec(t, c.DB(i), "INSERT INTO t(v) VALUES(?)", fmt.Sprint("node ", i))
			id, _ := r.LastInsertId()
			var got string
			if err := c.DB(i).QueryRowContext(testrun.Context(t), "SELECT v FROM t WHERE id=?", id).Scan(&got); err != nil || got != fmt.Sprint("node ", i) {
				t.Errorf("node %d reads %q, %v of what it wrote", i+1, got, err)
			}
		}
		ctx := hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable)
		for i := range c.Len() {
			var n int
			if err := c.DB(i).QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&n); err != nil || n != c.Len() {
				t.Errorf("node %d counts %d rows, %v", i+1, n, err)
			}
		}
		c.WaitEqual()
	})
}
