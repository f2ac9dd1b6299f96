package differential

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/hiqlitetest"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// connections is the number of connections that a script uses.
const connections = 3

// maxSteps bounds a write. Some writes of the tests reach the bound.
const maxSteps = 3_000_000

// stepTimeout bounds a statement.
const stepTimeout = 30 * time.Second

// A database is the reference or a cluster, with connections to it.
type database struct {
	t       testing.TB
	name    string
	cluster *hiqlitetest.Cluster // nil: the reference
	folder  string               // of the reference
	dbs     []*sql.DB
	conns   [connections]*sql.Conn
	kept    [connections]map[int]*sql.Stmt
	spoiled bool // it has to be created again
}

// runtimeOf returns the runtime behind a node. It has methods that only the tests of
// this project need.
func runtimeOf(n *hiqlite.Node) *node.Node {
	return (*node.Node)(reflect.ValueOf(n).Elem().FieldByName("node").UnsafePointer())
}

func stepContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), stepTimeout)
}

// newReference opens a database with modernc.org/sqlite.
func newReference(t testing.TB) *database {
	t.Helper()
	d := &database{t: t, name: "modernc.org/sqlite"}
	d.begin()
	return d
}

// newDatabase starts a cluster.
func newDatabase(t testing.TB, nodes int) *database {
	t.Helper()
	d := &database{t: t, name: fmt.Sprintf("hiqlite, %d nodes", nodes)}
	d.cluster = hiqlitetest.NewCluster(t, nodes, hiqlitetest.WithConfig(func(c *hiqlite.Config) { c.Logger, c.MaxSteps = discardLogs, maxSteps }))
	for i := range nodes {
		d.dbs = append(d.dbs, d.open(i))
	}
	return d
}

// open opens the database of a node.
func (d *database) open(node int) *sql.DB {
	c, err := d.cluster.Node(node).ConnectorWith(hiqlite.ConnConfig{Consistency: hiqlite.Linearizable, TimeFormat: "sqlite"})
	if err != nil {
		d.t.Fatal(err)
	}
	db := sql.OpenDB(c)
	db.SetMaxIdleConns(-1)
	return db
}

// begin empties the database and opens new connections.
func (d *database) begin() {
	d.t.Helper()
	d.disconnect()
	switch {
	case d.cluster == nil:
		d.close()
		folder, err := os.MkdirTemp(d.t.TempDir(), "")
		if err != nil {
			d.t.Fatal(err)
		}
		d.folder = folder
		db, err := sql.Open("sqlite", filepath.Join(folder, "file.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)&_fk=1&_time_format=sqlite")
		if err != nil {
			d.t.Fatal(err)
		}
		db.SetMaxIdleConns(-1)
		d.dbs = []*sql.DB{db}
		if _, err := db.Exec("CREATE TABLE first(a INTEGER PRIMARY KEY AUTOINCREMENT); DROP TABLE first"); err != nil {
			d.t.Fatal(err) // the first AUTOINCREMENT creates sqlite_sequence, which cannot be dropped
		}
	case d.spoiled || !d.empty():
		nodes := d.cluster.Len()
		d.close()
		*d = *newDatabase(d.t, nodes)
	}
	d.connect()
}

// close closes the connections and the database, and removes its files.
func (d *database) close() {
	d.disconnect()
	for _, db := range d.dbs {
		_ = db.Close()
	}
	d.dbs = nil
	if d.folder != "" {
		_ = os.RemoveAll(d.folder)
	}
	if d.cluster != nil {
		for i := range d.cluster.Len() {
			d.cluster.Stop(i)
		}
		_ = os.RemoveAll(filepath.Dir(d.cluster.Config(0).DataDir))
	}
}

// empty drops everything in the database. It reports whether all of that succeeded.
func (d *database) empty() bool {
	ctx, cancel := stepContext()
	defer cancel()
	c, err := d.dbs[0].Conn(ctx)
	if err != nil {
		return false
	}
	defer c.Close()
	for _, text := range []string{"PRAGMA foreign_keys=0", "PRAGMA user_version=0", "PRAGMA application_id=0", "CREATE TABLE first(a INTEGER PRIMARY KEY AUTOINCREMENT)"} {
		if _, err := c.ExecContext(ctx, text); err != nil {
			return false
		}
	}
	const what = "SELECT 'DROP '||type||' IF EXISTS main.\"'||replace(name,'\"','\"\"')||'\"' FROM sqlite_schema WHERE name NOT LIKE '%hiqlite%' AND type <> 'index' AND (name NOT LIKE 'sqlite\\_%' ESCAPE '\\' OR name LIKE 'sqlite\\_stat_' ESCAPE '\\') ORDER BY type <> 'trigger', type <> 'view', sql NOT LIKE 'create virtual%'"
	for range 3 { // some objects cannot be dropped before others
		drops, err := queryAll(ctx, c, what)
		if err != nil {
			return false
		}
		if len(drops) == 0 {
			_, err := c.ExecContext(ctx, "DELETE FROM sqlite_sequence")
			return err == nil
		}
		for _, row := range drops {
			_, _ = c.ExecContext(ctx, row[0].(string))
		}
	}
	return false
}

// at returns the sql.DB of the node that a connection belongs to.
func (d *database) at(conn int) *sql.DB { return d.dbs[conn%len(d.dbs)] }

func (d *database) connect() {
	d.t.Helper()
	for i := range d.conns {
		d.reconnect(i)
	}
}

// reconnect closes a connection and opens a new one.
func (d *database) reconnect(i int) {
	d.t.Helper()
	d.hangUp(i)
	ctx, cancel := stepContext()
	defer cancel()
	c, err := d.at(i).Conn(ctx)
	if err != nil {
		d.t.Fatalf("%s: %v", d.name, err)
	}
	d.conns[i], d.kept[i] = c, map[int]*sql.Stmt{}
}

func (d *database) disconnect() {
	for i := range d.conns {
		d.hangUp(i)
	}
}

func (d *database) hangUp(i int) {
	for _, s := range d.kept[i] {
		_ = s.Close()
	}
	d.kept[i] = nil
	if d.conns[i] != nil {
		_ = d.conns[i].Close()
		d.conns[i] = nil
	}
}

// nothingKept is the result of running a prepared statement that the script has not
// prepared, or that could not be prepared.
const nothingKept = "nothing is kept"

// run runs a step that is a statement, and returns its outcome.
func (d *database) run(s step) outcome {
	ctx, cancel := stepContext()
	defer cancel()
	c := d.conns[s.conn]
	switch s.how {
	case preparedQuery, preparedExec:
		stmt, err := c.PrepareContext(ctx, s.text)
		if err != nil {
			return failed(err)
		}
		defer stmt.Close()
		return executor{stmt.QueryContext, stmt.ExecContext}.see(ctx, s)
	case keepPrepared:
		stmt, err := c.PrepareContext(ctx, s.text)
		if err != nil {
			return failed(err)
		}
		d.forget(s.conn, s.slot)
		d.kept[s.conn][s.slot] = stmt
		return outcome{result: "ok"}
	case runKept:
		stmt := d.kept[s.conn][s.slot]
		if stmt == nil {
			return outcome{result: nothingKept}
		}
		return executor{stmt.QueryContext, stmt.ExecContext}.see(ctx, s)
	}
	return ofConn(c, s.text).see(ctx, s)
}

// forget closes a prepared statement.
func (d *database) forget(conn, slot int) {
	if stmt := d.kept[conn][slot]; stmt != nil {
		_ = stmt.Close()
		delete(d.kept[conn], slot)
	}
}

// exec runs a text of the test's own, which is not a step of the script.
func (d *database) exec(conn int, text string) error {
	ctx, cancel := stepContext()
	defer cancel()
	_, err := d.conns[conn].ExecContext(ctx, text)
	return err
}

// restart closes a node and opens it again.
func (d *database) restart(node int) {
	d.t.Helper()
	d.disconnect()
	if d.cluster != nil {
		node %= d.cluster.Len()
		_ = d.dbs[node].Close()
		d.cluster.Stop(node)
		d.cluster.Start(node)
		d.cluster.WaitReady(node)
		d.dbs[node] = d.open(node)
	}
	d.connect()
}

// snapshot closes a node, compacts the logs of the others beyond what the node has, and
// opens it again, so that it needs a snapshot. A single node only compacts its log.
func (d *database) snapshot(node int) {
	d.t.Helper()
	d.disconnect()
	if d.cluster == nil {
		d.connect()
		return
	}
	n := d.cluster.Len()
	node %= n
	other := (node + 1) % n
	if n > 1 {
		_ = d.dbs[node].Close()
		d.cluster.Stop(node)
		ctx, cancel := stepContext()
		defer cancel()
		for _, text := range []string{"CREATE TABLE away(a)", "INSERT INTO away VALUES(1)", "DROP TABLE away"} {
			if _, err := d.dbs[other].ExecContext(ctx, text); err != nil {
				d.t.Fatalf("%s: %s: %v", d.name, text, err)
			}
		}
	}
	for i, one := range d.cluster.Nodes() {
		if d.cluster.Running(i) {
			d.cluster.WaitReady(i)
			if err := runtimeOf(one).Compact(false, 0); err != nil && !strings.Contains(err.Error(), "rejected") {
				d.t.Fatalf("%s: compacting: %v", d.name, err)
			}
		}
	}
	if n > 1 {
		d.cluster.Start(node)
		d.cluster.WaitReady(node)
		d.dbs[node] = d.open(node)
	}
	d.connect()
}

// unequal returns how the nodes differ at the same index, or "".
func (d *database) unequal() string {
	if d.cluster == nil {
		return ""
	}
	type held struct {
		node int
		hash [32]byte
	}
	at := map[uint64]held{}
	difference := ""
	testrun.WaitFor(d.t, "the nodes to hold the same", func() bool {
		hashes := map[[32]byte]bool{}
		for i, n := range d.cluster.Nodes() {
			ctx, cancel := stepContext()
			hash, index, err := n.Hash(ctx)
			cancel()
			if err != nil {
				difference = fmt.Sprintf("node %d: hash: %v", i+1, err)
				return true
			}
			if other, ok := at[index]; ok && other.hash != hash {
				difference = fmt.Sprintf("nodes %d and %d differ at index %d", other.node+1, i+1, index)
				return true
			}
			at[index], hashes[hash] = held{i, hash}, true
		}
		return len(hashes) == 1
	})
	return difference
}
