package replica

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
)

// SQLite never allocates more than 2 GiB at once. The error is the same as if the
// machine had no memory, but it happens on every replica. It must be a result: a replica
// that stopped would stop again after each restart, as would all others.
func TestValuesBeyondTwoGibibytesAreAResult(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.MeasuresMemory)
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	r := m.do(op("INSERT INTO t VALUES('before')"),
		op("INSERT INTO t SELECT length(json_group_array(hex(zeroblob(200000000)))) FROM (VALUES(1),(2),(3),(4),(5),(6),(7))"),
		op("INSERT INTO t VALUES('after')"))
	if r[1].Err == nil || r[1].Err.Code != sqlite.CodeNoMemory || r[1].Err.Hint == "" {
		t.Errorf("the error is %v", r[1].Err)
	}
	if got := m.rows("SELECT * FROM t"); got != "before\nafter" {
		t.Errorf("the rows of the other operations are %q", got)
	}
}

// Entries stay decoded in memory until their SQLite transaction is committed, because
// they may have to be executed again. Entries may be compressed to a thousandth of their
// size, so a batch of many entries is executed in several transactions.
func TestBatchesUseBoundedMemory(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(id INTEGER PRIMARY KEY, size)")
	large := func(id int) *wire.Operation {
		return op(fmt.Sprintf("INSERT INTO t VALUES(%d, length('%s'))", id, strings.Repeat("x", 1<<20)))
	}
	var cmds [][]byte
	for id := range 80 {
		cmds = append(cmds, m.entry(large(id)))
	}
	cmds = append(cmds, m.entry(op("INSERT OR ROLLBACK INTO t VALUES(79, 0)")), m.entry(large(80)))
	m.update(cmds...)
	if got := m.rows("SELECT count(*), sum(size) FROM t"); got != fmt.Sprintf("81|%d", 81<<20) {
		t.Errorf("the rows are %s", got)
	}
	if r := m.got[[2]uint64{m.session, m.seq - 1}]; r[0].Err == nil {
		t.Error("the operation that rolls back has no error")
	}
	held := 0
	for _, d := range m.batch.decoders {
		held += d.Size()
	}
	if held > 82*statemachine.MaxIdleDecoder {
		t.Errorf("%d bytes are kept after the batch", held)
	}
	if len(m.batch.decoders) > 40 {
		t.Errorf("%d entries were in memory at once", len(m.batch.decoders))
	}
}
