package replica

import (
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// No TEMP object stays on the connection that applies. It would be gone after a restart,
// and the rows would be different from then on.
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

// tempOf returns the content of a connection's TEMP objects after some statements.
func tempOf(t *testing.T, m *machine, texts ...string) []byte {
	t.Helper()
	c, err := m.pool.connect(m.pool.path(), sqlite.Temp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, text := range texts {
		if err := c.Exec(text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	content, err := c.DumpTemp()
	if err != nil {
		t.Fatal(err)
	}
	return content
}

const loose = "x(id INTEGER PRIMARY KEY, v)"

// Transactions use TEMP objects of their connection, create some and change them. They
// change the same rows on all replicas, in whichever way these receive the log.
func TestTransactionsWithTempObjects(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	for name, test := range map[string]struct{ before, texts []string }{
		"created in it":           {nil, []string{"CREATE TEMP TABLE " + loose, "INSERT INTO x(v) VALUES(random()),('b')", "INSERT INTO t(u) SELECT v FROM x", "DROP TABLE x"}},
		"left in it":              {nil, []string{"CREATE TEMP TABLE " + loose, "INSERT INTO x(v) VALUES(random()),('b')", "INSERT INTO t(u) SELECT v FROM x"}},
		"created late":            {nil, []string{"INSERT INTO t(u) VALUES('early')", "CREATE TEMP TABLE n(a INTEGER PRIMARY KEY AUTOINCREMENT, b UNIQUE)", "INSERT INTO n(b) SELECT u FROM t", "INSERT INTO t(u,v) SELECT a||'n', b FROM n"}},
		"existing before":         {[]string{"CREATE TEMP TABLE " + loose, "INSERT INTO x VALUES(7,'seven'),(9,'nine')", "CREATE INDEX temp.xv ON x(v)"}, []string{"INSERT INTO t(u) SELECT id||v FROM x ORDER BY v", "UPDATE x SET v=v||'!'", "INSERT INTO t(u) SELECT v FROM x WHERE v>'o'"}},
		"AS SELECT":               {nil, []string{"INSERT INTO t(u) VALUES('a')", "CREATE TEMP TABLE y AS SELECT u, random() AS r FROM t", "UPDATE t SET v=(SELECT r FROM y WHERE y.u=t.u)"}},
		"a guard":                 {nil, []string{"CREATE TEMP TABLE guard(ok CHECK(ok))", "CREATE TEMP TRIGGER guards BEFORE INSERT ON guard WHEN (SELECT count(*) FROM t)<>new.ok BEGIN SELECT RAISE(ABORT, 'count'); END", "!INSERT INTO guard VALUES(3)", "INSERT INTO guard SELECT count(*) FROM t", "DROP TABLE guard", "INSERT INTO t(u) VALUES('guarded')"}},
		"a trigger on main":       {[]string{"CREATE TEMP TABLE seen(u)", "CREATE TEMP TRIGGER see AFTER INSERT ON main.t BEGIN INSERT INTO seen VALUES(new.u); INSERT INTO log(what) VALUES('temp '||new.u); END"}, []string{"INSERT INTO t(u) VALUES(1),(2)", "INSERT INTO t(u) SELECT u||'again' FROM seen", "DROP TRIGGER see", "INSERT INTO t(u) VALUES('unseen')", "INSERT INTO log(what) SELECT group_concat(u) FROM seen"}},
		"several triggers":        {[]string{"CREATE TEMP TRIGGER b AFTER INSERT ON main.p BEGIN INSERT INTO log(what) VALUES('b'); END", "CREATE TEMP TRIGGER a AFTER INSERT ON main.p BEGIN INSERT INTO log(what) VALUES('a'); END", "CREATE TEMP TRIGGER c AFTER INSERT ON main.p BEGIN INSERT INTO log(what) VALUES('c'); END"}, []string{"INSERT INTO p VALUES(1)", "CREATE TEMP TRIGGER d AFTER INSERT ON main.p BEGIN INSERT INTO log(what) VALUES('d'); END", "INSERT INTO p VALUES(2)"}},
		"a view over main":        {[]string{"CREATE TEMP VIEW w AS SELECT u, count(*) OVER () AS n FROM main.t", "CREATE TEMP TRIGGER wi INSTEAD OF INSERT ON w BEGIN INSERT INTO t(u,v) VALUES(new.u, 'by w'); END"}, []string{"INSERT INTO w VALUES('through',1)", "INSERT INTO log(what) SELECT u||n FROM w"}},
		"a shadow of main":        {[]string{"CREATE TEMP TABLE p(id)", "INSERT INTO p VALUES(5)"}, []string{"INSERT INTO p VALUES(6)", "INSERT INTO main.p SELECT id FROM p", "DELETE FROM p", "DROP TABLE p", "INSERT INTO p VALUES(70)"}},
		"savepoints":              {[]string{"CREATE TEMP TABLE " + loose}, []string{"SAVEPOINT a", "INSERT INTO x(v) VALUES('gone')", "INSERT INTO t(u) SELECT v FROM x", "CREATE TEMP TABLE y(a)", "ROLLBACK TO a", "!INSERT INTO y VALUES(1)", "INSERT INTO x(v) VALUES('kept')", "INSERT INTO t(u) SELECT v FROM x", "RELEASE a"}},
		"DDL on main":             {[]string{"CREATE TEMP VIEW w AS SELECT u FROM main.t", "CREATE TEMP TRIGGER g AFTER INSERT ON main.p BEGIN INSERT INTO log(what) VALUES(new.id); END"}, []string{"ALTER TABLE p RENAME TO p2", "INSERT INTO p2 VALUES(3)", "ALTER TABLE p2 RENAME COLUMN id TO key", "INSERT INTO p2 VALUES(4)", "CREATE TABLE fresh(a)", "INSERT INTO fresh SELECT u FROM w", "DROP TABLE p2", "ANALYZE", "INSERT INTO fresh SELECT count(*) FROM sqlite_stat1"}},
		"FTS5 beside":             {[]string{"CREATE TEMP TABLE " + loose, "INSERT INTO x(v) VALUES('some words'),('other words')"}, []string{"INSERT INTO ft(x) SELECT v FROM x", "UPDATE x SET v=(SELECT count(*) FROM ft('words'))", "INSERT INTO ft SELECT v FROM x", "DELETE FROM ft WHERE rowid IN (SELECT id FROM x WHERE id=1)", "CREATE TEMP TABLE z AS SELECT x FROM ft", "INSERT INTO t(u) SELECT group_concat(x) FROM z"}},
		"a new FTS5 table beside": {nil, []string{"CREATE TEMP TABLE " + loose, "CREATE VIRTUAL TABLE f2 USING fts5(a)", "INSERT INTO x(v) VALUES('one two')", "INSERT INTO f2 SELECT v FROM x", "DROP TABLE x", "INSERT INTO f2 VALUES('three')", "UPDATE f2 SET a='four' WHERE rowid=1"}},
		"keys":                    {[]string{"CREATE TEMP TABLE par(id INTEGER PRIMARY KEY)", "CREATE TEMP TABLE kid(p REFERENCES par ON DELETE CASCADE)", "INSERT INTO par VALUES(1)", "INSERT INTO kid VALUES(1)"}, []string{"!INSERT INTO kid VALUES(2)", "DELETE FROM par", "INSERT INTO t(u) SELECT 'kids '||count(*) FROM kid", "INSERT INTO par VALUES(3)", "INSERT INTO kid VALUES(3)", "INSERT INTO c VALUES(9)", "INSERT INTO p SELECT 3*id FROM par"}},
		"OR FAIL":                 {[]string{"CREATE TEMP TABLE y(a UNIQUE)"}, []string{"!INSERT OR FAIL INTO y VALUES(1),(2),(1),(3)", "INSERT INTO t(u) SELECT a FROM y", "!INSERT OR FAIL INTO t(u) SELECT a+1 FROM y"}},
		"RETURNING and state":     {[]string{"CREATE TEMP TABLE " + loose}, []string{"INSERT INTO x(v) VALUES('r') RETURNING id, random()", "INSERT INTO t(u) VALUES(last_insert_rowid()||' '||changes())", "INSERT INTO x(id) VALUES(100)", "INSERT INTO t(u,v) VALUES(last_insert_rowid(), total_changes())", "DELETE FROM x RETURNING v", "INSERT INTO t(u) VALUES('changed '||changes())"}},
		"nothing of main":         {[]string{"CREATE TEMP TABLE " + loose}, []string{"INSERT INTO x(v) VALUES('r')", "CREATE TEMP TABLE y AS SELECT * FROM x", "INSERT INTO y SELECT id+50, u FROM t"}},
		"sqlite_temp_schema":      {[]string{"CREATE TEMP TABLE " + loose, "CREATE TEMP TRIGGER g AFTER INSERT ON x BEGIN SELECT 1; END"}, []string{"CREATE TEMP VIEW w AS SELECT 1", "INSERT INTO t(u) SELECT type||name||coalesce(rootpage,'-')||sql FROM sqlite_temp_schema", "INSERT INTO t(u) SELECT schema||name||type FROM pragma_table_list WHERE schema='temp'"}},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTrial(t, t, trialSchema...)
			content := tempOf(t, x.a, test.before...)
			x.begin(TransactionOptions{Seed: wire.Seed{7}, Changes: 3, TotalChanges: 40, LastInsertID: 5, Temp: content})
			x.must(test.texts...)
			if !x.HasTemp() {
				t.Error("the operation has no TEMP objects")
			}
			after, changed, err := x.Temp()
			if err != nil || !changed {
				t.Errorf("TEMP objects have changed: %v, %v", changed, err)
			}
			x.commit()
			if name == "nothing of main" && x.op.Temp != nil {
				t.Error("a transaction that changes only TEMP objects was proposed")
			}
			// The connection keeps its TEMP objects as the transaction left them, and the
			// connection that applies has none of them.
			x.begin(TransactionOptions{Seed: wire.Seed{8}, Temp: after}).must("INSERT INTO t(u) SELECT 'object '||name||random() FROM sqlite_temp_schema", "CREATE TEMP TABLE IF NOT EXISTS x(id INTEGER PRIMARY KEY, v)", "INSERT INTO t(u) SELECT 'then '||v||id FROM x")
			x.commit()
			x.send(wire.EncodeOperation(op("INSERT INTO t(u) SELECT 'left '||count(*) FROM sqlite_temp_schema")))
			x.send(wire.EncodeOperation(op("INSERT INTO p VALUES(1000)")), wire.EncodeOperation(op("INSERT INTO log(what) SELECT max(id) FROM t")))
			m := agree(t, x.h)
			if got := m.rows("SELECT u FROM t WHERE u LIKE 'left%'"); got != "left 0" {
				t.Errorf("%s", got)
			}
		})
	}
}

// A transaction that fails where it is applied leaves no TEMP objects, even if it ends
// the SQLite transaction of its batch.
func TestFailingTransactionsWithTempObjects(t *testing.T) {
	x := newTrial(t, t, trialSchema...)
	content := tempOf(t, x.a, "CREATE TEMP TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT, v)", "INSERT INTO auto(v) VALUES('a')", "CREATE TEMP TRIGGER g AFTER INSERT ON main.t BEGIN INSERT INTO log(what) VALUES('TEMP'); END")
	for name, change := range map[string]func(o *wire.Operation){
		"another checksum": func(o *wire.Operation) { o.Lease.Checksum++ },
		"broken content":   func(o *wire.Operation) { o.Temp = []byte{10, 200} },
		"no content":       func(o *wire.Operation) { o.Temp = []byte{} },
		"a wrong text":     func(o *wire.Operation) { o.Temp = badTemp(t, "CREATE TABLE main.t(a)") },
		"a broken trigger": func(o *wire.Operation) { o.Temp = badTemp(t, "") },
		"OR ROLLBACK": func(o *wire.Operation) {
			o.Statements = append(o.Statements, wire.Statement{SQL: "INSERT OR ROLLBACK INTO t(u) VALUES('taken')"})
		},
		"not allowed": func(o *wire.Operation) { o.Temp = nil },
	} {
		x.begin(TransactionOptions{Seed: wire.Seed{7}, Temp: content}).must("INSERT INTO t(u) SELECT v||random() FROM auto", "CREATE TEMP TABLE more(a)", "INSERT INTO more VALUES(1)", "CREATE TABLE made(a)")
		op := wire.Operation{Lease: &wire.Lease{}}
		e, err := x.Record(&op)
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := new(wire.Decoder).Decode(wire.EncodeEntry(1, 1, 0, []*wire.EncodedOperation{e}))
		if err != nil {
			t.Fatal(err)
		}
		o := decoded.Operations[0]
		change(&o)
		before := opNamed("INSERT INTO log(what) VALUES('before')")
		r := x.send(wire.EncodeOperation(acquire(0, 0)), wire.EncodeOperation(before), wire.EncodeOperation(&o), wire.EncodeOperation(opNamed("INSERT INTO t(u) SELECT 'after '||count(*) FROM t")))
		if r[2].Err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	m := agree(t, x.h)
	if got := m.rows("SELECT count(*) FROM log WHERE what='TEMP'") + m.rows("SELECT count(*) FROM sqlite_schema WHERE name='made'") + m.rows("SELECT count(*) FROM t WHERE u LIKE 'after%'"); got != "007" {
		t.Errorf("%s", got)
	}
}

func opNamed(text string) *wire.Operation { return op(text) }

// badTemp returns content of TEMP objects that no connection could have written.
func badTemp(t *testing.T, table string) []byte {
	t.Helper()
	o := wire.TempObject{Kind: wire.TempTable, Name: "auto", SQL: table, Columns: []string{"id", "v"}}
	if table == "" {
		o = wire.TempObject{Kind: wire.TempTrigger, Name: "g", Table: "t", SQL: "CREATE TRIGGER nonsense"}
	}
	b, err := wire.AppendTempObject(nil, &o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
