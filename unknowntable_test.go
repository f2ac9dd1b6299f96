package hiqlite_test

import (
	"errors"
	"testing"

	"github.com/hiqlite/hiqlite"
)

// A node without a leader answers what it does not understand at once, and says
// that it may be behind.
func TestUnknownTablesWithoutAMajority(t *testing.T) {
	c := newCluster(t, 3)
	mustExec(t, c.db(0), "CREATE TABLE t(a)")
	c.equal()
	c.stop(1)
	c.stop(2)
	waitFor(t, "the node to notice", func() bool {
		s, err := c.nodes[0].Status(patient(t))
		return err == nil && s.Leader == 0
	})
	ctx := patient(t) // all of them together: each would once have taken two seconds
	for range 100 {
		_, err := c.db(0).QueryContext(ctx, "SELECT * FROM nowhere")
		var e *hiqlite.Error
		if !errors.As(err, &e) || e.Message != "SQL logic error: no such table: nowhere (1)" || e.Hint == "" {
			t.Fatalf("%v", err)
		}
		_, err = c.db(0).ExecContext(ctx, "INSERT INTO nowhere VALUES(1)")
		hasCode(t, err, 1, "no such table: nowhere", "no leader")
		if _, err := c.db(0).ExecContext(ctx, "SELECT * FROM t"); err != nil {
			t.Fatal(err)
		}
	}
}

// One with a leader catches up before it says that there is no such table.
func TestUnknownTablesAreLookedFor(t *testing.T) {
	eachSize(t, func(t *testing.T, c *testCluster) {
		for i := range 30 {
			name := "t" + string(rune('a'+i%26)) + string(rune('a'+i/26))
			mustExec(t, c.db(i%len(c.nodes)), "CREATE TABLE "+name+"(a)")
			for j := range c.nodes {
				if n := one[int](t, c.db(j), "SELECT count(*) FROM "+name); n != 0 {
					t.Error(n)
				}
			}
		}
		_, err := c.db(0).QueryContext(patient(t), "SELECT * FROM nowhere")
		var e *hiqlite.Error
		if !errors.As(err, &e) || e.Hint != "" {
			t.Errorf("%v: there is a leader who said so", err)
		}
	})
}
