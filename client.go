package hiqlite

import (
	"context"
	"database/sql"

	"github.com/hiqlite/hiqlite/internal/shardapi"
)

// A Client is the cluster behind a database, for what database/sql has no name
// for. A *Node is one.
type Client interface {
	// Ready returns once a leader is known and reads see everything that was
	// acknowledged before the call.
	Ready(ctx context.Context) error
	// Status describes the node and the cluster as it sees it.
	Status(ctx context.Context) (Status, error)
	// Hash tells whether nodes hold the same.
	Hash(ctx context.Context) (hash [32]byte, index uint64, err error)
	// InMemoryShards is for the packages kv, lock and pubsub. Programs use those.
	InMemoryShards() shardapi.Shards
}

var _ Client = (*Node)(nil)

// From returns the client behind a database that was opened with this driver.
// It is good as long as the database is open. It takes a connection of db's pool
// for a moment, and waits for one if all are in use.
func From(ctx context.Context, db *sql.DB) (Client, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var client Client
	err = conn.Raw(func(raw any) error {
		c, err := ofDriver(raw)
		if err == nil {
			client = c.client
		}
		return err
	})
	return client, err
}
