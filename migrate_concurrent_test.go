package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// In the tests of this file, several callers migrate at the same time, or give up.

// manyMigrations returns n files. Each of them fails if it is applied twice.
func manyMigrations(n int) fstest.MapFS {
	files := migrations("1_first.sql", "CREATE TABLE log(version INTEGER)")
	for i := 2; i <= n; i++ {
		text := fmt.Sprintf("CREATE TABLE t%d(a); INSERT INTO log VALUES(%d); DROP TABLE IF EXISTS t%d", i, i, i-1)
		if i%3 == 0 {
			text = fmt.Sprintf("ALTER TABLE t%d RENAME TO t%d; INSERT INTO log VALUES(%d)", i-1, i, i)
		}
		files[fmt.Sprintf("%d_step.sql", i)] = &fstest.MapFile{Data: []byte(text)}
	}
	return files
}

// migrateEverywhere calls Migrate twice on each node, all at the same time, and returns
// the errors.
func migrateEverywhere(t *testing.T, c *testCluster, files func(caller int) fstest.MapFS) []error {
	t.Helper()
	errs := make([]error, 2*c.Len())
	ctx := testrun.Context(t)
	var wait sync.WaitGroup
	for i := range errs {
		db := c.DB(i % c.Len())
		wait.Go(func() { errs[i] = hiqlite.Migrate(ctx, db, files(i)) })
	}
	wait.Wait()
	return errs
}

func TestMigrateOnAllNodesAtOnce(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		const n = 40
		files := manyMigrations(n)
		for i, err := range migrateEverywhere(t, c, func(int) fstest.MapFS { return files }) {
			if err != nil {
				t.Errorf("caller %d: %v", i, err)
			}
		}
		for i := range c.Len() {
			wantRows(t, c.DB(i), "SELECT count(*)||' '||count(DISTINCT version)||' '||sum(version) FROM log", fmt.Sprint(n-1, n-1, n*(n+1)/2-1))
			wantRows(t, c.DB(i), "SELECT count(*) FROM hiqlite_migrations", fmt.Sprint(n))
			wantRows(t, c.DB(i), userTables, "log t40")
		}
		c.WaitEqual()
	})
}

// Two versions of a program migrate at the same time, and each has a file that the other
// lacks. The files of one of them are applied, in order; the other one gets an error.
func TestMigrateDifferentFilesAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	for round := range 8 {
		base := migrations("1_a.sql", fmt.Sprintf("CREATE TABLE r%d(v)", round), "4_d.sql", fmt.Sprintf("INSERT INTO r%d VALUES(4)", round))
		both := []fstest.MapFS{
			with(base, "2_b.sql", fmt.Sprintf("INSERT INTO r%d VALUES(2)", round)),
			with(base, "3_c.sql", fmt.Sprintf("INSERT INTO r%d VALUES(3)", round)),
		}
		succeeded := [2]int{}
		for i, err := range migrateEverywhere(t, c, func(caller int) fstest.MapFS { return both[caller%2] }) {
			if err == nil {
				succeeded[i%2]++
			} else if s := err.Error(); !strings.Contains(s, "this program has no file for it") {
				t.Errorf("caller %d: %v", i, err)
			}
		}
		want := "2 4"
		if succeeded[1] > 0 {
			want = "3 4"
		}
		if (succeeded[0] == 3) == (succeeded[1] == 3) || succeeded[0]+succeeded[1] != 3 {
			t.Errorf("%v callers of the two versions have succeeded, want all 3 of one", succeeded)
		}
		ctx := linearizable(t)
		var got string
		if err := c.DB(0).QueryRowContext(ctx, fmt.Sprintf("SELECT group_concat(v, ' ') FROM (SELECT v FROM r%d ORDER BY rowid)", round)).Scan(&got); err != nil || got != want {
			t.Errorf("round %d: the files %q were applied, %v, want %q", round, got, err, want)
		}
		mustExec(t, c.DB(0), "DROP TABLE hiqlite_migrations")
	}
	c.WaitEqual()
}

// Migrate right after a start waits until there is a leader.
func TestMigrateAfterARestart(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustMigrate(t, c.DB(0), people)
		c.stopAll()
		c.startAll()
		more := with(people, "11_more.sql", "INSERT INTO people(name) VALUES('eve')")
		for i, err := range migrateEverywhere(t, c, func(int) fstest.MapFS { return more }) {
			if err != nil {
				t.Errorf("caller %d: %v", i, err)
			}
		}
		for i := range c.Len() {
			wantRows(t, c.DB(i), "SELECT name FROM people ORDER BY id", "ada bob eve")
		}
		c.WaitEqual()
	})
}

// A countingContext calls a function after a number of calls of its methods Done and
// Value. It does not count calls of Err, because goroutines of the node call it, too.
type countingContext struct {
	context.Context
	left atomic.Int64
	mu   sync.Mutex // held while the function runs
	then func()     // nil after stop
}

func contextWithCountdown(ctx context.Context, left int64, then func()) *countingContext {
	h := &countingContext{Context: ctx, then: then}
	h.left.Store(left)
	return h
}

func (h *countingContext) count() {
	if h.left.Add(-1) != 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.then != nil {
		h.then()
	}
}

// stop prevents the call of the function. If a goroutine of database/sql is calling it,
// stop waits for its end.
func (h *countingContext) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.then = nil
}

func (h *countingContext) Done() <-chan struct{} {
	h.count()
	return h.Context.Done()
}

func (h *countingContext) Value(key any) any {
	h.count()
	return h.Context.Value(key)
}

// The context of Migrate ends at each possible moment. Each call goes on where the one
// before has ended, and no file is applied twice.
func TestMigrateWithContextsThatEnd(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		files := manyMigrations(20)
		between := false // whether a call has ended after some of the files
		for left := int64(1); ; left++ {
			ctx, cancel := context.WithCancel(testrun.Context(t))
			err := hiqlite.Migrate(contextWithCountdown(ctx, left, cancel), c.DB(0), files)
			cancel()
			if err == nil {
				break
			}
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("with a context that ends at moment %d: %v", left, err)
			}
			if strings.Contains(err.Error(), "_step.sql") {
				between = true
				wantRows(t, c.DB(0), "SELECT count(*)-count(DISTINCT version) FROM log", "0")
			}
		}
		if !between {
			t.Error("no call has ended between two files")
		}
		wantRows(t, c.DB(0), "SELECT count(*) FROM log", "19")
		c.WaitEqual()
	})
}

// Another caller applies all files at each possible moment of a Migrate, and the node of
// that Migrate has applied them. Then Migrate succeeds, and applies no file again.
func TestMigrateWhileAnotherCallerIsFaster(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		last := c.Len() - 1
		rival := sql.OpenDB(c.Node(0).Connector())
		defer rival.Close()
		for left, reached := int64(1), true; reached; left++ {
			// The names are new each time, so that no node has them in a cache.
			files := migrations(
				"1_make.sql", fmt.Sprintf("CREATE TABLE a%d(v); INSERT INTO a%d VALUES(1)", left, left),
				"2_rename.sql", fmt.Sprintf("ALTER TABLE a%d RENAME TO b%d", left, left),
				"3_index.sql", fmt.Sprintf("CREATE UNIQUE INDEX i%d ON b%d(v)", left, left),
				"4_empty.sql", "",
				"5_fill.sql", fmt.Sprintf("INSERT INTO b%d VALUES(2)", left),
				"6_column.sql", fmt.Sprintf("ALTER TABLE b%d ADD COLUMN w", left),
			)
			reached = false
			ctx := contextWithCountdown(testrun.Context(t), left, func() {
				reached = true
				if err := hiqlite.Migrate(testrun.Context(t), rival, files); err != nil {
					t.Errorf("the faster caller, at moment %d: %v", left, err)
				}
				if err := c.Node(last).Ready(testrun.Context(t)); err != nil {
					t.Error(err)
				}
			})
			err := hiqlite.Migrate(ctx, c.DB(last), files)
			ctx.stop()
			if err != nil {
				t.Fatalf("after another caller was faster at moment %d: %v", left, err)
			}
			wantRows(t, c.DB(last), fmt.Sprintf("SELECT v FROM b%d ORDER BY v", left), "1 2")
			wantRows(t, c.DB(last), "SELECT count(*) FROM hiqlite_migrations", "6")
			mustExec(t, c.DB(last), fmt.Sprintf("DROP TABLE hiqlite_migrations; DROP TABLE b%d", left))
		}
		c.WaitEqual()
	})
}

// Callers with short contexts call Migrate again after each error, while the leader is
// stopped. Each file is applied once.
func TestMigrateAgainAfterEachError(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	const n = 150
	files := manyMigrations(n)
	leader := c.Leader()
	ctx := testrun.Context(t)
	var wait sync.WaitGroup
	for i := range c.Len() {
		if i == leader {
			continue
		}
		db := c.DB(i)
		wait.Go(func() {
			for limit := time.Millisecond; ctx.Err() == nil; limit += limit / 8 {
				short, cancel := context.WithTimeout(ctx, limit)
				err := hiqlite.Migrate(short, db, files)
				cancel()
				if err == nil {
					return
				}
				if errors.Is(err, hiqlite.ErrOutcomeUnknown) && !(strings.Contains(err.Error(), ".sql: ") && strings.Contains(err.Error(), "call Migrate again")) {
					t.Errorf("an unknown outcome, whose error does not name the file: %v", err)
				}
				if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, hiqlite.ErrOutcomeUnknown) && !errors.Is(err, hiqlite.ErrNoLeader) {
					t.Errorf("Migrate: %v", err)
				}
			}
			t.Error("Migrate has never succeeded")
		})
	}
	testrun.WaitFor(t, "some files to be applied", func() bool {
		var some bool
		err := c.DB(leader).QueryRowContext(ctx, "SELECT count(*)>10 FROM hiqlite_migrations").Scan(&some)
		return err == nil && some
	})
	c.Stop(leader)
	wait.Wait()
	for i := range c.Len() {
		if i != leader {
			wantRows(t, c.DB(i), "SELECT count(*)||' '||count(DISTINCT version) FROM log", fmt.Sprint(n-1, n-1))
		}
	}
	c.Start(leader)
	mustMigrate(t, c.DB(leader), files)
	c.WaitEqual()
}

// Migrate waits for the write lease until its context ends, not only for busy_timeout.
func TestMigrateWaitsForTransactions(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *hiqlite.Config) { cfg.Conn.BusyTimeout = time.Millisecond })
	tx := mustBegin(t, c.DB(0))
	done := make(chan error)
	go func() {
		done <- hiqlite.Migrate(testrun.Context(t), c.DB(1), fstest.MapFS{"1_t.sql": {Data: []byte("CREATE TABLE t(a)")}})
	}()
	waitQueue(t, c.Node(0), 1)
	mustCommit(t, tx)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
