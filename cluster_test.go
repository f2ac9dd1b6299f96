package hiqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testcluster"
)

func TestMain(m *testing.M) {
	if order := os.Getenv(nodeVariable); order != "" { // see process
		if err := runNode(order); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// patience bounds what a test waits for.
const patience = 60 * time.Second

func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// A testCluster is some nodes in this process.
type testCluster struct {
	t       testing.TB
	configs []hiqlite.Config
	nodes   []*hiqlite.Node // nil: stopped
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

// newCluster starts a cluster and waits until every node is ready.
func newCluster(t testing.TB, size int, change ...func(*hiqlite.Config)) *testCluster {
	t.Helper()
	c := &testCluster{t: t, nodes: make([]*hiqlite.Node, size)}
	dir := t.TempDir()
	members := testcluster.Members(t, size)
	for i := range size {
		cfg := hiqlite.Config{DataDir: filepath.Join(dir, fmt.Sprint(i+1)), NodeID: uint64(i + 1), Nodes: members, Tick: 10 * time.Millisecond}
		for _, f := range change {
			f(&cfg)
		}
		c.configs = append(c.configs, cfg)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.stop(i)
		}
	})
	for i := range size {
		c.start(i)
	}
	for i := range size {
		c.ready(i)
	}
	return c
}

func (c *testCluster) start(i int) {
	c.t.Helper()
	node, err := hiqlite.Open(patient(c.t), c.configs[i])
	if err != nil {
		c.t.Fatalf("node %d: %v", i+1, err)
	}
	c.nodes[i] = node
}

func (c *testCluster) ready(i int) {
	c.t.Helper()
	if err := c.nodes[i].Ready(patient(c.t)); err != nil {
		c.t.Fatalf("node %d: %v", i+1, err)
	}
}

func (c *testCluster) stop(i int) {
	c.t.Helper()
	if c.nodes[i] == nil {
		return
	}
	if err := c.nodes[i].Close(); err != nil {
		c.t.Errorf("closing node %d: %v", i+1, err)
	}
	c.nodes[i] = nil
}

func (c *testCluster) db(i int) *sql.DB { return c.nodes[i].DB() }

// leader returns the place of the node that leads.
func (c *testCluster) leader() int {
	c.t.Helper()
	for _, n := range c.nodes {
		if n == nil {
			continue
		}
		if err := n.Ready(patient(c.t)); err != nil {
			c.t.Fatal(err)
		}
		s, err := n.Status(patient(c.t))
		if err != nil {
			c.t.Fatal(err)
		}
		if s.Leader != 0 && c.nodes[s.Leader-1] != nil {
			return int(s.Leader - 1)
		}
	}
	c.t.Fatal("no leader")
	return -1
}

func mustExec(t testing.TB, db *sql.DB, query string, args ...any) sql.Result {
	t.Helper()
	r, err := db.ExecContext(patient(t), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return r
}

// equal waits until all nodes hold the same, and fails if two ever hold
// different things at one index. An entry whose writer gave up may still be on
// its way: until it is everywhere, nodes differ at different indexes.
func (c *testCluster) equal() {
	c.t.Helper()
	for i, n := range c.nodes {
		if n != nil {
			c.ready(i)
		}
	}
	at := map[uint64][32]byte{}
	waitFor(c.t, "the nodes to hold the same", func() bool {
		now := map[[32]byte]bool{}
		for i, n := range c.nodes {
			if n == nil {
				continue
			}
			hash, index, err := n.Hash(patient(c.t))
			if err != nil {
				c.t.Fatal(err)
			}
			if other, ok := at[index]; ok && other != hash {
				c.t.Fatalf("node %d holds something else than another node at index %d", i+1, index)
			}
			at[index], now[hash] = hash, true
		}
		return len(now) <= 1
	})
}

// Every promise holds on one node as on three.
func eachSize(t *testing.T, f func(t *testing.T, c *testCluster)) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) { f(t, newCluster(t, size)) })
	}
}

func TestWriteThenRead(t *testing.T) {
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.db(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
		for i := range c.nodes {
			r := mustExec(t, c.db(i), "INSERT INTO t(v) VALUES(?)", fmt.Sprint("node ", i))
			id, _ := r.LastInsertId()
			var got string
			if err := c.db(i).QueryRowContext(patient(t), "SELECT v FROM t WHERE id=?", id).Scan(&got); err != nil || got != fmt.Sprint("node ", i) {
				t.Errorf("node %d reads %q, %v of what it wrote", i+1, got, err)
			}
		}
		ctx := hiqlite.WithConsistency(patient(t), hiqlite.Linearizable)
		for i := range c.nodes {
			var n int
			if err := c.db(i).QueryRowContext(ctx, "SELECT count(*) FROM t").Scan(&n); err != nil || n != len(c.nodes) {
				t.Errorf("node %d counts %d rows, %v", i+1, n, err)
			}
		}
		c.equal()
	})
}
