package hiqlite_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file stop leaders and majorities.

// Without a majority, a node refuses writes, serves local reads, and goes on when the
// others are back.
func TestReadsAndWritesWithoutAMajority(t *testing.T) {
	t.Parallel()
	s := newCheckedCluster(t, 3)
	s.WaitEqual() // the node that will be left has all rows
	leader := s.Leader()
	s.Stop(leader)
	s.Stop((leader + 1) % 3)
	left := (leader + 2) % 3
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if _, err := s.DB(left).ExecContext(ctx, "INSERT INTO kept(v) VALUES('lost')"); !errors.Is(err, hiqlite.ErrNoLeader) {
		t.Errorf("a write without a majority: %v", err)
	}
	var n int
	if err := s.DB(left).QueryRowContext(testrun.Context(t), "SELECT count(*) FROM kept").Scan(&n); err != nil || n != 3 {
		t.Errorf("a local read without a majority: %d, %v", n, err)
	}
	if _, err := s.DB(left).QueryContext(testrun.Context(t), "SELECT * FROM nope"); err == nil || !strings.Contains(err.Error(), "no such table") {
		t.Errorf("a read of an unknown table without a majority: %v", err)
	}
	s.Start(leader)
	s.Start((leader + 1) % 3)
	s.WaitReady()
	s.checkUnharmed("a lost majority")
	s.WaitEqual()
}

// Close transfers leadership first: when it returns, another node leads, and writers
// on the other nodes have got no error. Raft does not guarantee a transfer, so some of
// them may fail; then the other nodes elect a leader.
func TestCloseTransfersLeadership(t *testing.T) {
	t.Parallel()
	const rounds, writers = 5, 6
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n INTEGER)")
	transferred := 0
	for range rounds {
		leader := c.Leader()
		var quit atomic.Bool
		var written atomic.Int64
		var wait sync.WaitGroup
		for w := range writers {
			db := c.DB((leader + 1 + w%2) % 3)
			wait.Go(func() {
				for !quit.Load() {
					if _, err := db.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(1)"); err != nil {
						t.Error(err)
						return
					}
					written.Add(1)
				}
			})
		}
		testrun.WaitFor(t, "writes", func() bool { return written.Load() > 50 })
		c.Stop(leader)
		for _, survivor := range []int{(leader + 1) % 3, (leader + 2) % 3} {
			s, err := c.Node(survivor).Status(testrun.Context(t))
			if err != nil {
				t.Fatal(err)
			}
			if s.Leader != 0 && s.Leader != uint64(leader+1) { // the new leader knows it at once, the other node a little later
				transferred++
				break
			}
		}
		before := written.Load()
		testrun.WaitFor(t, "writes after the leader was closed", func() bool { return written.Load() > before+50 })
		quit.Store(true)
		wait.Wait()
		c.Start(leader)
		c.WaitReady(leader)
	}
	if transferred < rounds/2 {
		t.Errorf("only %d of %d leaders have transferred leadership", transferred, rounds)
	}
}

// Without a majority, a write returns after Config.Timeout. Its error says whether it
// may be applied later.
func TestOutcomesWithoutAMajority(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *hiqlite.Config) { cfg.Timeout = 700 * time.Millisecond })
	mustExec(t, c.DB(0), "CREATE TABLE t(name TEXT)")
	leader := c.Leader()
	for i := range 3 {
		if i != leader {
			c.Stop(i)
		}
	}
	db := c.DB(leader)
	outcomes := map[string]error{}
	for n := range 6 {
		name := fmt.Sprint("write ", n)
		_, err := db.Exec("INSERT INTO t VALUES(?)", name) // bounded by Config.Timeout
		if err == nil {
			t.Fatalf("%s succeeded on one of three nodes", name)
		}
		if n > 3 && !errors.Is(err, hiqlite.ErrNoLeader) {
			t.Errorf("%s: %v, want ErrNoLeader", name, err)
		}
		outcomes[name] = err
	}
	if _, err := db.QueryContext(hiqlite.WithConsistency(context.Background(), hiqlite.Linearizable), "SELECT 1"); !errors.Is(err, hiqlite.ErrNoLeader) {
		t.Errorf("a linearizable read: %v, want ErrNoLeader", err)
	}
	var n int
	if err := db.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 0 {
		t.Errorf("a local read: %d, %v", n, err)
	}
	for i := range 3 {
		if i != leader {
			c.Start(i)
		}
	}
	c.WaitReady(leader)
	mustExec(t, db, "INSERT INTO t VALUES('after')")
	for name, err := range outcomes {
		if err := db.QueryRow("SELECT count(*) FROM t WHERE name=?", name).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n > 1 || n == 1 && !errors.Is(err, hiqlite.ErrOutcomeUnknown) {
			t.Errorf("%s was applied %d times, and had returned: %v", name, n, err)
		}
	}
	c.WaitEqual()
}

// Without a leader, a node returns "no such table" without waiting, with the hint that
// it may not have applied the newest changes.
func TestUnknownTablesWithoutAMajority(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	c.WaitEqual()
	c.Stop(1)
	c.Stop(2)
	testrun.WaitFor(t, "the node to notice that there is no leader", func() bool {
		s, err := c.Node(0).Status(testrun.Context(t))
		return err == nil && s.Leader == 0
	})
	ctx := testrun.Context(t) // for all 100 together: if each of them waited for a leader, it would end
	for range 100 {
		_, err := c.DB(0).QueryContext(ctx, "SELECT * FROM nowhere")
		var e *hiqlite.Error
		if !errors.As(err, &e) || e.Message != "SQL logic error: no such table: nowhere (1)" || e.Hint == "" {
			t.Fatalf("%v", err)
		}
		_, err = c.DB(0).ExecContext(ctx, "INSERT INTO nowhere VALUES(1)")
		wantCode(t, "INSERT", err, 1, "no such table: nowhere", "no leader")
		if _, err := c.DB(0).ExecContext(ctx, "SELECT * FROM t"); err != nil {
			t.Fatal(err)
		}
	}
}

// With a leader, a node applies what the leader has committed before it returns "no
// such table", so it finds tables that another node has just created.
func TestUnknownTablesAfterCatchingUp(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		for i := range 30 {
			name := "t" + string(rune('a'+i%26)) + string(rune('a'+i/26))
			mustExec(t, c.DB(i%c.Len()), "CREATE TABLE "+name+"(a)")
			for j := range c.Len() {
				if n := queryValue[int](t, c.DB(j), "SELECT count(*) FROM "+name); n != 0 {
					t.Errorf("%s has %d rows", name, n)
				}
			}
		}
		_, err := c.DB(0).QueryContext(testrun.Context(t), "SELECT * FROM nowhere")
		var e *hiqlite.Error
		if !errors.As(err, &e) || e.Hint != "" {
			t.Errorf("with a leader: %v, want an error without a hint", err)
		}
	})
}

// A node logs once that there is no leader, and which nodes it waits for, and once
// that there is one again. The error of Ready also names these nodes.
func TestLogLinesWithoutAMajority(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		if cfg.NodeID == 1 {
			cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
		}
	})
	log.clear()
	c.Stop(1)
	c.Stop(2)
	testrun.WaitFor(t, "the log line about no leader", func() bool { return len(log.lines("no leader")) > 0 })
	line := log.lines("no leader")[0]
	if !containsAll(line, []string{"level=INFO", "node=1", "shard=sql,", "waiting for 1 more of node 2 at " + c.Config(1).Nodes[1].RaftAddr, "node 3 at"}) {
		t.Errorf("the log line is %s", line)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := c.Node(0).Ready(ctx); !errors.Is(err, hiqlite.ErrNoLeader) || !containsAll(err.Error(), []string{"node 1 is not ready", "sql", "waiting for 1 more of node 2"}) {
		t.Errorf("Ready returns %v", err)
	}
	c.Start(1)
	c.WaitReady(0)
	testrun.WaitFor(t, "the log line about a new leader", func() bool { return len(log.lines("there is a leader again")) > 0 })
	if n := len(log.lines("no leader")) + len(log.lines("a leader again", "node=1", "leader=", "after=")); n != 2 {
		t.Errorf("%d lines, want 2: %s", n, log.lines(""))
	}
}

// The error of Ready says how many entries the node has not applied yet.
func TestReadyReportsTheAppliedIndex(t *testing.T) {
	c, gate := clusterWithGate(t, (*hiqlite.Config).HookApplySQL)
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY)")
	c.WaitReady()
	gate.close()
	c.insert(0, 20)
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if err := c.Node(2).Ready(ctx); err == nil || !containsAll(err.Error(), []string{"node 3 is not ready", "shard sql has applied entry ", " of "}) {
		t.Errorf("Ready returns %v", err)
	}
	gate.open()
	c.WaitReady(2)
}
