package hiqlite_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// Close hands leadership over first: when it returns, another node leads, and
// writers on the others have not seen an error. A transfer is Raft's best
// effort, so one of several may fail; then the others elect.
func TestCloseHandsLeadershipOver(t *testing.T) {
	t.Parallel()
	const rounds, writers = 5, 6
	c := newCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(n INTEGER)")
	handed := 0
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
		testrun.WaitFor(t, "writers", func() bool { return written.Load() > 50 })
		c.Stop(leader)
		for _, survivor := range []int{(leader + 1) % 3, (leader + 2) % 3} {
			s, err := c.Node(survivor).Status(testrun.Context(t))
			if err != nil {
				t.Fatal(err)
			}
			if s.Leader != 0 && s.Leader != uint64(leader+1) { // the next leader knows it at once, the other one when it hears of it
				handed++
				break
			}
		}
		before := written.Load()
		testrun.WaitFor(t, "writers to go on", func() bool { return written.Load() > before+50 })
		quit.Store(true)
		wait.Wait()
		c.Start(leader)
		c.WaitReady(leader)
	}
	if handed < rounds/2 {
		t.Errorf("only %d of %d leaders handed over", handed, rounds)
	}
}
