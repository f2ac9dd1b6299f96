package benchmarks

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/hiqlite/hiqlite"
)

// BenchmarkInsert writes single rows, each acknowledged when a majority of the
// nodes has it on disk.
func BenchmarkInsert(b *testing.B) {
	eachSize(b, func(b *testing.B, db *sql.DB) {
		s := prepare(b, db, insert)
		eachConcurrency(b, func() error {
			_, err := s.Exec(1, "Name")
			return err
		})
	})
}

// BenchmarkReturning writes single rows with a RETURNING clause.
func BenchmarkReturning(b *testing.B) {
	eachSize(b, func(b *testing.B, db *sql.DB) {
		s := prepare(b, db, insert+" RETURNING id, name")
		eachConcurrency(b, func() error {
			var id int64
			var name string
			return s.QueryRow(1, "Name").Scan(&id, &name)
		})
	})
}

// BenchmarkBatch writes 1000 rows with one call of hiqlite.Batch.
func BenchmarkBatch(b *testing.B) {
	stmts := make([]hiqlite.Statement, 1000)
	for i := range stmts {
		stmts[i] = hiqlite.Statement{SQL: insert, Args: []any{i, fmt.Sprint("Name ", i)}}
	}
	eachSize(b, func(b *testing.B, db *sql.DB) {
		eachConcurrency(b, func() error {
			_, err := hiqlite.Batch(context.Background(), db, stmts...)
			return err
		})
	})
}

// BenchmarkSelect reads single rows by their key, with hiqlite and with
// modernc.org/sqlite.
func BenchmarkSelect(b *testing.B) {
	for _, d := range []struct {
		name string
		open func(*testing.B) *sql.DB
	}{
		{"hiqlite", func(b *testing.B) *sql.DB { return open(b, 3) }},
		{"modernc", openPlain},
	} {
		b.Run("driver="+d.name, func(b *testing.B) {
			db := d.open(b)
			const rows = 10_000
			fill := fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<%d) INSERT INTO bench SELECT i, i, 'Name '||i FROM n", rows)
			if _, err := db.Exec(fill); err != nil {
				b.Fatal(err)
			}
			s := prepare(b, db, "SELECT ts, name FROM bench WHERE id=?")
			eachConcurrency(b, func() error {
				var ts int64
				var name string
				return s.QueryRow(1+rand.IntN(rows)).Scan(&ts, &name)
			})
		})
	}
}

// BenchmarkSelectNewText reads single rows with a new SQL text each time, which has to
// be classified and prepared.
func BenchmarkSelectNewText(b *testing.B) {
	for _, d := range []struct {
		name string
		open func(*testing.B) *sql.DB
	}{
		{"hiqlite", func(b *testing.B) *sql.DB { return open(b, 1) }},
		{"modernc", openPlain},
	} {
		b.Run("driver="+d.name, func(b *testing.B) {
			db := d.open(b)
			if _, err := db.Exec("INSERT INTO bench VALUES(1, 1, 'Name')"); err != nil {
				b.Fatal(err)
			}
			var i atomic.Int64
			eachConcurrency(b, func() error {
				var ts int64
				var name string
				return db.QueryRow(fmt.Sprintf("SELECT ts, name FROM bench WHERE id=1 AND id<%d", 1+i.Add(1))).Scan(&ts, &name)
			})
		})
	}
}
