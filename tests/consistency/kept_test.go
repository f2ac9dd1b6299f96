package consistency_test

import (
	"fmt"
	"testing"
	"time"
)

// A process that was stopped while it had a lease kept for its next transaction
// does not begin that one with rows that others have changed meanwhile.
func TestKeptLeasesShowNothingStale(t *testing.T) {
	c := leaseCluster(t, leaseTTL)
	for round := range 4 {
		_, holder, other := c.roles()
		name := fmt.Sprint("while it slept ", round)
		l := holder.alive()
		for range 10 {
			if err := holder.hold("in a row").commit(); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan string)
		go func() {
			tx, err := l.begin(request{After: 20 * time.Millisecond})
			if err != nil {
				done <- err.Error()
				return
			}
			rows, err := tx.query("SELECT count(*) FROM t WHERE name=?", name)
			if err != nil {
				tx.rollback()
				done <- err.Error()
				return
			}
			done <- fmt.Sprint("saw ", rows[0][0], ", commit: ", tx.commit())
		}()
		time.Sleep(2 * time.Millisecond) // into the time for which the lease is kept
		holder.pause()
		<-other.insert(name) // acknowledged ...
		holder.goOn()        // ... before BeginTx was called
		if got := <-done; got == "saw 0, commit: <nil>" {
			t.Errorf("round %d: a transaction under the lease, begun after 1 row was acknowledged, %s", round, got)
		} else {
			t.Log(got)
		}
	}
}
