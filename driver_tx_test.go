package hiqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// wantEnded fails the test unless err says that the transaction, or its rows,
// ended.
func wantEnded(t testing.TB, what string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want one that says that the transaction ended", what)
		return
	}
	for _, words := range []string{"over", "expired", "rolled back", "already been committed", "canceled"} {
		if strings.Contains(err.Error(), words) {
			return
		}
	}
	t.Errorf("%s: the error does not say that the transaction ended: %v", what, err)
}

func TestDriverTransactions(t *testing.T) {
	t.Parallel()
	checkAll(t, []expectation{
		{"results of writes", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE results(id INTEGER PRIMARY KEY, n INT UNIQUE)")
			tx := mustBegin(t, db)
			for i := range 3 {
				r := mustExec(t, tx, "INSERT INTO results(n) VALUES(?)", i)
				if id, n := must(r.LastInsertId()), must(r.RowsAffected()); id != int64(i+1) || n != 1 {
					t.Errorf("insert %d: id %d, %d rows", i, id, n)
				}
			}
			if n := must(mustExec(t, tx, "UPDATE results SET n = n + 10").RowsAffected()); n != 3 {
				t.Errorf("%d rows updated", n)
			}
			if n := must(mustExec(t, tx, "DELETE FROM results WHERE id > 9").RowsAffected()); n != 0 {
				t.Errorf("%d rows deleted", n)
			}
			if got := queryValue[string](t, tx, "SELECT changes() || ' ' || last_insert_rowid()"); got != "0 3" {
				t.Errorf("got %q, want %q", got, "0 3")
			}
			mustCommit(t, tx)
		}},
		{"RETURNING", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE ret(id INTEGER PRIMARY KEY, n INT UNIQUE)")
			tx := mustBegin(t, db)
			var ids []int
			eachRow(t, tx, "INSERT INTO ret(n) VALUES(5),(6),(7) RETURNING id", func(rows *sql.Rows) {
				var id int
				if err := rows.Scan(&id); err != nil {
					t.Error(err)
				}
				ids = append(ids, id)
			})
			if fmt.Sprint(ids) != "[1 2 3]" {
				t.Error(ids)
			}
			rows := must(tx.Query("INSERT INTO ret(n) VALUES(8),(9) RETURNING id"))
			if !rows.Next() {
				t.Error(rows.Err())
			}
			rows.Close() // the statement has inserted both rows
			if n := queryValue[int](t, tx, "DELETE FROM ret WHERE n=9 RETURNING n"); n != 9 {
				t.Errorf("got %d, want 9", n)
			}
			mustCommit(t, tx)
			if n := queryValue[int](t, db, "SELECT count(*) FROM ret"); n != 4 {
				t.Errorf("%d rows, want 4", n)
			}
		}},
		{"a statement that fails does not undo the others", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE fails(n INT UNIQUE)")
			tx := mustBegin(t, db)
			mustExec(t, tx, "INSERT INTO fails VALUES(1)")
			_, err := tx.Exec("INSERT INTO fails VALUES(2),(1)")
			if e := new(hiqlite.Error); !errors.As(err, &e) || e.Code() != 2067 {
				t.Errorf("%v", err)
			}
			if _, err := tx.Exec("INSERT INTO nowhere VALUES(1)"); err == nil {
				t.Error("the statement has succeeded")
			}
			if _, err := tx.Query("SELEC"); err == nil {
				t.Error("the statement has succeeded")
			}
			mustExec(t, tx, "INSERT INTO fails VALUES(3)")
			mustCommit(t, tx)
			if got := queryValue[string](t, db, "SELECT group_concat(n) FROM fails"); got != "1,3" {
				t.Errorf("got %q, want %q", got, "1,3")
			}
		}},
		{"writes between the rows of a query", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE source(n INT)")
			mustExec(t, db, "CREATE TABLE target(n INT)")
			tx := mustBegin(t, db)
			mustExec(t, tx, "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x LIMIT 50) INSERT INTO source SELECT n FROM x")
			outer := must(tx.Query("SELECT n FROM source"))
			read := 0
			for outer.Next() {
				var n int
				if err := outer.Scan(&n); err != nil {
					t.Fatal(err)
				}
				mustExec(t, tx, "INSERT INTO target VALUES(?)", n)
				if got := queryValue[int](t, tx, "SELECT max(n) FROM target"); got != n {
					t.Errorf("%d, want %d", got, n)
				}
				read++
			}
			if err := outer.Err(); err != nil || read != 50 {
				t.Errorf("%d rows, want 50, %v", read, err)
			}
			mustCommit(t, tx)
			if n := queryValue[int](t, db, "SELECT sum(n) FROM target"); n != 1275 {
				t.Errorf("got %d, want 1275", n)
			}
		}},
		{"two queries side by side", func(t *testing.T, db *sql.DB) {
			tx := mustBegin(t, db)
			defer tx.Rollback()
			const query = "VALUES(1),(2),(3)"
			a, b := must(tx.Query(query)), must(tx.Query(query))
			defer a.Close()
			defer b.Close()
			for want := 1; want <= 3; want++ {
				var x, y int
				if !a.Next() || !b.Next() || a.Scan(&x) != nil || b.Scan(&y) != nil || x != want || y != want {
					t.Error(x, y, a.Err(), b.Err())
				}
			}
		}},
		{"rows end with their transaction", func(t *testing.T, db *sql.DB) {
			for _, end := range []func(*sql.Tx) error{(*sql.Tx).Commit, (*sql.Tx).Rollback} {
				tx := mustBegin(t, db)
				mustExec(t, tx, "CREATE TABLE IF NOT EXISTS ended(n INT)")
				rows := must(tx.Query(endless))
				if !rows.Next() {
					t.Fatal(rows.Err())
				}
				if err := end(tx); err != nil {
					t.Fatal(err)
				}
				if rows.Next() {
					t.Error("there is another row")
				}
				wantEnded(t, "rows", rows.Err())
			}
		}},
		{"rows end with a transaction of BEGIN and COMMIT", func(t *testing.T, db *sql.DB) {
			for _, end := range []string{"COMMIT", "ROLLBACK"} {
				c := must(db.Conn(testrun.Context(t)))
				mustExec(t, c, "BEGIN; CREATE TABLE IF NOT EXISTS ended2(n INT)")
				rows := must(c.QueryContext(testrun.Context(t), endless))
				if !rows.Next() {
					t.Fatal(rows.Err())
				}
				mustExec(t, c, end)
				for rows.Next() {
				}
				wantEnded(t, "rows after "+end, rows.Err())
				rows.Close()
				if n := queryValue[int](t, c, "SELECT 1"); n != 1 {
					t.Errorf("got %d, want 1", n)
				}
				c.Close()
			}
		}},
		{"scripts", func(t *testing.T, db *sql.DB) {
			tx := mustBegin(t, db)
			r := mustExec(t, tx, "CREATE TABLE multi(a, b); INSERT INTO multi VALUES(?, ?); INSERT INTO multi VALUES(3, 4), (5, 6);", 1, 2)
			if n := must(r.RowsAffected()); n != 2 {
				t.Errorf("%d rows affected by the last statement, want 2", n)
			}
			if n := queryValue[int](t, tx, "INSERT INTO multi VALUES(7, 8); INSERT INTO multi VALUES(8, 9) RETURNING a"); n != 8 {
				t.Errorf("RETURNING returns %d, want 8", n)
			}
			if _, err := tx.Exec("INSERT INTO multi VALUES(9, 9); INSERT INTO nowhere VALUES(1)"); err == nil {
				t.Error("the statement has succeeded")
			}
			mustCommit(t, tx)
			if n := queryValue[int](t, db, "SELECT count(*) FROM multi"); n != 5 {
				t.Errorf("%d rows, want 5", n)
			}
		}},
		{"changes of the schema", func(t *testing.T, db *sql.DB) {
			tx := mustBegin(t, db)
			mustExec(t, tx, "CREATE TABLE ddl(a INTEGER PRIMARY KEY, b UNIQUE)")
			mustExec(t, tx, "CREATE INDEX ddl_i ON ddl(b)")
			mustExec(t, tx, "INSERT INTO ddl(b) VALUES('x')")
			mustExec(t, tx, "ALTER TABLE ddl ADD COLUMN c DEFAULT 7")
			if n := queryValue[int](t, tx, "SELECT c FROM ddl"); n != 7 {
				t.Errorf("got %d, want 7", n)
			}
			if _, err := db.Query("SELECT * FROM ddl"); err == nil {
				t.Error("another connection sees the table of an open transaction")
			}
			mustCommit(t, tx)
			tx = mustBegin(t, db)
			mustExec(t, tx, "DROP TABLE ddl")
			mustExec(t, tx, "CREATE TABLE ddl(other)")
			mustExec(t, tx, "INSERT INTO ddl VALUES(1)")
			mustRollback(t, tx)
			if n := queryValue[int](t, db, "SELECT c FROM ddl"); n != 7 {
				t.Errorf("got %d, want 7", n)
			}
		}},
	})
}

func TestDriverContexts(t *testing.T) {
	t.Parallel()
	checkAll(t, []expectation{
		{"a query that is canceled between its rows", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE mid(n INT)")
			tx := mustBegin(t, db)
			mustExec(t, tx, "INSERT INTO mid VALUES(1)")
			ctx, cancel := context.WithCancel(testrun.Context(t))
			rows := must(tx.QueryContext(ctx, endless))
			if !rows.Next() {
				t.Fatal(rows.Err())
			}
			cancel()
			for rows.Next() {
			}
			if err := rows.Err(); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			mustExec(t, tx, "INSERT INTO mid VALUES(2)") // the transaction goes on
			mustCommit(t, tx)
			if n := queryValue[int](t, db, "SELECT count(*) FROM mid"); n != 2 {
				t.Errorf("%d rows, want 2", n)
			}
		}},
		{"a query with a timeout", func(t *testing.T, db *sql.DB) {
			tx := mustBegin(t, db)
			mustExec(t, tx, "CREATE TABLE late(n INT)")
			ctx, cancel := context.WithTimeout(testrun.Context(t), 50e6)
			defer cancel()
			var n int
			if err := tx.QueryRowContext(ctx, endlessWithoutRows).Scan(&n); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			mustExec(t, tx, "INSERT INTO late VALUES(1)")
			mustCommit(t, tx)
			if n := queryValue[int](t, db, "SELECT count(*) FROM late"); n != 1 {
				t.Errorf("%d rows, want 1", n)
			}
		}},
		{"a write that is canceled ends the transaction", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE given(n INT)")
			tx := mustBegin(t, db)
			mustExec(t, tx, "INSERT INTO given VALUES(1)")
			ctx, cancel := context.WithTimeout(testrun.Context(t), 50e6)
			defer cancel()
			if _, err := tx.ExecContext(ctx, "INSERT INTO given "+endlessWithoutRows); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			_, err := tx.Exec("INSERT INTO given VALUES(2)")
			wantEnded(t, "a write afterwards", err)
			wantEnded(t, "Commit", tx.Commit())
			if n := queryValue[int](t, db, "SELECT count(*) FROM given"); n != 0 {
				t.Errorf("%d rows, want 0", n)
			}
			mustExec(t, db, "INSERT INTO given VALUES(3)") // would wait if the lease were still held
		}},
		{"a statement whose context has ended does nothing", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE never(n INT)")
			tx := mustBegin(t, db)
			ctx, cancel := context.WithCancel(testrun.Context(t))
			cancel()
			if _, err := tx.ExecContext(ctx, "INSERT INTO never VALUES(1)"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if _, err := tx.QueryContext(ctx, "INSERT INTO never VALUES(1) RETURNING n"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			mustExec(t, tx, "INSERT INTO never VALUES(2)")
			mustCommit(t, tx)
			if got := queryValue[string](t, db, "SELECT group_concat(n) FROM never"); got != "2" {
				t.Errorf("got %q, want %q", got, "2")
			}
		}},
		{"a transaction ends with the context of BeginTx", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE bound(n INT)")
			ctx, cancel := context.WithCancel(testrun.Context(t))
			tx := must(db.BeginTx(ctx, nil))
			mustExec(t, tx, "INSERT INTO bound VALUES(1)")
			cancel()
			mustExec(t, db, "INSERT INTO bound VALUES(2)") // would wait if the lease were still held
			_, err := tx.Exec("INSERT INTO bound VALUES(3)")
			wantEnded(t, "a write afterwards", err)
			if err := tx.Commit(); !errors.Is(err, context.Canceled) && !errors.Is(err, sql.ErrTxDone) {
				t.Error(err)
			}
			if got := queryValue[string](t, db, "SELECT group_concat(n) FROM bound"); got != "2" {
				t.Errorf("got %q, want %q", got, "2")
			}
		}},
		{"no transaction with a context that has ended", func(t *testing.T, db *sql.DB) {
			ctx, cancel := context.WithCancel(testrun.Context(t))
			cancel()
			if _, err := db.BeginTx(ctx, nil); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			mustBegin(t, db).Rollback()
		}},
		{"waiting for the write lease is canceled", func(t *testing.T, db *sql.DB) {
			mustExec(t, db, "CREATE TABLE queue(n INT)")
			tx := mustBegin(t, db)
			ctx, cancel := context.WithTimeout(testrun.Context(t), 50e6)
			defer cancel()
			if _, err := db.BeginTx(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			if _, err := db.ExecContext(ctx, "INSERT INTO queue VALUES(1)"); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			node := nodeOf(t, db)
			waiting := func(n int) func() bool { return func() bool { return node.Queued() == n } }
			testrun.WaitFor(t, "the canceled transaction to leave the queue", waiting(0))
			ctx, cancel = context.WithCancel(testrun.Context(t))
			defer cancel()
			later := make(chan error, 1)
			go func() {
				testrun.WaitFor(t, "the write to be in the queue", waiting(1))
				// A node has one entry in flight. Once a second write is in the
				// queue, the caller of the first one knows that it waits; before,
				// its outcome would be unknown.
				go func() {
					_, err := db.ExecContext(testrun.Context(t), "INSERT INTO queue VALUES(5)")
					later <- err
				}()
				testrun.WaitFor(t, "a second write to be in the queue", waiting(2))
				cancel()
			}()
			if _, err := db.ExecContext(ctx, "INSERT INTO queue VALUES(2)"); !errors.Is(err, context.Canceled) || errors.Is(err, hiqlite.ErrOutcomeUnknown) {
				t.Error(err)
			}
			mustExec(t, tx, "INSERT INTO queue VALUES(3)")
			mustCommit(t, tx)
			if err := <-later; err != nil {
				t.Error(err)
			}
			mustExec(t, db, "INSERT INTO queue VALUES(4)")
			if got := queryValue[string](t, db, "SELECT group_concat(n) FROM queue"); got != "3,5,4" {
				t.Errorf("got %q, want %q", got, "3,5,4")
			}
		}},
	})
}
