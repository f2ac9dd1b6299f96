package benchmarks

import (
	"context"
	"fmt"
	"testing"
)

// BenchmarkTransactionRows inserts rows in transactions of 20,000 rows, from one
// goroutine, with a statement that is prepared in the transaction.
func BenchmarkTransactionRows(b *testing.B) {
	const rows = 20_000
	db := open(b, 3)
	ctx := context.Background()
	b.ResetTimer()
	for n := 0; n < b.N; {
		tx, err := db.Begin()
		if err != nil {
			b.Fatal(err)
		}
		stmt, err := tx.Prepare(insert)
		if err != nil {
			b.Fatal(err)
		}
		for range rows {
			if _, err := stmt.ExecContext(ctx, n, fmt.Sprint("Name ", n)); err != nil {
				b.Fatal(err)
			}
			if n++; n == b.N {
				break
			}
		}
		if err := tx.Commit(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
