package replica

import (
	"fmt"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A node that catches up gets many entries in one call. When an operation ends the SQLite
// transaction, the operations before it are executed again. This must not happen to all
// earlier operations for each such entry: 200 entries once needed 20,000 executions,
// during which the node was not ready.
func TestReplaysAreBounded(t *testing.T) {
	executions := 0
	functions, err := sqlite.NewFunctions([]sqlite.Function{{Name: "count_call", Args: 0, Version: 1, Deterministic: true,
		Scalar: func([]wire.Value) (wire.Value, error) { executions++; return wire.IntegerValue(1), nil }}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachineWith(t, functions)
	m.must("CREATE TABLE t(id INTEGER PRIMARY KEY, n)")
	const pairs = 200
	var cmds [][]byte
	for id := range pairs {
		insert := op(fmt.Sprintf("INSERT INTO t VALUES(%d, count_call())", id))
		insert.Functions = functions.Used(insert.Statements[0].SQL)
		cmds = append(cmds, m.entry(insert), m.entry(op("INSERT OR ROLLBACK INTO t VALUES(0, 0)")))
	}
	m.update(cmds...)
	if got := m.rows("SELECT count(*), sum(n) FROM t"); got != fmt.Sprintf("%d|%[1]d", pairs) {
		t.Errorf("the rows are %s", got)
	}
	if executions > 2*pairs {
		t.Errorf("%d inserts were executed %d times", pairs, executions)
	}
}
