// Package compat runs libraries that support SQLite on a cluster. It also runs them on
// modernc.org/sqlite, to show that the tests expect SQLite's behaviour.
package compat

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	_ "modernc.org/sqlite"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/server"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// gorm never closes its cache of prepared statements.
		goleak.IgnoreAnyFunction("gorm.io/gorm/internal/lru.NewLRU[...].func1"))
}

// patience is how long a test waits at most.
const patience = 60 * time.Second

// A database has three pools for the same rows: those of the nodes of a cluster, or
// three pools of one SQLite file.
type database struct {
	// home is where a suite writes. In a cluster it is a follower, because the
	// writes of a follower take the longest way.
	home *sql.DB
	// away are the other two.
	away [2]*sql.DB

	// More pools of home and of away[0], for libraries that close their pool.
	open, elsewhere func() *sql.DB
	nodes           []*hiqlite.Node
}

// each runs a suite on a cluster and on SQLite. At the end all nodes must hold the same
// rows.
func each(t *testing.T, suite func(t *testing.T, d *database)) {
	for _, route := range []string{"hiqlite", "remote", "proxy"} {
		t.Run(route, func(t *testing.T) {
			d := newCluster(t, route)
			suite(t, d)
			d.equal(t)
		})
	}
	t.Run("sqlite", func(t *testing.T) { suite(t, newFile(t)) })
}

// hops is how many servers are between the database and its node.
var hops = map[string]int{"remote": 1, "proxy": 2}

// served serves a node or a remote database, and returns what a client of that sees.
func served(t *testing.T, backend server.Backend) *hiqlite.Remote {
	t.Helper()
	s, err := server.New(server.Config{Backend: backend})
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	remote, err := hiqlite.NewRemote(hiqlite.RemoteConfig{Addresses: []string{l.Addr().String()}})
	must(t, err)
	t.Cleanup(func() {
		must(t, remote.Close())
		must(t, s.Close())
		<-ended
	})
	return remote
}

// replicated says whether the database is a cluster.
func (d *database) replicated() bool { return d.nodes != nil }

// newCluster starts a cluster, whose nodes the database reaches in this process, through
// their API, or through a proxy before that.
func newCluster(t *testing.T, route string) *database {
	t.Helper()
	d := &database{}
	dir := t.TempDir()
	addresses, err := loopback.Addresses(3)
	must(t, err)
	var members []hiqlite.Member
	for i, address := range addresses {
		members = append(members, hiqlite.Member{ID: uint64(i + 1), RaftAddr: address})
	}
	for _, m := range members {
		node, err := hiqlite.Open(patient(t), hiqlite.Config{
			DataDir: filepath.Join(dir, fmt.Sprint(m.ID)), NodeID: m.ID, Nodes: members, Tick: 10 * time.Millisecond,
		})
		must(t, err)
		t.Cleanup(func() { must(t, node.Close()) })
		d.nodes = append(d.nodes, node)
	}
	for _, n := range d.nodes {
		must(t, n.Ready(patient(t)))
	}
	status, err := d.nodes[0].Status(patient(t))
	must(t, err)
	at := func(i uint64) *hiqlite.Node { return d.nodes[(status.Leader+i)%3] } // 2: the leader
	var backends [3]server.Backend
	for i := range backends {
		backends[i] = at(uint64(i))
		for range hops[route] {
			backends[i] = served(t, backends[i])
		}
	}
	pool := func(i uint64) *sql.DB { return closed(t, sql.OpenDB(backends[i].Connector())) }
	d.open, d.elsewhere = func() *sql.DB { return pool(0) }, func() *sql.DB { return pool(1) }
	d.home, d.away = pool(0), [2]*sql.DB{pool(1), pool(2)}
	return d
}

func newFile(t *testing.T) *database {
	t.Helper()
	dsn := "file:" + filepath.Join(t.TempDir(), "db") + "?" + url.Values{
		"_pragma": {"busy_timeout(5000)", "journal_mode(wal)", "foreign_keys(1)"},
		// database/sql rolls a cancelled transaction back in the background, and the
		// next transaction waits for that.
		"_txlock": {"immediate"},
	}.Encode()
	open := func() *sql.DB {
		db, err := sql.Open("sqlite", dsn)
		must(t, err)
		return closed(t, db)
	}
	d := &database{open: open, elsewhere: open}
	d.home, d.away = d.open(), [2]*sql.DB{d.open(), d.open()}
	return d
}

func closed(t *testing.T, db *sql.DB) *sql.DB {
	t.Cleanup(func() { must(t, db.Close()) })
	return db
}

// equal fails the test unless all nodes come to hold the same rows.
func (d *database) equal(t *testing.T) {
	t.Helper()
	hashes := map[[32]byte]bool{}
	for _, n := range d.nodes {
		must(t, n.Ready(patient(t)))
		hash, _, err := n.Hash(patient(t))
		must(t, err)
		hashes[hash] = true
	}
	if len(hashes) > 1 {
		t.Error("the nodes do not hold the same")
	}
}

// patient returns a context for calls that have to succeed.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// latest returns a context for reads that see what was written on other nodes.
func latest(t testing.TB) context.Context {
	return hiqlite.WithConsistency(patient(t), hiqlite.Linearizable)
}

// cancelled returns a context that has ended.
func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// endless is a query that ends only with its context.
const endless = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n"

// moment is a time with nanoseconds.
var moment = time.Date(2024, 2, 29, 23, 59, 58, 123456789, time.UTC)

// errAbandon is returned to a library so that it rolls a transaction back.
var errAbandon = errors.New("abandoned")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func value[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func fails(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("the error is %v, not %v", err, want)
	}
}

func same[T any](t testing.TB, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

// count checks the number of rows on all nodes.
func (d *database) count(t testing.TB, from string, want int) {
	t.Helper()
	for i, db := range []*sql.DB{d.home, d.away[0], d.away[1]} {
		var n int
		must(t, db.QueryRowContext(latest(t), "SELECT count(*) FROM "+from).Scan(&n))
		if n != want {
			t.Fatalf("%d rows, not %d, in %s (seen by %d)", n, want, from, i)
		}
	}
}

// code checks the SQLite code of an error as programs do that use database/sql alone:
// hiqlite's errors have the method Code that modernc.org/sqlite's errors have.
func code(t testing.TB, err error, want int, message string) {
	t.Helper()
	var coded interface{ Code() int }
	if !errors.As(err, &coded) || coded.Code() != want || !strings.Contains(err.Error(), message) {
		t.Fatalf("the error is %v, not %q (%d)", err, message, want)
	}
}
