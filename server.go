package hiqlite

import (
	"context"
	"database/sql/driver"

	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// This file has what a server uses of a connection besides database/sql.

var (
	_ connapi.Connector = (*connector)(nil)
	_ clientConn        = (*conn)(nil)
)

// OpenConn opens a connection for a client of a server.
func (c *connector) OpenConn(ctx context.Context, cfg connapi.Config) (connapi.Conn, error) {
	own := serverConfig(cfg)
	if err := own.validate(); err != nil {
		return nil, err
	}
	if cfg.Restore != nil {
		own.Pragmas = nil
	}
	opened, err := connect(ctx, c.client, own)
	if err != nil {
		return nil, err
	}
	if s := cfg.Restore; s != nil {
		opened.settings, opened.pragmas = s.Settings&wire.KnownSettings, localPragmas(s.Pragmas)
		opened.restoreCounters(s.Counters)
	}
	return opened, nil
}

// Seen returns how far reads on the node see.
func (c *connector) Seen() wire.Seen { return c.client.node.Seen() }

// OpenSession opens a session for the origins of a remote client.
func (c *connector) OpenSession(ctx context.Context, shard string) (uint64, error) {
	return c.client.node.OpenSession(ctx, shard)
}

// CommitOutcome finds out what became of a commit of a remote client.
func (c *connector) CommitOutcome(ctx context.Context, origin wire.Origin) error {
	return sqlError(c.client.node.CommitOutcome(ctx, origin))
}

// Follow waits until reads on the node see at least that much.
func (c *connector) Follow(ctx context.Context, seen wire.Seen) error {
	return c.client.node.Follow(ctx, seen)
}

// State returns what a server keeps to restore the connection.
func (c *conn) State() connapi.State {
	return connapi.State{
		Settings: c.settings, Pragmas: c.pragmas, Counters: c.counters(),
		InTransaction: c.tx != nil, HasTemp: c.temp != nil,
	}
}

// Describe classifies a text.
func (c *conn) Describe(ctx context.Context, text string, local bool) (connapi.Description, error) {
	if err := c.checkUsable(ctx); err != nil {
		return connapi.Description{}, err
	}
	var class *sqlite.Class
	var err error
	if local {
		class, err = c.node.ClassifyNow(text, c.settings)
		if node.MayBeStale(err) {
			return connapi.Description{Missing: true}, nil
		}
		err = sqlError(err)
	} else {
		class, err = c.classify(ctx, text)
	}
	if err != nil {
		return connapi.Description{}, err
	}
	return connapi.Description{Kind: class.Kind, Control: class.Control, Script: class.Script}, nil
}

// Client returns the node of the connection.
func (c *conn) Client() Client { return c.client }

// connectorWith returns a connector to the same node.
func (c *conn) connectorWith(change func(*ConnConfig)) driver.Connector {
	cfg := c.cfg
	change(&cfg)
	return &connector{c.client, cfg}
}
