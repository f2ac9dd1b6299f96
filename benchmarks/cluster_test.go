// Package benchmarks measures what a program sees through database/sql and the
// packages kv, lock and pubsub:
//
//	go test -bench . ./benchmarks
//
// All nodes share this machine's processors and the disk of the folder for temporary
// files. If that folder is in memory, set TMPDIR to one on a disk.
package benchmarks

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	_ "modernc.org/sqlite" // to compare with

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
)

var (
	sizes         = []int{1, 3}
	concurrencies = []int{1, 4, 16, 64}
)

const (
	schema = "CREATE TABLE bench(id INTEGER PRIMARY KEY, ts INTEGER, name TEXT)"
	insert = "INSERT INTO bench(ts, name) VALUES(?, ?)"
)

// start starts a cluster with the default configuration.
func start(b *testing.B, size int) []*hiqlite.Node {
	b.Helper()
	return hiqlitetest.NewCluster(b, size, hiqlitetest.WithConfig(func(cfg *hiqlite.Config) { cfg.Tick = 0 })).Nodes()
}

// open starts a cluster and returns the database of its leader.
func open(b *testing.B, size int) *sql.DB {
	b.Helper()
	nodes := start(b, size)
	s, err := nodes[0].Status(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return createTable(b, nodes[s.Leader-1].DB())
}

// openPlain returns a database of modernc.org/sqlite with the settings of a node's.
func openPlain(b *testing.B) *sql.DB {
	b.Helper()
	db, err := sql.Open("sqlite", filepath.Join(b.TempDir(), "plain.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=foreign_keys(ON)")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	return createTable(b, db)
}

func createTable(b *testing.B, db *sql.DB) *sql.DB {
	b.Helper()
	// Keep a connection for each goroutine; database/sql keeps two by default.
	db.SetMaxIdleConns(concurrencies[len(concurrencies)-1])
	if _, err := db.Exec(schema); err != nil {
		b.Fatal(err)
	}
	return db
}

func prepare(b *testing.B, db *sql.DB, query string) *sql.Stmt {
	b.Helper()
	s, err := db.Prepare(query)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// eachConcurrency runs f b.N times from each number of goroutines.
func eachConcurrency(b *testing.B, f func() error) {
	for _, c := range concurrencies {
		b.Run(fmt.Sprintf("concurrency=%d", c), func(b *testing.B) {
			b.ReportAllocs()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range c {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if err := f(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// eachSize runs f on a cluster of each size.
func eachSize(b *testing.B, f func(b *testing.B, db *sql.DB)) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("nodes=%d", size), func(b *testing.B) { f(b, open(b, size)) })
	}
}
