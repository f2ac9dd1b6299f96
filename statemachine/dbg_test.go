package statemachine
import "testing"
func TestDbg(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE t(a)")
	for range 70 {
		m.must("INSERT INTO t VALUES(randomblob(1000000))")
	}
	_, wal := m.Size()
	t.Log(wal)
	m.checkpoints.checkpoint()
	_, wal = m.Size()
	t.Log(wal)
	m.SQL.mu.Lock()
	t.Log(m.checkpoints.conn.Checkpoint(true))
	m.SQL.mu.Unlock()
	_, wal = m.Size()
	t.Log(wal)
}
