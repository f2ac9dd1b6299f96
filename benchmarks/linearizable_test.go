package benchmarks

import (
	"context"
	"testing"

	"github.com/hiqlite/hiqlite"
)

// BenchmarkLinearizableSelect reads a single row with everything that was acknowledged
// before.
func BenchmarkLinearizableSelect(b *testing.B) {
	db := open(b, 3)
	if _, err := db.Exec("INSERT INTO bench VALUES(1, 1, 'Name')"); err != nil {
		b.Fatal(err)
	}
	s := prepare(b, db, "SELECT ts, name FROM bench WHERE id=?")
	ctx := hiqlite.WithConsistency(context.Background(), hiqlite.Linearizable)
	eachConcurrency(b, func() error {
		var ts int64
		var name string
		return s.QueryRowContext(ctx, 1).Scan(&ts, &name)
	})
}
