package hiqlite

import (
	"context"
	"database/sql"

	"github.com/hiqlite/hiqlite/internal/shardapi"
)

// A Client has the methods of a node that database/sql does not have. *Node
// implements it.
type Client interface {
	// Ready returns once leaders are known and reads see everything that was acknowledged
	// before the call; see Node.Ready.
	Ready(ctx context.Context) error
	// Status returns the state of the node, and of the cluster as the node sees it.
	Status(ctx context.Context) (Status, error)
	// Hash returns a hash of the database, for comparing nodes; see Node.Hash.
	Hash(ctx context.Context) (hash [32]byte, index uint64, err error)
	// InMemoryShards is for the packages kv, lock and pubsub, which programs use instead.
	InMemoryShards() shardapi.Shards
}

var _ Client = (*Node)(nil)

// From returns the Client of a database that was opened with this driver. The Client
// can be used as long as the database is open. From uses a connection of db's pool for a
// moment, and waits for one if all are in use.
func From(ctx context.Context, db *sql.DB) (Client, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var client Client
	err = conn.Raw(func(raw any) error {
		c, err := unwrapConn(raw)
		if err == nil {
			client = c.Client()
		}
		return err
	})
	return client, err
}
