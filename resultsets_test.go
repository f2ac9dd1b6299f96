package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file check the result sets of scripts.

// allSets runs a script and returns all its result sets: columns, rows such as "a|b", and
// " / " between two sets.
func allSets(ctx context.Context, q querier, text string, args ...any) string {
	rows, err := q.QueryContext(ctx, text, args...)
	if err != nil {
		return "error: " + err.Error()
	}
	return setsOf(rows)
}

func setsOf(rows *sql.Rows) string {
	defer rows.Close()
	var sets []string
	for more := true; more; more = rows.NextResultSet() {
		columns, err := rows.Columns()
		if err != nil {
			return "error: " + err.Error()
		}
		all := strings.Join(columns, "|") + ":"
		for rows.Next() {
			values, err := scanRow(rows)
			if err != nil {
				return "error: " + err.Error()
			}
			cells := make([]string, len(values))
			for i := range values {
				cells[i] = fmt.Sprint(values[i])
			}
			all += " " + strings.Join(cells, "|")
		}
		sets = append(sets, all)
	}
	if err := rows.Err(); err != nil {
		sets = append(sets, "error: "+err.Error())
	}
	return strings.Join(sets, " / ")
}

var setScripts = []struct {
	name, text string
	args       []any
	want       string
}{
	{"one statement", "SELECT 1 a", nil, "a: 1"},
	{"reads", "SELECT 1 a; SELECT 2 b, 3 c UNION SELECT 4, 5; SELECT 6 d", nil, "a: 1 / b|c: 2|3 4|5 / d: 6"},
	{"reads without rows", "SELECT 1 a WHERE 0; SELECT 2 b WHERE 0; SELECT 3 c WHERE 0", nil, "a: / b: / c:"},
	{"a comment at the end", "SELECT 1 a; SELECT 2 b; -- the end\n", nil, "a: 1 / b: 2"},
	{"arguments", "SELECT ? a; SELECT ? b, ? c", []any{7, 8}, "a: 7 / b|c: 7|8"},
	{"a PRAGMA between", "SELECT 1 a; PRAGMA table_info(s); SELECT 2 b", nil, "a: 1 / cid|name|type|notnull|dflt_value|pk: 0|id|INTEGER|0|<nil>|1 1|v|TEXT|0|<nil>|0 / b: 2"},
	{"PRAGMAs of the connection", "PRAGMA foreign_keys; SELECT 1 a; PRAGMA busy_timeout", nil, "foreign_keys: 1 / a: 1 / timeout: 10000"},
	{"PRAGMAs that set", "PRAGMA cache_size=100; SELECT 1 a; PRAGMA busy_timeout=10000; SELECT 2 b; PRAGMA synchronous=OFF", nil, "a: 1 / b: 2"},
	{"PRAGMAs that set or do something, in a script that writes", "PRAGMA wal_checkpoint; PRAGMA journal_mode=WAL; DELETE FROM s WHERE id=77 RETURNING id; PRAGMA optimize; PRAGMA cache_size=100", nil, "id:"},
	{"PRAGMAs that do something", "PRAGMA wal_checkpoint; SELECT 1 a; PRAGMA optimize", nil, "a: 1"},
	{"PRAGMAs that set, alone", "PRAGMA cache_size=100; PRAGMA journal_mode=WAL", nil, ":"},
	{"writes between reads", "SELECT count(*) n FROM s; INSERT INTO s VALUES(10, 'x') RETURNING id, v; INSERT INTO s VALUES(11, 'y'); SELECT id FROM s WHERE id>=10; DELETE FROM s WHERE id>=10 RETURNING id; SELECT 1 z WHERE 0",
		nil, "n: 2 / id|v: 10|x / id: 10 11 / id: 10 11 / z:"},
	{"writes without rows", "INSERT INTO s VALUES(10, 'x'); DELETE FROM s WHERE id=10", nil, ":"},
	{"a write first, a read last", "UPDATE s SET v='one' WHERE id=1; SELECT v FROM s WHERE id=1; SELECT 2 b", nil, "v: one / b: 2"},
}

// A script returns a result set for each of its statements that has columns: in and
// outside of a transaction, with and without TEMP objects, prepared or not.
func TestScriptsHaveAResultSetForEachStatement(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		mustExec(t, db, "CREATE TABLE s(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO s VALUES(1, 'one'), (2, 'two')")
		latest := linearizable(t)
		check := func(where string, ctx context.Context, q querier) {
			for _, s := range setScripts {
				if got := allSets(ctx, q, s.text, s.args...); got != s.want {
					t.Errorf("%s, %s: %s, want %s", where, s.name, got, s.want)
				}
			}
		}
		check("database", testrun.Context(t), db)
		check("database, linearizable", latest, db)

		conn := mustConn(t, db)
		check("connection", testrun.Context(t), conn)
		must(conn.ExecContext(testrun.Context(t), "BEGIN"))
		check("connection after BEGIN", testrun.Context(t), conn)
		must(conn.ExecContext(testrun.Context(t), "COMMIT"))

		must(conn.ExecContext(testrun.Context(t), "CREATE TEMP TABLE k(a); INSERT INTO k VALUES(1)"))
		check("connection with TEMP objects", testrun.Context(t), conn)
		check("connection with TEMP objects, linearizable", latest, conn)
		must(conn.ExecContext(testrun.Context(t), "BEGIN"))
		check("connection with TEMP objects after BEGIN", testrun.Context(t), conn)
		must(conn.ExecContext(testrun.Context(t), "ROLLBACK"))
		text := "SELECT a FROM k; INSERT INTO k VALUES(2) RETURNING a; INSERT INTO s VALUES(3, 'three') RETURNING id; SELECT a FROM k; DELETE FROM k WHERE a=2; DELETE FROM s WHERE id=3"
		if got, want := allSets(testrun.Context(t), conn, text), "a: 1 / a: 2 / id: 3 / a: 1 2"; got != want {
			t.Errorf("TEMP objects: %s, want %s", got, want)
		}

		tx := mustBegin(t, db)
		check("transaction", testrun.Context(t), tx)
		mustRollback(t, tx)

		for _, s := range setScripts {
			stmt := must(db.PrepareContext(testrun.Context(t), s.text))
			for range 2 {
				if got := setsOf(must(stmt.QueryContext(testrun.Context(t), s.args...))); got != s.want {
					t.Errorf("prepared, %s: %s, want %s", s.name, got, s.want)
				}
			}
			stmt.Close()
			if _, err := db.ExecContext(testrun.Context(t), s.text, s.args...); err != nil {
				t.Errorf("Exec, %s: %v", s.name, err)
			}
		}
	})
}

// A script that begins and ends a transaction returns the rows that were read in the
// transaction.
func TestResultSetsOfScriptsWithTransactions(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		mustExec(t, db, "CREATE TABLE s(id INTEGER PRIMARY KEY, v BLOB)")
		conn := mustConn(t, db)
		for _, s := range []struct{ text, want string }{
			{"BEGIN; SELECT count(*) n FROM s; INSERT INTO s VALUES(1, x'01') RETURNING id; SELECT id, v, NULL FROM s; COMMIT", "n: 0 / id: 1 / id|v|NULL: 1|[1]|<nil>"},
			{"SELECT 1 a; BEGIN; INSERT INTO s VALUES(2, 'x'); SELECT id FROM s; ROLLBACK; SELECT id FROM s", "a: 1 / id: 1 2 / id: 1"},
			{"BEGIN; DELETE FROM s; COMMIT", ":"},
			{"BEGIN; SELECT 1 a; PRAGMA table_info(nope); SELECT 2 b", "a: 1 / cid|name|type|notnull|dflt_value|pk: / b: 2"},
			{"SAVEPOINT one; INSERT INTO s VALUES(3, 'x'); SELECT id FROM s; ROLLBACK TO one; SELECT id FROM s; RELEASE one; COMMIT; SELECT 3 c", "id: 3 / id: / c: 3"},
		} {
			if got := allSets(testrun.Context(t), conn, s.text); got != s.want {
				t.Errorf("%s: %s, want %s", s.text, got, s.want)
			}
		}
	})
}

func TestColumnTypesOfResultSets(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	db := c.DB(0)
	mustExec(t, db, "CREATE TABLE s(i INTEGER, v VARCHAR(9), b BLOB)")
	for _, text := range []string{
		"SELECT i FROM s; SELECT v, b FROM s",
		"DELETE FROM s; SELECT i FROM s; SELECT v, b FROM s",
		"BEGIN; SELECT i FROM s; SELECT v, b FROM s; COMMIT",
	} {
		mustExec(t, db, "INSERT INTO s VALUES(1, 'x', x'01')")
		rows := must(db.QueryContext(testrun.Context(t), text))
		var got []string
		for more := true; more; more = rows.NextResultSet() {
			for _, ct := range must(rows.ColumnTypes()) {
				got = append(got, fmt.Sprint(ct.Name(), " ", ct.DatabaseTypeName(), " ", ct.ScanType()))
			}
		}
		rows.Close()
		want := []string{"i INTEGER int64", "v VARCHAR(9) string", "b BLOB []uint8"}
		if strings.HasPrefix(text, "DELETE") {
			want = []string{"i INTEGER", "v VARCHAR(9)", "b BLOB"}
			for i := range got {
				got[i] = got[i][:strings.LastIndex(got[i], " ")]
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// In a script that only reads, the error of a statement is returned after the result sets
// before it. A script that writes returns its error at once, because it was executed
// before its first row is returned.
func TestErrorsBetweenResultSets(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		mustExec(t, db, "CREATE TABLE s(id INTEGER PRIMARY KEY)")
		const failing = "SELECT 1 a; SELECT abs(-9223372036854775808) b; SELECT 3 c"
		conn := mustConn(t, db)
		tx := mustBegin(t, db)
		for where, q := range map[string]querier{"database": db, "connection": conn, "transaction": tx} {
			got := allSets(testrun.Context(t), q, failing)
			if !strings.HasPrefix(got, "a: 1 / error: ") || !strings.Contains(got, "integer overflow") {
				t.Errorf("%s: %s", where, got)
			}
			rows := must(q.QueryContext(testrun.Context(t), failing))
			if rows.NextResultSet() || rows.Err() == nil || rows.NextResultSet() {
				t.Errorf("%s: NextResultSet has returned no error of the second statement: %v", where, rows.Err())
			}
			rows.Close()
		}
		mustRollback(t, tx)
		if _, err := db.ExecContext(testrun.Context(t), failing); err == nil {
			t.Error("Exec has returned no error of the second statement")
		}
		for _, text := range []string{
			"INSERT INTO s VALUES(1) RETURNING id; SELECT abs(-9223372036854775808)",
			"BEGIN; INSERT INTO s VALUES(1) RETURNING id; SELECT abs(-9223372036854775808); COMMIT",
		} {
			if got := allSets(testrun.Context(t), conn, text); !strings.HasPrefix(got, "error: ") {
				t.Errorf("%s: %s", text, got)
			}
		}
		if got := allSets(testrun.Context(t), db, "SELECT count(*) n FROM s"); got != "n: 0" {
			t.Errorf("after the scripts that failed: %s, want n: 0", got)
		}
	})
}

// All statements of a script that reads see the same rows.
func TestAScriptReadsOneSnapshot(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(0)
		mustExec(t, db, "CREATE TABLE s(id INTEGER PRIMARY KEY); INSERT INTO s VALUES(1)")
		rows := must(db.QueryContext(testrun.Context(t), "SELECT count(*) n FROM s; SELECT count(*) n FROM s"))
		mustExec(t, db, "INSERT INTO s VALUES(2)")
		if got := setsOf(rows); got != "n: 1 / n: 1" {
			t.Errorf("the script read %s", got)
		}
		if got := allSets(testrun.Context(t), db, "SELECT count(*) n FROM s"); got != "n: 2" {
			t.Errorf("the next read %s", got)
		}
	})
}

// Rows that are closed early, or whose context ends, give their reader and their
// connection back. Otherwise the node would have no readers left.
func TestResultSetsGiveReadersBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	db := c.DB(0)
	const text = "SELECT 1 a UNION SELECT 2; SELECT 3 b UNION SELECT 4; SELECT 5 c"
	for i := range 400 {
		ctx, cancel := context.WithCancel(testrun.Context(t))
		rows := must(db.QueryContext(ctx, text))
		for range i % 3 {
			rows.Next()
			rows.NextResultSet()
		}
		if i%4 == 3 {
			cancel()
			for rows.NextResultSet() {
			}
			if err := rows.Err(); err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		rows.Close()
		cancel()
		if n := db.Stats().InUse; n != 0 {
			t.Fatalf("round %d: %d connections are still in use", i, n)
		}
	}
	var n int
	if err := db.QueryRowContext(testrun.Context(t), text).Scan(&n); err != nil || n != 1 {
		t.Errorf("QueryRow reads %d, %v, not the first result set", n, err)
	}
}

// A script ends when its context ends between two result sets.
func TestContextsEndResultSets(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	conn := must(c.DB(0).Conn(testrun.Context(t)))
	defer conn.Close()
	for _, begin := range []string{"", "BEGIN"} {
		if begin != "" {
			must(conn.ExecContext(testrun.Context(t), begin))
		}
		ctx, cancel := context.WithCancel(testrun.Context(t))
		rows := must(conn.QueryContext(ctx, "SELECT 1 a; SELECT 2 b"))
		if !rows.Next() {
			t.Fatal(rows.Err())
		}
		cancel()
		for rows.NextResultSet() { // database/sql closes the rows only a moment later
			for rows.Next() {
			}
		}
		rows.Close()
		if got := allSets(testrun.Context(t), conn, "SELECT 1 a; SELECT 2 b"); got != "a: 1 / b: 2" {
			t.Errorf("the connection reads %s afterwards", got)
		}
	}
}

// The bound of the rows that a script may return holds for all its result sets together.
func TestResultSetsAreBoundedTogether(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	db := c.DB(0)
	mustExec(t, db, "CREATE TABLE s(id INTEGER PRIMARY KEY)")
	const large = "SELECT length(zeroblob(40000000)) n, zeroblob(40000000) b; SELECT zeroblob(40000000) b; "
	conn := mustConn(t, db)
	for _, begin := range []string{"", "BEGIN"} {
		if begin != "" {
			must(conn.ExecContext(testrun.Context(t), begin))
		}
		for _, text := range []string{"INSERT INTO s VALUES(1); " + large, large + "SAVEPOINT a; SELECT 1"} {
			rows, err := conn.QueryContext(testrun.Context(t), text)
			var e *hiqlite.Error
			if !errors.As(err, &e) || e.Code() != 18 {
				t.Errorf("after %q: %s: %v", begin, text, err)
			}
			if err == nil {
				rows.Close()
			}
		}
	}
}
