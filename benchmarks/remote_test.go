package benchmarks

import (
	"database/sql"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/server"
)

// eachRoute runs f with the database of the leader of three nodes: in the same process,
// through its API, and through a proxy. Clients, proxy and nodes share the processors.
func eachRoute(b *testing.B, f func(b *testing.B, db *sql.DB)) {
	c := hiqlitetest.NewCluster(b, 3, hiqlitetest.WithConfig(func(cfg *hiqlite.Config) { cfg.Tick = 0 }))
	leader := c.Leader()
	direct := c.Remote(leader)
	for name, db := range map[string]*sql.DB{"embedded": c.DB(leader), "remote": direct.DB(), "proxy": throughProxy(b, c.Remote(leader))} {
		db.SetMaxIdleConns(concurrencies[len(concurrencies)-1])
		b.Run(name, func(b *testing.B) {
			if _, err := db.Exec("DROP TABLE IF EXISTS bench; " + schema); err != nil {
				b.Fatal(err)
			}
			f(b, db)
		})
	}
}

func throughProxy(b *testing.B, backend *hiqlite.Remote) *sql.DB {
	proxy, err := server.New(server.Config{Backend: backend})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go proxy.Serve(l)
	client, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{l.Addr().String()}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close(); proxy.Close() })
	return client.DB()
}

func BenchmarkRemoteInsert(b *testing.B) {
	eachRoute(b, func(b *testing.B, db *sql.DB) {
		eachConcurrency(b, func() error {
			_, err := db.Exec(insert, 1, "name")
			return err
		})
	})
}

// BenchmarkRemoteSelect reports the median of a read of one row.
func BenchmarkRemoteSelect(b *testing.B) {
	eachRoute(b, func(b *testing.B, db *sql.DB) {
		if _, err := db.Exec(insert, 1, "name"); err != nil {
			b.Fatal(err)
		}
		medianOf(b, func() error {
			var name string
			return db.QueryRow("SELECT name FROM bench WHERE id=?", 1).Scan(&name)
		})
	})
}

// BenchmarkRemoteTransaction reports the median of a transaction of three statements.
func BenchmarkRemoteTransaction(b *testing.B) {
	eachRoute(b, func(b *testing.B, db *sql.DB) {
		medianOf(b, func() error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			defer tx.Rollback()
			for range 3 {
				if _, err := tx.Exec(insert, 1, "name"); err != nil {
					return err
				}
			}
			return tx.Commit()
		})
	})
}

// BenchmarkRemotePing reports the median of a round trip.
func BenchmarkRemotePing(b *testing.B) {
	eachRoute(b, func(b *testing.B, db *sql.DB) { medianOf(b, db.Ping) })
}

// medianOf reports the median of the time that f takes.
func medianOf(b *testing.B, f func() error) {
	var times []time.Duration
	for b.Loop() {
		began := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
}

// BenchmarkRemoteRows reads many rows in one query.
func BenchmarkRemoteRows(b *testing.B) {
	eachRoute(b, func(b *testing.B, db *sql.DB) {
		rows, err := db.Query(fmt.Sprintf("WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n<%d) SELECT n, 'a text of row '||n FROM x", b.N))
		if err != nil {
			b.Fatal(err)
		}
		defer rows.Close()
		var n int
		var text string
		for rows.Next() {
			if err := rows.Scan(&n, &text); err != nil {
				b.Fatal(err)
			}
		}
		if err := rows.Err(); err != nil || n != b.N {
			b.Fatal(n, err)
		}
	})
}
