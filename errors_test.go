package hiqlite_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file check which errors programs get for wrong input, and that it does
// no harm.

// SQLite returns SQLITE_CORRUPT for a damaged file, and also for a statement whose
// schema entry it cannot read back. The second is the result of the statement, alone
// and in a transaction: no node stops, not even at its next start.
func TestMalformedSchemaIsAnErrorOfTheStatement(t *testing.T) {
	t.Parallel()
	const malformed = "CREATE VIEW IF NOT EXISTS IF AS SELECT null"
	eachSize(t, func(t *testing.T, nodes *testCluster) {
		c := withCheck(nodes)
		db := c.DB(0)
		_, err := db.ExecContext(testrun.Context(t), malformed)
		wantCode(t, malformed, err, 11, "malformed database schema (IF)")
		c.checkUnharmed(malformed)

		tx := mustBegin(t, db)
		mustExec(t, tx, "INSERT INTO kept(v) VALUES('d')")
		_, err = tx.Exec(malformed)
		wantCode(t, malformed, err, 11, "malformed database schema (IF)")
		// The COMMIT fails in plain SQLite, too.
		if err := tx.Commit(); err == nil {
			t.Error("the transaction was committed")
		}
		c.checkUnharmed(malformed + " in a transaction")
		var n int
		if err := db.QueryRowContext(linearizable(t), "SELECT count(*) FROM kept").Scan(&n); err != nil || n != 3 {
			t.Errorf("%d rows, want 3, %v", n, err)
		}
		c.stopAll()
		c.startAll()
		c.checkUnharmed("a restart")
	})
}

// A checkedCluster has a table of three rows that wrong input must not harm.
type checkedCluster struct {
	*testCluster
}

func newCheckedCluster(t testing.TB, size int, change ...func(*hiqlite.Config)) checkedCluster {
	return withCheck(newCluster(t, size, change...))
}

// withCheck creates the table of a checkedCluster.
func withCheck(c *testCluster) checkedCluster {
	mustExec(c.t, c.DB(0), "CREATE TABLE kept(id INTEGER PRIMARY KEY, v TEXT UNIQUE)")
	mustExec(c.t, c.DB(0), "INSERT INTO kept(v) VALUES('a'),('b'),('c')")
	return checkedCluster{c}
}

// checkUnharmed fails the test unless all nodes read and write, and still have the
// three rows. what is what may have harmed them.
func (s checkedCluster) checkUnharmed(what string) {
	s.t.Helper()
	checkReads(s.t, s.testCluster)
	ctx := linearizable(s.t)
	for i := range s.Nodes() {
		mustExec(s.t, s.DB(i), "UPDATE kept SET v=v")
		var n int
		if err := s.DB(i).QueryRowContext(ctx, "SELECT count(*) FROM kept WHERE v IN ('a','b','c')").Scan(&n); err != nil || n != 3 {
			s.t.Fatalf("after %s, node %d holds %d rows, %v", what, i+1, n, err)
		}
	}
}

// Each of these statements returns an error with the code and the words given, and
// changes nothing.
func TestRefusedStatements(t *testing.T) {
	t.Parallel()
	s := newCheckedCluster(t, 1)
	for text, want := range map[string]struct {
		code  int
		words []string
	}{
		"INSERT INTO kept(v) VALUES('a')":                   {2067, []string{"UNIQUE constraint failed: kept.v"}},
		"INSERT INTO kept(id) VALUES(1)":                    {1555, []string{"UNIQUE constraint failed: kept.id"}},
		"SELEC 1":                                           {1, []string{`near "SELEC": syntax error`}},
		"INSERT INTO kept(v) VALUES('x'); SELEC 1":          {1, []string{"syntax error"}},
		"INSERT INTO kept(v) VALUES('x'),('a')":             {2067, nil},
		"INSERT INTO kept(v) VALUES('x'); DELETE FROM nope": {1, []string{"no such table: nope"}},
		"SELECT * FROM nope":                                {1, []string{"no such table: nope"}},
		"ATTACH 'x.db' AS x":                                {23, []string{"ATTACH", "data folder"}},
		"INSERT INTO kept(v) VALUES('x'); ATTACH 'x' AS x":  {23, []string{"ATTACH"}},
		"DETACH main":                                       {23, []string{"DETACH"}},
		"CREATE VIRTUAL TABLE temp.x USING fts5(a)":         {23, []string{"TEMP", "ordinary virtual table"}},
		"CREATE TABLE temp.sqlite_hiqlite(a)":               {1, []string{"reserved"}},
		"CREATE TRIGGER temp.x AFTER INSERT ON sqlite_hiqlite BEGIN DELETE FROM kept; END": {1, []string{"system table"}},
		"SELECT load_extension('x')":                       {23, []string{"load_extension"}},
		"PRAGMA encoding='UTF-16'":                         {23, []string{"encoding"}},
		"PRAGMA schema_version=7":                          {23, []string{"schema_version"}},
		"DELETE FROM sqlite_hiqlite":                       {23, []string{"sqlite_hiqlite", "applied twice"}},
		"ALTER TABLE sqlite_hiqlite RENAME TO x":           {1, []string{"may not be altered"}},
		"VACUUM INTO 'x.db'":                               {1, []string{"VACUUM INTO", "backup"}},
		"COMMIT":                                           {1, []string{"cannot commit - no transaction is active"}},
		"ROLLBACK TO x":                                    {1, []string{"no such savepoint: x"}},
		"INSERT INTO kept(v) VALUES('x'); COMMIT":          {1, []string{"cannot commit - no transaction is active"}},
		"BEGIN; INSERT INTO kept(v) VALUES('x'); SELEC 1":  {1, []string{"syntax error"}},
		"BEGIN; INSERT INTO kept(v) VALUES('x'),('a')":     {2067, nil},
		"SELECT 1\x00":                                     {1, []string{"NUL"}},
		"INSERT INTO kept(id) VALUES(9223372036854775807)": {13, []string{"largest rowid"}},
		"SELECT " + strings.Repeat("(", 5000) + "1":        {1, nil},
		"SELECT 1" + strings.Repeat("+1", 5000):            {1, []string{"too large"}},
		"SELECT 1" + strings.Repeat(",1", 5000):            {1, []string{"too many columns"}},
		"\xff\xfe":                                         {1, nil},
	} {
		name := text[:min(len(text), 60)]
		_, err := s.DB(0).ExecContext(testrun.Context(t), text)
		wantCode(t, "exec "+name, err, want.code, want.words...)
		if rows, err := s.DB(0).QueryContext(testrun.Context(t), text); err == nil {
			t.Errorf("query %s: no error", name)
			rows.Close()
		}
		s.checkUnharmed(name)
	}
	var n int
	if err := s.DB(0).QueryRowContext(testrun.Context(t), "SELECT count(*) FROM kept").Scan(&n); err != nil || n != 3 {
		t.Errorf("%d rows, want 3, %v: a script that failed has changed rows", n, err)
	}
}

func TestWrongArguments(t *testing.T) {
	t.Parallel()
	s := newCheckedCluster(t, 1)
	for _, test := range []struct {
		text  string
		args  []any
		words string
	}{
		{"INSERT INTO kept(v) VALUES(?)", nil, "missing argument with index 1"},
		{"INSERT INTO kept(v) VALUES(?)", []any{"x", "y"}, "too many arguments"},
		{"SELECT ?, ?", []any{1}, "missing argument with index 2"},
		{"SELECT 1", []any{1}, "too many arguments"},
		{"SELECT ?2", []any{1, 2, 3}, "too many arguments"},
		{"SELECT :a, :b", []any{1}, `missing named argument "a"`},
		{"INSERT INTO kept(v) VALUES(?); DELETE FROM kept WHERE v=?", []any{"x", "y"}, "argument 2 is used by no statement"},
		{"INSERT INTO kept(v) VALUES(?1); DELETE FROM kept WHERE v=?2", []any{"x"}, "missing"},
		{"PRAGMA busy_timeout=5", []any{1}, "too many arguments"},
		{"", []any{1}, "too many arguments"},
	} {
		_, err := s.DB(0).ExecContext(testrun.Context(t), test.text, test.args...)
		wantCode(t, test.text, err, 1, test.words)
		s.checkUnharmed(test.text)
	}
	for _, arg := range []any{struct{}{}, []int{1}, make(chan int), complex(1, 1), uint64(1 << 63)} {
		if _, err := s.DB(0).ExecContext(testrun.Context(t), "INSERT INTO kept(v) VALUES(?)", arg); err == nil || !strings.Contains(err.Error(), "argument") {
			t.Errorf("%T: %v", arg, err)
		}
		_, err := hiqlite.Batch(testrun.Context(t), s.DB(0), hiqlite.Statement{SQL: "INSERT INTO kept(v) VALUES(?)", Args: []any{arg}})
		wantCode(t, fmt.Sprintf("%T in a batch", arg), err, 1, "converting argument 1")
	}
	s.checkUnharmed("unsupported types")
}

// The error of a batch has the index of the statement that failed, and the batch
// changes nothing.
func TestBatchNamesTheFailedStatement(t *testing.T) {
	t.Parallel()
	s := newCheckedCluster(t, 1)
	good := hiqlite.Statement{SQL: "INSERT INTO kept(v) VALUES(?)", Args: []any{"x"}}
	for text, want := range map[string]struct {
		code  int
		words []string
	}{
		"INSERT INTO kept(v) VALUES('a')": {2067, []string{"UNIQUE"}},
		"INSERT INTO kept(v) VALUES('x')": {2067, []string{"UNIQUE"}},
		"SELEC":                           {1, []string{"syntax error"}},
		"INSERT INTO kept VALUES(?)":      {1, []string{"1 values were supplied"}},
		"INSERT INTO nope VALUES(1)":      {1, []string{"no such table"}},
		"UPDATE kept SET v=?":             {1, []string{"missing argument"}},
		"SELECT 1":                        {1, []string{"a batch consists of writes"}},
		"PRAGMA foreign_keys=OFF":         {1, []string{"a batch consists of writes"}},
		"VACUUM":                          {1, []string{"a batch consists of writes"}},
		"COMMIT":                          {1, []string{"a batch consists of writes"}},
		"":                                {1, []string{"a batch consists of writes"}},
		"ATTACH 'x' AS x":                 {23, []string{"ATTACH"}},
	} {
		_, err := hiqlite.Batch(testrun.Context(t), s.DB(0), good, hiqlite.Statement{SQL: "CREATE TABLE made(a)"}, hiqlite.Statement{SQL: "INSERT INTO made VALUES(1)"}, hiqlite.Statement{SQL: text}, good)
		e := wantCode(t, text, err, want.code, want.words...)
		if e.Statement != 3 {
			t.Errorf("%q: the error names statement %d, want 3: %v", text, e.Statement, err)
		}
		s.checkUnharmed(text)
		var n int
		if err := s.DB(0).QueryRowContext(testrun.Context(t), "SELECT count(*) FROM kept, sqlite_schema WHERE sqlite_schema.name='made' OR kept.v='x'").Scan(&n); err != nil || n != 0 {
			t.Errorf("%q: the failed batch has left rows or a table: %d, %v", text, n, err)
		}
	}
}

// After Close of a node, all its methods and connections return ErrClosed.
func TestClosedNode(t *testing.T) {
	t.Parallel()
	s := newCheckedCluster(t, 1)
	node, db := s.Node(0), s.DB(0)
	conn := mustConn(t, db)
	stmt, err := conn.PrepareContext(testrun.Context(t), "SELECT 1")
	if err != nil {
		t.Fatal(err)
	}
	s.Stop(0)
	_, err1 := conn.ExecContext(testrun.Context(t), "DELETE FROM kept")
	_, err2 := stmt.QueryContext(testrun.Context(t))
	_, err3 := node.Status(testrun.Context(t))
	c, err4 := node.Connector().Connect(testrun.Context(t))
	if err4 == nil {
		c.Close()
	}
	for i, err := range []error{err1, err2, err3, err4, node.Ready(testrun.Context(t))} {
		if !errors.Is(err, hiqlite.ErrClosed) {
			t.Errorf("%d: %v, want ErrClosed", i, err)
		}
	}
	if _, err := db.ExecContext(testrun.Context(t), "DELETE FROM kept"); err == nil {
		t.Error("a closed node has executed a DELETE")
	}
	if err := node.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	s.Start(0)
	s.WaitReady(0)
	s.checkUnharmed("closing")
}

func TestTextsOfCodes(t *testing.T) {
	t.Parallel()
	for code, want := range map[hiqlite.Code]string{
		hiqlite.ErrAuth:             "hiqlite: SQLite's result code 23 (authorization denied)",
		hiqlite.ErrConstraintUnique: "hiqlite: SQLite's result code 2067 (constraint failed)",
		hiqlite.ErrAbortRollback:    "hiqlite: SQLite's result code 516 (abort due to ROLLBACK)",
		99:                          "hiqlite: SQLite's result code 99 (unknown error)",
	} {
		if got := code.Error(); got != want {
			t.Errorf("the text is %q, want %q", got, want)
		}
	}
}

// errors.Is finds the extended code of an error of SQLite, and its primary code.
func TestCodesOfErrors(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, `CREATE TABLE parent(id INTEGER PRIMARY KEY);
			CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE, n NOT NULL DEFAULT 0, c CHECK(c > 0), p REFERENCES parent, s);
			CREATE TABLE strict(i INTEGER) STRICT; INSERT INTO t(id, u) VALUES(1, 1)`)
		for text, want := range map[string]hiqlite.Code{
			"INSERT INTO t(id) VALUES(1)":                       hiqlite.ErrConstraintPrimaryKey,
			"INSERT INTO t(u) VALUES(1)":                        hiqlite.ErrConstraintUnique,
			"INSERT INTO t(n) VALUES(NULL)":                     hiqlite.ErrConstraintNotNull,
			"INSERT INTO t(c) VALUES(0)":                        hiqlite.ErrConstraintCheck,
			"INSERT INTO t(p) VALUES(1)":                        hiqlite.ErrConstraintForeignKey,
			"INSERT INTO strict VALUES('text')":                 hiqlite.ErrConstraintDataType,
			"INSERT INTO t(id) VALUES('text')":                  hiqlite.ErrMismatch,
			"INSERT INTO t(s) VALUES(zeroblob(2000000000))":     hiqlite.ErrTooBig,
			"SELECT nothing":                                    hiqlite.ErrSQL,
			"ATTACH 'x' AS x":                                   hiqlite.ErrAuth,
			"INSERT INTO t(s) SELECT abs(-9223372036854775808)": hiqlite.ErrSQL,
		} {
			_, err := db.ExecContext(testrun.Context(t), text)
			var e *hiqlite.Error
			if !errors.Is(err, want) || !errors.Is(err, want.Primary()) || !errors.As(err, &e) || e.Code() != int(want) {
				t.Errorf("%s: %v is not %v", text, err, want)
			}
			if errors.Is(err, hiqlite.ErrBusy) || errors.Is(err, hiqlite.ErrNoLeader) || hiqlite.SafeToRetry(err) {
				t.Errorf("%s: %v is not only %v", text, err, want)
			}
		}
	})
}

func TestSafeToRetry(t *testing.T) {
	t.Parallel()
	busy, violated := &hiqlite.Error{ExtendedCode: hiqlite.ErrBusy}, &hiqlite.Error{ExtendedCode: hiqlite.ErrConstraintUnique}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{busy, true},
		{fmt.Errorf("of a library: %w", busy), true},
		{&hiqlite.Error{ExtendedCode: hiqlite.ErrBusySnapshot}, true},
		{violated, false},
		{hiqlite.ErrTxExpired, true},
		{hiqlite.ErrNoLeader, true},
		{hiqlite.ErrClosed, false},
		{hiqlite.ErrDiskFull, false},
		{hiqlite.ErrOutcomeUnknown, false},
		{fmt.Errorf("%w: %w", hiqlite.ErrOutcomeUnknown, hiqlite.ErrNoLeader), false},
		{fmt.Errorf("%w: %w", hiqlite.ErrOutcomeUnknown, busy), false},
		{context.DeadlineExceeded, false},
	} {
		if got := hiqlite.SafeToRetry(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
