package replica

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// plan returns how the connection that applies would execute a query.
func (m *machine) plan(sql string) string {
	m.t.Helper()
	defer m.conn.AsOwner(true)()
	s, _, err := m.conn.Prepare("EXPLAIN QUERY PLAN "+sql, false)
	if err != nil {
		m.t.Fatal(err)
	}
	defer s.Close()
	var out []string
	for {
		row, err := s.Step()
		if err != nil {
			m.t.Fatal(err)
		}
		if !row {
			return strings.Join(out, "; ")
		}
		out = append(out, string(s.Bytes(3)))
	}
}

const join = "SELECT big.rowid FROM big, small WHERE big.a=small.a AND big.b>5"

// insertJoin has a plan, and so an order of the rows that it inserts, that depends on the
// planner's statistics.
const insertJoin = "INSERT INTO l(v) SELECT big.b FROM big, small WHERE big.a=small.a AND big.b>5"

var planned = []string{
	"CREATE TABLE big(a, b); CREATE TABLE small(a); CREATE TABLE l(n INTEGER PRIMARY KEY, v)",
	"INSERT INTO big WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<300) SELECT n%7, n FROM x",
	"INSERT INTO small VALUES(3),(1),(5)",
	"CREATE INDEX ba ON big(a); CREATE INDEX bb ON big(b); CREATE INDEX sa ON small(a)",
}

// The statistics that a connection has loaded determine plans, and plans determine the order
// of rows. A replica that was restarted must have loaded the same statistics as one that was
// not.
func TestRunningAndRestartedReplicasPlanAlike(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	for name, texts := range map[string][]string{
		"ANALYZE":                          {"ANALYZE"},
		"ANALYZE of one table":             {"ANALYZE big"},
		"ANALYZE twice":                    {"ANALYZE", "DELETE FROM big WHERE rowid>20", "ANALYZE"},
		"invented statistics":              {"ANALYZE", "UPDATE sqlite_stat1 SET stat='1000000 1' WHERE tbl='small'", "UPDATE sqlite_stat1 SET stat='10 10' WHERE tbl='big'"},
		"statistics deleted":               {"ANALYZE", "DELETE FROM sqlite_stat1"},
		"the table dropped":                {"ANALYZE", "DROP TABLE sqlite_stat1"},
		"garbage":                          {"ANALYZE", "UPDATE sqlite_stat1 SET stat='x'||stat", "INSERT INTO sqlite_stat1 VALUES(NULL,1,x'00'),('big','nosuch','7 7'),('big',NULL,'5')"},
		"an index dropped":                 {"ANALYZE", "UPDATE sqlite_stat1 SET stat='9000000 1'", "DROP INDEX sa", "DROP INDEX ba"},
		"statistics first, an index later": {"ANALYZE", "INSERT INTO sqlite_stat1 VALUES('small','later','5000000 1')", "CREATE INDEX later ON small(a)"},
		"a table renamed":                  {"ANALYZE", "ALTER TABLE big RENAME TO huge; ALTER TABLE huge RENAME TO big"},
		"by a trigger":                     {"ANALYZE", "CREATE TRIGGER tr AFTER INSERT ON small BEGIN UPDATE sqlite_stat1 SET stat='7000000 1' WHERE tbl='small'; END", "INSERT INTO small VALUES(6)"},
		"REINDEX":                          {"ANALYZE", "REINDEX"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHistory()
			h.sql(planned...)
			h.sql(insertJoin)
			for _, text := range texts {
				h.sql(text, insertJoin)
			}
			var want string
			for i, way := range ways {
				m := way.run(t, h)
				got := m.hash() + "\n" + m.plan(join) + "\n" + m.rows("SELECT group_concat(v) FROM l")
				if i == 0 {
					want = got
					for key, r := range m.got {
						if r[0].Err != nil {
							t.Errorf("entry %d: %v", key[1], r[0].Err)
						}
					}
				} else if got != want {
					t.Errorf("%s:\n%s\n\n%s:\n%s", ways[0].name, want, way.name, got)
				}
				m.Close()
			}
		})
	}
}

// The replicas also have the same plans after the SQLite transaction that changed statistics
// was rolled back, by the same operation or by another one of the batch.
func TestPlansAfterStatisticsWereRolledBack(t *testing.T) {
	rollsBack := "INSERT OR ROLLBACK INTO l(n) VALUES(1),(1)"
	for name, ops := range map[string][]*wire.Operation{
		"by a later operation":   {op("UPDATE sqlite_stat1 SET stat='7000000 1' WHERE tbl='small'"), op(rollsBack), op(insertJoin)},
		"by an earlier one":      {op(rollsBack), op("UPDATE sqlite_stat1 SET stat='7000000 1' WHERE tbl='small'"), op(insertJoin)},
		"by the script itself":   {op("UPDATE sqlite_stat1 SET stat='7000000 1'; " + rollsBack), op(insertJoin)},
		"by a plain failure":     {op("UPDATE sqlite_stat1 SET stat='7000000 1'; ANALYZE big; INSERT INTO l(n) VALUES('x')"), op(insertJoin)},
		"ANALYZE and a failure":  {op("DELETE FROM big WHERE rowid>3; ANALYZE; nonsense"), op(insertJoin)},
		"with a new table":       {op("CREATE TABLE x(a); CREATE INDEX xa ON x(a); ANALYZE"), op(rollsBack), op(insertJoin)},
		"a new table alone":      {op("CREATE TABLE x(a)"), op(rollsBack), op("CREATE TABLE x(b)"), op("INSERT INTO x(a) VALUES(1)"), op(insertJoin)},
		"a new table that fails": {op("CREATE TABLE x(a); nonsense"), op("CREATE TABLE x(b)"), op("INSERT INTO x(b) VALUES(1)"), op(insertJoin)},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHistory()
			h.sql(planned...)
			h.sql("ANALYZE", "INSERT INTO l VALUES(1,1)")
			h.do(ops...)
			h.sql(insertJoin)
			var want string
			for i, way := range ways {
				m := way.run(t, h)
				got := m.hash() + "\n" + m.plan(join) + "\n" + m.rows("SELECT group_concat(v) FROM l")
				if i == 0 {
					want = got
				} else if got != want {
					t.Errorf("%s:\n%s\n\n%s:\n%s", ways[0].name, want, way.name, got)
				}
				m.Close()
			}
		})
	}
}

func TestTablesCanBeCreatedAfterOneWasRolledBack(t *testing.T) {
	m := newMachine(t)
	m.must("CREATE TABLE l(n INTEGER PRIMARY KEY); INSERT INTO l VALUES(1)")
	r := m.do(op("CREATE TABLE x(a)"), op("INSERT INTO x(a) VALUES(1)"), op("INSERT OR ROLLBACK INTO l VALUES(1)"), op("DROP TABLE x"), op("CREATE TABLE x(b)"), op("INSERT INTO x(b) VALUES(1)"))
	for i, want := range []int{0, 0, 1555, 0, 0, 0} {
		if codeOf(r[i]) != want {
			t.Errorf("the error of operation %d is %v", i, r[i].Err)
		}
	}
	if got := m.rows("SELECT b FROM x"); got != "1" {
		t.Errorf("the rows are %q", got)
	}
}

// Statements that write cannot read what is different on each replica, such as the meta
// table. They would write different rows on each replica.
func TestWritesCannotReadWhatReplicasDoNotShare(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	for text, refused := range map[string]bool{
		"INSERT INTO l SELECT hex(state) FROM sqlite_hiqlite":                                    true,
		"INSERT INTO l SELECT count(*) FROM sqlite_hiqlite":                                      true,
		"INSERT INTO l VALUES((SELECT max(id) FROM SQLITE_HIQLITE))":                             true,
		"CREATE TABLE x AS SELECT * FROM sqlite_hiqlite":                                         true,
		"INSERT INTO l SELECT pageno FROM dbstat":                                                true,
		"INSERT INTO l SELECT hex(data) FROM sqlite_dbpage":                                      true,
		"INSERT INTO l SELECT * FROM pragma_page_count":                                          true,
		"INSERT INTO l SELECT * FROM pragma_freelist_count()":                                    true,
		"INSERT INTO l SELECT file FROM pragma_database_list":                                    true,
		"INSERT INTO l SELECT * FROM pragma_schema_version":                                      true,
		"INSERT INTO l SELECT * FROM pragma_data_version":                                        true,
		"INSERT INTO l SELECT name FROM pragma_function_list":                                    true,
		"INSERT INTO l SELECT name FROM pragma_module_list":                                      true,
		"INSERT INTO l SELECT * FROM pragma_integrity_check":                                     true,
		"CREATE VIRTUAL TABLE s USING dbstat; INSERT INTO l SELECT pgoffset FROM s":              true,
		"CREATE VIRTUAL TABLE p USING SQLITE_DBPAGE; INSERT INTO l SELECT data FROM p":           true,
		"INSERT INTO l SELECT sqlite_offset(v) FROM l":                                           true,
		"CREATE VIEW vp AS SELECT * FROM pragma_page_count; INSERT INTO l SELECT * FROM vp":      true,
		"INSERT INTO l SELECT name FROM pragma_table_list":                                       false,
		"INSERT INTO l SELECT name FROM pragma_index_list('k')":                                  false,
		"INSERT INTO l SELECT rootpage FROM sqlite_schema":                                       false,
		"CREATE TABLE x AS SELECT * FROM sqlite_master":                                          false,
		"INSERT INTO l SELECT name||sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_hiqlite'": false,
	} {
		t.Run(text, func(t *testing.T) {
			h := newHistory()
			// The pages of the meta table depend on when it was written.
			for n := range 200 {
				h.add(wire.EncodeOpenSession(uint64(n), 0, 0))
				if n%50 == 49 {
					h.sql(fmt.Sprintf("CREATE TABLE l%d(v)", n))
				}
			}
			h.sql("CREATE TABLE l(v)", "CREATE TABLE k(a, b)", "CREATE INDEX k1 ON k(a)", "CREATE INDEX k2 ON k(b)", "DROP TABLE l49")
			for i := range 12 {
				h.sql(fmt.Sprintf("CREATE TABLE m%d(a)", i))
			}
			for i := range 11 {
				h.sql(fmt.Sprintf("DROP TABLE m%d", i))
			}
			h.sql(text)
			want := ways[0].run(t, h)
			r := want.got[[2]uint64{1, h.seq}][0]
			if codeOf(r) != map[bool]int{true: sqlite.CodeAuth}[refused] || refused && r.Err.Hint == "" {
				t.Errorf("the error is %v", r.Err)
			}
			if !refused && want.rows("SELECT count(*) FROM l")+want.rows("SELECT count(*) FROM sqlite_schema WHERE name='x'") == "00" {
				t.Error("the statement has changed nothing")
			}
			for _, i := range []int{1, 2, 4} {
				m := ways[i].run(t, h)
				if m.hash() != want.hash() {
					t.Errorf("%s differs:\n%s\n\n%s", ways[i].name, m.rows("SELECT * FROM l"), want.rows("SELECT * FROM l"))
				}
				m.Close()
			}
		})
	}
}
