package hiqlite_test

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file check that EXPLAIN and EXPLAIN QUERY PLAN execute nothing.

// explained are statements that must not be executed after EXPLAIN.
var explained = []string{
	"BEGIN", "BEGIN DEFERRED", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE TRANSACTION", "COMMIT", "END", "ROLLBACK", "SAVEPOINT s", "RELEASE s", "ROLLBACK TO s", "ROLLBACK TRANSACTION TO SAVEPOINT nope",
	"VACUUM", "VACUUM INTO 'copy.db'", "ATTACH ':memory:' AS other", "DETACH main", "ANALYZE", "ANALYZE t", "REINDEX", "REINDEX t",
	"CREATE TABLE made(a)", "CREATE TABLE made AS SELECT * FROM t", "CREATE TABLE IF NOT EXISTS t(a)", "CREATE INDEX made ON t(a)", "CREATE VIEW made AS SELECT 1", "CREATE TRIGGER made AFTER INSERT ON t BEGIN DELETE FROM t; END",
	"DROP TABLE t", "DROP TABLE IF EXISTS nope", "DROP INDEX i", "ALTER TABLE t ADD COLUMN made", "ALTER TABLE t RENAME TO made", "ALTER TABLE t RENAME COLUMN a TO made", "CREATE VIRTUAL TABLE made USING fts5(a)",
	"INSERT INTO t VALUES(7, 7)", "INSERT INTO t SELECT * FROM t", "UPDATE t SET b=9", "DELETE FROM t", "REPLACE INTO t VALUES(1, 8) RETURNING a", "INSERT INTO t VALUES(1, 8) ON CONFLICT DO UPDATE SET b=7", "SELECT * FROM t", "WITH x AS (SELECT 1) SELECT * FROM x",
}

// explainedPragmas must not be executed after EXPLAIN either. SQLite executes some of
// them while it prepares them.
var explainedPragmas = []string{
	"foreign_keys=OFF", "foreign_keys(0)", "query_only=1", "user_version=7", "application_id=7", "defer_foreign_keys=ON", "busy_timeout=1", "journal_mode=DELETE", "synchronous=0", "cache_size=7", "temp_store=2", "locking_mode=EXCLUSIVE",
	"wal_checkpoint(TRUNCATE)", "optimize", "incremental_vacuum(1)", "shrink_memory", "analysis_limit=7", "secure_delete=1", "mmap_size=7", "auto_vacuum=1", "threads=1", "read_uncommitted=1",
}

// program returns the instructions that an EXPLAIN lists, without their operands,
// which depend on the pages of the file.
func program(t *testing.T, c *sql.Conn, script string) (out []string) {
	t.Helper()
	rows, err := c.QueryContext(testrun.Context(t), script)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	defer rows.Close()
	if strings.HasPrefix(script, "SELECT 1; ") && !rows.NextResultSet() {
		t.Fatalf("%s: there is no second result set: %v", script, rows.Err())
	}
	if n := len(must(rows.Columns())); n != 8 && n != 4 {
		t.Errorf("%s: %d columns", script, n)
	}
	for rows.Next() {
		cells, err := scanRow(rows)
		if err != nil {
			t.Fatal(err)
		}
		if len(cells) == 8 {
			out = append(out, fmt.Sprint(cells[0], " ", cells[1]))
		} else {
			out = append(out, fmt.Sprint(cells[3]))
		}
	}
	if err := rows.Err(); err != nil {
		t.Errorf("%s: %v", script, err)
	}
	return out
}

// explainedState returns the rows, the schema and the settings that no statement
// after EXPLAIN may change.
func explainedState(t *testing.T, c *sql.Conn) (out string) {
	t.Helper()
	for _, query := range []string{
		"SELECT group_concat(a || b, ' ') FROM t", "SELECT group_concat(name || sql, ' ') FROM sqlite_schema WHERE name NOT LIKE '%hiqlite%'", "SELECT total_changes() || last_insert_rowid()", "SELECT count(*) FROM pragma_database_list WHERE name NOT IN ('main', 'temp')",
		"PRAGMA foreign_keys", "PRAGMA query_only", "PRAGMA user_version", "PRAGMA application_id", "PRAGMA defer_foreign_keys", "PRAGMA busy_timeout", "PRAGMA journal_mode", "PRAGMA synchronous", "PRAGMA cache_size", "PRAGMA temp_store",
		"PRAGMA locking_mode", "PRAGMA analysis_limit", "PRAGMA secure_delete", "PRAGMA mmap_size", "PRAGMA auto_vacuum", "PRAGMA threads", "PRAGMA read_uncommitted",
	} {
		var v any
		if err := c.QueryRowContext(testrun.Context(t), query).Scan(&v); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		out += fmt.Sprintln(query, v)
	}
	return out
}

// EXPLAIN does not execute its statement, alone, in a transaction, or in a script,
// and returns the rows that SQLite returns.
func TestExplainDoesNotExecute(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		theirs := referenceConn(t)
		ours := mustConn(t, c.DB((c.Leader()+1)%c.Len()))
		both := func(query string) {
			mustExec(t, ours, query)
			mustExec(t, theirs, query)
		}
		both("CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b); INSERT INTO t VALUES(1,'one'),(2,'two')")
		for _, place := range []string{"alone", "in a transaction", "in a savepoint"} {
			switch place {
			case "in a transaction":
				both("BEGIN")
				both("INSERT INTO t VALUES(3,'three')")
				both("SAVEPOINT s")
				both("INSERT INTO t VALUES(4,'four')")
			case "in a savepoint":
				both("SAVEPOINT s")
				both("INSERT INTO t VALUES(5,'five')")
			}
			before := explainedState(t, ours)
			check := func(text string) {
				t.Helper()
				if after := explainedState(t, ours); after != before {
					t.Fatalf("%s, %s has changed something:\n--- before\n%s--- after\n%s", place, text, before, after)
				}
			}
			for _, explain := range []string{"EXPLAIN ", "EXPLAIN QUERY PLAN "} {
				for _, text := range explained {
					text = explain + text
					mustExec(t, ours, text)
					check(text)
					got, want := program(t, ours, text), program(t, theirs, text)
					// The program of a DROP depends on what the connection has in its cache.
					alike := strings.Contains(text, "DROP") && len(got) > 0 && len(want) > 0
					if !alike && strings.Join(got, "\n") != strings.Join(want, "\n") {
						t.Errorf("%s, %s:\n--- theirs\n%s\n--- ours\n%s", place, text, strings.Join(want, "\n"), strings.Join(got, "\n"))
					}
					mustExec(t, ours, "SELECT 1; "+text+"; SELECT 2")
					program(t, ours, "SELECT 1; "+text)
					stmt := must(ours.PrepareContext(testrun.Context(t), text))
					if _, err := stmt.ExecContext(testrun.Context(t)); err != nil {
						t.Errorf("%s, prepared %s: %v", place, text, err)
					}
					stmt.Close()
					check("a script with " + text)
				}
				for _, text := range explainedPragmas {
					text = explain + "PRAGMA " + text
					program(t, ours, text)
					mustExec(t, ours, text)
					mustExec(t, ours, "SELECT 1; "+text+"; SELECT 2")
					check(text)
				}
			}
			switch place {
			case "in a transaction":
				both("COMMIT")
			case "in a savepoint":
				both("RELEASE s")
			}
		}
		for _, conn := range []*sql.Conn{ours, theirs} {
			if got := queryValue[string](t, conn, "SELECT group_concat(b) FROM t"); got != "one,two,three,four,five" {
				t.Errorf("got %q, want %q", got, "one,two,three,four,five")
			}
		}
		c.WaitEqual()
	})
}

// An EXPLAIN in a script that writes is part of the operation. The replicas do not
// execute the explained statement.
func TestExplainInAScriptThatWrites(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		mustExec(t, c.DB(0), "CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b); INSERT INTO t VALUES(1,'one')")
		conn := mustConn(t, c.DB(0))
		for _, begin := range []string{"", "BEGIN; ", "SAVEPOINT s; "} {
			for _, text := range append([]string{"PRAGMA foreign_keys=OFF", "PRAGMA user_version=9", "PRAGMA journal_mode=DELETE", "PRAGMA cache_size=3"}, explained...) {
				end := map[string]string{"": "", "BEGIN; ": "; COMMIT", "SAVEPOINT s; ": "; RELEASE s"}[begin]
				before := queryValue[int](t, conn, "SELECT count(*) FROM t")
				script := begin + "INSERT INTO t(b) VALUES('row'); EXPLAIN " + text + "; EXPLAIN QUERY PLAN " + text + end
				mustExec(t, conn, script)
				if n := queryValue[int](t, conn, "SELECT count(*) FROM t"); n != before+1 {
					t.Errorf("%s: %d rows, %d before", script, n, before)
				}
				if got := queryValue[string](t, conn, "SELECT (SELECT user_version FROM pragma_user_version) || (SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE '%hiqlite%') || (SELECT count(*) FROM t WHERE b='one')"); got != "021" {
					t.Errorf("%s: %s", script, got)
				}
				if got := queryValue[int](t, conn, "PRAGMA foreign_keys"); got != 1 {
					t.Errorf("%s: foreign_keys is %d", script, got)
				}
			}
		}
		c.WaitEqual()
	})
}
