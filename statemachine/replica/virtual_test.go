package replica

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// FTS5 writes its index at the end of a transaction. Replicas group operations into
// transactions differently, but the tables must have the same content.
func TestFullTextIndexesAreTheSameOnEveryReplica(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	h := newHistory()
	h.sql("CREATE VIRTUAL TABLE ft USING fts5(a, b, prefix='2 3')", "CREATE VIRTUAL TABLE ext USING fts5(x, content='src', content_rowid='id')",
		"CREATE TABLE src(id INTEGER PRIMARY KEY, x UNIQUE)", "CREATE TRIGGER tr AFTER INSERT ON src BEGIN INSERT INTO ext(rowid, x) VALUES(new.id, new.x); END",
		"INSERT INTO ft(ft, rank) VALUES('pgsz', 64)", "INSERT INTO ft(ft, rank) VALUES('automerge', 2)", "CREATE TABLE log(v)")
	for n := range 40 {
		h.sql(fmt.Sprintf("INSERT INTO ft VALUES('word%d common', 'other%d')", n, n%5))
		h.do(op(fmt.Sprintf("INSERT INTO src(x) VALUES('text%d'),('more%d')", n, n)), op("INSERT OR ROLLBACK INTO src VALUES(1,'no')"), op("INSERT INTO src(x) VALUES('fresh'),('text0')"),
			op("UPDATE ft SET a=a||' changed' WHERE rowid%7=3"), op("INSERT INTO ft VALUES('lost', 'lost'); nonsense"))
		if n%10 == 4 {
			h.sql("DELETE FROM ft WHERE ft MATCH 'other2'", "INSERT INTO log SELECT rowid||':'||rank FROM ft WHERE ft MATCH 'common' ORDER BY rank, rowid",
				fmt.Sprintf("CREATE TABLE t%d(a)", n), "INSERT INTO ft(ft) VALUES('merge=8')")
		}
	}
	h.sql("INSERT INTO log SELECT term||doc||cnt FROM v", "CREATE VIRTUAL TABLE v USING fts5vocab(ft, 'row')", "INSERT INTO log SELECT term||doc||cnt FROM v",
		"INSERT INTO log SELECT id||hex(block) FROM ft_data ORDER BY id", "INSERT INTO ft(ft) VALUES('integrity-check')", "INSERT INTO ext(ext) VALUES('integrity-check')", "INSERT INTO ft(ft) VALUES('optimize')", "VACUUM INTO 'x'")
	m := agree(t, h, "SELECT count(*), sum(length(v)) FROM log", "SELECT count(*) FROM ft WHERE ft MATCH 'changed'")
	for seq, code := range map[uint64]int{h.seq - 3: 0, h.seq - 2: 0, h.seq - 1: 0, h.seq: 1} {
		if r := m.got[[2]uint64{1, seq}][0]; codeOf(r) != code {
			t.Errorf("entry %d of %d: %v", seq, h.seq, r.Err)
		}
	}
}

func TestSpatialIndexesAreTheSameOnEveryReplica(t *testing.T) {
	h := newHistory()
	h.sql("CREATE VIRTUAL TABLE rt USING rtree(id, x0, x1, y0, y1, +note)", "CREATE TABLE log(v)")
	for n := range 60 {
		h.sql(fmt.Sprintf("INSERT INTO rt VALUES(NULL, %d, %d, %d, %d, 'n%d')", n*7%50, n*7%50+3, n*11%40, n*11%40+2, n))
		if n%9 == 8 {
			h.sql("DELETE FROM rt WHERE x0 BETWEEN 10 AND 14", "INSERT INTO log SELECT note FROM rt WHERE x1>20 AND y0<30", "INSERT INTO rt VALUES(1, 5, 2, 0, 0, 'crossed'); INSERT INTO rt VALUES(2,0,0,0,0,'x')")
		}
	}
	agree(t, h, "SELECT * FROM log", "SELECT * FROM rt")
}

// An index that does not match its rows does so on every replica. SQLite's error "database
// disk image is malformed" is then a result.
func TestACorruptFullTextIndexIsAResult(t *testing.T) {
	h := newHistory()
	h.sql("CREATE TABLE src(id INTEGER PRIMARY KEY, x)", "CREATE VIRTUAL TABLE ft USING fts5(x, content='src', content_rowid='id')", "INSERT INTO src VALUES(1,'a b'),(2,'b c')",
		"INSERT INTO ft(rowid, x) VALUES(1,'a b'),(2,'something else')")
	h.do(op("INSERT INTO src VALUES(3,'c d')"), op("INSERT INTO ft(ft, rank) VALUES('integrity-check', 1)"), op("INSERT INTO src VALUES(4,'d e')"))
	m := agree(t, h)
	r := m.got[[2]uint64{1, h.seq}]
	if codeOf(r[0]) != 0 || codeOf(r[1]) != 267 || codeOf(r[2]) != 0 {
		t.Errorf("the errors are %v, %v, %v", r[0].Err, r[1].Err, r[2].Err)
	}
	if got := m.rows("SELECT count(*) FROM src"); got != "4" {
		t.Errorf("there are %s rows", got)
	}
}

// No statement may cause an error that counts as a failure of this machine. All replicas
// would stop, and again after each restart.
func TestNoStatementCountsAsAFailureOfTheMachine(t *testing.T) {
	texts := []string{
		"INSERT INTO sqlite_dbpage(pgno, data) VALUES(1, zeroblob(4096))", "UPDATE sqlite_dbpage SET data=zeroblob(4096)", "DELETE FROM dbstat",
		"UPDATE ft_data SET block=x'00'", "DROP TABLE ft_data", "DELETE FROM ft_config", "ALTER TABLE ft_data RENAME TO x", "DELETE FROM rt_node", "CREATE TABLE ft_x(a); DROP TABLE ft",
		"UPDATE sqlite_schema SET sql='garbage'", "DELETE FROM sqlite_master", "INSERT INTO sqlite_schema VALUES('table','x','x',99,'x')",
		"PRAGMA writable_schema=ON; DELETE FROM sqlite_schema", "PRAGMA journal_mode=OFF; PRAGMA page_size=512; PRAGMA max_page_count=1", "PRAGMA schema_version=77",
		"UPDATE sqlite_sequence SET seq='x', name=NULL; INSERT INTO auto DEFAULT VALUES", "DELETE FROM sqlite_sequence; INSERT INTO auto DEFAULT VALUES", "DROP TABLE sqlite_sequence",
		"INSERT INTO ft(ft, rank) VALUES('nosuch', 1)", "INSERT INTO ft(ft) VALUES('delete-all')", "INSERT INTO ft(ft, rowid, a) VALUES('delete', 99, 'never there')",
		"INSERT INTO less(less, rowid, x) VALUES('delete', 5, 'never there'); INSERT INTO less(less) VALUES('integrity-check')", "SELECT fts5_decode(1, x'ff')",
		"INSERT INTO auto SELECT zeroblob(1000000000)", "INSERT INTO auto(v) SELECT printf('%.*c', 2000000000, 'x')", "INSERT INTO auto(v) SELECT randomblob(2000000000)",
		"INSERT INTO auto(v) SELECT replace(hex(zeroblob(1000)), '0', hex(zeroblob(1000000)))", "SELECT load_extension('x')", "SELECT writefile('x', 'y')", "SELECT readfile('x')",
		"SELECT rtreenode(2, x'ffffffff')", "SELECT rtreedepth(x'')", "SELECT rtreecheck('rt')", "INSERT INTO auto(v) SELECT json_extract('{', '$')", "SELECT jsonb_extract(x'ffffffffffffffff','$.a[1]')", "SELECT json(x'cc0f0f')",
		"CREATE TABLE sqlite_x(a)", "DROP TABLE sqlite_hiqlite", "VACUUM", "REINDEX; ANALYZE; REINDEX nosuch", "DETACH main", "ATTACH ':memory:' AS x",
		"CREATE VIRTUAL TABLE bad USING fts5(x, content='nosuch')", "INSERT INTO bad VALUES(1)", "SELECT * FROM bad('x')", "CREATE VIRTUAL TABLE bad2 USING nosuch(x)", "DROP TABLE bad",
		"CREATE TABLE g(a, b AS (a+1) STORED, CHECK(a<10)); INSERT INTO g VALUES(99)", "CREATE VIEW loop AS SELECT * FROM loop", "SELECT * FROM loop",
		"CREATE TRIGGER again AFTER INSERT ON auto BEGIN INSERT INTO auto(v) VALUES(1); END; INSERT INTO auto(v) VALUES(1)", "ALTER TABLE auto ADD COLUMN w NOT NULL", "ALTER TABLE auto DROP COLUMN id",
		"INSERT INTO sqlite_stat4 VALUES('auto', 'ai', '1', '1', '1', x'ff80ff80ff80')", "INSERT INTO sqlite_stat1 VALUES('auto', 'ai', '0 0')", "ANALYZE; UPDATE sqlite_stat4 SET sample=x'ffffffff', nlt='-1 -1'",
		"SELECT * FROM auto WHERE v>'a' AND v<'b'", "DROP TABLE IF EXISTS sqlite_stat4; DROP TABLE IF EXISTS sqlite_stat1", "SELECT zipfile(1)", "SELECT * FROM generate_series(1,2)", "SELECT edit('x')", "SELECT geopoly_json(x'ff')",
		"SELECT unhex('zz'), char(1114112), abs(-9223372036854775808)", "EXPLAIN INSERT INTO auto(v) VALUES(1)", "PRAGMA integrity_check", "PRAGMA optimize", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA incremental_vacuum",
	}
	m := newMachine(t)
	m.must("CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT, v); CREATE INDEX ai ON auto(v); CREATE VIRTUAL TABLE ft USING fts5(a); CREATE VIRTUAL TABLE less USING fts5(x, content=''); CREATE VIRTUAL TABLE rt USING rtree(id,a,b); INSERT INTO auto(v) VALUES(1),(2); INSERT INTO ft VALUES('a'); INSERT INTO rt VALUES(1,2,3); INSERT INTO less(rowid,x) VALUES(5,'a'); ANALYZE")
	for _, text := range texts {
		m.update(m.entry(op(text)))
		if err := m.Err(); err != nil {
			t.Fatalf("%s stops the replica: %v", text, err)
		}
		// The replica can also be started again after it.
		m.Close()
		m.index = m.start()
		if r := m.do(op("INSERT INTO auto(v) VALUES(7)"), op("INSERT INTO ft VALUES('b')")); text != "DROP TABLE ft" && codeOf(r[0]) != 0 && codeOf(r[0]) != 1 {
			t.Errorf("after %s: %v, %v", text, r[0].Err, r[1].Err)
		}
	}
}

func vacuum() *wire.Operation {
	o := op("VACUUM")
	o.Vacuum = true
	return o
}

// VACUUM changes the rowids of tables without an INTEGER PRIMARY KEY, on every replica in
// the same way.
func TestVacuumNumbersRowsAlike(t *testing.T) {
	h := newHistory()
	h.sql("CREATE TABLE t(a); CREATE TABLE k(id INTEGER PRIMARY KEY)", "INSERT INTO t VALUES(1),(2),(3),(4),(5); INSERT INTO k VALUES(5),(9)", "DELETE FROM t WHERE a%2=1")
	h.sql("INSERT INTO t VALUES(6)")
	h.do(vacuum())
	h.sql("INSERT INTO t VALUES(7)", "DELETE FROM t WHERE a=2", "INSERT INTO t VALUES(8)")
	h.do(vacuum())
	h.do(op("INSERT OR ROLLBACK INTO k VALUES(5)"), op("INSERT INTO t VALUES(9)"))
	m := agree(t, h, "SELECT rowid, a FROM t")
	if got := m.rows("SELECT rowid, a FROM t"); got != "1|4\n2|6\n3|7\n4|8\n5|9" {
		t.Errorf("the rows are %q", got)
	}
	r := m.got[[2]uint64{1, 9}]
	if len(r) != 1 || codeOf(r[0]) != 0 || len(r[0].Statements) != 1 {
		t.Errorf("the result of VACUUM is %+v", r)
	}
}

func TestCopiesOfAVacuumAreNotExecuted(t *testing.T) {
	h := newHistory()
	h.sql("CREATE TABLE t(a)", "INSERT INTO t VALUES(1),(2),(3)", "DELETE FROM t WHERE a=1")
	h.do(vacuum())
	copied := h.entries[len(h.entries)-1].Cmd
	h.sql("DELETE FROM t WHERE a=2", "INSERT INTO t VALUES(4)")
	h.add(copied)
	m := agree(t, h)
	if got := m.rows("SELECT rowid, a FROM t"); got != "2|3\n3|4" {
		t.Errorf("the rows are %q", got)
	}
}

// A replica that crashes after VACUUM and before it has written its meta row executes the
// VACUUM again.
func TestVacuumAfterACrash(t *testing.T) {
	h := newHistory()
	h.sql("CREATE TABLE t(a)", "INSERT INTO t VALUES(1),(2),(3),(4)", "DELETE FROM t WHERE a%2=1")
	n := len(h.entries)
	h.do(vacuum())
	h.sql("INSERT INTO t VALUES(5)", "DELETE FROM t WHERE a=2", "INSERT INTO t VALUES(6)")
	healthy := emptyMachine(t)
	healthy.apply(h.entries...)

	m := emptyMachine(t)
	m.apply(h.entries[:n]...)
	if err := m.SQL.vacuum(vacuum(), new(wire.Result)); err != nil { // what apply does before the crash
		t.Fatal(err)
	}
	crashed := emptyMachine(t)
	crashed.Close()
	from, to := m.storage.path(1), filepath.Join(crashed.dir, generationPrefix+"1")
	for _, name := range []string{databaseFile, databaseFile + "-wal"} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if applied := crashed.start(); applied != uint64(n) {
		t.Fatalf("after the crash the replica is at entry %d, want %d", applied, n)
	}
	crashed.apply(h.entries[n:]...)
	if crashed.hash() != healthy.hash() {
		t.Errorf("the rows are %q, on a replica without a crash %q", crashed.rows("SELECT rowid, a FROM t"), healthy.rows("SELECT rowid, a FROM t"))
	}
}

// Replicas use UTC, whatever the time zones of their machines are.
func TestTimeZonesOfMachinesDoNotMatter(t *testing.T) {
	// The engine reads the time zone once, when the process starts.
	const child = "HIQLITE_TEST_ZONE"
	if os.Getenv(child) != "" {
		h := newHistory()
		h.sql("CREATE TABLE zone(a)", "INSERT INTO zone VALUES(datetime('2024-07-01','localtime'))",
			"CREATE TABLE t(a DEFAULT (datetime('now','localtime')), b DEFAULT (strftime('%s','now','utc')), c DEFAULT (time(0,'unixepoch','localtime')), d DEFAULT CURRENT_TIMESTAMP)",
			"INSERT INTO t DEFAULT VALUES", "INSERT INTO t(a) VALUES(datetime('2024-07-01','localtime')), (datetime('2024-01-01','utc')), (date('2024-07-01 23:30','localtime','start of day'))")
		m := agree(t, h)
		fmt.Println("hash", m.hash(), m.rows("SELECT a FROM zone"), m.rows("SELECT datetime('2024-07-01','localtime')"), "the process says", time.Unix(0, 0).Format(time.DateTime))
		return
	}
	answers := map[string]bool{}
	for _, name := range []string{"Asia/Tokyo", "America/New_York", "UTC"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestTimeZonesOfMachinesDoNotMatter$")
		cmd.Env = append(os.Environ(), "TZ="+name, child+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		hash, local, _ := strings.Cut(string(out), "the process says")
		answers[hash] = true
		if name == "Asia/Tokyo" && !strings.Contains(local, "1970-01-01 09:00:00") {
			t.Errorf("the process does not have the time zone: %s", out)
		}
	}
	if len(answers) != 1 {
		t.Errorf("replicas differ: %v", answers)
	}
}
