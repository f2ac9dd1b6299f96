package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

const localTimes = `SELECT datetime('2024-07-01 12:00:00','localtime') || ' ' || datetime('2024-01-01 12:00:00','localtime') || ' ' ||
	datetime('2024-07-01 12:00:00','utc') || ' ' || datetime('1950-07-01 12:00:00','localtime') || ' ' || datetime('2080-01-01 12:00:00','localtime')`

// one zone, in reads, writes and transactions of all nodes.
func sameZone(t *testing.T, c *testCluster, want string) {
	t.Helper()
	for i := range c.Len() {
		db := c.DB(i)
		if err := c.Node(i).Ready(testrun.Context(t)); err != nil {
			t.Fatal(err)
		}
		if got := one[string](t, db, localTimes); got != want {
			t.Errorf("a read on node %d: %s, want %s", i+1, got, want)
		}
		run(t, db, "CREATE TABLE IF NOT EXISTS zone(at)")
		if got := one[string](t, db, "INSERT INTO zone "+localTimes+" RETURNING at"); got != want {
			t.Errorf("a write on node %d: %s, want %s", i+1, got, want)
		}
		tx := mustBegin(t, db)
		run(t, tx, "INSERT INTO zone "+localTimes)
		if got := one[string](t, tx, localTimes); got != want {
			t.Errorf("a transaction on node %d: %s, want %s", i+1, got, want)
		}
		commit(t, tx)
		read, err := db.BeginTx(testrun.Context(t), &sql.TxOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := one[string](t, read, localTimes); got != want {
			t.Errorf("a transaction that reads on node %d: %s, want %s", i+1, got, want)
		}
		read.Rollback()
		if n := one[int](t, db, "SELECT count(DISTINCT at) FROM zone"); n != 1 {
			t.Errorf("%d different times stand in the table", n)
		}
	}
	c.WaitEqual()
}

const (
	inUTC    = "2024-07-01 12:00:00 2024-01-01 12:00:00 2024-07-01 12:00:00 1950-07-01 12:00:00 2080-01-01 12:00:00"
	inBerlin = "2024-07-01 14:00:00 2024-01-01 13:00:00 2024-07-01 10:00:00 1950-07-01 14:00:00 2080-01-01 13:00:00"
)

// The process's own zone is an odd one: run again with TZ set.
func TestLocaltimeIsTheClusters(t *testing.T) {
	if os.Getenv("TZ") != "Asia/Kathmandu" {
		child := exec.Command(os.Args[0], "-test.run=^TestLocaltimeIsTheClusters$", "-test.v")
		child.Env = append(os.Environ(), "TZ=Asia/Kathmandu")
		if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestLocaltimeIsTheClusters/a_zone/nodes=3") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	t.Run("UTC", func(t *testing.T) {
		eachSize(t, func(t *testing.T, c *testCluster) { sameZone(t, c, inUTC) })
	})
	for _, size := range []int{1, 3} {
		t.Run("a zone/nodes="+string(rune('0'+size)), func(t *testing.T) {
			c := newCluster(t, size, func(cfg *hiqlite.Config) { cfg.Timezone = "Europe/Berlin" })
			sameZone(t, c, inBerlin)
			// It stays, for who does not name it too, and no other one is taken.
			c.Stop(size - 1)
			c.Configure(size-1, func(cfg *hiqlite.Config) { cfg.Timezone = "" })
			c.Start(size - 1)
			c.WaitReady(size - 1)
			sameZone(t, c, inBerlin)
		})
	}
}

func TestANodeInAnotherZoneAnswersNoSQL(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		if cfg.NodeID < 3 {
			cfg.Timezone = "Europe/Berlin"
		}
	})
	sameZone(t, c, inBerlin)
	c.Stop(2)
	c.Configure(2, func(cfg *hiqlite.Config) { cfg.Timezone = "America/Bogota" })
	c.Start(2)
	for _, query := range []string{"SELECT 1", "INSERT INTO zone VALUES(1)", "BEGIN"} {
		_, err := c.DB(2).ExecContext(testrun.Context(t), query)
		if err == nil || !strings.Contains(err.Error(), "Europe/Berlin") || !strings.Contains(err.Error(), "America/Bogota") || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", query, err)
		}
	}
	if _, err := c.DB(2).BeginTx(testrun.Context(t), nil); err == nil {
		t.Error("a transaction began")
	}
	if err := c.Node(2).Ready(testrun.Context(t)); err == nil || !strings.Contains(err.Error(), "Europe/Berlin") {
		t.Errorf("Ready: %v", err)
	}
	run(t, c.DB(0), "INSERT INTO zone VALUES('goes on')")
}

func TestTimezoneFaults(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Mars/Base", "Local"} {
		if err := (hiqlite.Config{DataDir: t.TempDir(), Timezone: name}).Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
