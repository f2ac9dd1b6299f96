package replica

import (
	"errors"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"
)

// Raft compacts the log up to the entry that Sync has made durable. A replica that has failed
// must abort the compaction, because it would lack the entries that it has not applied.
func TestFailedReplicasAbortCompactions(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	done := m.Compacting()
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	m.Fail(errors.New("out of order"))
	<-m.failed
	if err := m.Sync(); err != sm.ErrSnapshotAborted {
		t.Errorf("the error of a compaction is %v", err)
	}
	done() // the caller has given up, but Raft may still compact
	if err := m.Sync(); err != sm.ErrSnapshotAborted {
		t.Errorf("the error of the continued compaction is %v", err)
	}
}
