package replica

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

var trialSchema = []string{
	"CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE, v)",
	"CREATE TABLE log(id INTEGER PRIMARY KEY AUTOINCREMENT, what, at DEFAULT CURRENT_TIMESTAMP, r DEFAULT (random()))",
	"CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO log(what) VALUES(new.u); END",
	"CREATE TABLE p(id INTEGER PRIMARY KEY)", "CREATE TABLE c(p REFERENCES p DEFERRABLE INITIALLY DEFERRED)", "CREATE TABLE now(p REFERENCES p)",
	"CREATE VIRTUAL TABLE ft USING fts5(x)",
	"CREATE TRIGGER no BEFORE INSERT ON t WHEN new.v='raise' BEGIN SELECT RAISE(FAIL, 'said no'); END",
	"INSERT INTO t(u) VALUES('taken')", "INSERT INTO ft VALUES('first'),('second')",
}

// After a transaction was applied, all replicas have the rows that it saw.
func TestTransactionsAreAppliedAsTheyRan(t *testing.T) {
	for name, texts := range map[string][]string{
		"nothing": {},
		"defaults that read the connection's state": {"CREATE TABLE d(a, b DEFAULT (last_insert_rowid()), c DEFAULT (changes()))", "INSERT INTO d(a) VALUES(1)", "!INSERT INTO t(u) VALUES(1),('taken')", "INSERT INTO d(a) VALUES(2)"},
		"WITHOUT ROWID":                      {"CREATE TABLE w(a PRIMARY KEY) WITHOUT ROWID", "INSERT INTO ft VALUES('w')", "SAVEPOINT s", "DELETE FROM ft WHERE rowid=1", "INSERT INTO w VALUES(last_insert_rowid())", "INSERT INTO w VALUES('b')"},
		"random and time":                    {"INSERT INTO t(u,v) VALUES(random(), datetime('now'))", "INSERT INTO t(u) VALUES(hex(randomblob(9)))", "UPDATE t SET v=random()||strftime('%f')"},
		"RETURNING":                          {"INSERT INTO t(u) VALUES('a'),('b') RETURNING id, random()", "DELETE FROM t WHERE u='a' RETURNING *"},
		"connection's state":                 {"INSERT INTO t(u) VALUES('x')", "INSERT INTO t(u,v) VALUES(last_insert_rowid(), changes()||' '||total_changes())", "UPDATE t SET v=total_changes()"},
		"connection's state after a failure": {"INSERT INTO t(u) VALUES('x')", "!INSERT INTO t(u) VALUES('y'),('x')", "INSERT INTO t(u,v) VALUES(last_insert_rowid(), changes()||' '||total_changes())"},
		"connection's state in a trigger that was created later": {"INSERT INTO t(u) VALUES('x')", "CREATE TRIGGER late AFTER INSERT ON p BEGIN INSERT INTO log(what) VALUES(total_changes()||' '||last_insert_rowid()); END", "INSERT INTO p VALUES(7)"},
		"a prepared statement gets such a trigger":               {"INSERT INTO p VALUES(6)", "DELETE FROM p", "CREATE TRIGGER late AFTER INSERT ON p BEGIN INSERT INTO log(what) VALUES(total_changes()||' '||last_insert_rowid()); END", "INSERT INTO p VALUES(6)"},
		"savepoints":                              {"INSERT INTO t(u) VALUES(1)", "SAVEPOINT a", "INSERT INTO t(u) VALUES(random())", "SAVEPOINT b", "INSERT INTO t(u) VALUES(random())", "ROLLBACK TO b", "INSERT INTO t(u) VALUES(random())", "RELEASE a", "INSERT INTO t(v) VALUES(changes()||' '||last_insert_rowid())"},
		"names used again":                        {"SAVEPOINT a", "INSERT INTO t(u) VALUES(1)", "SAVEPOINT A", "INSERT INTO t(u) VALUES(2)", `ROLLBACK TO "a"`, "INSERT INTO t(u) VALUES(3)", "RELEASE a", "ROLLBACK TO a", "INSERT INTO t(u) VALUES(4)"},
		"names that only look equal":              {`SAVEPOINT "k"`, "INSERT INTO t(u) VALUES(1)", "SAVEPOINT \"\u212a\"", "INSERT INTO t(u) VALUES(2)", `ROLLBACK TO "k"`, "INSERT INTO t(u) VALUES(3)"},
		"no such savepoint":                       {"SAVEPOINT a", "INSERT INTO t(u) VALUES(1)", "!ROLLBACK TO b", "!RELEASE b", "INSERT INTO t(u) VALUES(2)"},
		"all rolled back":                         {"SAVEPOINT a", "INSERT INTO t(u) VALUES(1)", "ROLLBACK TO a"},
		"a failure":                               {"INSERT INTO t(u) VALUES(1)", "!INSERT INTO t(u) VALUES(2),('taken')", "INSERT INTO t(u) VALUES(random())"},
		"OR FAIL":                                 {"INSERT INTO t(u) VALUES(1)", "!INSERT OR FAIL INTO t(u) VALUES(2),('taken'),(3)", "INSERT INTO t(u,v) VALUES(random(), datetime('now'))"},
		"OR FAIL first":                           {"!INSERT OR FAIL INTO t(u) VALUES(2),('taken'),(3)", "INSERT INTO t(u,v) VALUES(random(), date('now'))", "INSERT INTO log(what) VALUES(1)"},
		"OR FAIL that leaves nothing":             {"!INSERT OR FAIL INTO t(u) VALUES('taken')", "INSERT INTO t(u,v) VALUES(random(), changes())"},
		"OR IGNORE and OR REPLACE":                {"INSERT OR IGNORE INTO t(u) VALUES(1),('taken'),(2)", "INSERT OR REPLACE INTO t(u,v) VALUES('taken', random())"},
		"RAISE(FAIL)":                             {"!INSERT INTO t(u,v) VALUES(1,1),(2,'raise'),(3,3)", "INSERT INTO t(u) VALUES(random())"},
		"RAISE(FAIL) in an inner write":           {"CREATE TABLE inn(x UNIQUE)", "CREATE TABLE out(x)", "CREATE TRIGGER o BEFORE INSERT ON out BEGIN INSERT OR FAIL INTO inn VALUES(1),(2),(1); END", "CREATE TRIGGER i BEFORE INSERT ON inn WHEN new.x=2 BEGIN SELECT RAISE(FAIL, 'two'); END", "!INSERT INTO out VALUES(1)", "INSERT INTO t(u) SELECT 'inn '||x FROM inn"},
		"the largest rowid in a failed statement": {"!INSERT INTO t(id,u) VALUES(9223372036854775807, 1),(2, 'taken')", "INSERT INTO t(u) VALUES(5)"},
		"deferred keys":                           {"INSERT INTO c VALUES(5)", "INSERT INTO p VALUES(5)", "!INSERT INTO now VALUES(6)"},
		"user_version":                            {"PRAGMA user_version=7", "INSERT INTO t(u) SELECT user_version FROM pragma_user_version"},
		"DDL":                                     {"CREATE TABLE n(a DEFAULT (random()), b AS (a+1))", "INSERT INTO n DEFAULT VALUES", "CREATE INDEX i ON n(a)", "ALTER TABLE n ADD COLUMN c DEFAULT 5", "UPDATE n SET c=c+1", "ALTER TABLE n RENAME COLUMN c TO d", "DROP TABLE p"},
		"DDL undone":                              {"CREATE TABLE n(a)", "SAVEPOINT s", "INSERT INTO n VALUES(1)", "ALTER TABLE n ADD COLUMN b", "CREATE TABLE m(a)", "INSERT INTO n VALUES(2,3)", "ROLLBACK TO s", "INSERT INTO n VALUES(4)", "!INSERT INTO m VALUES(1)", "!INSERT INTO n VALUES(2,3)"},
		"a table created again":                   {"SAVEPOINT s", "CREATE TABLE n(a)", "INSERT INTO n VALUES(1)", "ROLLBACK TO s", "CREATE TABLE n(a, b DEFAULT 7)", "INSERT INTO n(a) VALUES(1)", "ALTER TABLE n RENAME TO m"},
		"ANALYZE":                                 {"INSERT INTO t(u) VALUES(1),(2),(3)", "ANALYZE", "INSERT INTO t(u) SELECT count(*)||' stats' FROM sqlite_stat1", "DELETE FROM sqlite_stat1 WHERE tbl='p'"},
		"FTS5":                                    {"INSERT INTO ft VALUES('some words'),('more words')", "UPDATE ft SET x='other' WHERE rowid=1", "DELETE FROM ft WHERE ft MATCH 'second'", "INSERT INTO t(u) SELECT count(*)||' words' FROM ft('words')", "INSERT INTO ft(ft) VALUES('optimize')", "INSERT INTO t(u) VALUES(last_insert_rowid())"},
		"FTS5 and savepoints":                     {"INSERT INTO ft(rowid, x) VALUES(10, 'a b'),(11, 'c d')", "SAVEPOINT s", "UPDATE ft SET x='changed' WHERE rowid=10", "RELEASE s", "SAVEPOINT s", "INSERT INTO ft VALUES('gone')", "ROLLBACK TO s", "UPDATE ft SET x='again' WHERE rowid=1", "INSERT INTO ft VALUES('last')", "UPDATE ft SET x='more' WHERE rowid=2"},
		"FTS5 and failures":                       {"INSERT INTO ft(rowid, x) VALUES(10, 'a b')", "!INSERT INTO ft(rowid, x) VALUES(12, 'x'),(10, 'y')", "UPDATE ft SET x='c' WHERE rowid=1", "!INSERT INTO t(u) VALUES(1),('taken')", "INSERT INTO ft(rowid, x) VALUES(5, 'e')", "UPDATE ft SET x='d' WHERE rowid=10"},
		"FTS5 whose index is read":                {"CREATE VIRTUAL TABLE fv USING fts5vocab(ft, row)", "INSERT INTO ft(rowid, x) VALUES(10, 'a b')", "SELECT count(*) FROM fv", "INSERT INTO ft(rowid, x) VALUES(5, 'e')", "SELECT count(*) FROM ft('e')", "UPDATE ft SET x='d' WHERE rowid=1", "DROP TABLE fv"},
		"a new FTS5 table":                        {"CREATE VIRTUAL TABLE f2 USING fts5(a)", "INSERT INTO f2 VALUES('x y')", "SAVEPOINT s", "INSERT INTO f2 VALUES('x z')", "ROLLBACK TO s", "INSERT INTO f2 VALUES('x u')", "UPDATE f2 SET a='v' WHERE rowid=1", "INSERT INTO t(u) SELECT count(*) FROM f2('x')"},
		"rtree":                                   {"CREATE VIRTUAL TABLE rt USING rtree(id, a, b)", "INSERT INTO rt VALUES(1,2,3),(2,3,4)", "SAVEPOINT s", "DELETE FROM rt WHERE id=1", "ROLLBACK TO s", "INSERT INTO rt VALUES(NULL,5,6)", "INSERT INTO t(u) VALUES(last_insert_rowid())"},
		"reads between":                           {"INSERT INTO t(u) VALUES(1)", "SELECT random() FROM t", "INSERT INTO t(u) VALUES(random())", "EXPLAIN DELETE FROM t", "PRAGMA table_info(t)", "INSERT INTO t(u) VALUES(changes())"},
		"REINDEX":                                 {"INSERT INTO t(u) VALUES(1)", "REINDEX", "INSERT INTO t(u) VALUES(2)", "INSERT INTO ft VALUES('w')", "SAVEPOINT s", "REINDEX", "DELETE FROM ft WHERE rowid=1"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTrial(t, t, trialSchema...).begin(TransactionOptions{Seed: wire.Seed{7}, Changes: 3, TotalChanges: 40, LastInsertID: 5})
			x.must(texts...)
			x.commit()
			// The connection can be used for the next transaction.
			x.begin(TransactionOptions{Seed: wire.Seed{8}}).must("INSERT INTO t(u) VALUES(random())", "INSERT INTO t(v) VALUES(changes()||' '||total_changes())")
			x.commit()
		})
	}
}

// A transaction has several open cursors, also of the same text with different arguments, and
// writes between their rows.
func TestCursorsOfATransaction(t *testing.T) {
	for name, readOnly := range map[string]bool{"that writes": false, "that reads": true} {
		t.Run(name, func(t *testing.T) {
			x := newTrial(t, t, "CREATE TABLE t(k TEXT, n INTEGER)", "INSERT INTO t VALUES('a',1),('a',2),('a',3),('b',4),('b',5),('b',6)")
			x.begin(TransactionOptions{Seed: wire.Seed{7}})
			if readOnly {
				x.Close()
				tx, err := x.a.Read(context.Background(), TransactionOptions{})
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Close()
				x.Transaction = tx
			}
			const text = "SELECT k, n FROM t WHERE k=? AND n<7 ORDER BY +n"
			open := func(k string) *Cursor {
				c, err := x.Query(context.Background(), text, []wire.Argument{{Value: wire.TextValue(k)}})
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			next := func(c *Cursor) (out string) {
				if _, err := c.Next(func(s *sqlite.Stmt) { out = string(s.Bytes(0)) + string(s.Bytes(1)) }); err != nil {
					t.Fatal(err)
				}
				return out
			}
			a, b := open("a"), open("b")
			var got []string
			for i := range 4 {
				got = append(got, next(a), next(b))
				if !readOnly {
					if _, err := x.Exec(context.Background(), "INSERT INTO t VALUES(?,?)", []wire.Argument{{Value: wire.TextValue("c")}, {Value: wire.IntegerValue(int64(10 + i))}}); err != nil {
						t.Fatal(err)
					}
				}
				c := open("nobody")
				got = append(got, next(c))
				c.Close()
			}
			if want := "a1 b4  a2 b5  a3 b6    "; strings.Join(got, " ") != want {
				t.Errorf("the rows are %q, want %q", strings.Join(got, " "), want)
			}
			a.Close()
			b.Close()
			if !readOnly {
				x.commit()
			}
		})
	}
}

// A statement that ends the SQLite transaction of the view ends the transaction, which then
// cannot be recorded.
func TestStatementsThatEndTheTransaction(t *testing.T) {
	schema := append([]string{"CREATE TABLE s(id INTEGER PRIMARY KEY AUTOINCREMENT)", "CREATE TABLE end(x)", "CREATE TRIGGER ends BEFORE INSERT ON end BEGIN SELECT RAISE(ROLLBACK, 'ended'); END"}, trialSchema...)
	for text, says := range map[string]string{
		"INSERT OR ROLLBACK INTO t(u) VALUES(1),('taken')":                                               "UNIQUE constraint failed: t.u",
		"INSERT INTO end VALUES(1)":                                                                      "ended",
		"INSERT INTO t(id) VALUES(9223372036854775807)":                                                  "largest rowid",
		"INSERT OR FAIL INTO t(id,u) VALUES(9223372036854775807,1),(3,'taken')":                          "largest rowid",
		"INSERT INTO t(u) WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x) SELECT n FROM x": "more steps",
	} {
		x := newTrial(t, t, schema...).begin(TransactionOptions{Seed: wire.Seed{7}, MaxSteps: 100_000})
		before := everything(t, x.a.query)
		x.must("INSERT INTO p VALUES(1)", "SAVEPOINT a")
		_, err := x.run(text)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", text, err)
		}
		if err := x.Err(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: the transaction's error is %v", text, err)
		}
		if _, err := x.run("INSERT INTO p VALUES(2)"); err == nil {
			t.Errorf("%s: the transaction continues", text)
		}
		if e, err := x.Record(&wire.Operation{Lease: &wire.Lease{}}); err == nil || e != nil {
			t.Errorf("%s: the transaction can be recorded", text)
		}
		x.send(wire.EncodeOperation(release(x.id)))
		x.compareReplicas(before)
	}
}

// An exhausted AUTOINCREMENT in a transaction is an ordinary error.
func TestAnExhaustedAutoincrementInATransaction(t *testing.T) {
	x := newTrial(t, t, "CREATE TABLE s(id INTEGER PRIMARY KEY AUTOINCREMENT, v)", "INSERT INTO s(v) VALUES(1)", "UPDATE sqlite_sequence SET seq=9223372036854775807")
	x.begin(TransactionOptions{Seed: wire.Seed{7}})
	x.must("UPDATE s SET v=2")
	_, err := x.run("INSERT INTO s(v) VALUES(3)")
	var e *sqlite.Error
	if !errors.As(err, &e) || e.Code != sqlite.CodeFull {
		t.Fatalf("the error is %v", err)
	}
	if x.Err() == nil { // SQLite may have ended the transaction
		x.must("UPDATE s SET v=v+random()%2")
		x.commit()
	} else {
		x.send(wire.EncodeOperation(release(x.id)))
	}
	if x.a.hash() != x.b.hash() {
		t.Error("the replicas differ")
	}
}

// A context that ends during a write ends the transaction. A context that ends during a read
// does not.
func TestContextsThatEndDuringStatements(t *testing.T) {
	x := newTrial(t, t, trialSchema...).begin(TransactionOptions{Seed: wire.Seed{7}})
	x.must("INSERT INTO t(u) VALUES(1)")
	const forever = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x) SELECT count(*) FROM x"
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if c, err := x.Query(over, "SELECT 1", nil); c != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("the error of a read with an ended context is %v", err)
	}
	if _, err := x.Exec(over, "INSERT INTO t(u) VALUES(1.5)", nil); !errors.Is(err, context.Canceled) || x.Err() != nil {
		t.Errorf("the error of a write with an ended context is %v, that of the transaction %v", err, x.Err())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	c, err := x.Query(ctx, forever, nil)
	if err == nil {
		_, err = c.Next(nil)
		c.Close()
	}
	if !errors.Is(err, context.DeadlineExceeded) || x.Err() != nil {
		t.Errorf("the error of the read is %v, that of the transaction %v", err, x.Err())
	}
	x.must("INSERT INTO t(u) VALUES(2)")
	ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := x.Exec(ctx, "INSERT INTO t(u) "+forever, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error of the write is %v", err)
	}
	if err := x.Err(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error of the transaction is %v", err)
	}
	x.send(wire.EncodeOperation(release(x.id)))
	x.begin(TransactionOptions{Seed: wire.Seed{8}}).must("INSERT INTO t(u) VALUES(3)") // on the same connection or a new one
	x.commit()
}

// A statement that does not fit into the recording fails. The statements before it can be
// committed.
func TestTheRecordingIsBounded(t *testing.T) {
	x := newTrial(t, t, trialSchema...).begin(TransactionOptions{Seed: wire.Seed{7}, MaxBytes: 2000})
	large := []wire.Argument{{Value: wire.BlobValue(make([]byte, 1500))}}
	exec := func(text string, args []wire.Argument) error {
		_, err := x.Exec(context.Background(), text, args)
		return err
	}
	if err := exec("INSERT INTO t(v) VALUES(?)", large); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := exec("INSERT INTO t(v) VALUES(?)", large); !errors.Is(err, ErrRecordFull) || x.Err() != nil {
			t.Fatalf("the error of a statement that does not fit is %v, that of the transaction %v", err, x.Err())
		}
	}
	x.must("INSERT INTO t(u,v) VALUES(random(), changes())")
	x.commit()
	if got := x.a.rows("SELECT count(*) FROM t"); got != "3" {
		t.Errorf("there are %s rows", got)
	}
}

func TestForeignKeysOfATransaction(t *testing.T) {
	t.Run("violated at the end", func(t *testing.T) {
		x := newTrial(t, t, trialSchema...).begin(TransactionOptions{Seed: wire.Seed{7}})
		x.must("INSERT INTO c VALUES(5)")
		var e *sqlite.Error
		if _, err := x.Record(&wire.Operation{Lease: &wire.Lease{}}); !errors.As(err, &e) || e.Code != sqlite.CodeForeignKey || x.Err() != nil {
			t.Fatalf("the error of Record is %v, that of the transaction %v", err, x.Err())
		}
		x.must("INSERT INTO p VALUES(5)")
		x.commit()
	})
	t.Run("off", func(t *testing.T) {
		x := newTrial(t, t, trialSchema...).begin(TransactionOptions{Seed: wire.Seed{7}, Settings: wire.ForeignKeysOff})
		x.must("INSERT INTO now VALUES(5)", "CREATE TABLE p2(id INTEGER PRIMARY KEY)", "DROP TABLE p", "ALTER TABLE p2 RENAME TO p")
		x.commit()
		x.begin(TransactionOptions{Seed: wire.Seed{8}}).must("!INSERT INTO now VALUES(6)") // foreign keys are on again
		x.apply()
	})
}

// A recording whose statements return something else than on the view is not applied.
func TestRecordingsThatDifferAreNotApplied(t *testing.T) {
	for name, change := range map[string]func(op *wire.Operation){
		"another random number": func(op *wire.Operation) { op.Seed[31]++ },
		"another time":          func(op *wire.Operation) { op.StampMS += 1 << 40 },
		"another checksum":      func(op *wire.Operation) { op.Lease.Checksum++ },
	} {
		t.Run(name, func(t *testing.T) {
			x := newTrial(t, t, trialSchema...).begin(TransactionOptions{Seed: wire.Seed{7}})
			before := everything(t, x.a.query)
			x.must("INSERT INTO p VALUES(1)", "INSERT INTO p SELECT abs(random()%1000000)+5", "INSERT INTO p SELECT 1e9+n FROM (WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<50) SELECT n FROM x) WHERE n<unixepoch('now')%40")
			o := &wire.Operation{Lease: &wire.Lease{}}
			if _, err := x.Record(o); err != nil {
				t.Fatal(err)
			}
			change(o)
			r := x.send(x.rec.Encode(o))[0]
			if r.Err == nil || r.Err.Hint == "" {
				t.Errorf("the result is %+v", r)
			}
			x.compareReplicas(before)
			if x.a.lease.held.ID != 0 {
				t.Error("the lease is still held")
			}
		})
	}
}
