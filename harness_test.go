package hiqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/kv"
	"github.com/hiqlite/hiqlite/tests/process"
)

// refusal fails unless err is SQLite's, with this code and these words.
func refusal(t testing.TB, what string, err error, code int, words ...string) *hiqlite.Error {
	t.Helper()
	var e *hiqlite.Error
	if !errors.As(err, &e) {
		t.Errorf("%s: %v, want an *Error of %q", what, err, words)
		return &hiqlite.Error{}
	}
	if e.Code() != code {
		t.Errorf("%s: code %d, want %d (%v)", what, e.Code(), code, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q does not say %q", what, err, w)
		}
	}
	return e
}

// hasCode fails unless err is SQLite's, with this code and these words.
func hasCode(t testing.TB, err error, code int, words ...string) {
	t.Helper()
	var e *hiqlite.Error
	if !errors.As(err, &e) || e.Code() != code {
		t.Errorf("%v is not an error with code %d", err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error %q lacks %q", err, w)
		}
	}
}

func mustConn(t testing.TB, db *sql.DB) *sql.Conn {
	t.Helper()
	c, err := db.Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func second[T any](_ T, err error) error { return err }

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

// eachSize runs a test on a cluster of one node and on one of three.
func eachSize(t *testing.T, test func(t *testing.T, c *testCluster), change ...func(*hiqlite.Config)) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) { test(t, newCluster(t, size, change...)) })
	}
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

func mustExec(t testing.TB, db *sql.DB, query string, args ...any) sql.Result {
	t.Helper()
	r, err := db.ExecContext(testrun.Context(t), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return r
}

// unhurried sets all timeouts so high that nothing ends by itself while a test runs:
// what is not released, stays and is found.
func unhurried(cfg *hiqlite.Config) {
	cfg.LeaseTTL = time.Hour
	cfg.Conn.BusyTimeout = testrun.Patience
	cfg.Conn.TxTimeout = time.Hour
}

// commit fails unless the transaction can be committed.
func commit(t testing.TB, tx *sql.Tx) {
	t.Helper()
	if err := tx.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

func rollBack(t testing.TB, tx *sql.Tx) {
	t.Helper()
	if err := tx.Rollback(); err != nil {
		t.Fatalf("roll back: %v", err)
	}
}

// an asker is what a query can be asked of.
type asker interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// one returns the one value that a query gives.
func one[T any](t testing.TB, q asker, query string, args ...any) (v T) {
	t.Helper()
	if err := q.QueryRowContext(testrun.Context(t), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

func run(t testing.TB, q asker, query string, args ...any) sql.Result {
	t.Helper()
	r, err := q.ExecContext(testrun.Context(t), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return r
}

// each calls f for every row of a query.
func each(t testing.TB, q asker, query string, f func(rows *sql.Rows), args ...any) {
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

// all starts n goroutines and waits for them.
func all(t testing.TB, n int, f func(i int) error) {
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

func bucketOf(t testing.TB, n *hiqlite.Node, name string) *kv.Bucket[string] {
	t.Helper()
	b, err := kv.New[string](n, name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (c *testCluster) stopAll() {
	for i := range c.Len() {
		c.Stop(i)
	}
}

func (c *testCluster) insert(i, rows int) {
	c.t.Helper()
	for range rows {
		mustExec(c.t, c.DB(i), "INSERT INTO t DEFAULT VALUES")
	}
}

// loneConn is a connection that is not used again.
func loneConn(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	conn, err := db.Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { discard(conn) })
	return conn
}

// discard closes a connection instead of giving it back.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	conn.Close()
}

func affected(t *testing.T, r sql.Result) int64 {
	t.Helper()
	n, err := r.RowsAffected()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustBegin(t testing.TB, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(testrun.Context(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// code fails unless err is an *Error with this code.
func code(t testing.TB, err error, want int) {
	t.Helper()
	var e *hiqlite.Error
	if !errors.As(err, &e) || e.Code() != want {
		t.Errorf("the error is %v, want code %d", err, want)
	}
}

// logged takes what nodes log.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// lines returns those that hold the words.
func (l *logged) lines(words string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, words) {
			found = append(found, line)
		}
	}
	return found
}

// isClosed fails unless an error says that the node was closed, or, if it may,
// that the outcome is not known.
func isClosed(t testing.TB, what string, err error, mayBeUnknown bool) {
	t.Helper()
	if !errors.Is(err, hiqlite.ErrClosed) && !(mayBeUnknown && errors.Is(err, hiqlite.ErrOutcomeUnknown)) {
		t.Errorf("%s: %v", what, err)
	}
}

// said keeps what is logged.
type said struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(b)
}

func (s *said) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf.Reset()
}

// lines returns the lines that have all of the texts.
func (s *said) lines(texts ...string) (lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(s.buf.String()) {
		if !containsAll(line, texts) {
			continue
		}
		lines = append(lines, line)
	}
	return lines
}

func containsAll(text string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}
