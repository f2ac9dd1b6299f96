package hiqlite_test

import (
	"errors"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A node without a leader answers what it does not understand at once, and says
// that it may be behind.
func TestUnknownTablesWithoutAMajority(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	c.WaitEqual()
	c.Stop(1)
	c.Stop(2)
	testrun.WaitFor(t, "the node to notice", func() bool {
		s, err := c.Node(0).Status(testrun.Context(t))
		return err == nil && s.Leader == 0
	})
	ctx := testrun.Context(t) // all of them together: each would once have taken two seconds
	for range 100 {
		_, err := c.DB(0).QueryContext(ctx, "SELECT * FROM nowhere")
		var e *hiqlite.Error
		if !errors.As(err, &e) || e.Message != "SQL logic error: no such table: nowhere (1)" || e.Hint == "" {
			t.Fatalf("%v", err)
		}
		_, err = c.DB(0).ExecContext(ctx, "INSERT INTO nowhere VALUES(1)")
		hasCode(t, err, 1, "no such table: nowhere", "no leader")
		if _, err := c.DB(0).ExecContext(ctx, "SELECT * FROM t"); err != nil {
			t.Fatal(err)
		}
	}
}

// One with a leader catches up before it says that there is no such table.
func TestUnknownTablesAreLookedFor(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		for i := range 30 {
			name := "t" + string(rune('a'+i%26)) + string(rune('a'+i/26))
			mustExec(t, c.DB(i%c.Len()), "CREATE TABLE "+name+"(a)")
			for j := range c.Len() {
				if n := one[int](t, c.DB(j), "SELECT count(*) FROM "+name); n != 0 {
					t.Error(n)
				}
			}
		}
		_, err := c.DB(0).QueryContext(testrun.Context(t), "SELECT * FROM nowhere")
		var e *hiqlite.Error
		if !errors.As(err, &e) || e.Hint != "" {
			t.Errorf("%v: there is a leader who said so", err)
		}
	})
}
