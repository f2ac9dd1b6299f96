package hiqlite_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file let nodes believe that their disks are full.

// A node refuses writes when little space is left on its disk, and is paused when less
// is left: it takes no part in the cluster, so that the Raft log needs no space. It
// serves local reads all the time, loses nothing, and goes on by itself when there is
// space again.
func TestFullDisk(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 40)
	hook := func(cfg *hiqlite.Config) {
		cfg.HookDiskSpace(func(string) (int64, int64, error) { return free.Load(), 1 << 40, nil })
	}
	eachSize(t, func(t *testing.T, c *testCluster) {
		t.Cleanup(func() { free.Store(1 << 40) })
		mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
		written := 0
		write := func() error {
			_, err := c.DB(0).ExecContext(testrun.Context(t), "INSERT INTO t DEFAULT VALUES")
			if err == nil {
				written++
			}
			return err
		}
		checkRows := func(when string) {
			t.Helper()
			var n int
			if err := c.DB(0).QueryRowContext(testrun.Context(t), "SELECT count(*) FROM t").Scan(&n); err != nil || n != written {
				t.Errorf("%s: %d rows, want %d, %v", when, n, written, err)
			}
		}
		free.Store(200 << 20)
		testrun.WaitFor(t, "writes to be refused", func() bool {
			err := write()
			if err != nil && !errors.Is(err, hiqlite.ErrDiskFull) {
				t.Fatal(err)
			}
			return err != nil
		})
		checkRows("while writes are refused")
		free.Store(1 << 40)
		testrun.WaitFor(t, "writes to succeed again", func() bool { return write() == nil })
		free.Store(1 << 20)
		testrun.WaitFor(t, "all nodes to be paused", func() bool {
			for _, n := range c.Nodes() {
				s, err := n.Status(testrun.Context(t))
				if err != nil {
					t.Fatal(err)
				}
				for _, shard := range s.Shards {
					if shard.Error == "" {
						return false
					}
				}
			}
			return true
		})
		if err := write(); !errors.Is(err, hiqlite.ErrDiskFull) {
			t.Errorf("a write through a paused node: %v", err)
		}
		if _, err := bucketOf(t, c.Node(0), "b").Delete(testrun.Context(t), "k"); !errors.Is(err, hiqlite.ErrDiskFull) {
			t.Errorf("a Delete through a paused node: %v", err)
		}
		checkRows("while the nodes are paused")
		if c.Len() > 1 {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			testrun.WaitFor(t, "the cluster to have no leader", func() bool { s, _ := c.Node(0).Status(testrun.Context(t)); return s.Leader == 0 })
			if err := c.Node(0).Ready(ctx); !errors.Is(err, hiqlite.ErrDiskFull) {
				t.Errorf("Ready of a paused node: %v, want ErrDiskFull", err)
			}
		}
		free.Store(1 << 40)
		testrun.WaitFor(t, "writes to succeed again", func() bool { return write() == nil })
		checkRows("afterwards")
		c.WaitEqual()
	}, hook)
}

// One of three nodes has no space left: the others go on, and later it catches up.
func TestOneFullDiskOfThree(t *testing.T) {
	var low atomic.Bool
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		full := cfg.NodeID == 2
		cfg.HookDiskSpace(func(string) (int64, int64, error) {
			if full && low.Load() {
				return 1 << 20, 1 << 40, nil
			}
			return 1 << 39, 1 << 40, nil
		})
	})
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
	c.insert(0, 5)
	c.WaitEqual()
	low.Store(true)
	testrun.WaitFor(t, "the node to be paused", func() bool {
		s, err := c.Node(1).Status(testrun.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		return s.Shards[0].Error != ""
	})
	c.insert(0, 50)
	n := 0
	if err := c.DB(1).QueryRowContext(testrun.Context(t), "SELECT count(*) FROM t").Scan(&n); err != nil || n < 5 || n == 55 {
		t.Errorf("the paused node reads %d rows, want those of before, %v", n, err)
	}
	low.Store(false)
	c.WaitEqual()
	mustExec(t, c.DB(1), "INSERT INTO t DEFAULT VALUES")
}

// How much space must be left depends on the size of the volume, so that small volumes
// can be used.
func TestDiskMarks(t *testing.T) {
	t.Parallel()
	for total, want := range map[int64][2]int64{
		100 << 20: {64 << 20, 32 << 20}, 1 << 30: {64 << 20, 32 << 20}, 2 << 30: {102 << 20, 51 << 20}, 1 << 40: {256 << 20, 128 << 20},
	} {
		refuse, stop := hiqlite.DiskMarks(total)
		if refuse>>20 != want[0]>>20 || stop>>20 != want[1]>>20 {
			t.Errorf("a volume of %d MiB: %d and %d MiB", total>>20, refuse>>20, stop>>20)
		}
	}
}
