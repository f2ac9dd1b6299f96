package hiqlite_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/hiqlite/hiqlite"
)

// A node refuses writes before its disk is full, stops before the Raft log
// would meet the end, and loses nothing.
func TestFullDisk(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 40)
	t.Cleanup(hiqlite.SetFreeSpace(func(string) (int64, error) { return free.Load(), nil }))
	c := newCluster(t, 1)
	mustExec(t, c.db(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
	write := func() error {
		_, err := c.db(0).ExecContext(patient(t), "INSERT INTO t DEFAULT VALUES")
		return err
	}
	free.Store(200 << 20)
	written := 0
	waitFor(t, "writes to be refused", func() bool {
		err := write()
		if err == nil {
			written++
		} else if !errors.Is(err, hiqlite.ErrDiskFull) {
			t.Fatal(err)
		}
		return err != nil
	})
	var n int
	if err := c.db(0).QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != written {
		t.Errorf("%d rows of %d, %v", n, written, err)
	}
	free.Store(1 << 40)
	waitFor(t, "writes to be taken again", func() bool { return write() == nil })
	written++
	free.Store(1 << 20)
	waitFor(t, "the node to stop", func() bool {
		_, err := c.nodes[0].Status(patient(t))
		return errors.Is(err, hiqlite.ErrDiskFull)
	})
	if err := write(); !errors.Is(err, hiqlite.ErrDiskFull) {
		t.Errorf("a write to the stopped node: %v", err)
	}
	free.Store(1 << 40)
	c.stop(0)
	c.start(0)
	c.ready(0)
	if err := c.db(0).QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != written {
		t.Errorf("after the restart %d rows of %d, %v", n, written, err)
	}
}
