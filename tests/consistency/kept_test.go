package consistency_test

import (
	"fmt"
	"testing"
	"time"
)

// A node is paused while it keeps the lease for its next transaction. The other
// nodes expire the lease and write; then the node is resumed and begins that
// transaction before it learns that its lease has expired. Either the transaction
// sees what the others wrote, or it fails. It must not commit after it has read old
// rows, whether it writes or not.
func TestKeptLeasesOfPausedNodes(t *testing.T) {
	c := leaseCluster(t, leaseTTL)
	for _, writes := range []bool{false, true} {
		t.Run(fmt.Sprintf("writes=%v", writes), func(t *testing.T) {
			expired := 0
			for round := range 4 {
				_, holder, other := c.roles()
				name := fmt.Sprintf("during pause %d, writes=%v", round, writes)
				for range 10 {
					if err := holder.holdLease("in a row").commit(); err != nil {
						t.Fatal(err)
					}
				}
				begun := holder.alive().beginLater(20 * time.Millisecond)
				holder.pause()
				<-other.insert(name) // acknowledged before the paused node calls BeginTx
				holder.resume()
				b := <-begun
				if b.err != nil {
					t.Fatal(b.err)
				}
				saw, err := readAndCommit(b.tx, name, writes)
				switch {
				case err == nil && saw != 1:
					t.Errorf("round %d: a transaction saw %d rows and was committed; it began after another node had inserted 1", round, saw)
				case err != nil && kindOf(err) != "expired":
					t.Errorf("round %d: the transaction of a node that was paused: %v, want ErrTxExpired", round, err)
				case err != nil:
					expired++
				}
			}
			t.Logf("%d of 4 expired", expired)
		})
	}
	c.equal()
}

// A begun is the result of beginLater.
type begun struct {
	tx  *transaction
	err error
}

// beginLater has the process begin a transaction after a delay, and returns when
// the process has received that request. If the process is paused for longer than
// the delay, BeginTx is the first thing that it does when it is resumed.
func (l *life) beginLater(delay time.Duration) <-chan begun {
	sent, result := make(chan struct{}), make(chan begun, 1)
	go func() {
		a, err := l.ask(request{Do: "begin", After: delay}, func() { close(sent) })
		result <- begun{&transaction{l: l, id: a.ID}, err}
	}()
	<-sent
	// The process reads one request after the other. When it has answered this
	// one, it has read the one before.
	l.ask(request{Do: "status"}, nil)
	return result
}

// readAndCommit counts the rows with a name in a transaction, inserts another one
// if the transaction is to write, and commits.
func readAndCommit(tx *transaction, name string, write bool) (saw int, err error) {
	rows, err := tx.query("SELECT count(*) FROM t WHERE name=?", name)
	if err == nil {
		saw = number(rows[0][0])
		if write {
			_, err = tx.exec("INSERT INTO t VALUES(?)", name)
		}
	}
	if err != nil {
		tx.rollback()
		return saw, err
	}
	return saw, tx.commit()
}
