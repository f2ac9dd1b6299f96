package hiqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/server"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
	"github.com/hiqlite/hiqlite/tests/process"
)

// This file has what the tests of several files use: clusters, statements that
// must succeed, errors that must be returned, and a log that can be read.

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

// A route is how a program reaches a node.
type route string

const (
	embedded     route = "embedded"
	throughAPI   route = "remote"
	throughProxy route = "proxy"
)

// routes are those that the conformance suite takes. The race detector makes SQLite ten
// times slower, so with it the suite takes only the first one; the tests of
// internal/server run with it too.
func routes() []route {
	if testrun.Race {
		return []route{embedded}
	}
	return []route{embedded, throughAPI, throughProxy}
}

// open returns a database whose statements run on node i.
func (c *testCluster) open(i int, r route) *sql.DB {
	c.t.Helper()
	db := c.DB(i)
	switch r {
	case throughAPI:
		db = c.Remote(i).DB()
	case throughProxy:
		db = newProxied(c.t, c.Remote(i)).DB()
	}
	nodesOf.Store(db, c.Node(i))
	c.t.Cleanup(func() { nodesOf.Delete(db) })
	return db
}

var nodesOf sync.Map // the nodes of databases that open has returned

// nodeOf returns the node on which the statements of a database run.
func nodeOf(t testing.TB, db *sql.DB) *hiqlite.Node {
	t.Helper()
	node, ok := nodesOf.Load(db)
	if !ok {
		t.Fatal("the database was not opened by open")
	}
	return node.(*hiqlite.Node)
}

// newProxied returns a database that is reached through a proxy, whose backend is given.
func newProxied(t testing.TB, backend *hiqlite.Remote) *hiqlite.Remote {
	t.Helper()
	proxy, err := server.New(server.Config{Backend: backend})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { _ = proxy.Serve(l) }) // http.ErrServerClosed
	client, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{l.Addr().String()}, Conn: backend.ConnConfig()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		proxy.Close()
		served.Wait()
	})
	return client
}

// eachSize runs a test on a cluster of one node and on one of three.
func eachSize(t *testing.T, test func(t *testing.T, c *testCluster), change ...func(*hiqlite.Config)) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) { test(t, newCluster(t, size, change...)) })
	}
}

// withoutTimeouts is a change of the configuration that sets all timeouts so high
// that none passes during a test. A test that waits for something which is never
// released then fails, instead of going on after the timeout.
func withoutTimeouts(cfg *hiqlite.Config) {
	cfg.LeaseTTL = time.Hour
	cfg.Conn.BusyTimeout = testrun.Patience
	cfg.Conn.TxTimeout = time.Hour
}

// stopAll stops all nodes, one after the other.
func (c *testCluster) stopAll() {
	c.t.Helper()
	for i := range c.Len() {
		c.Stop(i)
	}
}

// startAll starts all nodes, and does not wait until they are ready.
func (c *testCluster) startAll() {
	c.t.Helper()
	for i := range c.Len() {
		c.Start(i)
	}
}

// restart stops nodes, starts them again, and waits until all nodes are ready.
func (c *testCluster) restart(nodes ...int) {
	c.t.Helper()
	for _, i := range nodes {
		c.Stop(i)
	}
	for _, i := range nodes {
		c.Start(i)
	}
	c.WaitReady()
}

// restartAll stops all nodes, starts them again, and waits until they are ready.
func (c *testCluster) restartAll() {
	c.t.Helper()
	c.stopAll()
	c.startAll()
	c.WaitReady()
}

// insert inserts rows into the table t through node i.
func (c *testCluster) insert(i, rows int) {
	c.t.Helper()
	for range rows {
		mustExec(c.t, c.DB(i), "INSERT INTO t DEFAULT VALUES")
	}
}

// waitQueue waits until a number of operations are in the lease queue, as far as
// this node has applied.
func waitQueue(t testing.TB, n *hiqlite.Node, length int) {
	t.Helper()
	testrun.WaitFor(t, fmt.Sprintf("a lease queue of %d", length), func() bool { return n.Queued() == length })
}

// freeAddresses returns addresses of this machine for n nodes.
func freeAddresses(t testing.TB, n int) []string {
	t.Helper()
	addresses, err := loopback.Addresses(n)
	if err != nil {
		t.Fatal(err)
	}
	return addresses
}

// bucketOf returns the bucket of this name, on a node.
func bucketOf(t testing.TB, n hiqlite.Client, name string) *kv.Bucket[string] {
	t.Helper()
	b, err := kv.New[string](n, name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A querier is a sql.DB, a sql.Conn or a sql.Tx.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// linearizable returns a context with which reads see every write that any node
// has acknowledged. It ends as that of testrun.Context.
func linearizable(t testing.TB) context.Context {
	t.Helper()
	return hiqlite.WithConsistency(testrun.Context(t), hiqlite.Linearizable)
}

func mustExec(t testing.TB, q querier, query string, args ...any) sql.Result {
	t.Helper()
	r, err := q.ExecContext(testrun.Context(t), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return r
}

// queryValue returns the value of a query that has one row of one column.
func queryValue[T any](t testing.TB, q querier, query string, args ...any) (v T) {
	t.Helper()
	if err := q.QueryRowContext(testrun.Context(t), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// eachRow calls f for every row of a query.
func eachRow(t testing.TB, q querier, query string, f func(rows *sql.Rows), args ...any) {
	t.Helper()
	rows, err := q.QueryContext(testrun.Context(t), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		f(rows)
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// scanRow returns the values of the present row, as the driver returns them.
func scanRow(rows *sql.Rows) ([]any, error) {
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	values, pointers := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		pointers[i] = &values[i]
	}
	return values, rows.Scan(pointers...)
}

func mustBegin(t testing.TB, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(testrun.Context(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func mustCommit(t testing.TB, tx *sql.Tx) {
	t.Helper()
	if err := tx.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

func mustRollback(t testing.TB, tx *sql.Tx) {
	t.Helper()
	if err := tx.Rollback(); err != nil {
		t.Fatalf("rollback: %v", err)
	}
}

// mustConn returns a connection that goes back into the pool when the test ends.
func mustConn(t testing.TB, db *sql.DB) *sql.Conn {
	t.Helper()
	c, err := db.Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// disposableConn returns a connection that is closed when the test ends, and never
// goes back into the pool: a test may leave it in any state.
func disposableConn(t testing.TB, db *sql.DB) *sql.Conn {
	t.Helper()
	conn, err := db.Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dispose(conn) })
	return conn
}

// dispose closes a connection for good: driver.ErrBadConn makes the pool drop it.
func dispose(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = conn.Close()
}

// singleConn returns the database of a node, and limits its pool to one connection.
func singleConn(c *testCluster, node int) *sql.DB {
	db := c.DB(node)
	db.SetMaxOpenConns(1)
	return db
}

// must returns v, and panics if there is an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// errorOf returns the error of a call that returns a value, too.
func errorOf[T any](_ T, err error) error { return err }

// inParallel calls f n times at once, and waits for all calls.
func inParallel(t testing.TB, n int, f func(i int) error) {
	t.Helper()
	var work sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		work.Go(func() { errs[i] = f(i) })
	}
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

// Queries that do not end by themselves.
const (
	// endless returns a row for each number.
	endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i FROM n"
	// endlessWithoutRows computes, and never returns a row.
	endlessWithoutRows = endless + " WHERE i<0"
)

// wantCode fails the test unless err, which what returned, is an *Error with this
// code of SQLite, and contains these words. It returns the *Error, or an empty one.
func wantCode(t testing.TB, what string, err error, code int, words ...string) *hiqlite.Error {
	t.Helper()
	var e *hiqlite.Error
	if !errors.As(err, &e) {
		t.Errorf("%s: %v, want an *Error with code %d", what, err, code)
		return &hiqlite.Error{}
	}
	if e.Code() != code {
		t.Errorf("%s: code %d, want %d (%v)", what, e.Code(), code, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: the error %q does not contain %q", what, err, w)
		}
	}
	return e
}

// wantClosed fails the test unless err says that the node was closed. With
// mayBeUnknown, it may also say that the outcome is not known.
func wantClosed(t testing.TB, what string, err error, mayBeUnknown bool) {
	t.Helper()
	if !errors.Is(err, hiqlite.ErrClosed) && !(mayBeUnknown && errors.Is(err, hiqlite.ErrOutcomeUnknown)) {
		t.Errorf("%s: %v, want ErrClosed", what, err)
	}
}

func containsAll(text string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}

// A logBuffer keeps what nodes log.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

// lines returns the lines that contain all of the texts.
func (l *logBuffer) lines(texts ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if containsAll(line, texts) {
			found = append(found, line)
		}
	}
	return found
}

// An applyGate makes a node wait before it applies entries, while the gate is closed.
type applyGate struct {
	mu     sync.Mutex
	opened chan struct{} // is closed when the gate opens; nil while the gate is open
}

func (g *applyGate) wait() {
	g.mu.Lock()
	opened := g.opened
	g.mu.Unlock()
	if opened != nil {
		<-opened
	}
}

func (g *applyGate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened = make(chan struct{})
}

func (g *applyGate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
}

// clusterWithGate returns a cluster of three nodes. The last one waits at the gate
// before it applies entries of a shard, the one whose hook is given.
func clusterWithGate(t *testing.T, hook func(cfg *hiqlite.Config, f func(node uint64))) (*testCluster, *applyGate) {
	t.Helper()
	gate := &applyGate{}
	c := newCluster(t, 3, func(cfg *hiqlite.Config) {
		hook(cfg, func(node uint64) {
			if node == 3 {
				gate.wait()
			}
		})
	})
	t.Cleanup(gate.open) // a node cannot be stopped while it waits at the gate
	return c, gate
}
