package statemachine

import (
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
)

// A TEMP object that stayed on the connection that applies would be gone after
// a restart: rows would differ from then on.
func TestNoTempObjectStays(t *testing.T) {
	const body = " BEGIN DELETE FROM t WHERE a<new.a; END"
	texts := []string{
		"CREATE TRIGGER temp.x AFTER INSERT ON main.t" + body, "CREATE TRIGGER temp.x AFTER INSERT ON t" + body, "CREATE TRIGGER IF NOT EXISTS `temp`.x AFTER INSERT ON main.t" + body,
		"INSERT INTO t VALUES(-1); CREATE TRIGGER temp.x AFTER INSERT ON main.t" + body, "CREATE TABLE temp.t(a)", "CREATE VIEW temp.t AS SELECT 7 AS a",
		"CREATE TRIGGER temp.x INSTEAD OF INSERT ON main.v" + body,
	}
	h := newHistory()
	h.sql("CREATE TABLE t(a)", "CREATE VIEW v AS SELECT a FROM t")
	for _, text := range texts {
		h.do(op(text), op("INSERT INTO t SELECT coalesce(max(a),0)+1 FROM t"))
		h.sql("INSERT INTO t SELECT coalesce(max(a),0)+1 FROM t")
	}
	m := agree(t, h, "SELECT group_concat(a,' ') FROM t")
	for i := range texts {
		results := m.got[[2]uint64{1, uint64(3 + 2*i)}]
		if codeOf(results[0]) != sqlite.CodeAuth || codeOf(results[1]) != 0 {
			t.Errorf("%s: %v, then %v", texts[i], results[0].Err, results[1].Err)
		}
	}
	if got := m.rows("SELECT group_concat(a,' ') FROM t"); got != "1 2 3 4 5 6 7 8 9 10 11 12 13 14" {
		t.Errorf("the rows are %s", got)
	}
}
