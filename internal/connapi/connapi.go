// Package connapi has the interfaces through which a server uses connections of a
// node, and a proxy those of a remote database. The connections are those of the
// driver, so that what a remote client gets is what an embedded one gets.
package connapi

import (
	"context"
	"database/sql/driver"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// Config is the part of a connection's configuration that concerns the side that
// executes statements. How Go values are converted concerns the side of the program.
type Config struct {
	Linearizable   bool // of reads whose context does not say otherwise
	BusyTimeout    time.Duration
	Deferred       bool
	TxTimeout      time.Duration
	ForeignKeysOff bool
	QueryOnly      bool
	Pragmas        []string
	Restore        *State // replaces Pragmas and the two fields before it
}

// State is what a connection keeps from one statement to the next.
type State struct {
	Settings wire.Settings
	Pragmas  map[string]int64 // those that only the connection keeps
	Counters wire.ConnState

	InTransaction bool
	HasTemp       bool
}

// A Connector opens connections. The connectors of a node and of a remote database
// implement it.
type Connector interface {
	// OpenConn opens a connection whose rows have SQLite's storage classes: the
	// values are nil, int64, float64, string and []byte.
	OpenConn(ctx context.Context, cfg Config) (Conn, error)
	// Seen returns how far reads see.
	Seen() wire.Seen
	// OpenSession opens a session for the origins of a client, in the shard of this
	// name: sql, kv, lock or pubsub.
	OpenSession(ctx context.Context, shard string) (uint64, error)
	// CommitOutcome finds out what became of a commit with an origin; see
	// node.CommitOutcome.
	CommitOutcome(ctx context.Context, origin wire.Origin) error
	// Follow waits until reads see at least that much.
	Follow(ctx context.Context, seen wire.Seen) error
}

// A Conn is a connection. It is used from one goroutine at a time. Its rows implement
// driver.RowsColumnTypeDatabaseTypeName, and driver.RowsNextResultSet if there may be
// several result sets. Arguments have the types of the values of rows.
type Conn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	// State returns the connection's state. The map must not be changed.
	State() State
	// SetOrigin makes the next write or commit one of a remote client; nil: of this
	// side.
	SetOrigin(origin *wire.Origin)
	// FailedOnReplicas reports whether the error of a write, since SetOrigin was called,
	// is its result on the replicas, which copies of the write get too.
	FailedOnReplicas() bool
	// Batch runs statements as one atomic write.
	Batch(ctx context.Context, stmts []Statement) ([]driver.Result, error)
	// Describe classifies a text, which finds its syntax errors. With local it does
	// not ask other nodes whether something exists that this node does not know.
	Describe(ctx context.Context, text string, local bool) (Description, error)
}

// A Statement is a statement of a batch.
type Statement struct {
	SQL  string
	Args []driver.NamedValue
}

// A Description says what a text does.
type Description struct {
	Kind    sqlite.Kind
	Control string // of Kind Transaction: BEGIN, COMMIT, ...
	Script  bool   // there are several statements
	// Missing says that the text names something that does not exist, and that Kind is
	// therefore not known.
	Missing bool
}

type notDeferredKey struct{}

// WithoutDeferring returns a context whose transactions ask for the write lease when
// they begin, whatever Config.Deferred says.
func WithoutDeferring(ctx context.Context) context.Context {
	return context.WithValue(ctx, notDeferredKey{}, true)
}

// NotDeferred reports whether WithoutDeferring made ctx.
func NotDeferred(ctx context.Context) bool { return ctx.Value(notDeferredKey{}) != nil }
