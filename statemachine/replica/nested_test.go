package replica

import "testing"

// An index on one of FTS5's own tables, or a foreign key to it, makes FTS5 write within
// its own writes, without end. This once ended the process by a stack overflow.
func TestIndexesOnShadowTablesDoNotRecurseForever(t *testing.T) {
	for _, text := range []string{"CREATE INDEX x ON ft_data(block)", "CREATE UNIQUE INDEX x ON ft_data(block)", "CREATE TABLE c(x INTEGER REFERENCES ft_data(id) ON DELETE CASCADE)", "CREATE INDEX x ON ft_idx(term)", "CREATE INDEX x ON rt_node(data)"} {
		m := newMachine(t)
		m.must("CREATE VIRTUAL TABLE ft USING fts5(a); CREATE VIRTUAL TABLE rt USING rtree(id, a, b); CREATE TABLE t(a)")
		r := m.do(op(text))
		r = append(r, m.do(op("INSERT INTO ft VALUES('x')"), op("INSERT INTO rt VALUES(1,2,3)"), op("INSERT INTO t VALUES(1)"))...)
		if err := m.Err(); err != nil {
			t.Errorf("%s stops the replica: %v", text, err)
			continue
		}
		t.Log(text, r[0].Err, r[1].Err, r[2].Err)
		m.Close()
		m.index = m.start()
		m.must("INSERT INTO t VALUES(2)")
		if got := m.rows("SELECT count(*) FROM t"); got != "2" {
			t.Errorf("after %s: %s rows", text, got)
		}
		if r[1].Err != nil {
			m.must("DROP INDEX IF EXISTS x; DROP TABLE IF EXISTS c")
			m.must("INSERT INTO ft VALUES('y')")
		}
	}
}
