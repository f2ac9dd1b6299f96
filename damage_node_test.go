package hiqlite_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// A node whose disk has flipped bits answers with right rows or an error, also
// linearizably; it stops, and gives nothing of it to the others.
func TestFlippedBitsAreNeverAnswered(t *testing.T) {
	t.Parallel()
	const rows = "SELECT count(*) || ' ' || sum(id*length(v)) || ' ' || (SELECT group_concat(substr(v, -2), '') FROM (SELECT v FROM t ORDER BY v)) FROM t"
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX tv ON t(v)")
		mustExec(t, c.DB(0), "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<3000) INSERT INTO t(v) SELECT printf('%0*d', 50+n%400, n) FROM c")
		var want string
		if err := c.DB(0).QueryRow(rows).Scan(&want); err != nil {
			t.Fatal(err)
		}
		c.WaitEqual()
		bad := c.Len() - 1
		c.Stop(bad) // all is in the database file
		flipBits(t, c.Config(bad).DataDir)
		if c.TryStart(bad) == nil {
			node := c.Node(bad)
			for _, consistency := range []hiqlite.Consistency{hiqlite.Local, hiqlite.Linearizable} {
				var got string
				err := node.DB().QueryRowContext(hiqlite.WithConsistency(testrun.Context(t), consistency), rows).Scan(&got)
				if err == nil {
					t.Errorf("it answers in spite of the damage; right: %v", got == want)
				}
			}
		}
		if c.Len() == 1 {
			return
		}
		for i := range bad {
			mustExec(t, c.DB(i), "UPDATE t SET v=v WHERE id=1")
			var got string
			if err := c.DB(i).QueryRowContext(hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable), rows).Scan(&got); err != nil || got != want {
				t.Errorf("node %d: right: %v, %v", i+1, got == want, err)
			}
		}
	})
}

// flipBits flips a bit in each fourth page of the database of a node that is down.
func flipBits(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "sql", "generation-*", "data.db"))
	if err != nil || len(files) != 1 {
		t.Fatal(fmt.Sprint(files), err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(b), "\x00") == len(b) || len(b) < 40*4096 {
		t.Fatalf("%s has %d bytes", files[0], len(b))
	}
	for at := 10*4096 + 2222; at < len(b); at += 4 * 4096 {
		b[at] ^= 1
	}
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
}
