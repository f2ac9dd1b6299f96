package hiqlite_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// originConn is what the server uses of a connection for a remote client's writes.
type originConn interface {
	driver.ExecerContext
	SetOrigin(*wire.Origin)
	OpenSession(ctx context.Context, shard string) (uint64, error)
	CommitOutcome(ctx context.Context, origin wire.Origin) error
}

// withOrigin runs a statement under an origin, on a connection of db.
func withOrigin(t *testing.T, db *sql.DB, origin wire.Origin, text string, args ...any) (driver.Result, error) {
	t.Helper()
	var named []driver.NamedValue
	for i, arg := range args {
		named = append(named, driver.NamedValue{Ordinal: i + 1, Value: arg})
	}
	var result driver.Result
	err := rawConn(t, db, func(c originConn) (err error) {
		c.SetOrigin(&origin)
		defer c.SetOrigin(nil)
		result, err = c.ExecContext(testrun.Context(t), text, named)
		return err
	})
	return result, err
}

func rawConn(t *testing.T, db *sql.DB, f func(originConn) error) error {
	t.Helper()
	conn := mustConn(t, db)
	return conn.Raw(func(raw any) error { return f(raw.(originConn)) })
}

func openSession(t *testing.T, db *sql.DB) (id uint64) {
	t.Helper()
	err := rawConn(t, db, func(c originConn) (err error) {
		id, err = c.OpenSession(testrun.Context(t), "sql")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A write with an origin is applied once, through whichever nodes it is sent, and each
// of them returns its result.
func TestWritesWithAnOriginAreAppliedOnce(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	c := newCluster(t, 3, func(cfg *hiqlite.Config) { cfg.MaxSteps = 20_000_000; cfg.HookFirstSteps(20_000) })
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER PRIMARY KEY, n)")
	session, sequence := openSession(t, c.DB(1)), uint64(0)
	for name, text := range map[string]string{
		"an insert":   "INSERT INTO t(n) VALUES(random())",
		"a script":    "INSERT INTO t(n) VALUES(1); INSERT INTO t(n) VALUES(2)",
		"a long one":  "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<20000) INSERT INTO t(n) SELECT n FROM x",
		"VACUUM":      "VACUUM",
		"a failure":   "INSERT INTO t(id) VALUES('no integer')",
		"many errors": "INSERT INTO t(id) SELECT id FROM t LIMIT 1",
	} {
		sequence++
		origin := wire.Origin{Session: session, Sequence: sequence}
		first, firstErr := withOrigin(t, c.DB(0), origin, text)
		rows := queryValue[int](t, c.DB(0), "SELECT count(*) FROM t")
		for _, i := range []int{1, 2, 0} {
			again, err := withOrigin(t, c.DB(i), origin, text)
			if fmt.Sprint(err) != fmt.Sprint(firstErr) || firstErr == nil && (must(again.RowsAffected()) != must(first.RowsAffected()) || must(again.LastInsertId()) != must(first.LastInsertId())) {
				t.Errorf("%s, again through node %d: %v, %v, want %v, %v", name, i+1, again, err, first, firstErr)
			}
			if now := queryValue[int](t, c.DB(i), "SELECT count(*) FROM t"); now != rows {
				t.Errorf("%s, again through node %d: there are %d rows, want %d", name, i+1, now, rows)
			}
		}
	}
	if _, err := withOrigin(t, c.DB(0), wire.Origin{Session: session, Sequence: 1}, "INSERT INTO t(n) VALUES(1)"); err == nil || errors.Is(err, hiqlite.ErrOutcomeUnknown) {
		t.Errorf("a write that is older than the last one: %v", err)
	}
	if _, err := withOrigin(t, c.DB(0), wire.Origin{Session: 1 << 40, Sequence: 1}, "INSERT INTO t(n) VALUES(1)"); !errors.Is(err, node.ErrSessionUnknown) {
		t.Errorf("a write of an unknown session: %v", err)
	}
	c.WaitEqual()
}

// While a transaction has the write lease, a write waits in the queue. Its copy through
// another node waits with it.
func TestCopiesOfAWriteThatWaitsForATransaction(t *testing.T) {
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n)")
	origin := wire.Origin{Session: openSession(t, c.DB(1)), Sequence: 1}
	tx := mustBegin(t, c.DB(0))
	mustExec(t, tx, "INSERT INTO t VALUES('of the transaction')")
	done := make(chan error, 2)
	for i := range 2 {
		go func() {
			_, err := withOrigin(t, c.DB(1+i), origin, "INSERT INTO t VALUES('once')")
			done <- err
		}()
		waitQueue(t, c.Node(1+i), 1)
	}
	mustCommit(t, tx)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := queryValue[int](t, c.DB(1), "SELECT count(*) FROM t WHERE n='once'"); n != 1 {
		t.Errorf("the write was applied %d times", n)
	}
}

// The first node gives up while the copy through the second node waits too.
func TestACopyWaitsOnWhenTheFirstNodeGivesUp(t *testing.T) {
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n)")
	origin := wire.Origin{Session: openSession(t, c.DB(1)), Sequence: 1}
	tx := mustBegin(t, c.DB(0))
	mustExec(t, tx, "INSERT INTO t VALUES('of the transaction')")
	write := func(ctx context.Context, i int) <-chan error {
		done := make(chan error, 1)
		go func() {
			done <- rawConn(t, c.DB(i), func(c originConn) error {
				c.SetOrigin(&origin)
				defer c.SetOrigin(nil)
				_, err := c.ExecContext(ctx, "INSERT INTO t VALUES('once')", nil)
				return err
			})
		}()
		return done
	}
	ctx, giveUp := context.WithCancel(testrun.Context(t))
	first := write(ctx, 1)
	waitQueue(t, c.Node(1), 1)
	second := write(testrun.Context(t), 2)
	giveUp()
	if err := <-first; err == nil {
		t.Error("the first node says that the write was applied")
	}
	waitQueue(t, c.Node(2), 1)
	mustCommit(t, tx)
	if err := <-second; err != nil {
		t.Errorf("the second node: %v", err)
	}
	if n := queryValue[int](t, c.DB(2), "SELECT count(*) FROM t WHERE n='once'"); n != 1 {
		t.Errorf("the write was applied %d times", n)
	}
}

// A client whose commit was not answered learns what became of it.
func TestTheOutcomeOfACommit(t *testing.T) {
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n)")
	session := openSession(t, c.DB(1))
	outcome := func(i int, sequence uint64) error {
		return rawConn(t, c.DB(i), func(oc originConn) error {
			return oc.CommitOutcome(testrun.Context(t), wire.Origin{Session: session, Sequence: sequence})
		})
	}
	commit := func(sequence uint64, text string) error {
		conn := mustConn(t, c.DB(0))
		mustExec(t, conn, "BEGIN")
		mustExec(t, conn, text)
		return conn.Raw(func(raw any) error {
			oc := raw.(originConn)
			oc.SetOrigin(&wire.Origin{Session: session, Sequence: sequence})
			_, err := oc.ExecContext(testrun.Context(t), "COMMIT", nil)
			return err
		})
	}
	if err := commit(1, "INSERT INTO t VALUES(1)"); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := outcome(i, 1); err != nil {
			t.Errorf("of a commit that was applied, node %d says %v", i+1, err)
		}
	}
	if err := outcome(2, 2); !errors.Is(err, hiqlite.ErrTxExpired) {
		t.Errorf("of a commit that was not proposed, node 3 says %v", err)
	}
	if err := commit(2, "INSERT INTO t VALUES(2)"); !errors.Is(err, hiqlite.ErrTxExpired) {
		t.Errorf("the late commit: %v", err)
	}
	if got := queryValue[string](t, c.DB(0), "SELECT group_concat(n) FROM t"); got != "1" {
		t.Errorf("the rows are %s", got)
	}
	mustExec(t, c.DB(1), "INSERT INTO t VALUES(3)") // nobody holds the lease
}

// A text that makes TEMP objects and writes is a transaction. Its copy runs on another
// view, and so it cannot return the results of the first one.
func TestACopyOfAnImplicitTransaction(t *testing.T) {
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n)")
	session := openSession(t, c.DB(1))
	const text = "CREATE TEMP TABLE x(a); INSERT INTO x VALUES(1); INSERT INTO t SELECT a FROM x"
	if _, err := withOrigin(t, c.DB(0), wire.Origin{Session: session, Sequence: 1}, text); err != nil {
		t.Fatal(err)
	}
	if _, err := withOrigin(t, c.DB(1), wire.Origin{Session: session, Sequence: 1}, text); !errors.Is(err, hiqlite.ErrOutcomeUnknown) {
		t.Errorf("the copy: %v", err)
	}
	if _, err := withOrigin(t, c.DB(2), wire.Origin{Session: session, Sequence: 1}, "INSERT INTO t VALUES(2)"); !errors.Is(err, hiqlite.ErrOutcomeUnknown) {
		t.Errorf("a plain write under the same origin: %v", err)
	}
	if _, err := withOrigin(t, c.DB(2), wire.Origin{Session: session, Sequence: 2}, "INSERT INTO t VALUES(3)"); err != nil {
		t.Errorf("the next write: %v", err)
	}
	if got := queryValue[string](t, c.DB(2), "SELECT group_concat(n) FROM t"); got != "1,3" {
		t.Errorf("the rows are %s", got)
	}
}
