package hiqlite_test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// This file and driver_tx_test.go are the black-box conformance suite of the driver: what
// programs expect of any driver of database/sql, and of one for SQLite. The expectations
// are those of public suites (bradfitz/go-sql-test, and the tests of the drivers
// modernc.org/sqlite, mattn/go-sqlite3 and ncruces/go-sqlite3), written anew. Each of
// them is checked on one node, and on a follower of three. reference_test.go compares
// the same kinds of statements with modernc.org/sqlite itself.

// An expectation is something that programs expect of a driver. Its check uses tables
// that no other one uses.
type expectation struct {
	name  string
	check func(t *testing.T, db *sql.DB)
}

// checkAll checks expectations on a cluster of one node, and on one of three through a
// node that is not the leader: in this process, through its API, and through a proxy.
// In the end all nodes must hold the same rows.
func checkAll(t *testing.T, expectations []expectation) {
	for _, size := range []int{1, 3} {
		for _, route := range routes() {
			if size == 1 && route != embedded {
				continue
			}
			t.Run(fmt.Sprintf("nodes=%d/%s", size, route), func(t *testing.T) {
				c := newCluster(t, size, withoutTimeouts)
				db := c.open((c.Leader()+1)%size, route)
				for _, e := range expectations {
					t.Run(e.name, func(t *testing.T) {
						e.check(t, db)
						if n := db.Stats().InUse; n != 0 {
							t.Errorf("%d connections are still in use", n)
						}
					})
				}
				c.WaitEqual()
			})
		}
	}
}

func TestDriver(t *testing.T) {
	t.Parallel()
	checkAll(t, []expectation{
		{"blobs are read as bytes and as strings", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE blobs(id INTEGER PRIMARY KEY, b BLOB)")
			blob := []byte{0, 1, 2, 255, 254, 'a', 0}
			tx := mustBegin(t, db)
			mustExec(t, tx, "INSERT INTO blobs VALUES(1, ?), (2, ?)", blob, []byte{})
			for _, q := range []querier{tx, db} {
				if q == db {
					mustCommit(t, tx)
				}
				if got := queryValue[[]byte](t, q, "SELECT b FROM blobs WHERE id=1"); !bytes.Equal(got, blob) {
					t.Errorf("%x", got)
				}
				if got := queryValue[string](t, q, "SELECT b FROM blobs WHERE id=1"); got != string(blob) {
					t.Errorf("%q", got)
				}
				if got := queryValue[[]byte](t, q, "SELECT b FROM blobs WHERE id=2"); got == nil || len(got) > 0 {
					t.Errorf("the empty blob is read as %#v", got)
				}
				eachRow(t, q, "SELECT b FROM blobs WHERE id=1", func(rows *sql.Rows) {
					var raw sql.RawBytes
					if err := rows.Scan(&raw); err != nil || !bytes.Equal(raw, blob) {
						t.Errorf("%x, %v", raw, err)
					}
				})
			}
		}},
		{"many rows", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE many(id INTEGER PRIMARY KEY, name TEXT)")
			tx := mustBegin(t, db)
			stmt, err := tx.PrepareContext(testrun.Context(t), "INSERT INTO many(name) VALUES(?)")
			if err != nil {
				t.Fatal(err)
			}
			const rows = 3000
			for i := range rows {
				if _, err := stmt.Exec(fmt.Sprint("name ", i)); err != nil {
					t.Fatal(err)
				}
			}
			mustCommit(t, tx)
			n := 0
			eachRow(t, db, "SELECT id, name FROM many ORDER BY id", func(rows *sql.Rows) {
				var id int
				var name string
				if err := rows.Scan(&id, &name); err != nil || id != n+1 || name != fmt.Sprint("name ", n) {
					t.Fatalf("row %d: %d %q, %v", n, id, name, err)
				}
				n++
			})
			if n != rows {
				t.Errorf("%d rows", n)
			}
		}},
		{"a transaction's query", func(t *testing.T, db *sql.DB) {
			tx := mustBegin(t, db)
			mustExec(t, tx, "CREATE TABLE made(id INTEGER PRIMARY KEY, name TEXT)")
			mustExec(t, tx, "INSERT INTO made VALUES(1, 'bob')")
			eachRow(t, tx, "SELECT name FROM made", func(rows *sql.Rows) {
				var name string
				if err := rows.Scan(&name); err != nil || name != "bob" {
					t.Errorf("%q, %v", name, err)
				}
			})
			mustRollback(t, tx)
			if _, err := db.Exec("INSERT INTO made VALUES(1, 'bob')"); err == nil || !strings.Contains(err.Error(), "no such table") {
				t.Errorf("a write to a table that was rolled back: %v", err)
			}
		}},
		{"prepared statements", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE prepared(id INTEGER PRIMARY KEY, n INT)")
			insert := must(db.PrepareContext(testrun.Context(t), "INSERT INTO prepared(n) VALUES(?)"))
			defer insert.Close()
			get := must(db.PrepareContext(testrun.Context(t), "SELECT n FROM prepared ORDER BY n"))
			defer get.Close()
			for i := range 3 {
				if _, err := insert.Exec(i); err != nil {
					t.Fatal(err)
				}
			}
			inParallel(t, 10, func(i int) error {
				var n int
				for range 10 {
					if err := get.QueryRow().Scan(&n); err != nil || n != 0 {
						return fmt.Errorf("%d, %w", n, err)
					}
					if _, err := insert.Exec(100 + i); err != nil {
						return err
					}
				}
				return nil
			})
			if n := queryValue[int](t, db, "SELECT count(*) FROM prepared"); n != 103 {
				t.Errorf("%d rows, want 103", n)
			}
		}},
		{"preparing in parallel", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE parallel(n INT)")
			inParallel(t, 30, func(i int) error {
				stmt, err := db.Prepare(fmt.Sprintf("INSERT INTO parallel VALUES(? + %d)", i%3))
				if err != nil {
					return err
				}
				defer stmt.Close()
				_, err = stmt.Exec(1)
				return err
			})
			if n := queryValue[int](t, db, "SELECT sum(n) FROM parallel"); n != 60 {
				t.Errorf("got %d, want 60", n)
			}
		}},
		{"a statement of the database in a transaction", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE stmts(n INT)")
			insert := must(db.PrepareContext(testrun.Context(t), "INSERT INTO stmts VALUES(?)"))
			defer insert.Close()
			count := must(db.PrepareContext(testrun.Context(t), "SELECT count(*) FROM stmts"))
			defer count.Close()
			tx := mustBegin(t, db)
			var n int
			for range 2 {
				if _, err := tx.StmtContext(testrun.Context(t), insert).Exec(1); err != nil {
					t.Fatal(err)
				}
			}
			if err := tx.Stmt(count).QueryRow().Scan(&n); err != nil || n != 2 {
				t.Errorf("%d rows in the transaction, want 2, %v", n, err)
			}
			if err := count.QueryRow().Scan(&n); err != nil || n != 0 {
				t.Errorf("%d rows outside of the transaction, want 0, %v", n, err)
			}
			mustRollback(t, tx)
			if err := count.QueryRow().Scan(&n); err != nil || n != 0 {
				t.Errorf("%d rows after the rollback, want 0, %v", n, err)
			}
			if _, err := insert.Exec(1); err != nil {
				t.Error(err)
			}
		}},
		{"a statement of a transaction ends with it", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE ends(n INT)")
			tx := mustBegin(t, db)
			stmt := must(tx.PrepareContext(testrun.Context(t), "INSERT INTO ends VALUES(1)"))
			if _, err := stmt.Exec(); err != nil {
				t.Fatal(err)
			}
			mustCommit(t, tx)
			if _, err := stmt.Exec(); err == nil {
				t.Error("a statement of the transaction works after its end")
			}
			if n := queryValue[int](t, db, "SELECT count(*) FROM ends"); n != 1 {
				t.Errorf("%d rows, want 1", n)
			}
		}},
		{"goroutines that share a transaction", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE shared(n INT)")
			tx := mustBegin(t, db)
			inParallel(t, 16, func(i int) error {
				for range 10 {
					if _, err := tx.Exec("INSERT INTO shared VALUES(?)", i); err != nil {
						return err
					}
					var n int
					if err := tx.QueryRow("SELECT count(*) FROM shared WHERE n=?", i).Scan(&n); err != nil || n == 0 {
						return fmt.Errorf("%d, %w", n, err)
					}
				}
				return nil
			})
			mustCommit(t, tx)
			if n := queryValue[int](t, db, "SELECT count(*) FROM shared"); n != 160 {
				t.Errorf("%d rows, want 160", n)
			}
		}},
	})
}

func TestDriverValues(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	at := time.Date(2024, 2, 3, 4, 5, 6, 789000000, time.UTC)
	checkAll(t, []expectation{
		{"values round trip inside a transaction", func(t *testing.T, db *sql.DB) {
			tx := mustBegin(t, db)
			mustExec(t, tx, "CREATE TABLE vals(i INT, f REAL, s TEXT, b BLOB, y BOOLEAN, at DATETIME, n)")
			mustExec(t, tx, "INSERT INTO vals VALUES(?,?,?,?,?,?,?)", int64(-1<<63), 1.5, "tëxt\x00", []byte{0, 255}, true, at.Format("2006-01-02 15:04:05.999999999-07:00"), nil)
			for _, q := range []querier{tx, db} {
				if q == db {
					mustCommit(t, tx)
				}
				var i int64
				var f float64
				var s string
				var b []byte
				var y bool
				var when time.Time
				var n sql.NullString
				err := q.QueryRowContext(testrun.Context(t), "SELECT * FROM vals").Scan(&i, &f, &s, &b, &y, &when, &n)
				if err != nil || i != -1<<63 || f != 1.5 || s != "tëxt\x00" || !bytes.Equal(b, []byte{0, 255}) || !y || !when.Equal(at) || n.Valid {
					t.Error(i, f, s, b, y, when, n, err)
				}
			}
		}},
		{"NULL can be scanned into what can hold it", func(t *testing.T, db *sql.DB) {
			tx := mustBegin(t, db)
			defer tx.Rollback()
			mustExec(t, tx, "CREATE TABLE nulls(a, b)")
			mustExec(t, tx, "INSERT INTO nulls VALUES(?, ?), (?, ?)", sql.NullInt64{}, sql.NullString{String: "x", Valid: true}, nil, (*string)(nil))
			var a sql.NullInt64
			var b *string
			if err := tx.QueryRow("SELECT a, b FROM nulls WHERE b IS NULL").Scan(&a, &b); err != nil || a.Valid || b != nil {
				t.Error(a, b, err)
			}
			if n := queryValue[int](t, tx, "SELECT count(*) FROM nulls WHERE a IS NULL"); n != 2 {
				t.Errorf("got %d, want 2", n)
			}
			var s string
			if err := tx.QueryRow("SELECT a FROM nulls").Scan(&s); err == nil {
				t.Error("NULL was scanned into a string")
			}
		}},
		{"arguments by name and by number", func(t *testing.T, db *sql.DB) {
			tx := mustBegin(t, db)
			defer tx.Rollback()
			mustExec(t, tx, "CREATE TABLE named(a, b, c)")
			mustExec(t, tx, "INSERT INTO named VALUES(:a, @b, $c)", sql.Named("c", 3), sql.Named("a", 1), sql.Named("b", 2))
			mustExec(t, tx, "INSERT INTO named VALUES(?2, ?1, ?2)", "x", "y")
			if got := queryValue[string](t, tx, "SELECT group_concat(a||b||c) FROM named"); got != "123,yxy" {
				t.Errorf("got %q, want %q", got, "123,yxy")
			}
			if _, err := tx.Exec("INSERT INTO named VALUES(:a, 1, 2)", sql.Named("z", 1)); err == nil {
				t.Error("a named argument that the statement does not have was accepted")
			}
			if _, err := tx.Exec("INSERT INTO named VALUES(?, ?, ?)", 1); err == nil {
				t.Error("missing arguments were accepted")
			}
			if n := queryValue[int](t, tx, "SELECT count(*) FROM named"); n != 2 {
				t.Errorf("got %d, want 2", n)
			}
		}},
		{"no rows", func(t *testing.T, db *sql.DB) {
			tx := mustBegin(t, db)
			defer tx.Rollback()
			mustExec(t, tx, "CREATE TABLE none(a INT, b TEXT)")
			if err := tx.QueryRow("SELECT a FROM none").Scan(new(int)); !errors.Is(err, sql.ErrNoRows) {
				t.Error(err)
			}
			rows := must(tx.Query("SELECT a, b FROM none"))
			if names, err := rows.Columns(); err != nil || !slices.Equal(names, []string{"a", "b"}) {
				t.Error(names, err)
			}
			if rows.Next() || rows.Err() != nil || rows.NextResultSet() {
				t.Error("an empty table has rows", rows.Err())
			}
			rows.Close()
			if err := tx.QueryRow("UPDATE none SET a=1 RETURNING a").Scan(new(int)); !errors.Is(err, sql.ErrNoRows) {
				t.Error(err)
			}
		}},
		{"columns and their types are the same as outside of the transaction", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE types(a INTEGER PRIMARY KEY, b VARCHAR(10), c BOOLEAN, d DATETIME, e BLOB, f)")
			mustExec(t, db, "INSERT INTO types VALUES(1,'x',1,'2024-02-03 04:05:06',x'00',NULL)")
			tx := mustBegin(t, db)
			defer tx.Rollback()
			for _, query := range []string{"SELECT * FROM types", "SELECT a AS x, b||b, count(*) FROM types", "SELECT * FROM types WHERE 0", "PRAGMA table_info(types)", "VALUES(1,2)", "EXPLAIN QUERY PLAN SELECT * FROM types"} {
				outside := describeRows(db.Query(query))
				if inside := describeRows(tx.Query(query)); inside != outside {
					t.Errorf("%s: inside\n%s\noutside\n%s", query, inside, outside)
				}
			}
		}},
		{"large blobs", func(t *testing.T, db *sql.DB) {
			blob := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16)
			mustExec(t, db, "CREATE TABLE large(id INTEGER PRIMARY KEY, b BLOB)")
			tx := mustBegin(t, db)
			mustExec(t, tx, "INSERT INTO large(b) VALUES(?)", blob)
			if got := queryValue[[]byte](t, tx, "SELECT b FROM large"); !bytes.Equal(got, blob) {
				t.Errorf("in the transaction, %d bytes are read as %d other bytes", len(blob), len(got))
			}
			mustCommit(t, tx)
			if got := queryValue[[]byte](t, db, "SELECT b FROM large"); !bytes.Equal(got, blob) {
				t.Errorf("%d bytes are read as %d other bytes", len(blob), len(got))
			}
		}},
		{"very many rows are streamed", func(t *testing.T, db *sql.DB) {
			tx := mustBegin(t, db)
			mustExec(t, tx, "CREATE TABLE stream(n INT, s TEXT)")
			mustExec(t, tx, "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x LIMIT 100000) INSERT INTO stream SELECT n, 'row ' || n FROM x")
			for _, q := range []querier{tx, db} {
				if q == db {
					mustCommit(t, tx)
				}
				var n, sum int
				eachRow(t, q, "SELECT n, s FROM stream", func(rows *sql.Rows) {
					var v int
					var s string
					if err := rows.Scan(&v, &s); err != nil || len(s) < 5 {
						t.Fatal(s, err)
					}
					n++
					sum += v
				})
				if n != 100000 || sum != 5000050000 {
					t.Errorf("%d rows, sum %d", n, sum)
				}
			}
		}},
	})
}
