// Package driver registers hiqlite with database/sql, under the name "hiqlite".
//
//	import _ "github.com/hiqlite/hiqlite/driver"
//
//	db, err := sql.Open("hiqlite", "data")
//
// The data source name (DSN) names the node's data folder, behind a '?' what
// else is to be said, joined by '&':
//
//	PATH?key=value&key=value...
//	file:PATH?key=value&key=value...
//
// Keys and values are escaped as in a URL; so is a PATH behind "file:". PATH
// alone is a cluster of one node that opens no network port. A node of three:
//
//	/var/lib/app?node_id=1&nodes=1=10.0.0.1:8200/8100,2=10.0.0.2:8200/8100,3=10.0.0.3:8200/8100
//
// Unknown keys and contradictions (a key twice with different values, a key and
// its alias with different values) are errors, and all errors of a DSN are
// reported at once. Secrets never stand in a DSN: DSNs end up in logs.
//
// # Opening and closing
//
// [sql.Open] starts the node, so that the nodes of a cluster find each other
// before the first query. Two sql.Open of the same folder in one process share
// the node; what they say about the node must be the same, what they say about
// connections may differ. The last [sql.DB.Close] stops the node: it hands
// leadership over and waits for what runs.
//
// # The node
//
//   - node_id: this node's number, 1 to 2^32-1. Default 1.
//   - nodes: all nodes of the cluster, the same list on each of them:
//     id=host:raftport or id=host:raftport/apiport, joined by commas. The API
//     may be on a host of its own, id=host:raftport/host:apiport. IPv6
//     addresses stand in brackets. Names are looked up at each attempt to
//     connect; a node whose own name does not resolve yet listens once it does.
//     Default: this node alone.
//   - listen: host:port on which this node listens for the others, if that is not
//     its own address in nodes: behind NAT, or in a container, others may reach it
//     under another one. listen=:8200 listens on all interfaces.
//   - timeout: how long an operation may take whose context has no deadline, as
//     a Go duration. Default 30s.
//   - max_steps: how many steps of SQLite's virtual machine one write, or all of a
//     transaction's, may take. Default 200000000, some seconds: an UPDATE of a
//     million rows takes 11 to 20 million.
//   - tick: Raft's unit of time, whole milliseconds as a Go duration, the same on
//     all nodes. Default 50ms, 20ms for a node alone.
//   - timezone: the zone of SQL's 'localtime' and 'utc', as in Europe/Berlin, the
//     same on all nodes. It is set once for the cluster, with its rules. Default:
//     what the cluster has, UTC at first, whatever the machines' zones.
//   - lease_ttl: when a transaction of a node that is not heard of any more stops
//     being in the way of others, as a Go duration from 1s on. Default 5s.
//   - durability: "always", which is the default and as yet the only level: a
//     write returns when a majority has it on disk.
//   - secret_file: refused as yet. Encrypted transport comes with a later
//     version; until then the nodes' network has to be a private one.
//
// # Connections
//
// The keys that modernc.org/sqlite reads mean the same here. _foreign_keys and
// _query_only take 0 1 false true no yes off on, other switches what
// [strconv.ParseBool] takes. An empty value is as good as none.
//
// Texts in columns of times are times: in those declared as DATE, DATETIME,
// TIMESTAMP or TIMESTAMPTZ, with a precision or not, WITH TIME ZONE or WITHOUT. All
// forms are read that SQLite and its drivers write, with and without a zone.
//
//   - consistency: "local" (default) or "linearizable" reads. See
//     hiqlite.Consistency and hiqlite.WithConsistency.
//   - _foreign_keys, _fk: PRAGMA foreign_keys, on unless switched off.
//   - _query_only: PRAGMA query_only.
//   - _busy_timeout, _timeout: PRAGMA busy_timeout, in milliseconds: how long to
//     wait for transactions of others before SQLITE_BUSY. Default 10000.
//   - _journal_mode, _journal: DELETE TRUNCATE PERSIST MEMORY WAL OFF.
//   - _synchronous, _sync: 0 OFF 1 NORMAL 2 FULL 3 EXTRA.
//   - _auto_vacuum, _vacuum: 0 NONE 1 FULL 2 INCREMENTAL. Like the two above it
//     has no effect, as its PRAGMA has none: durability is the cluster's.
//   - _pragma: a PRAGMA for each new connection, name(value) or name=value; may
//     stand several times. One that writes, such as user_version, is written by
//     each connection. They run before the PRAGMAs of the keys above, which
//     therefore win, and after busy_timeout.
//   - _time_format: how a [time.Time] becomes text. Default: in UTC, as
//     2006-01-02 15:04:05.999999999+00:00, so that texts have the order of the
//     times, whatever their zones, and SQLite's date functions read them; years
//     before 0 and after 9999 are errors. sqlite: the same in the time's own
//     zone, as mattn/go-sqlite3 has it. datetime: without fraction and zone.
//     string: as [time.Time.String] has it, modernc.org/sqlite's default.
//     string_no_monotonic: that without what it says of the monotonic clock.
//   - _time_integer_format: how it becomes an integer instead: unix, unix_milli,
//     unix_micro or unix_nano.
//   - _timezone: the zone of times that are read, and of those that another
//     _time_format writes, as [time.LoadLocation] knows it; texts without a zone
//     are in it. Default: UTC, or the zone that a text names. See timezone.
//   - _inttotime: integers in columns of times are times.
//   - _texttotime: texts of expressions that look like times are times, as those
//     of max(begins) and datetime('now'), for which SQLite names no declared
//     type; and the scan type of texts in columns of times, and in TIME columns,
//     is [time.Time].
//   - _txlock: immediate (default) or exclusive: a transaction waits for the
//     write lease when it begins; or deferred: when it first writes, which fails
//     with SQLITE_BUSY_SNAPSHOT if rows have changed since its first read. BEGIN
//     as a text follows it too; BEGIN IMMEDIATE does not.
//   - tx_timeout: ends a transaction that has the write lease for longer, as a
//     Go duration. Default 60s.
//   - tx_trace: makes the log line about such a transaction name the place in
//     the program where it began.
//   - _error_rc: accepted, without effect: messages are always SQLite's own.
//   - _defensive: accepted, without effect: connections are always defensive.
//   - _dqs: only true, the default: replicas read double-quoted texts alike.
//   - mode, cache, immutable, nolock, psow: only what they are without being
//     said, mode=rwc, cache=private, immutable=0, nolock=0 and any psow.
//   - vfs, modeof: refused; a node keeps its files itself.
package driver

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"sync"
)

func init() { sql.Register("hiqlite", Driver{}) }

// Driver opens databases by their data source name. See the package's
// documentation for what that may say.
type Driver struct{}

var (
	_ driver.Driver        = Driver{}
	_ driver.DriverContext = Driver{}
	_ driver.Connector     = (*connector)(nil)
	_ io.Closer            = (*connector)(nil)
	_ fullConn             = (*lastConn)(nil)
)

// OpenConnector starts the node that name describes, or joins those in this
// process who have. The connector has to be closed, as sql.DB.Close does.
func (d Driver) OpenConnector(name string) (driver.Connector, error) {
	source, err := parse(name)
	if err != nil {
		return nil, err
	}
	shared, err := acquire(source.node)
	if err != nil {
		return nil, err
	}
	inner, err := shared.node.ConnectorWith(source.conn)
	if err != nil {
		shared.release()
		return nil, err
	}
	return &connector{inner: inner, shared: shared}, nil
}

// Open opens a single connection, which keeps the node running until it is
// closed. database/sql uses OpenConnector instead.
func (d Driver) Open(name string) (driver.Conn, error) {
	c, err := d.OpenConnector(name)
	if err != nil {
		return nil, err
	}
	conn, err := c.Connect(context.Background())
	if err != nil {
		c.(*connector).Close()
		return nil, err
	}
	return &lastConn{conn.(fullConn), c.(*connector)}, nil
}

// A connector is what stands behind one sql.DB.
type connector struct {
	inner  driver.Connector
	shared *sharedNode
	close  sync.Once
	err    error
}

func (c *connector) Connect(ctx context.Context) (driver.Conn, error) { return c.inner.Connect(ctx) }
func (c *connector) Driver() driver.Driver                            { return Driver{} }

// Close lets go of the node, and stops it if no other connector uses it.
func (c *connector) Close() error {
	c.close.Do(func() { c.err = c.shared.release() })
	return c.err
}

// fullConn is what a connection of hiqlite's can do.
type fullConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

// lastConn is a connection that closes its connector.
type lastConn struct {
	fullConn
	connector *connector
}

// Raw returns the connection itself.
func (c *lastConn) Raw() driver.Conn { return c.fullConn }

// Close closes the connection and lets go of the node.
func (c *lastConn) Close() error {
	err := c.fullConn.Close()
	if closing := c.connector.Close(); err == nil {
		err = closing
	}
	return err
}
