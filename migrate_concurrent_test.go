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

// Each file can be applied once only: all of them fail over themselves.
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

// migrateEverywhere migrates from all nodes, and from each twice, at once.
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

// Two programs of which each has a file that the other lacks: what is applied
// is what one of them has, in order.
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
			t.Errorf("of the two kinds %v succeeded, want all of one", succeeded)
		}
		ctx := linearizable(t)
		var got string
		if err := c.DB(0).QueryRowContext(ctx, fmt.Sprintf("SELECT group_concat(v, ' ') FROM (SELECT v FROM r%d ORDER BY rowid)", round)).Scan(&got); err != nil || got != want {
			t.Errorf("round %d: applied were %q (%v), want %q", round, got, err, want)
		}
		mustExec(t, c.DB(0), "DROP TABLE hiqlite_migrations")
	}
	c.WaitEqual()
}

func TestMigrateAfterARestart(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustMigrate(t, c.DB(0), people)
		c.stopAll()
		c.startAll()
		// Nobody waits for a leader.
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

// hooked is a context that calls a function when it was asked something so
// often: not whether it has ended, which goroutines of the node's ask too.
type hooked struct {
	context.Context
	left atomic.Int64
	mu   sync.Mutex // held while the function runs
	then func()     // nil: too late
}

func hook(ctx context.Context, left int64, then func()) *hooked {
	h := &hooked{Context: ctx, then: then}
	h.left.Store(left)
	return h
}

func (h *hooked) count() {
	if h.left.Add(-1) != 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.then != nil {
		h.then()
	}
}

// unhook waits for the function: a goroutine of database/sql's may have called it.
func (h *hooked) unhook() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.then = nil
}

func (h *hooked) Done() <-chan struct{} {
	h.count()
	return h.Context.Done()
}

func (h *hooked) Value(key any) any {
	h.count()
	return h.Context.Value(key)
}

func TestMigrateWithContextsThatEnd(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		files := manyMigrations(20)
		between := false // one ended when some files were applied and others not
		for left := int64(1); ; left++ {
			ctx, cancel := context.WithCancel(testrun.Context(t))
			err := hiqlite.Migrate(hook(ctx, left, cancel), c.DB(0), files)
			cancel()
			if err == nil {
				break
			}
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("after %d: %v", left, err)
			}
			if strings.Contains(err.Error(), "_step.sql") {
				between = true
				wantRows(t, c.DB(0), "SELECT count(*)-count(DISTINCT version) FROM log", "0")
			}
		}
		if !between {
			t.Error("none ended between files")
		}
		wantRows(t, c.DB(0), "SELECT count(*) FROM log", "19")
		c.WaitEqual()
	})
}

// At whatever moment another one applies the files, and the caller's node sees
// it, they are applied once and the caller is told nothing of it.
func TestMigrateWhileAnotherIsFaster(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		last := c.Len() - 1
		rival := sql.OpenDB(c.Node(0).Connector())
		defer rival.Close()
		for left, reached := int64(1), true; reached; left++ {
			// New names, which no node has met.
			files := migrations(
				"1_make.sql", fmt.Sprintf("CREATE TABLE a%d(v); INSERT INTO a%d VALUES(1)", left, left),
				"2_rename.sql", fmt.Sprintf("ALTER TABLE a%d RENAME TO b%d", left, left),
				"3_index.sql", fmt.Sprintf("CREATE UNIQUE INDEX i%d ON b%d(v)", left, left),
				"4_empty.sql", "",
				"5_fill.sql", fmt.Sprintf("INSERT INTO b%d VALUES(2)", left),
				"6_column.sql", fmt.Sprintf("ALTER TABLE b%d ADD COLUMN w", left),
			)
			reached = false
			ctx := hook(testrun.Context(t), left, func() {
				reached = true
				if err := hiqlite.Migrate(testrun.Context(t), rival, files); err != nil {
					t.Errorf("the faster one at moment %d: %v", left, err)
				}
				if err := c.Node(last).Ready(testrun.Context(t)); err != nil {
					t.Error(err)
				}
			})
			err := hiqlite.Migrate(ctx, c.DB(last), files)
			ctx.unhook()
			if err != nil {
				t.Fatalf("another was faster at moment %d: %v", left, err)
			}
			wantRows(t, c.DB(last), fmt.Sprintf("SELECT v FROM b%d ORDER BY v", left), "1 2")
			wantRows(t, c.DB(last), "SELECT count(*) FROM hiqlite_migrations", "6")
			mustExec(t, c.DB(last), fmt.Sprintf("DROP TABLE hiqlite_migrations; DROP TABLE b%d", left))
		}
		c.WaitEqual()
	})
}

// Callers give up early and often and begin anew, while the leader goes: each
// file is applied once.
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
					t.Errorf("unknown, and not of which file: %v", err)
				}
				if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, hiqlite.ErrOutcomeUnknown) && !errors.Is(err, hiqlite.ErrNoLeader) {
					t.Errorf("%v", err)
				}
			}
			t.Error("it never succeeded")
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

// Migrate waits for transactions as long as its context allows.
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
