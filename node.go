package hiqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/shardapi"
)

// A Node is one node of a cluster, running inside this process.
type Node struct {
	cfg  Config
	node *node.Node
	db   *sql.DB

	migrations   sync.WaitGroup // the goroutine that applies Config.Migrations
	migrated     chan struct{}  // closed when that goroutine ends
	migrationErr error          // its error; set before migrated is closed

	logLeftOpen sync.Once // logs only the first connection that was returned to its pool inside a transaction
	closeOnce   sync.Once
	closeErr    error
}

// Open starts the node of cfg.DataDir. It returns when the node's files are open and the
// node takes part in the cluster. It does not wait for a leader; Ready does. The nodes of
// a cluster may be opened in any order. The caller must Close the node.
//
// If something is wrong with cfg, the folder or the ports, Open returns an error before
// it changes anything. The error is ErrDamaged if files of the folder are missing or
// damaged.
func Open(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	opts, err := cfg.options()
	if err != nil {
		return nil, err
	}
	inner, err := node.Open(opts)
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, node: inner, migrated: make(chan struct{})}
	n.db = sql.OpenDB(n.Connector())
	n.migrations.Go(n.migrate)
	return n, nil
}

// Ready returns once all shards have a leader, this node has applied everything that was
// acknowledged before the call, in SQL and in kv, lock and pubsub, and Config.Migrations
// are applied. Config.Timeout bounds a context without a deadline. When ctx ends, the
// error is ErrNoLeader together with the error of ctx, and names the nodes or entries
// that this node waits for. Other errors are ErrClosed and the error of the migrations.
func (n *Node) Ready(ctx context.Context) error {
	if err := n.node.Ready(ctx); err != nil || n.cfg.Migrations == nil {
		return err
	}
	ctx, cancel := n.node.Within(ctx)
	defer cancel()
	select {
	case <-n.migrated:
		return n.migrationErr
	case <-ctx.Done():
		return fmt.Errorf("hiqlite: the migrations are not applied yet: %w", ctx.Err())
	}
}

// migrateRetry is the time between two attempts to apply Config.Migrations.
const migrateRetry = 100 * time.Millisecond

// migrate applies Config.Migrations. While there is no leader it tries again.
func (n *Node) migrate() {
	defer close(n.migrated)
	if n.cfg.Migrations == nil {
		return
	}
	for ctx := n.node.Context(); ; {
		err := Migrate(ctx, n.db, n.cfg.Migrations)
		switch {
		case n.node.Closed():
			n.migrationErr = ErrClosed
			return
		case errors.Is(err, ErrNoLeader), errors.Is(err, ErrOutcomeUnknown), repeatable(err):
			select {
			case <-time.After(migrateRetry):
			case <-ctx.Done():
			}
			continue
		}
		if n.migrationErr = err; err != nil {
			n.cfg.Logger.Error("hiqlite: the migrations failed", "node", n.cfg.NodeID, "error", err)
		}
		return
	}
}

// Close stops the node: it rolls back the transactions and releases the locks of this
// node, transfers leadership to other nodes, and closes the database. It takes up to a
// second, or up to four seconds if there is no leader. Writes in flight fail with
// ErrOutcomeUnknown or ErrClosed. Close may be called more than once.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		n.node.Shutdown()
		n.migrations.Wait()
		n.closeErr = errors.Join(n.db.Close(), n.node.Close())
	})
	return n.closeErr
}

// DB returns the node's database. It is closed with the node.
func (n *Node) DB() *sql.DB { return n.db }

// Hash returns a SHA-256 of the whole database, including schema and rowids, and the
// index of the last log entry that the database contains. At the same index all nodes
// have the same hash. Hash reads every row.
func (n *Node) Hash(ctx context.Context) (hash [32]byte, index uint64, err error) {
	hash, index, err = n.node.Machine().Hash(ctx)
	return hash, index, sqlError(err)
}

// InMemoryShards is for the packages kv, lock and pubsub.
func (n *Node) InMemoryShards() shardapi.Shards { return n.node.InMemoryShards() }

// Connector returns a connector to the node, for sql.OpenDB. Its connections have the
// configuration Config.Conn.
func (n *Node) Connector() driver.Connector { return &connector{n, n.cfg.Conn} }

// ConnectorWith returns a connector whose connections have the configuration c. It fails
// if c is not valid.
func (n *Node) ConnectorWith(c ConnConfig) (driver.Connector, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	return &connector{n, c}, nil
}

type connector struct {
	client *Node
	cfg    ConnConfig
}

func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	opened, err := connect(ctx, c.client, c.cfg)
	if err != nil {
		return nil, err
	}
	return opened, nil
}
func (c *connector) Driver() driver.Driver { return nodeDriver{c.client} }

// nodeDriver is what sql.DB.Driver returns for a node that was opened by Open.
type nodeDriver struct{ client *Node }

func (d nodeDriver) Open(string) (driver.Conn, error) {
	return (&connector{d.client, d.client.cfg.Conn}).Connect(context.Background())
}
