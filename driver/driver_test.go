package driver_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite"
	hiqlitedriver "github.com/hiqlite/hiqlite/driver"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("hiqlite", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("closing %s: %v", dsn, err)
		}
	})
	return db
}

func mustExec(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(testrun.Context(t), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func queryValue[T any](t testing.TB, db *sql.DB, query string, args ...any) (v T) {
	t.Helper()
	if err := db.QueryRowContext(testrun.Context(t), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

func TestThreeOpensFormACluster(t *testing.T) {
	addresses, err := loopback.Addresses(3)
	if err != nil {
		t.Fatal(err)
	}
	var nodes []string
	for i, a := range addresses {
		nodes = append(nodes, fmt.Sprintf("%d=%s", i+1, a))
	}
	var dbs []*sql.DB
	for i := range 3 {
		dsn := fmt.Sprintf("%s?node_id=%d&nodes=%s&tick=10ms&consistency=linearizable", t.TempDir(), i+1, strings.Join(nodes, ","))
		dbs = append(dbs, open(t, dsn))
	}
	mustExec(t, dbs[1], "CREATE TABLE t(a)")
	mustExec(t, dbs[2], "INSERT INTO t VALUES(?)", 7)
	for i, db := range dbs {
		if got := queryValue[int](t, db, "SELECT a FROM t"); got != 7 {
			t.Errorf("node %d reads %d", i+1, got)
		}
	}
}

func TestOpensOfAFolderShareTheNode(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	db := open(t, dir)
	mustExec(t, db, "CREATE TABLE t(a)")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	second, err := sql.Open("hiqlite", "file:"+link+"?_fk=off&_time_format=sqlite")
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, second, "INSERT INTO t VALUES(1)")
	if got := queryValue[int](t, db, "SELECT a FROM t"); got != 1 {
		t.Errorf("the first database reads %d, want 1, which the second has written", got)
	}
	if queryValue[int](t, db, "PRAGMA foreign_keys") != 1 || queryValue[int](t, second, "PRAGMA foreign_keys") != 0 {
		t.Error("a connection does not have the settings of its own DSN")
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	mustExec(t, db, "INSERT INTO t VALUES(2)")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, link)
	if got := queryValue[int](t, again, "SELECT count(*) FROM t"); got != 2 {
		t.Errorf("after the folder was opened again, it has %d rows, want 2", got)
	}
}

func TestOpensOfAFolderMustAgree(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	for key, want := range map[string]string{"timeout=3s": "timeout is 30s, not 3s", "tick=10ms": "tick is 0s, not 10ms", "max_steps=5": "max_steps is 200000000, not 5", "node_id=2": "node_id is 1, not 2", "timezone=Europe/Berlin": "timezone is , not Europe/Berlin",
		"nodes=1=localhost:1/2": "nodes is , not 1=localhost:1/localhost:2", "secret_file=/x": "secret_file is , not /x", "insecure=1": "insecure is false, not true",
		"tls_cert_file=a&tls_key_file=b&tls_ca_file=c": "not [a b c]"} {
		_, err := sql.Open("hiqlite", dir+"?"+key)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", key, err, want)
		}
	}
	queryValue[int](t, db, "SELECT 1")
}

func TestManyOpensAtOnce(t *testing.T) {
	dir := t.TempDir()
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for range 3 {
				db, err := sql.Open("hiqlite", dir)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := db.ExecContext(testrun.Context(t), "CREATE TABLE IF NOT EXISTS t(a); INSERT INTO t VALUES(1)"); err != nil {
					t.Error(err)
				}
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if got := queryValue[int](t, open(t, dir), "SELECT count(*) FROM t"); got != 24 {
		t.Errorf("%d rows instead of 24", got)
	}
}

// A program that wraps drivers may call only Driver.Open: the node then runs as long as
// the connection is open.
func TestConnectionOfDriverOpenKeepsTheNode(t *testing.T) {
	dir := t.TempDir()
	var d driver.Driver = hiqlitedriver.Driver{}
	db := sql.OpenDB(oldConnector{d, dir})
	mustExec(t, db, "CREATE TABLE t(a)")
	if _, err := hiqlite.Batch(testrun.Context(t), db, hiqlite.Statement{SQL: "INSERT INTO t VALUES(1)"}); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if got := queryValue[int](t, open(t, dir), "SELECT a FROM t"); got != 1 {
		t.Errorf("the table has %d, want 1", got)
	}
}

type oldConnector struct {
	d    driver.Driver
	name string
}

func (c oldConnector) Connect(context.Context) (driver.Conn, error) { return c.d.Open(c.name) }
func (c oldConnector) Driver() driver.Driver                        { return c.d }

func TestClosedDatabase(t *testing.T) {
	db, err := sql.Open("hiqlite", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(testrun.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	err = conn.Raw(func(raw any) error {
		c := raw.(driver.QueryerContext)
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		_, err := c.QueryContext(testrun.Context(t), "SELECT 1", nil)
		return err
	})
	if !errors.Is(err, hiqlite.ErrClosed) {
		t.Errorf("a connection of a closed database returned %v", err)
	}
	if err := db.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}
