package server_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
	"github.com/hiqlite/hiqlite/lock"
	"github.com/hiqlite/hiqlite/pubsub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newCluster starts a cluster whose nodes serve the API and tell each other's addresses.
func newCluster(t *testing.T, n int) *hiqlitetest.Cluster {
	t.Helper()
	addresses, err := loopback.Addresses(n)
	if err != nil {
		t.Fatal(err)
	}
	c := hiqlitetest.NewCluster(t, n, hiqlitetest.WithConfig(func(cfg *hiqlite.Config) {
		for i := range cfg.Nodes {
			cfg.Nodes[i].APIAddr = addresses[i]
		}
	}))
	for i := range n {
		c.Serve(i)
	}
	return c
}

func mustExec(t testing.TB, db *sql.DB, text string, args ...any) sql.Result {
	t.Helper()
	r, err := db.ExecContext(testrun.Context(t), text, args...)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return r
}

func value[T any](t testing.TB, db *sql.DB, text string, args ...any) (v T) {
	t.Helper()
	if err := db.QueryRowContext(testrun.Context(t), text, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

// Writes go on while one node after the other is stopped and started, and each is
// applied once. What a client has written it can read, on whichever node it reads.
func TestWritesWhileNodesRestart(t *testing.T) {
	c := newCluster(t, 3)
	remote := c.Remote(0)
	db := remote.DB()
	mustExec(t, db, "CREATE TABLE t(worker INT, n INT)")
	var stop atomic.Bool
	var work sync.WaitGroup
	const workers = 8
	written := make([]int, workers)
	for w := range workers {
		work.Go(func() {
			for !stop.Load() {
				if _, err := db.ExecContext(testrun.Context(t), "INSERT INTO t VALUES(?, ?)", w, written[w]+1); err != nil {
					t.Errorf("worker %d: %v", w, err)
					return
				}
				written[w]++
				var n int
				if err := db.QueryRowContext(testrun.Context(t), "SELECT count(*) FROM t WHERE worker=?", w).Scan(&n); err != nil || n != written[w] {
					t.Errorf("worker %d reads %d rows, %v; it wrote %d", w, n, err, written[w])
					return
				}
			}
		})
	}
	for range 2 {
		for i := range 3 {
			c.Stop(i)
			c.Start(i)
			c.WaitReady()
		}
	}
	stop.Store(true)
	work.Wait()
	for w := range workers {
		if n := value[int](t, db, "SELECT count(*) FROM t WHERE worker=?", w); n != written[w] || n == 0 {
			t.Errorf("worker %d wrote %d rows, and there are %d", w, written[w], n)
		}
	}
	c.WaitEqual()
}

// A transaction whose node is lost is over, and says so; nothing of it is applied.
func TestATransactionOfALostNode(t *testing.T) {
	c := newCluster(t, 3)
	db := c.Remote(0).DB()
	mustExec(t, db, "CREATE TABLE t(n INT)")
	tx, err := db.BeginTx(testrun.Context(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
		t.Fatal(err)
	}
	for i := range 3 { // whichever node it runs on; its server waits for it in vain
		c.CutAPI(i)
	}
	_, err = tx.Exec("INSERT INTO t VALUES(2)")
	if !errors.Is(err, hiqlite.ErrTxExpired) || !hiqlite.SafeToRetry(err) {
		t.Errorf("a statement after the loss: %v", err)
	}
	if err := tx.Commit(); !errors.Is(err, hiqlite.ErrTxExpired) {
		t.Errorf("the commit after the loss: %v", err)
	}
	for i := range 3 {
		c.MendAPI(i)
	}
	err = hiqlite.RunTx(testrun.Context(t), db, nil, func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO t VALUES(3)")
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if got := value[string](t, db, "SELECT group_concat(n) FROM t"); got != "3" {
		t.Errorf("the rows are %s", got)
	}
}

// A connection keeps its settings when its session moves to another node, and tells when
// it has lost its TEMP objects.
func TestConnectionsMove(t *testing.T) {
	c := newCluster(t, 3)
	db := c.Remote(0).DB()
	mustExec(t, db, "CREATE TABLE t(id INTEGER PRIMARY KEY, n INT)")
	conn, err := db.Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	run := func(text string) error {
		_, err := conn.ExecContext(testrun.Context(t), text)
		return err
	}
	for _, text := range []string{"PRAGMA foreign_keys=OFF", "PRAGMA busy_timeout=1234", "INSERT INTO t VALUES(41, 1), (42, 2)"} {
		if err := run(text); err != nil {
			t.Fatal(err)
		}
	}
	restart := func() {
		for i := range 3 {
			c.CutAPI(i)
			c.MendAPI(i)
		}
	}
	restart()
	var got [4]int
	for i, text := range []string{"PRAGMA foreign_keys", "PRAGMA busy_timeout", "SELECT changes()", "SELECT last_insert_rowid()"} {
		if err := conn.QueryRowContext(testrun.Context(t), text).Scan(&got[i]); err != nil {
			t.Fatal(err)
		}
	}
	if got != [4]int{0, 1234, 2, 42} {
		t.Errorf("the state of the connection is %v", got)
	}
	if err := run("CREATE TEMP TABLE x(n)"); err != nil {
		t.Fatal(err)
	}
	restart()
	if err := run("INSERT INTO x VALUES(1)"); err == nil || !strings.Contains(err.Error(), "TEMP") {
		t.Errorf("after the loss of TEMP objects: %v", err)
	}
}

// kv, lock and pubsub work through the API, and what they watch goes on after a loss of
// the connection, without gaps.
func TestInMemoryShards(t *testing.T) {
	c := newCluster(t, 3)
	remote := c.Remote(0)
	ctx := testrun.Context(t)
	b, err := kv.New[string](remote, "b")
	if err != nil {
		t.Fatal(err)
	}
	w, err := b.Watch(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	sub, err := pubsub.Listen(ctx, remote, "c")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	held, err := lock.New(remote).Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}
	for n := range 6 {
		if n == 3 {
			for i := range 3 {
				c.CutAPI(i)
				c.MendAPI(i)
			}
		}
		if err := b.Put(ctx, "k", fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
		if _, err := pubsub.Notify(ctx, remote, "c", []byte(fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 6 {
		if e, err := w.Next(ctx); err != nil || e.Value != fmt.Sprint(n) {
			t.Errorf("event %d is %v, %v", n, e, err)
		}
		if m, err := sub.Next(ctx); err != nil || string(m.Payload) != fmt.Sprint(n) {
			t.Errorf("message %d is %v, %v", n, m, err)
		}
	}
	if v, ok, err := b.Get(ctx, "k"); err != nil || !ok || v != "5" {
		t.Errorf("Get: %q, %v, %v", v, ok, err)
	}
	if all, err := b.Snapshot(ctx); err != nil || len(all) != 1 {
		t.Errorf("Snapshot: %v, %v", all, err)
	}
	if held.Context().Err() != nil {
		t.Error("the lock was lost")
	}
	other := lock.New(c.Node(1))
	if _, err := other.TryLock(ctx, "l"); !errors.Is(err, lock.ErrHeld) {
		t.Errorf("another one: %v", err)
	}
	if err := held.Unlock(ctx); err != nil {
		t.Error(err)
	}
	again, err := other.Lock(ctx, "l")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Unlock(ctx); err != nil {
		t.Error(err)
	}
}

// Without a node, a call fails after ReconnectTimeout, and says that nothing was done.
func TestNoNodeCanBeReached(t *testing.T) {
	addresses, err := loopback.Addresses(2)
	if err != nil {
		t.Fatal(err)
	}
	remote, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: addresses, ReconnectTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	_, err = remote.DB().ExecContext(testrun.Context(t), "SELECT 1")
	if !errors.Is(err, hiqlite.ErrNoLeader) || !hiqlite.SafeToRetry(err) || !strings.Contains(err.Error(), addresses[1]) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err = remote.DB().ExecContext(ctx, "SELECT 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
