package hiqlite_test

import (
	"context"
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// All differences from modernc.org/sqlite, which the package documentation lists.
// Each case says what theirs and what ours returns.
func TestDeviations(t *testing.T) {
	const wrong = "error"
	for _, test := range []struct {
		name   string
		before []step
		step   step
		exec   bool
		theirs string
		ours   string
	}{
		{name: "foreign keys are enforced", step: text("PRAGMA foreign_keys"), theirs: "int64 0", ours: "int64 1"},
		{name: "busy_timeout is 10 s", step: text("PRAGMA busy_timeout"), theirs: "int64 0", ours: "int64 10000"},
		{name: "surplus arguments are an error", step: text("SELECT ?", 1, 2), theirs: "int64 1", ours: wrong},
		{name: "unused arguments are an error", step: text("SELECT ?, :a", 1, sql.Named("a", 2), 3), theirs: "int64 1 | int64 2", ours: wrong},
		{name: "unused named arguments are ignored by both", step: text("SELECT ?, :a", 1, sql.Named("a", 2), sql.Named("b", 3)), theirs: "int64 1 | int64 2", ours: "int64 1 | int64 2"},
		{name: "unused arguments of a script are an error", exec: true, step: text("INSERT INTO t VALUES(?); DELETE FROM t WHERE a=?", 1, 2), theirs: "id 1, <nil>; rows 1, <nil>", ours: wrong},
		{name: "a script that fails does nothing", before: []step{text("INSERT INTO t VALUES(1); INSERT INTO nope VALUES(1)")}, step: text("SELECT count(*) FROM t"), theirs: "int64 1", ours: "int64 0"},
		{name: "a script that fails in its syntax does nothing", before: []step{text("INSERT INTO t VALUES(1); nonsense")}, step: text("SELECT count(*) FROM t"), theirs: "int64 1", ours: "int64 0"},
		{name: "an empty blob is not nil", step: text("SELECT x''"), theirs: "[]uint8 []byte(nil)", ours: "[]uint8 []byte{}"},
		{name: "an empty blob that is returned is not nil", step: text("INSERT INTO t VALUES(zeroblob(0)) RETURNING a"), theirs: "[]uint8 []byte(nil)", ours: "[]uint8 []byte{}"},
		{name: "times are written in UTC, in a form that sorts", step: text("SELECT ?", time.Date(2024, 2, 3, 4, 5, 6, 500, time.FixedZone("", -4*3600))), theirs: `string "2024-02-03 04:05:06.0000005 -0400 -0400"`, ours: `string "2024-02-03 08:05:06.0000005+00:00"`},
		{name: "times are written without the reading of the monotonic clock", step: text("SELECT ? LIKE '%m=%'", time.Now()), theirs: "int64 1", ours: "int64 0"},
		{name: "times of unnamed zones are read", before: []step{text("CREATE TABLE z(a DATETIME)"), text("INSERT INTO z VALUES('2024-02-03 04:05:06 -0400 -0400')")}, step: text("SELECT a FROM z"), theirs: "string", ours: "time 2024-02-03T04:05:06-04:00"},
		{name: "times with a precision are read", before: []step{text("CREATE TABLE z(a DATETIME(6))"), text("INSERT INTO z VALUES('2024-02-03 04:05:06')")}, step: text("SELECT a FROM z"), theirs: "string", ours: "time 2024-02-03T04:05:06Z UTC"},
		{name: "times with a time zone are read", before: []step{text("CREATE TABLE z(a TIMESTAMP WITH TIME ZONE)"), text("INSERT INTO z VALUES('2024-02-03 04:05:06')")}, step: text("SELECT a FROM z"), theirs: "string", ours: "time 2024-02-03T04:05:06Z UTC"},
		{name: "DDL has no result", before: []step{text("INSERT INTO t VALUES(1)")}, exec: true, step: text("CREATE TABLE WITH_result(a)"), theirs: "id 1, <nil>; rows 1, <nil>", ours: "rows 0, <nil>"},
		{name: "a statement that fails leaves changes() alone", before: []step{text("INSERT INTO t VALUES(1),(2)"), text("INSERT INTO t(rowid) VALUES(1)")}, step: text("SELECT changes()"), theirs: "int64 0", ours: "int64 2"},
		{name: "the journal stays a WAL", step: text("PRAGMA journal_mode=DELETE"), theirs: `string "delete"`, ours: `string "wal"`},
		{name: "locking stays normal", step: text("PRAGMA locking_mode=EXCLUSIVE"), theirs: `string "exclusive"`, ours: `string "normal"`},
		{name: "no ATTACH", exec: true, step: text("ATTACH ':memory:' AS x"), theirs: "ok", ours: wrong},
		{name: "no TEMP virtual tables", exec: true, step: text("CREATE VIRTUAL TABLE temp.x USING fts5(a)"), theirs: "ok", ours: wrong},
		{name: "no statistics of TEMP tables", before: []step{text("CREATE TEMP TABLE x(a)")}, exec: true, step: text("ANALYZE x"), theirs: "ok", ours: wrong},
		{name: "no user_version of TEMP", exec: true, step: text("PRAGMA temp.user_version=3"), theirs: "ok", ours: wrong},
		{name: "no text after a NUL", exec: true, step: text("SELECT 1\x00"), theirs: "ok", ours: wrong},
		{name: "the largest rowid is refused", exec: true, step: text("INSERT INTO t(rowid) VALUES(9223372036854775807)"), theirs: "id 9223372036854775807, <nil>; rows 1, <nil>", ours: wrong},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPair(t, "_foreign_keys=&_time_format=")
			for i, want := range []string{test.ours, test.theirs} {
				ctx, c := testrun.Context(t), p.conns[i]
				for _, s := range append([]step{text("CREATE TABLE t(a)")}, test.before...) {
					_, _ = c.ExecContext(ctx, s.text, s.args...) // some must fail
				}
				if got := describeFirst(ctx, c, test.step, test.exec); !strings.HasPrefix(got, want) {
					t.Errorf("%s: %s, want %s", []string{"ours", "theirs"}[i], got, want)
				}
			}
		})
	}
}

// describeFirst describes the first row of a query, or the result of Exec.
func describeFirst(ctx context.Context, c *sql.Conn, s step, exec bool) string {
	if exec {
		r, err := c.ExecContext(ctx, s.text, s.args...)
		return describeResult(strings.TrimPrefix(s.text, "CREATE TABLE "), r, err)
	}
	seen := describeQuery(ctx, c, s)
	if strings.HasPrefix(seen, "error") {
		return seen
	}
	return strings.Split(seen, "\n")[1]
}

// Config.Conn has the settings of the connections of Node.DB.
func TestSettingsOfTheNodesDatabase(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *hiqlite.Config) {
		cfg.Conn = hiqlite.ConnConfig{QueryOnly: true, ForeignKeysOff: true, Pragmas: []string{"user_version=7", "temp_store(2)"}, TimeFormat: "sqlite"}
	})
	for query, want := range map[string]int{"PRAGMA query_only": 1, "PRAGMA foreign_keys": 0, "PRAGMA user_version": 7, "PRAGMA temp_store": 2} {
		var got int
		if err := c.DB(0).QueryRowContext(testrun.Context(t), query).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %d, %v", query, got, err)
		}
	}
}
