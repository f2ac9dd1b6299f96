package replica

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// SQLite's errors for a corrupt or full database, a file that cannot be opened and a lack
// of memory may be caused by a statement alone. Then they are its result on every replica,
// and the replica continues.
func TestErrorsThatStatementsCauseAreResults(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	for _, text := range []string{
		"CREATE VIEW IF NOT EXISTS IF AS SELECT null",
		"CREATE TABLE IF(x); CREATE TABLE IF NOT EXISTS IF(x)",
		"CREATE TRIGGER IF NOT EXISTS IF AFTER INSERT ON t BEGIN SELECT 1; END",
		"CREATE INDEX IF NOT EXISTS IF ON t(x)",
		"CREATE VIRTUAL TABLE r1 USING rtree(id)",
		"CREATE VIRTUAL TABLE r2 USING rtree(id, a, b); UPDATE r2_node SET data = x'00'; INSERT INTO r2 VALUES(1, 2, 3)",
		"CREATE VIRTUAL TABLE r3 USING rtree(id, a, b); DROP TABLE r3_node; SELECT * FROM r3",
		"CREATE VIRTUAL TABLE f1 USING fts5(x); INSERT INTO f1(f1, rank) VALUES('pgsz', 1)",
		"CREATE VIRTUAL TABLE f2 USING fts5(x); INSERT INTO f2(f2) VALUES('nonsense')",
		"CREATE VIRTUAL TABLE f3 USING fts5(x, content=''); INSERT INTO f3(f3, rowid, x) VALUES('delete', 7, 'never there'); INSERT INTO f3(f3) VALUES('integrity-check')",
		"CREATE VIRTUAL TABLE f4 USING fts5(x, content=nosuch); INSERT INTO f4(f4) VALUES('rebuild')",
		"CREATE VIRTUAL TABLE f5 USING fts5(x, tokenize='nosuch')",
		"CREATE VIRTUAL TABLE f6 USING fts5(x, content=t, content_rowid=x); INSERT INTO f6(f6) VALUES('integrity-check')",
		"CREATE VIRTUAL TABLE v1 USING fts5vocab(nosuch, row); SELECT * FROM v1",
		"CREATE VIRTUAL TABLE g1 USING geopoly(a); INSERT INTO g1(_shape) VALUES(x'0102')",
		"INSERT INTO t VALUES(zeroblob(3000000000))",
		"SELECT zeroblob(2147483647)",
		"SELECT printf('%.*c', 2147483000, 'x')",
		"SELECT abs(-9223372036854775808)",
		"SELECT json_extract('[' , '$')",
		"PRAGMA writable_schema=ON",
		"UPDATE sqlite_schema SET sql='nonsense'",
		"DELETE FROM sqlite_schema",
		"INSERT INTO sqlite_sequence VALUES('t', 1)",
		"ALTER TABLE t RENAME TO sqlite_t",
		"CREATE TABLE w(x CHECK(nosuch(x)))",
		"CREATE TABLE w2(x PRIMARY KEY, y AS (x)) WITHOUT ROWID; CREATE INDEX w2i ON w2(nosuch(x))",
		"CREATE TABLE a AS SELECT " + strings.Repeat("(", 5000) + "1" + strings.Repeat(")", 5000),
		"INSERT INTO t VALUES(load_extension('x'))",
		"VACUUM INTO '/nosuch/folder/x'",
		"ATTACH '/nosuch/folder/x' AS y",
		"SELECT fts5(x'00')",
		"SELECT rtreenode(2, x'00')",
		"SELECT rtreecheck('t')",
	} {
		t.Run(text[:min(len(text), 60)], func(t *testing.T) {
			h := newHistory()
			h.sql("CREATE TABLE t(x)", "INSERT INTO t VALUES(1)")
			h.do(op("INSERT INTO t VALUES(2)"), op(text), op("INSERT INTO t VALUES(3)"))
			h.sql("INSERT INTO t VALUES(4)")
			m := emptyMachine(t)
			m.apply(h.entries...)
			if err := m.Err(); err != nil {
				t.Fatal(err)
			}
			t.Log(m.got[[2]uint64{1, 3}][1].Err)
			m.restart(h)
			if got := m.rows("SELECT sum(x=1), sum(x=2), sum(x=3), sum(x=4) FROM t"); got != "1|1|1|1" {
				t.Errorf("the rows of the other operations are %s", got)
			}
			agree(t, h)
		})
	}
}

// If any call of the file system fails while entries are applied, that is not a result. The
// replica stops without results, and applies the entry when the disk works again.
func TestAFailingDiskIsNotAResult(t *testing.T) {
	for _, fails := range []struct {
		op   string
		code int
		text string
	}{
		{"write", sqlite.CodeFull, "INSERT INTO applied SELECT 7 UNION ALL SELECT zeroblob(9000000)"}, // larger than the page cache
		{"write", sqlite.CodeFull, "INSERT INTO applied VALUES(7)"},
		{"write", sqlite.CodeWriteFailed, "INSERT INTO applied VALUES(7)"},
		{"write", sqlite.CodeWriteFailed, "INSERT OR FAIL INTO applied VALUES(7)"},
		{"read", sqlite.CodeReadFailed, "INSERT INTO applied SELECT 7 FROM large WHERE length(hex(b))>0 LIMIT 1"},
		{"write", sqlite.CodeWriteFailed, "VACUUM"},
		{"write", sqlite.CodeFull, "VACUUM"},
		{"open", sqlite.CodeCannotOpen, "VACUUM"},
	} {
		for nth := range 4 {
			t.Run(fmt.Sprintf("%s %d of %s", fails.op, nth, fails.text[:min(30, len(fails.text))]), func(t *testing.T) {
				h := newCounterHistory()
				h.sql("CREATE TABLE large(id INTEGER PRIMARY KEY, b)", "INSERT INTO large(b) SELECT randomblob(100000) FROM (SELECT 1 UNION SELECT 2 UNION SELECT 3)")
				n := len(h.entries)
				m := emptyMachine(t)
				m.apply(h.entries...)
				m.index = uint64(n)
				m.restart(h) // so that the page cache is empty
				last := op(fails.text)
				last.Vacuum = fails.text == "VACUUM"
				h.do(insert(8))
				h.do(last)
				h.do(insert(9))
				answered, calls := m.answered, 0
				mend := sqlite.FailFiles(func(op, path string) int {
					if op != fails.op || path != "a temporary file" && !strings.HasPrefix(path, m.dir) {
						return 0
					}
					if calls++; calls <= nth {
						return 0
					}
					return fails.code
				})
				t.Cleanup(mend)
				if _, err := m.Update(h.entries[n:]); err != nil {
					t.Fatal(err)
				}
				mend()
				if calls <= nth {
					// There were fewer calls than nth, so none of them failed.
					if err := m.Err(); err != nil {
						t.Fatal(err)
					}
					return
				}
				if err := m.Err(); err == nil {
					t.Fatal("the replica continues")
				}
				if m.answered != answered {
					t.Errorf("Applied was called %d times", m.answered-answered)
				}
				<-m.failed
				m.index = uint64(len(h.entries))
				m.restart(h)
				healthy := emptyMachine(t)
				healthy.apply(h.entries...)
				if m.hash() != healthy.hash() {
					t.Error("after the restart the replica differs from one whose disk never failed")
				}
			})
		}
	}
}
