package benchmarks

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkReadingTransaction runs transactions of one SELECT while another goroutine
// writes single rows. Default transactions and writes wait for each other; read-only
// transactions wait for nobody.
func BenchmarkReadingTransaction(b *testing.B) {
	for _, kind := range []struct {
		name string
		opts *sql.TxOptions
	}{{"default", nil}, {"readonly", &sql.TxOptions{ReadOnly: true}}} {
		for _, writers := range []int{0, 1} {
			b.Run("tx="+kind.name+"/writers="+string(rune('0'+writers)), func(b *testing.B) {
				db := open(b, 3)
				s := prepare(b, db, insert)
				if _, err := s.Exec(1, "Name"); err != nil {
					b.Fatal(err)
				}
				var stop atomic.Bool
				var written atomic.Int64
				var work sync.WaitGroup
				for range writers {
					work.Go(func() {
						for !stop.Load() {
							if _, err := s.Exec(1, "Name"); err != nil {
								b.Error(err)
								return
							}
							written.Add(1)
						}
					})
				}
				b.ResetTimer()
				for range b.N {
					tx, err := db.BeginTx(context.Background(), kind.opts)
					if err != nil {
						b.Fatal(err)
					}
					var name string
					if err := tx.QueryRow("SELECT name FROM bench WHERE id=1").Scan(&name); err != nil {
						b.Fatal(err)
					}
					if err := tx.Commit(); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				b.ReportMetric(float64(written.Load())/b.Elapsed().Seconds(), "writes/s")
				stop.Store(true)
				work.Wait()
			})
		}
	}
}
