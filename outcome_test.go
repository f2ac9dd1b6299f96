package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// Writers have short contexts, while leaders are stopped and started. A write that has
// succeeded was applied once, and one that has failed was not applied; only for
// ErrOutcomeUnknown may it be either.
func TestErrorsSayWhetherAWriteWasApplied(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(name TEXT)")

	var (
		mu       sync.Mutex
		outcomes = map[string]error{}
		counts   [3]atomic.Int64 // success, failure, unknown
		quit     atomic.Bool
		wait     sync.WaitGroup
	)
	for w := range 12 {
		random := rand.New(rand.NewPCG(seed, uint64(w)))
		wait.Go(func() {
			for n := 0; !quit.Load(); n++ {
				name := fmt.Sprintf("%d/%d", w, n)
				if !c.Running(w % 3) {
					time.Sleep(time.Millisecond) // until the node is started again
					continue
				}
				node := c.Node(w % 3)
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(random.IntN(8000))*time.Microsecond<<random.IntN(6)) // some of them end before the write is applied, on fast and on slow machines
				_, err := node.DB().ExecContext(ctx, "INSERT INTO t VALUES(?)", name)
				cancel()
				mu.Lock()
				outcomes[name] = err
				mu.Unlock()
				switch {
				case err == nil:
					counts[0].Add(1)
				case errors.Is(err, hiqlite.ErrOutcomeUnknown):
					counts[2].Add(1)
				default:
					counts[1].Add(1)
				}
			}
		})
	}
	for range 5 {
		before := counts[0].Load()
		testrun.WaitFor(t, "writes to succeed", func() bool { return counts[0].Load() > before+50 })
		leader := c.Leader()
		c.Stop(leader)
		before = counts[0].Load()
		testrun.WaitFor(t, "writes to succeed without the leader", func() bool { return counts[0].Load() > before+50 })
		c.Start(leader)
		c.WaitReady(leader)
	}
	quit.Store(true)
	wait.Wait()
	c.WaitEqual()
	t.Logf("%d succeeded, %d failed, %d unknown", counts[0].Load(), counts[1].Load(), counts[2].Load())
	checkOutcomes(t, c.DB(0), outcomes)
}

// checkOutcomes compares the errors that writes have returned with the rows of the table.
func checkOutcomes(t *testing.T, db *sql.DB, outcomes map[string]error) {
	t.Helper()
	found := map[string]int{}
	eachRow(t, db, "SELECT name, count(*) FROM t GROUP BY name", func(rows *sql.Rows) {
		var name string
		var n int
		if err := rows.Scan(&name, &n); err != nil {
			t.Fatal(err)
		}
		found[name] = n
	})
	for name, err := range outcomes {
		switch n := found[name]; {
		case n > 1:
			t.Errorf("%s was applied %d times (%v)", name, n, err)
		case err == nil && n == 0:
			t.Errorf("%s has succeeded, and was not applied", name)
		case err != nil && n == 1 && !errors.Is(err, hiqlite.ErrOutcomeUnknown):
			t.Errorf("%s has failed, and was applied: %v", name, err)
		}
	}
}
