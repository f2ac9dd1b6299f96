package replica

import (
	"errors"
	"testing"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// The leader proposes the checksum of the entries that it has applied. A replica that has
// applied other entries stops at that, also after a restart. A replica that has applied the
// same entries, or cannot compare them, continues.
func TestAnotherHistoryStopsAReplica(t *testing.T) {
	historyEntry := func(index, sum uint64) []byte {
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
	r.update(historyEntry(index, sum))
	r.update(historyEntry(index+1000, sum+1), historyEntry(0, sum+1)) // this replica has no checksum for these
	if err := r.Err(); err != nil {
		t.Fatalf("the error for the same history is %v", err)
	}
	other.Close()
	other.start()
	if i, s := other.History(); i != index || s == sum {
		t.Fatalf("after a restart the history is %x at %d", s, i)
	}
	other.update(historyEntry(index, sum))
	if err := other.Err(); !errors.Is(err, ErrDiverged) || !errors.Is(err, ErrDamaged) {
		t.Errorf("the error for another history is %v, want ErrDiverged", err)
	}
}
