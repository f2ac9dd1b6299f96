package compat

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/jmoiron/sqlx/types"
	"golang.org/x/sync/errgroup"
)

type contact struct {
	ID      int64
	Email   string
	Active  bool
	Score   float64
	Note    sql.NullString
	Photo   []byte
	Tags    types.JSONText
	Born    time.Time
	Died    *time.Time
	Manager *int64
}

const (
	contactsTable = `
		CREATE TABLE contacts(
			id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, active BOOLEAN NOT NULL, score REAL NOT NULL DEFAULT 0,
			note TEXT, photo BLOB, tags TEXT NOT NULL DEFAULT '[]', born DATETIME NOT NULL, died DATETIME,
			manager INTEGER REFERENCES contacts(id))`
	insertContact = `
		INSERT INTO contacts(email, active, score, note, photo, tags, born, died, manager)
		VALUES(:email, :active, :score, :note, :photo, :tags, :born, :died, :manager)`
)

func TestSqlx(t *testing.T) {
	each(t, func(t *testing.T, d *database) {
		db := sqlx.NewDb(d.home, "sqlite") // the name says which placeholders to use
		away := sqlx.NewDb(d.away[0], "sqlite")
		ctx := patient(t)
		value[sql.Result](t)(db.ExecContext(ctx, contactsTable))

		ann := contact{Email: "ann@x", Active: true, Score: 1.5, Note: sql.NullString{String: "it's", Valid: true},
			Photo: []byte{0, 1, 255}, Tags: types.JSONText(`{"a":[1,null]}`), Born: moment, Died: new(moment.Add(time.Nanosecond))}
		bob := contact{Email: "bob@x", Tags: types.JSONText(`[]`), Born: moment, Manager: new(int64(1))}

		t.Run("values come back", func(t *testing.T) {
			for id, p := range []*contact{&ann, &bob} {
				r := value[sql.Result](t)(db.NamedExecContext(ctx, insertContact, p))
				p.ID = value[int64](t)(r.LastInsertId())
				same(t, p.ID, int64(id+1))
			}
			var got []contact
			must(t, away.SelectContext(latest(t), &got, "SELECT * FROM contacts ORDER BY id"))
			for i := range got {
				got[i].Born = got[i].Born.UTC()
				if got[i].Died != nil {
					got[i].Died = new(got[i].Died.UTC())
				}
			}
			same(t, got, []contact{ann, bob})
		})

		t.Run("update and delete", func(t *testing.T) {
			r := value[sql.Result](t)(db.ExecContext(ctx, "UPDATE contacts SET score = score + 1"))
			same(t, value[int64](t)(r.RowsAffected()), 2)
			var score float64
			must(t, away.GetContext(latest(t), &score, "SELECT score FROM contacts WHERE email = ?", "ann@x"))
			same(t, score, 2.5)
			r = value[sql.Result](t)(db.NamedExecContext(ctx, "DELETE FROM contacts WHERE email = :email", map[string]any{"email": "bob@x"}))
			same(t, value[int64](t)(r.RowsAffected()), 1)
			fails(t, away.GetContext(latest(t), &score, "SELECT score FROM contacts WHERE email = 'bob@x'"), sql.ErrNoRows)
		})

		t.Run("many rows and lists", func(t *testing.T) {
			crew := []contact{{Email: "c1", Born: moment, Tags: types.JSONText("1")}, {Email: "c2", Born: moment, Tags: types.JSONText("2")}}
			value[sql.Result](t)(db.NamedExecContext(ctx, insertContact, crew))
			query, args, err := sqlx.In("SELECT email FROM contacts WHERE email IN (?) ORDER BY 1 DESC", []string{"c1", "c2", "c3"})
			must(t, err)
			var emails []string
			must(t, away.SelectContext(latest(t), &emails, away.Rebind(query), args...))
			same(t, emails, []string{"c2", "c1"})
		})

		t.Run("rows one by one", func(t *testing.T) {
			rows, err := db.QueryxContext(ctx, "SELECT * FROM contacts ORDER BY id")
			must(t, err)
			defer rows.Close()
			n := 0
			for ; rows.Next(); n++ {
				var p contact
				must(t, rows.StructScan(&p))
			}
			must(t, rows.Err())
			same(t, n, 3)
			row := map[string]any{}
			must(t, db.QueryRowxContext(ctx, "SELECT email, active, note FROM contacts WHERE email = 'c1'").MapScan(row))
			same(t, row, map[string]any{"email": "c1", "active": int64(0), "note": nil})
		})

		t.Run("prepared by name", func(t *testing.T) {
			stmt, err := db.PrepareNamedContext(ctx, "INSERT INTO contacts(email, active, born) VALUES(:email, 1, :born) RETURNING id")
			must(t, err)
			defer stmt.Close()
			var first, second int64
			must(t, stmt.GetContext(ctx, &first, contact{Email: "p1", Born: moment}))
			must(t, stmt.GetContext(ctx, &second, contact{Email: "p2", Born: moment}))
			same(t, second, first+1)
		})

		t.Run("commit", func(t *testing.T) {
			tx, err := db.BeginTxx(ctx, nil)
			must(t, err)
			value[sql.Result](t)(tx.NamedExecContext(ctx, insertContact, contact{Email: "t1", Born: moment, Tags: types.JSONText("1")}))
			var id int64
			must(t, tx.GetContext(ctx, &id, "SELECT id FROM contacts WHERE email = 't1'"))
			stmt, err := tx.PreparexContext(ctx, "UPDATE contacts SET manager = ? WHERE id = ?")
			must(t, err)
			value[sql.Result](t)(stmt.ExecContext(ctx, id, id))
			must(t, stmt.Close())
			must(t, tx.Commit())
			d.count(t, "contacts WHERE manager = id", 1)
		})

		t.Run("roll back", func(t *testing.T) {
			tx := value[*sqlx.Tx](t)(db.BeginTxx(ctx, nil))
			value[sql.Result](t)(tx.ExecContext(ctx, "DELETE FROM contacts"))
			var n int
			must(t, tx.Get(&n, "SELECT count(*) FROM contacts"))
			same(t, n, 0)
			must(t, tx.Rollback())
			d.count(t, "contacts", 6)
			fails(t, tx.Get(&n, "SELECT 1"), sql.ErrTxDone)
		})

		t.Run("a failed statement leaves the transaction usable", func(t *testing.T) {
			tx := value[*sqlx.Tx](t)(db.BeginTxx(ctx, nil))
			defer tx.Rollback()
			value[sql.Result](t)(tx.ExecContext(ctx, "UPDATE contacts SET note = 'before' WHERE email = 'c1'"))
			unique(t, insertAgain(ctx, tx))
			value[sql.Result](t)(tx.ExecContext(ctx, "UPDATE contacts SET note = 'after' WHERE email = 'c2'"))
			must(t, tx.Commit())
			d.count(t, "contacts WHERE note IN ('before', 'after')", 2)
		})

		t.Run("transactions everywhere at once", func(t *testing.T) {
			value[sql.Result](t)(db.ExecContext(ctx, "CREATE TABLE counters(n INTEGER)"))
			value[sql.Result](t)(db.ExecContext(ctx, "INSERT INTO counters VALUES(0)"))
			var all errgroup.Group
			for _, pool := range []*sql.DB{d.home, d.home, d.away[0], d.away[1]} {
				all.Go(func() error {
					for range 10 {
						if err := increment(ctx, sqlx.NewDb(pool, "sqlite")); err != nil {
							return err
						}
					}
					return nil
				})
			}
			must(t, all.Wait())
			d.count(t, "counters WHERE n = 40", 1)
		})

		t.Run("violations", func(t *testing.T) {
			unique(t, insertAgain(ctx, db))
			_, err := db.ExecContext(ctx, "UPDATE contacts SET manager = 99")
			code(t, err, 787, "FOREIGN KEY constraint failed")
			_, err = db.ExecContext(ctx, "INSERT INTO contacts(email, active) VALUES('x', 1)")
			code(t, err, 1299, "NOT NULL constraint failed: contacts.born")
		})

		t.Run("cancellation", func(t *testing.T) {
			_, err := db.ExecContext(cancelled(), "DELETE FROM contacts")
			fails(t, err, context.Canceled)
			ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			var n int
			fails(t, db.GetContext(ctx, &n, endless), context.DeadlineExceeded)

			ctx, cancel = context.WithCancel(patient(t))
			tx, err := db.BeginTxx(ctx, nil)
			must(t, err)
			value[sql.Result](t)(tx.ExecContext(ctx, "DELETE FROM contacts"))
			cancel()
			if tx.Commit() == nil {
				t.Error("committed what was cancelled")
			}
			d.count(t, "contacts", 6)
		})
	})
}

func insertAgain(ctx context.Context, db sqlx.ExtContext) error {
	_, err := sqlx.NamedExecContext(ctx, db, insertContact, contact{Email: "ann@x", Born: moment, Tags: types.JSONText("1")})
	return err
}

func unique(t *testing.T, err error) {
	t.Helper()
	code(t, err, 2067, "UNIQUE constraint failed: contacts.email")
}

// increment reads, and then writes what it makes of that.
func increment(ctx context.Context, db *sqlx.DB) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var n int
	if err := tx.GetContext(ctx, &n, "SELECT n FROM counters"); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "UPDATE counters SET n = ?", n+1); err != nil {
		return err
	}
	return tx.Commit()
}
