package compat

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/tests/compat/sqlcdb"
)

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate -f sqlcdb/sqlc.yaml

//go:embed sqlcdb/schema.sql
var sqlcSchema string

func TestSqlc(t *testing.T) {
	each(t, func(t *testing.T, d *database) {
		value[sql.Result](t)(d.home.ExecContext(patient(t), sqlcSchema))
		t.Run("plain", func(t *testing.T) { sqlcSuite(t, d, sqlcdb.New(d.home), sqlcdb.New(d.away[0])) })
		d.count(t, "authors", 0)
		t.Run("prepared", func(t *testing.T) {
			home, err := sqlcdb.Prepare(patient(t), d.home)
			must(t, err)
			away, err := sqlcdb.Prepare(latest(t), d.away[1])
			must(t, err)
			sqlcSuite(t, d, home, away)
			must(t, home.Close())
			must(t, away.Close())
		})
	})
}

func sqlcSuite(t *testing.T, d *database, home, away *sqlcdb.Queries) {
	ctx := patient(t)
	author := func(name string) sqlcdb.CreateAuthorParams {
		return sqlcdb.CreateAuthorParams{Name: name, Tags: json.RawMessage("[]"), Born: moment}
	}
	full := sqlcdb.CreateAuthorParams{Name: "Ann", Bio: new("writes"), Active: true, Rating: 4.5, Photo: []byte{0, 255},
		Tags: json.RawMessage(`{"k":"é"}`), Born: moment, Died: new(moment.AddDate(90, 0, 0))}
	ann, err := home.CreateAuthor(ctx, full)
	must(t, err)
	bob, err := home.CreateAuthor(ctx, author("Bob"))
	must(t, err)

	t.Run("values come back", func(t *testing.T) {
		want := []sqlcdb.Author{
			{ID: ann.ID, Name: "Ann", Bio: full.Bio, Active: true, Rating: 4.5, Photo: full.Photo, Tags: full.Tags, Born: moment, Died: full.Died},
			{ID: bob.ID, Name: "Bob", Tags: json.RawMessage("[]"), Born: moment},
		}
		same(t, inUTC(ann, bob), want)
		same(t, inUTC(value[[]sqlcdb.Author](t)(away.Authors(latest(t)))...), want)
		named := value[[]sqlcdb.Author](t)(away.AuthorsNamed(latest(t), []string{"Bob", "Eve", "Ann"}))
		same(t, inUTC(named...), want)
		same(t, len(value[[]sqlcdb.Author](t)(away.AuthorsNamed(latest(t), nil))), 0)
	})

	t.Run("associations", func(t *testing.T) {
		first := value[int64](t)(home.CreateBook(ctx, sqlcdb.CreateBookParams{AuthorID: ann.ID, Title: "A"}))
		second := value[int64](t)(home.CreateBook(ctx, sqlcdb.CreateBookParams{AuthorID: ann.ID, Title: "B"}))
		same(t, second, first+1)
		must(t, home.PutBook(ctx, sqlcdb.PutBookParams{AuthorID: ann.ID, Title: "B"})) // does nothing
		books := value[[]sqlcdb.BooksWithAuthorsRow](t)(away.BooksWithAuthors(latest(t)))
		same(t, len(books), 2)
		same(t, books[1].Book, sqlcdb.Book{ID: second, AuthorID: ann.ID, Title: "B"})
		same(t, books[1].Author.Name, "Ann")
		same(t, value[[]sqlcdb.Shelf](t)(away.Shelves(latest(t))), []sqlcdb.Shelf{{Name: "Ann", Books: 2}, {Name: "Bob"}})
	})

	t.Run("update", func(t *testing.T) {
		r := value[sql.Result](t)(home.ChangeAuthor(ctx, sqlcdb.ChangeAuthorParams{Name: "Bob", Rating: new(1.0)}))
		same(t, value[int64](t)(r.RowsAffected()), 1)
		got := value[sqlcdb.Author](t)(away.Author(latest(t), "Bob"))
		same(t, got.Rating, 1.0)
		same(t, got.Bio, nil)
	})

	t.Run("commit", func(t *testing.T) {
		tx := value[*sql.Tx](t)(d.home.BeginTx(ctx, nil))
		defer tx.Rollback()
		q := home.WithTx(tx)
		eve := value[sqlcdb.Author](t)(q.CreateAuthor(ctx, author("Eve")))
		value[int64](t)(q.CreateBook(ctx, sqlcdb.CreateBookParams{AuthorID: eve.ID, Title: "C"}))
		_, err := q.CreateAuthor(ctx, author("Eve"))
		code(t, err, 2067, "UNIQUE constraint failed: authors.name")
		_, err = q.CreateBook(ctx, sqlcdb.CreateBookParams{AuthorID: 99, Title: "D"})
		code(t, err, 787, "FOREIGN KEY constraint failed")
		same(t, len(value[[]sqlcdb.Author](t)(q.Authors(ctx))), 3)
		must(t, tx.Commit())
		d.count(t, "authors", 3)
		d.count(t, "books", 3)
	})

	t.Run("roll back", func(t *testing.T) {
		tx := value[*sql.Tx](t)(d.home.BeginTx(ctx, nil))
		q := home.WithTx(tx)
		value[sqlcdb.Author](t)(q.CreateAuthor(ctx, author("Zoe")))
		same(t, value[int64](t)(q.DeleteAuthor(ctx, "Ann")), 1)
		same(t, len(value[[]sqlcdb.BooksWithAuthorsRow](t)(q.BooksWithAuthors(ctx))), 1)
		must(t, tx.Rollback())
		d.count(t, "authors", 3)
		d.count(t, "books", 3)
	})

	t.Run("cancellation", func(t *testing.T) {
		_, err := home.Authors(cancelled())
		fails(t, err, context.Canceled)
		_, err = home.DeleteAuthor(cancelled(), "Ann")
		fails(t, err, context.Canceled)
		d.count(t, "authors", 3)
	})

	t.Run("delete", func(t *testing.T) {
		for _, name := range []string{"Ann", "Bob", "Eve"} {
			same(t, value[int64](t)(home.DeleteAuthor(ctx, name)), 1)
		}
		same(t, value[int64](t)(home.DeleteAuthor(ctx, "Ann")), 0)
		_, err := away.Author(latest(t), "Ann")
		fails(t, err, sql.ErrNoRows)
		d.count(t, "books", 0)
	})
}

func inUTC(authors ...sqlcdb.Author) []sqlcdb.Author {
	for i, a := range authors {
		authors[i].Born = a.Born.UTC()
		authors[i].Died = utc(a.Died)
	}
	return authors
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	return new(t.UTC())
}
