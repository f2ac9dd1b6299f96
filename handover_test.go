package hiqlite_test

import (
	"sync"
	"sync/atomic"
	"testing"
)

// Close hands leadership over first: when it returns, another node leads, and
// writers on the others have not seen an error. A transfer is Raft's best
// effort, so one of several may fail; then the others elect.
func TestCloseHandsLeadershipOver(t *testing.T) {
	const rounds, writers = 5, 6
	c := newCluster(t, 3)
	mustExec(t, c.db(0), "CREATE TABLE t(n INTEGER)")
	handed := 0
	for range rounds {
		leader := c.leader()
		var quit atomic.Bool
		var written atomic.Int64
		var wait sync.WaitGroup
		for w := range writers {
			db := c.db((leader + 1 + w%2) % 3)
			wait.Go(func() {
				for !quit.Load() {
					if _, err := db.ExecContext(patient(t), "INSERT INTO t VALUES(1)"); err != nil {
						t.Error(err)
						return
					}
					written.Add(1)
				}
			})
		}
		waitFor(t, "writers", func() bool { return written.Load() > 50 })
		c.stop(leader)
		for _, survivor := range []int{(leader + 1) % 3, (leader + 2) % 3} {
			s, err := c.nodes[survivor].Status(patient(t))
			if err != nil {
				t.Fatal(err)
			}
			if s.Leader != 0 && s.Leader != uint64(leader+1) { // the next leader knows it at once, the other one when it hears of it
				handed++
				break
			}
		}
		before := written.Load()
		waitFor(t, "writers to go on", func() bool { return written.Load() > before+50 })
		quit.Store(true)
		wait.Wait()
		c.start(leader)
		c.ready(leader)
	}
	if handed < rounds/2 {
		t.Errorf("only %d of %d leaders handed over", handed, rounds)
	}
}
