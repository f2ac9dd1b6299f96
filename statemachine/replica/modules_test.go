package replica

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// When a module is used for the first time on a connection, it prepares statements of its
// own. They do not count for the statement that uses the module.
func TestFirstUseOfAModuleInATransaction(t *testing.T) {
	for name, test := range map[string]struct{ schema, texts []string }{
		"R-Tree":            {[]string{"CREATE VIRTUAL TABLE r USING rtree(id,lo,hi)", "INSERT INTO r VALUES(1,2,3),(2,3,4)"}, []string{"UPDATE r SET lo=lo+5, hi=hi+5"}},
		"R-Tree, a delete":  {[]string{"CREATE VIRTUAL TABLE r USING rtree(id,lo,hi)", "INSERT INTO r VALUES(1,2,3),(2,3,4)"}, []string{"DELETE FROM r WHERE id=1"}},
		"R-Tree, a trigger": {[]string{"CREATE VIRTUAL TABLE r USING rtree(id,lo,hi)", "CREATE TABLE t(id INTEGER PRIMARY KEY, a)", "CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO r VALUES(new.id+10, new.a, new.a); END"}, []string{"INSERT INTO t(a) VALUES(5)", "DELETE FROM t", "DELETE FROM r"}},
		"FTS5":              {[]string{"CREATE VIRTUAL TABLE f USING fts5(a)", "INSERT INTO f VALUES('x y'),('y z')"}, []string{"UPDATE f SET a='changed' WHERE rowid=1"}},
		"FTS5, a delete":    {[]string{"CREATE VIRTUAL TABLE f USING fts5(a)", "INSERT INTO f VALUES('x y'),('y z')"}, []string{"DELETE FROM f WHERE rowid=1"}},
		"FTS5, by a match":  {[]string{"CREATE VIRTUAL TABLE f USING fts5(a)", "INSERT INTO f VALUES('x y'),('y z')"}, []string{"UPDATE f SET a='changed' WHERE f MATCH 'x'", "DELETE FROM f WHERE f MATCH 'changed'"}},
		"FTS5, a replace":   {[]string{"CREATE VIRTUAL TABLE f USING fts5(a)", "INSERT INTO f VALUES('x y'),('y z')"}, []string{"REPLACE INTO f(rowid,a) VALUES(1,'new')", "INSERT INTO f(f) VALUES('optimize')"}},
		"geopoly":           {[]string{"CREATE VIRTUAL TABLE g USING geopoly(name)", "INSERT INTO g(_shape,name) VALUES('[[0,0],[1,0],[1,1],[0,0]]','a')"}, []string{"UPDATE g SET name='b'", "UPDATE g SET _shape='[[0,0],[2,0],[2,2],[0,0]]'", "DELETE FROM g"}},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTrial(t, t, test.schema...)
			for i := range 3 { // the view, or the replicas, or neither have used the module before
				if i == 2 {
					x.b.restart(x.h)
				}
				x.begin(TransactionOptions{Seed: wire.Seed{7}})
				x.must(append([]string{"SAVEPOINT s"}, test.texts...)...)
				x.must("ROLLBACK TO s")
				x.must(test.texts...)
				x.commit()
				x.h.sql(test.schema[len(test.schema)-1])
				x.a.apply(x.h.entries[len(x.h.entries)-1])
				x.b.apply(x.h.entries[len(x.h.entries)-1])
			}
		})
	}
}

// moduleSchema has tables of every module, in every form that writes differently.
var moduleSchema = []string{
	"CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE, v, g AS (v||'g') STORED, h AS (length(v)))", "CREATE INDEX t_g ON t(g, h)", "CREATE TABLE log(id INTEGER PRIMARY KEY AUTOINCREMENT, what)",
	"CREATE TABLE w(a PRIMARY KEY, b) WITHOUT ROWID",
	"CREATE VIRTUAL TABLE r USING rtree(id, x0, x1, y0, y1, +note)", "CREATE VIRTUAL TABLE ri USING rtree_i32(id, x0, x1)", "CREATE VIRTUAL TABLE geo USING geopoly(name, n)",
	"CREATE VIRTUAL TABLE f USING fts5(a, b, prefix='2 3')", "INSERT INTO f(f, rank) VALUES('pgsz', 64)", "INSERT INTO f(f, rank) VALUES('automerge', 2)",
	"CREATE VIRTUAL TABLE ext USING fts5(u, v, content='t', content_rowid='id')",
	"CREATE TRIGGER t_i AFTER INSERT ON t BEGIN INSERT INTO ext(rowid, u, v) VALUES(new.id, new.u, new.v); INSERT INTO log(what) VALUES('i'||new.id); END",
	"CREATE TRIGGER t_d AFTER DELETE ON t BEGIN INSERT INTO ext(ext, rowid, u, v) VALUES('delete', old.id, old.u, old.v); END",
	"CREATE TRIGGER t_u AFTER UPDATE ON t BEGIN INSERT INTO ext(ext, rowid, u, v) VALUES('delete', old.id, old.u, old.v); INSERT INTO ext(rowid, u, v) VALUES(new.id, new.u, new.v); UPDATE r SET note=new.v WHERE id=new.id; END",
	"CREATE VIRTUAL TABLE less USING fts5(a, content='')", "CREATE VIRTUAL TABLE lessd USING fts5(a, content='', contentless_delete=1)",
	"CREATE VIRTUAL TABLE lean USING fts5(a, columnsize=0, detail=none)", "CREATE VIRTUAL TABLE tri USING fts5(a, tokenize='trigram')", "CREATE VIRTUAL TABLE loc USING fts5(a, locale=1)",
	"CREATE VIRTUAL TABLE voc USING fts5vocab(f, row)", "CREATE VIEW both AS SELECT rowid AS id, a FROM f", "CREATE TRIGGER both_i INSTEAD OF INSERT ON both BEGIN INSERT INTO f(rowid, a) VALUES(new.id, new.a); INSERT OR REPLACE INTO ri VALUES(new.id, 1, 2); END",
	"CREATE TRIGGER log_i AFTER INSERT ON log WHEN new.id%4=0 BEGIN INSERT OR REPLACE INTO r VALUES(new.id, 0, 1, 0, 1, new.what); UPDATE f SET b=new.what WHERE rowid=new.id%7; END",
	"INSERT INTO f(a) VALUES('first'),('second word')", "INSERT INTO r VALUES(1,0,1,0,1,'one'),(2,0,2,0,2,'two')", "INSERT INTO ri VALUES(1,0,1),(2,0,2)",
	"INSERT INTO geo(_shape,name) VALUES('[[0,0],[1,0],[1,1],[0,0]]','a'),('[[0,0],[3,0],[3,3],[0,0]]','b')", "INSERT INTO t(u,v) VALUES('taken','t')", "INSERT INTO less VALUES('x')", "INSERT INTO lessd VALUES('x y')",
}

var moduleTexts = []string{
	"INSERT INTO t(u,v) VALUES(%d, 'text %[1]d')", "REPLACE INTO t(id,u,v) VALUES(%d%%6+1, %[1]d, 'replaced')", "INSERT INTO t(u,v) VALUES(%d%%5, 'up') ON CONFLICT(u) DO UPDATE SET v=v||'!'",
	"INSERT INTO t(u,v) VALUES(%d%%5, 'nothing') ON CONFLICT DO NOTHING", "UPDATE t SET v='changed %d' WHERE id%%3=%[1]d%%3", "DELETE FROM t WHERE id%%4=%d%%4", "INSERT INTO t(u,v) VALUES(%d,1),('taken',2)",
	"INSERT OR FAIL INTO t(u,v) VALUES(%d,1),('taken',2)", "UPDATE t SET v=f.a FROM f WHERE f.rowid=t.id AND t.id>%d%%5", "INSERT INTO t(u,v) VALUES(%d, random()) RETURNING id, v",
	"REPLACE INTO w VALUES(%d%%4, last_insert_rowid())", "UPDATE w SET b=changes()||'/'||total_changes()||'/%d'", "DELETE FROM w WHERE a=%d%%4",
	"INSERT INTO r VALUES(NULL, %d, %[1]d+1, 0, 1, 'note %[1]d')", "UPDATE r SET x0=x0+1, x1=x1+%d WHERE id%%2=%[1]d%%2", "UPDATE r SET note='n%d'", "UPDATE r SET id=id+1000 WHERE id=%d%%5", "DELETE FROM r WHERE id%%5=%d%%5",
	"REPLACE INTO r VALUES(%d%%6, 1, 2, 3, 4, 'r')", "INSERT INTO r VALUES(1, 5, 2, 0, 0, 'crossed %d')", "INSERT INTO r VALUES(NULL,1,2,3,4,'ret') RETURNING id, %d", "INSERT INTO log(what) SELECT note FROM r WHERE x1>%d%%9 AND y0<3",
	"INSERT INTO ri VALUES(NULL, %d, %[1]d)", "UPDATE ri SET x1=x1+%d", "DELETE FROM ri WHERE x0<%d", "INSERT INTO ri SELECT id, 0, %d FROM t WHERE id>3",
	"INSERT INTO geo(_shape,name) VALUES('[[0,0],[1,0],[1,%d],[0,0]]','g')", "UPDATE geo SET name='n%d'", "UPDATE geo SET _shape='[[0,0],[2,0],[2,%d],[0,0]]' WHERE rowid%%2=0", "DELETE FROM geo WHERE rowid=%d%%7", "INSERT INTO log(what) SELECT name FROM geo WHERE geopoly_overlap(_shape, '[[0,0],[1,0],[1,%d],[0,0]]')",
	"INSERT INTO f(a,b) VALUES('word%d common', 'b')", "UPDATE f SET a=a||' w%d' WHERE rowid%%3=%[1]d%%3", "DELETE FROM f WHERE rowid=%d%%9", "DELETE FROM f WHERE f MATCH 'word%d OR second'", "REPLACE INTO f(rowid,a,b) VALUES(%d%%5, 'rep', 'laced')",
	"INSERT INTO f(f) VALUES('optimize') -- %d", "INSERT INTO f(f, rank) VALUES('merge', %d%%5)", "INSERT INTO f(f) VALUES('rebuild') -- %d", "INSERT INTO f(f) VALUES('integrity-check') -- %d", "INSERT INTO f(rowid,a) VALUES(7,'%d'),(7,'twice')", "INSERT INTO f(f) VALUES('nonsense%d')",
	"INSERT INTO less VALUES('words %d')", "INSERT INTO less(less, rowid, a) VALUES('delete', 1, 'x') -- %d", "INSERT INTO less(less) VALUES('delete-all') -- %d", "INSERT INTO lessd VALUES('words %d')", "DELETE FROM lessd WHERE rowid=%d%%5", "REPLACE INTO lessd(rowid,a) VALUES(%d%%5,'re')", "UPDATE lessd SET a='u%d' WHERE rowid=2",
	"INSERT INTO lean(rowid, a) VALUES(%d, 'lean')", "UPDATE lean SET a='leaner' WHERE rowid>%d-3", "INSERT INTO tri VALUES('trigram %d')", "UPDATE tri SET a='other %d' WHERE rowid=1", "DELETE FROM tri WHERE a LIKE '%%%%gram %d%%%%'",
	"INSERT INTO loc VALUES(fts5_locale('en_US', 'localized %d'))", "UPDATE loc SET a=fts5_locale('de','%d')", "INSERT INTO log(what) VALUES(hex(fts5_locale('en', '%d')))",
	"INSERT INTO both VALUES(%d, 'by a view')", "INSERT INTO log(what) SELECT group_concat(term||doc||cnt) FROM voc WHERE %d", "INSERT INTO log(what) SELECT rowid||rank FROM f WHERE f MATCH 'common' AND rowid<%d ORDER BY rank, rowid",
	"INSERT INTO log(what) VALUES(last_insert_rowid()||' '||changes()||' %d')", "INSERT INTO log(what) SELECT hex(data) FROM r_node WHERE %d",
	"CREATE VIRTUAL TABLE n%d USING rtree(id,a,b)", "CREATE VIRTUAL TABLE m%d USING fts5(a)", "DROP TABLE IF EXISTS n%d", "ALTER TABLE t ADD COLUMN c%d DEFAULT 3", "CREATE INDEX i%d ON t(v)", "ANALYZE t -- %d", "REINDEX -- %d",
	"SAVEPOINT s -- %d", "RELEASE s -- %d", "ROLLBACK TO s -- %d", "SELECT count(*) FROM f WHERE f MATCH 'common' -- %d", "SELECT * FROM r WHERE x0<%d", "SELECT * FROM geo, ri, ext LIMIT %d", "SELECT nonsense%d",
}

// shadowTexts read how FTS5 divides its index. It is divided in the same way on all replicas,
// but not on a view, where FTS5 writes its index at other times.
var shadowTexts = []string{"INSERT INTO log(what) SELECT id||hex(block) FROM f_data WHERE %d", "ANALYZE -- %d", "INSERT INTO log(what) SELECT tbl||stat FROM sqlite_stat1 WHERE %d"}

// Random transactions write to tables of all modules, which the view and the replicas may
// have used before. The commits succeed, and all replicas have the rows that the
// transactions saw.
func TestRandomTransactionsOverModules(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	rapid.Check(t, func(rt *rapid.T) {
		x := newTrial(t, rt, moduleSchema...)
		defer func() { x.a.Close(); x.b.Close() }()
		n := 100
		text := func(from ...string) string {
			n++
			return fmt.Sprintf(rapid.SampledFrom(from).Draw(rt, "text"), n)
		}
		for i := range rapid.IntRange(1, 3).Draw(rt, "transactions") {
			switch rapid.IntRange(0, 5).Draw(rt, "before") {
			case 0:
				x.b.restart(x.h)
			case 1, 2:
				if plain := text(append(shadowTexts, moduleTexts...)...); !strings.Contains(plain, " s -- ") {
					x.send(wire.EncodeOperation(op(plain)))
				}
			case 3:
				x.a.restart(x.h) // so that its views have not used the modules yet
			}
			x.begin(TransactionOptions{Seed: seedOf(uint64(i)), Changes: 3, TotalChanges: 11, LastInsertID: 12})
			for range rapid.IntRange(1, 12).Draw(rt, "statements") {
				text := text(moduleTexts...)
				_, _ = x.run(text)
				if err := x.Err(); err != nil {
					rt.Fatalf("%s: %v", text, err)
				}
			}
			x.commit()
		}
	})
}

// The counters of a statement are the same inside and outside of a transaction. They do not
// include what modules write for themselves.
func TestCountersInsideAndOutsideOfATransaction(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	const last = 77 // last_insert_rowid() before
	for i, text := range moduleTexts {
		text = fmt.Sprintf(text, 100+i)
		if strings.Contains(text, " s -- ") || strings.HasPrefix(text, "SELECT") || strings.Contains(text, "random()") {
			continue
		}
		x := newTrial(t, t, moduleSchema...)
		o := op(text)
		o.LastInsertID, o.Changes = last, 5
		plain := newTrial(t, t, moduleSchema...)
		r := plain.send(wire.EncodeOperation(o))[0]
		plain.a.Close()
		plain.b.Close()
		x.begin(TransactionOptions{LastInsertID: last, Changes: 5})
		inside, err := x.Exec(context.Background(), text, nil)
		if (err != nil) != (r.Err != nil) {
			t.Errorf("%s: %v inside, %v outside", text, err, r.Err)
		} else if err == nil {
			outside := r.Statements[0]
			if inside.RowsAffected != outside.RowsAffected || inside.LastInsertID != outside.LastInsertID {
				t.Errorf("%s: %d changes and the rowid %d inside, %d and %d outside", text, inside.RowsAffected, inside.LastInsertID, outside.RowsAffected, outside.LastInsertID)
			}
			if !strings.HasPrefix(text, "INSERT") && !strings.HasPrefix(text, "REPLACE") && !strings.HasPrefix(text, "CREATE") && inside.LastInsertID != last {
				t.Errorf("%s: last_insert_rowid() becomes %d although nothing was inserted", text, inside.LastInsertID)
			}
		}
		x.Close()
		x.a.Close()
		x.b.Close()
	}
}
