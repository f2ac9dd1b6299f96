package replica

import (
	"errors"
	"testing"

	sm "github.com/lni/dragonboat/v4/statemachine"
)

// Raft compacts the log up to what it takes for synced: a replica that has
// failed must abort that, or its next start would lack what it never applied.
func TestAFailedReplicaIsNotTakenForSynced(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	done := m.Compacting()
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	m.Fail(errors.New("out of order"))
	<-m.failed
	if err := m.Sync(); err != sm.ErrSnapshotAborted {
		t.Errorf("a compaction is told %v", err)
	}
	done() // its caller gave up, Raft may not have
	if err := m.Sync(); err != sm.ErrSnapshotAborted {
		t.Errorf("a compaction that goes on is told %v", err)
	}
}
