package replica

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// endless returns an operation that runs until it reaches its bound of steps. The bound is
// low so that the tests are fast.
func endless() *wire.Operation {
	o := op("INSERT INTO t(b) WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x) SELECT n FROM x")
	o.MaxSteps = 50_000
	return o
}

// An operation that fails changes no rows, and the other operations of its entry and batch
// are applied, even if it ends the SQLite transaction.
func TestFailedOperationsDoNotAffectOthers(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	schema := []string{
		"CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b DEFAULT (random()))",
		"CREATE TABLE r(a UNIQUE ON CONFLICT ROLLBACK)",
		"CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
		"CREATE TABLE s(id INTEGER PRIMARY KEY AUTOINCREMENT)",
		"CREATE TRIGGER tr BEFORE INSERT ON t WHEN new.a='raise' BEGIN SELECT RAISE(ROLLBACK, 'said no'); END",
		"INSERT INTO t(a) VALUES('taken'); INSERT INTO r VALUES('taken'); INSERT INTO s VALUES(1)",
	}
	tests := map[string]struct {
		op   *wire.Operation
		code int
		says string
	}{
		"OR ROLLBACK":                      {op("INSERT OR ROLLBACK INTO t(a) VALUES('x'),('taken')"), 2067, "constraint failed: UNIQUE constraint failed: t.a (2067)"},
		"ON CONFLICT ROLLBACK":             {op("INSERT INTO r VALUES('x'),('taken')"), 2067, "UNIQUE constraint failed: r.a"},
		"RAISE(ROLLBACK)":                  {op("INSERT INTO t(a) VALUES('x'),('raise')"), 1811, "said no"},
		"OR ROLLBACK in a script":          {op("INSERT INTO t(a) VALUES('x'); INSERT OR ROLLBACK INTO t(a) VALUES('taken'); INSERT INTO t(a) VALUES('y')"), 2067, "UNIQUE"},
		"OR ROLLBACK in a transaction":     {op("INSERT INTO t(a) VALUES('x')", "INSERT OR ROLLBACK INTO t(a) VALUES('taken')", "INSERT INTO t(a) VALUES('y')"), 2067, "UNIQUE"},
		"a plain failure":                  {op("INSERT INTO t(a) VALUES('x'),('taken')"), 2067, "UNIQUE"},
		"a plain failure in a transaction": {op("INSERT INTO t(a) VALUES('x')", "INSERT INTO t(a) VALUES('taken')"), 2067, "UNIQUE"},
		"a script":                         {op("INSERT INTO t(a) VALUES('x'); INSERT INTO t(a) VALUES('taken')"), 2067, "UNIQUE"},
		"an endless statement":             {endless(), sqlite.CodeInterrupt, "more steps"},
		"an endless script":                {&wire.Operation{MaxSteps: 50_000, Statements: append(op("INSERT INTO t(a) VALUES('x')").Statements, endless().Statements...)}, sqlite.CodeInterrupt, "more steps"},
		"an exhausted AUTOINCREMENT":       {op("UPDATE sqlite_sequence SET seq=9223372036854775807 WHERE name='s'", "INSERT INTO s DEFAULT VALUES"), sqlite.CodeFull, "database or disk is full"},
		"the largest rowid":                {op("INSERT INTO t(id) VALUES(9223372036854775807)"), sqlite.CodeFull, "largest rowid"},
		"a deferred key":                   {op("INSERT INTO c VALUES(77)"), sqlite.CodeForeignKey, "FOREIGN KEY constraint failed"},
		"a deferred key in a script":       {op("INSERT INTO c VALUES(77); INSERT INTO t(a) VALUES('x')"), sqlite.CodeForeignKey, "FOREIGN KEY constraint failed"},
		"COMMIT":                           {op("INSERT INTO t(a) VALUES('x'); COMMIT; INSERT INTO t(a) VALUES('y')"), sqlite.CodeAuth, "COMMIT inside a script"},
		"SAVEPOINT":                        {op("SAVEPOINT a; INSERT INTO t(a) VALUES('x'); RELEASE a"), sqlite.CodeAuth, "SAVEPOINT inside a script"},
		"ROLLBACK":                         {op("INSERT INTO t(a) VALUES('x'); ROLLBACK"), sqlite.CodeAuth, "ROLLBACK inside a script"},
		"no such table":                    {op("CREATE TABLE x(a); INSERT INTO nosuch VALUES(1)"), 1, "no such table: nosuch"},
		"VACUUM among others":              {&wire.Operation{Vacuum: true, Statements: op("VACUUM").Statements}, 1, "VACUUM must stand alone"},
		"an unused argument": {&wire.Operation{Statements: []wire.Statement{{SQL: "INSERT INTO t(a) VALUES(?); DELETE FROM r",
			Args: []wire.Argument{{Value: wire.IntegerValue(1)}, {Value: wire.IntegerValue(2)}}}}}, 1, "argument 2 is used by no statement"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h, others := newHistory(), newHistory()
			h.sql(schema...)
			others.sql(schema...)
			before := op("INSERT INTO t(a) VALUES('before') RETURNING id, b")
			after := op("INSERT INTO t(a) SELECT count(*) FROM t RETURNING id, a, b")
			h.do(before, test.op, after)
			h.do(test.op)
			h.do(last(), test.op, test.op)
			others.do(before, after)
			others.do()
			others.do(last())
			m := agree(t, h, "SELECT * FROM t", "SELECT * FROM sqlite_sequence")
			if want := agree(t, others); m.hash() != want.hash() {
				t.Errorf("the failed operation changed rows:\n%s\n\nwithout it:\n%s", m.rows("SELECT * FROM t"), want.rows("SELECT * FROM t"))
			}
			first := uint64(len(schema) + 1)
			r := m.got[[2]uint64{1, first}]
			if e := r[1].Err; e == nil || e.Code != test.code || !strings.Contains(e.Message, test.says) {
				t.Errorf("the error is %v", e)
			}
			if r[1].Statements != nil {
				t.Errorf("the failed operation has the results %+v", r[1].Statements)
			}
			if r[0].Err != nil || r[2].Err != nil || r[0].Statements[0].Rows.Len() != 1 {
				t.Errorf("the results of the other operations are %+v, %+v", r[0], r[2])
			}
			alone := m.got[[2]uint64{1, first + 1}][0].Err
			if (alone == nil) != test.op.Vacuum || alone != nil && alone.Code != test.code {
				t.Errorf("the error in an entry of its own is %v", alone)
			}
		})
	}
}

func last() *wire.Operation { return op("INSERT INTO t(a) VALUES('last')") }

// Each operation has its own time and seed. Its result does not depend on the other
// operations of its batch, even if one of them fails.
func TestResultsDoNotDependOnOtherOperations(t *testing.T) {
	texts := []string{"INSERT INTO t(a) VALUES(random()) RETURNING *", "INSERT INTO t(a) VALUES(datetime('now')) RETURNING *", "INSERT OR ROLLBACK INTO t(id,a) VALUES(1,1)",
		"INSERT INTO t(a) SELECT hex(randomblob(8)) RETURNING *, changes(), last_insert_rowid()"}
	h := newHistory()
	h.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", "INSERT INTO t(id) VALUES(1)")
	h.sql(texts...)
	m := agree(t, h)
	whole := emptyMachine(t)
	whole.apply(h.entries...)
	for seq := uint64(3); seq < 3+uint64(len(texts)); seq++ {
		if got, want := encoded(whole.got[[2]uint64{1, seq}]), encoded(m.got[[2]uint64{1, seq}]); got != want {
			t.Errorf("the results of entry %d are %q in a batch, %q alone", seq, got, want)
		}
	}
}

// Only the steps of an operation's statements count towards its bound. The steps of
// preparing them, of loading a large schema and of the replica's own statements do not.
func TestTheBoundIsTheSameOnEveryReplica(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	var schema, many strings.Builder
	for i := range 700 {
		fmt.Fprintf(&schema, "CREATE TABLE t%d(a, b, c);", i)
	}
	for i := range 400 {
		fmt.Fprintf(&many, "%s SELECT %d AS n", map[bool]string{true: "", false: " UNION ALL"}[i == 0], i)
	}
	h := newHistory()
	h.sql(schema.String(), "CREATE TABLE t(n)")
	text := "INSERT INTO t SELECT count(*) FROM (" + many.String() + ") AS x"
	// The first bounds are too low for the operation, and the last ones are not. The same
	// operations must fail on every replica.
	for steps := uint64(1000); steps <= 30_000; steps += 1000 {
		o := op(text, "INSERT INTO t WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<1000) SELECT count(*) FROM x")
		o.MaxSteps = steps
		h.do(o)
	}
	m := agree(t, h, "SELECT count(*) FROM t")
	failed := 0
	for _, r := range m.got {
		if r[0].Err != nil {
			failed++
		}
	}
	if failed == 0 || failed > 28 {
		t.Errorf("%d of 30 operations reached their bound; the test needs some that do and some that do not", failed)
	}
}

// The bound of an operation does not apply to the replica's own statements, which are
// executed at the end of the batch.
func TestTheBoundEndsWithTheOperation(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	h := newHistory()
	h.sql("CREATE TABLE t(b)")
	for range 40 { // enough for the statement that writes the meta row to reach a bound
		h.do(endless())
	}
	m := agree(t, h)
	if got := m.rows("SELECT count(*) FROM t"); got != "0" {
		t.Errorf("there are %s rows", got)
	}
}
