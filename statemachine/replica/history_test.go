package replica

import (
	"errors"
	"testing"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// A replica that has applied other entries than the leader stops when the leader
// tells what it has applied, also after a restart; one that has applied the same
// goes on, whatever it cannot compare.
func TestAnotherHistoryStopsAReplica(t *testing.T) {
	tell := func(index, sum uint64) []byte {
		return wire.EncodeClockAdvance(wire.ClockAdvance{Applied: index, History: sum})
	}
	r, other := newMachine(t), newMachine(t)
	r.must("CREATE TABLE t(v)", "INSERT INTO t VALUES(1)")
	other.must("CREATE TABLE t(v)", "INSERT INTO t VALUES(2)")
	for _, m := range []*machine{r, other} {
		m.must("INSERT INTO t VALUES(3)")
	}
	index, sum := r.History()
	if i, s := other.History(); i != index || s == sum {
		t.Fatalf("histories %d %x and %d %x: different entries, at the same index", index, sum, i, s)
	}
	r.update(tell(index, sum))
	r.update(tell(index+1000, sum+1), tell(0, sum+1)) // not known here
	if err := r.Err(); err != nil {
		t.Fatalf("its own history: %v", err)
	}
	other.Close()
	other.start()
	if i, s := other.History(); i != index || s == sum {
		t.Fatalf("after a restart the history is %x at %d", s, i)
	}
	other.update(tell(index, sum))
	if err := other.Err(); !errors.Is(err, ErrDiverged) || !errors.Is(err, ErrDamaged) {
		t.Errorf("the history of another: %v, want ErrDiverged", err)
	}
}
