// Quickstart runs a cluster of three nodes in one process, and stops its leader
// while rows are written:
//
//	go run ./examples/quickstart
//
// It stores which packages of Go's standard library import which others, and
// stops the leader when half of them are stored. Then it asks a follower which
// packages depend on net/http, starts the stopped node again, and checks that
// all three nodes hold the same rows.
//
// In a real cluster each program has one node. All that it needs is the DSN in
// the method open, and then database/sql, here used through sqlx.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"golang.org/x/sync/errgroup"

	"github.com/hiqlite/hiqlite"
	_ "github.com/hiqlite/hiqlite/driver"
)

// nodes are the addresses of the cluster, as they stand in the DSN of each node.
const nodes = "1=127.0.0.1:8201,2=127.0.0.1:8202,3=127.0.0.1:8203"

const schema = `
	CREATE TABLE packages(path TEXT PRIMARY KEY, name TEXT NOT NULL, doc TEXT NOT NULL);
	CREATE TABLE imports(package TEXT NOT NULL REFERENCES packages(path), imported TEXT NOT NULL, PRIMARY KEY(package, imported));
	CREATE INDEX importers ON imports(imported)`

// dependents selects the packages that import a package, directly or not.
const dependents = `
	WITH RECURSIVE dependent(path) AS (
		SELECT package FROM imports WHERE imported = ?
		UNION
		SELECT package FROM imports JOIN dependent ON imported = path
	)
	SELECT path FROM dependent ORDER BY path`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := new(demo).run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

type demo struct {
	dir      string
	nodes    [4]*node // by id, 1 to 3; nil: stopped
	leader   uint64   // the node that led at first
	packages []goPackage
	answer   []string
}

type node struct {
	hiqlite.Client
	db *sqlx.DB
}

func (d *demo) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if d.dir, err = os.MkdirTemp("", "quickstart-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	for _, step := range []func(context.Context) error{d.form, d.listPackages, d.load, d.ask, d.restart, d.compare} {
		began := time.Now()
		if err := step(ctx); err != nil {
			return err
		}
		fmt.Printf(" (%.2f s)\n", time.Since(began).Seconds())
	}
	return nil
}

// form opens the three nodes and creates the tables.
func (d *demo) form(ctx context.Context) error {
	for id := range uint64(3) {
		if err := d.open(ctx, id+1); err != nil {
			return err
		}
	}
	if _, err := d.nodes[1].db.ExecContext(ctx, schema); err != nil {
		return err
	}
	status, err := d.nodes[1].Status(ctx)
	d.leader = status.Leader
	fmt.Printf("opened three nodes; node %d leads", d.leader)
	return err
}

// open opens a node. hiqlite.From returns its client, for what database/sql has
// no methods for: Ready, Status and Hash.
func (d *demo) open(ctx context.Context, id uint64) error {
	db, err := sqlx.Open("hiqlite", fmt.Sprintf("%s/%d?node_id=%[2]d&nodes=%s", d.dir, id, nodes))
	if err != nil {
		return err
	}
	n, err := hiqlite.From(ctx, db.DB)
	d.nodes[id] = &node{n, db}
	return err
}

func (d *demo) close() (err error) {
	for _, n := range d.nodes {
		if n != nil {
			err = errors.Join(err, n.db.Close())
		}
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// listPackages asks the go command for the packages that are to be loaded.
func (d *demo) listPackages(ctx context.Context) (err error) {
	d.packages, err = standardLibrary(ctx)
	fmt.Printf("listed the standard library: %d packages", len(d.packages))
	return err
}

// load writes the packages through the two followers, and stops the leader when
// half of them are written.
func (d *demo) load(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	var slowest [len(d.nodes)]time.Duration
	for id, n := range d.nodes {
		if n == nil || uint64(id) == d.leader {
			continue
		}
		group.Go(func() error {
			for i := next.Add(1); i <= int64(len(d.packages)); i = next.Add(1) {
				if i%60 == 0 {
					fmt.Printf("loaded %d packages\n", i)
				}
				if i == int64(len(d.packages)/2) {
					fmt.Printf("stopping node %d, the leader, while loading goes on\n", d.leader)
					group.Go(d.nodes[d.leader].db.Close)
				}
				began := time.Now()
				if err := n.write(ctx, d.packages[i-1]); err != nil {
					return fmt.Errorf("node %d: %w", id, err)
				}
				slowest[id] = max(slowest[id], time.Since(began))
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	fmt.Printf("loaded all; no write failed, the slowest package took %d ms", slices.Max(slowest[:]).Milliseconds())
	return nil
}

// write writes a package, and then, in one round trip, what it imports.
func (n *node) write(ctx context.Context, p goPackage) error {
	_, err := n.db.NamedExecContext(ctx, "INSERT INTO packages VALUES(:importpath, :name, :doc)", p)
	if err != nil {
		return err
	}
	var imports []hiqlite.Statement
	for _, path := range p.Imports {
		imports = append(imports, hiqlite.Statement{SQL: "INSERT INTO imports VALUES(?, ?)", Args: []any{p.ImportPath, path}})
	}
	_, err = hiqlite.Batch(ctx, n.db.DB, imports...)
	return err
}

// ask asks a follower which packages depend on net/http.
func (d *demo) ask(ctx context.Context) error {
	follower := d.leader%3 + 1
	if err := d.nodes[follower].Ready(ctx); err != nil {
		return err
	}
	status, err := d.nodes[follower].Status(ctx)
	if err != nil {
		return err
	}
	if follower == status.Leader {
		follower = follower%3 + 1 // the third one
	}
	if d.answer, err = d.nodes[follower].dependents(ctx, "net/http"); err != nil {
		return err
	}
	fmt.Printf("node %d leads now; node %d says that %d packages depend on net/http:\n  %s",
		status.Leader, follower, len(d.answer), strings.Join(d.answer, ", "))
	return nil
}

// dependents reads from the node's own copy of the database. The read is
// linearizable: it sees everything that was written before, through any node.
func (n *node) dependents(ctx context.Context, path string) (paths []string, err error) {
	ctx = hiqlite.WithConsistency(ctx, hiqlite.Linearizable)
	err = n.db.SelectContext(ctx, &paths, dependents, path)
	return paths, err
}

// restart starts the stopped node again and waits until it has caught up.
func (d *demo) restart(ctx context.Context) error {
	if err := d.open(ctx, d.leader); err != nil {
		return err
	}
	fmt.Printf("started node %d again, until it has caught up", d.leader)
	return d.nodes[d.leader].Ready(ctx)
}

// compare checks that all nodes hold the packages, and that all their rows are
// the same.
func (d *demo) compare(ctx context.Context) error {
	hashes := map[[32]byte]bool{}
	for id, n := range d.nodes[1:] {
		var count int
		counted := n.db.GetContext(ctx, &count, "SELECT count(*) FROM packages")
		answer, asked := n.dependents(ctx, "net/http")
		hash, _, hashed := n.Hash(ctx)
		if err := errors.Join(counted, asked, hashed); err != nil {
			return err
		}
		hashes[hash] = true
		if count != len(d.packages) || !slices.Equal(answer, d.answer) || len(hashes) != 1 {
			return fmt.Errorf("node %d differs: %d packages, %v depend on net/http", id+1, count, answer)
		}
	}
	fmt.Print("compared: the three nodes give the same answer and hold the same rows")
	return nil
}
