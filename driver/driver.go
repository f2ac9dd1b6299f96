// Package driver registers hiqlite with database/sql under the name "hiqlite".
//
//	import _ "github.com/hiqlite/hiqlite/driver"
//
//	db, err := sql.Open("hiqlite", "data")
//
// This is the manual of the data source name (DSN). A DSN is the path of the node's
// data folder. A '?' and keys with values can follow it:
//
//	PATH
//	PATH?key=value&key=value...
//	file:PATH?key=value&key=value...
//	env:
//	env:?key=value&key=value...
//
// Keys and values are escaped as in a URL, and so is a PATH after "file:". A PATH
// without keys is a cluster of one node, which opens no network port. This is the
// DSN of the first node of a cluster of three:
//
//	/var/lib/app?node_id=1&secret_file=/etc/app/secret&nodes=1=10.0.0.1:8200/8100,2=10.0.0.2:8200/8100,3=10.0.0.3:8200/8100
//
// The DSN env: takes everything that concerns the node from environment variables
// HQL_... and from the file hiqlite.toml in the working directory; see
// docs/configuration.md. Only keys of connections can follow it.
//
// Unknown keys are errors. So are contradictions: a key or its alias that is given
// twice with different values. All errors of a DSN are returned at once. Secrets do
// not belong in a DSN, because DSNs end up in logs.
//
// # Opening and closing
//
// [sql.Open] starts the node at once, so that the nodes of a cluster can find each
// other before the first query. If two calls of sql.Open in one process name the same
// folder, they share the node. Their keys of the node, listed below, must then be the
// same; their keys of connections may differ. The last [sql.DB.Close] stops the node:
// it transfers leadership to another node and waits for running statements.
//
// # Keys of the node
//
//   - node_id: the number of this node, 1 to 2^32-1. Default 1.
//   - nodes: all nodes of the cluster as id=host:raftport or
//     id=host:raftport/apiport, separated by commas, the same list on each node.
//     If the API has another host, write id=host:raftport/host:apiport. Put IPv6
//     addresses in brackets. Host names are resolved at each attempt to connect; a
//     node whose own name does not resolve yet listens as soon as it does.
//     Default: this node alone.
//   - listen: the host:port on which this node listens for the other nodes.
//     Default: its address in nodes. Behind NAT, or in a container, the address
//     that others connect to can be another one. listen=:8200 listens on all
//     interfaces.
//   - timeout: how long an operation may take if its context has no deadline, as a
//     Go duration. Default 30s.
//   - max_steps: how many steps of SQLite's virtual machine one write may take, or
//     all writes of a transaction together. Default 200000000, which is some
//     seconds: an UPDATE of a million rows takes 11 to 20 million.
//   - tick: Raft's unit of time, in whole milliseconds as a Go duration, the same on
//     all nodes. Default 50ms, or 20ms for a single node.
//   - timezone: the time zone of SQL's 'localtime' and 'utc', for example
//     Europe/Berlin. The first node that names a zone sets it for the whole
//     cluster, with its rules; all nodes must name the same one or none. Default:
//     the zone of the cluster, which is UTC until one is set. The zones of the
//     machines do not matter.
//   - lease_ttl: how long the write lease of an unreachable node keeps blocking
//     other writers, as a Go duration of at least 1s. Default 5s.
//   - durability: "always", the default, is the only level so far: a write returns
//     when a majority of the nodes has it on disk.
//   - secret_file: a file with a secret that all nodes hold, of at least 16 bytes,
//     such as the output of "openssl rand -base64 32". The nodes recognise each
//     other by it and encrypt their connections. A cluster with an address that is
//     not loopback needs it, unless it has certificates or insecure=true.
//   - tls_cert_file, tls_key_file, tls_ca_file: files of certificates, in PEM, that
//     take the place of the secret: the certificate of this node, its key, and the
//     authority that signs for the nodes of this cluster only. New connections use
//     files that have changed.
//   - insecure: with true, the nodes talk over a network without a secret: whoever
//     can connect to a node can read and change everything. Default false.
//
// # Remote databases
//
//	hiqlite://host:port,host:port?key=value...
//
// names the API of one or more nodes, or of proxies. The program then runs no node. It
// learns the other nodes from those named, follows the leader, and goes on with another
// node when one is lost. It takes the keys of connections, and these:
//
//   - secret_file: a file with the secret of the API. Required unless all addresses
//     are loopback, or insecure is set.
//   - tls_ca_file: the certificates of the authority that has signed those of the
//     servers, in PEM. Default: servers are recognised by the secret. Connections
//     are encrypted if there is a secret or this is set.
//   - insecure: if true, connections are not encrypted, wherever they lead.
//   - timeout: how long an operation may take if its context has no deadline, as a
//     Go duration. Default 30s.
//   - reconnect_timeout: how long nodes are tried until one can be reached. Default 10s.
//
// # Keys of connections
//
// The keys that modernc.org/sqlite knows have the same meaning here. _foreign_keys and
// _query_only take 0, 1, false, true, no, yes, off or on; other switches take what
// [strconv.ParseBool] takes. A key with an empty value is ignored.
//
// Texts in columns that are declared as DATE, DATETIME, TIMESTAMP or TIMESTAMPTZ are
// returned as [time.Time], also if the declaration has a precision, WITH TIME ZONE or
// WITHOUT TIME ZONE. All forms that SQLite and its drivers write are read, with and
// without a zone. The keys that concern times refine this.
//
//   - consistency: "local" (default) or "linearizable" reads. See
//     hiqlite.Consistency and hiqlite.WithConsistency.
//   - _foreign_keys, _fk: PRAGMA foreign_keys. Default on.
//   - _query_only: PRAGMA query_only.
//   - _busy_timeout, _timeout: PRAGMA busy_timeout: how many milliseconds to wait
//     for the transactions of others before SQLITE_BUSY. Default 10000.
//   - _journal_mode, _journal: DELETE, TRUNCATE, PERSIST, MEMORY, WAL or OFF.
//     Without effect, like the next two and their PRAGMAs: the cluster decides
//     about durability.
//   - _synchronous, _sync: 0, OFF, 1, NORMAL, 2, FULL, 3 or EXTRA. Without effect.
//   - _auto_vacuum, _vacuum: 0, NONE, 1, FULL, 2 or INCREMENTAL. Without effect.
//   - _pragma: a PRAGMA that each new connection runs, as name(value) or
//     name=value. The key may be given several times. A PRAGMA that writes, such as
//     user_version, is a write of each new connection. These PRAGMAs run before
//     those of the other keys, which therefore win; only busy_timeout runs first.
//   - _time_format: the text that a [time.Time] is stored as.
//     By default it is in UTC, as 2006-01-02 15:04:05.999999999+00:00: the texts
//     sort like the times, whatever their zones, and SQLite's date functions read
//     them. Years before 0 and after 9999 are errors.
//     sqlite: the same form in the time's own zone, as mattn/go-sqlite3 writes it.
//     datetime: without fraction and zone.
//     string: the result of [time.Time.String], modernc.org/sqlite's default.
//     string_no_monotonic: like string, without the monotonic clock reading.
//   - _time_integer_format: stores a [time.Time] as an integer instead: unix,
//     unix_milli, unix_micro or unix_nano.
//   - _timezone: a zone as [time.LoadLocation] knows it. Times that are read are
//     returned in it, texts without a zone are taken to be in it, and a
//     _time_format other than the default writes times in it. Default: UTC, or the
//     zone that a text names. The key timezone is another one: it concerns SQL.
//   - _inttotime: returns integers in columns of times as [time.Time].
//   - _texttotime: returns texts that look like times as [time.Time] also if they
//     come from an expression for which SQLite has no declared type, such as
//     max(begins) and datetime('now'). The scan type of texts in columns of times,
//     and in TIME columns, is then [time.Time].
//   - _txlock: when a transaction waits for the write lease. immediate (default) or
//     exclusive: when it begins. deferred: at its first write, which fails with
//     SQLITE_BUSY_SNAPSHOT if rows have changed since its first read. It also
//     applies to the statement BEGIN, but not to BEGIN IMMEDIATE.
//   - tx_timeout: ends a transaction that has had the write lease for so long, as a
//     Go duration. Default 60s.
//   - tx_trace: adds the place in the program where such a transaction began to the
//     line that is logged about it.
//   - _error_rc: accepted without effect: error messages are always SQLite's own.
//   - _defensive: accepted without effect: connections are always defensive.
//   - _dqs: only true, the default: all replicas must read double-quoted texts the
//     same way.
//   - mode, cache, immutable, nolock, psow: only with the value that is the default:
//     mode=rwc, cache=private, immutable=0, nolock=0 and any psow.
//   - vfs, modeof: refused, because a node manages its files itself.
package driver

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"strings"
	"sync"

	"github.com/hiqlite/hiqlite"
)

func init() { sql.Register("hiqlite", Driver{}) }

// Driver opens databases by their DSN, which the package documentation describes.
type Driver struct{}

var (
	_ driver.Driver        = Driver{}
	_ driver.DriverContext = Driver{}
	_ driver.Connector     = (*connector)(nil)
	_ io.Closer            = (*connector)(nil)
	_ fullConn             = (*connWithNode)(nil)
)

// OpenConnector starts the node that name describes, or shares it if this process
// runs it already. For a remote database it makes a client. The caller has to close the connector, as sql.DB.Close does.
func (d Driver) OpenConnector(name string) (driver.Connector, error) {
	if strings.HasPrefix(name, remoteScheme) {
		return openRemote(name)
	}
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
	return &connector{inner: inner, release: shared.release}, nil
}

// openRemote returns a connector to a remote database. It connects to no node yet.
func openRemote(name string) (driver.Connector, error) {
	cfg, err := parseRemote(name)
	if err != nil {
		return nil, err
	}
	remote, err := hiqlite.NewRemote(*cfg)
	if err != nil {
		return nil, err
	}
	return &connector{inner: remote.Connector(), release: remote.Close}, nil
}

// Open opens a single connection. The node runs until the connection is closed.
// database/sql uses OpenConnector instead.
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
	return &connWithNode{conn.(fullConn), c.(*connector)}, nil
}

// A connector opens the connections of one sql.DB, and keeps its node running.
type connector struct {
	inner   driver.Connector
	release func() error // of the node, which stops if no other connector uses it; or of the remote database
	close   sync.Once
	err     error
}

func (c *connector) Connect(ctx context.Context) (driver.Conn, error) { return c.inner.Connect(ctx) }
func (c *connector) Driver() driver.Driver                            { return Driver{} }

// Close releases the node or the remote database.
func (c *connector) Close() error {
	c.close.Do(func() { c.err = c.release() })
	return c.err
}

// fullConn has the interfaces that hiqlite's connections implement.
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

// connWithNode is a connection that was opened without a sql.DB. It closes its
// connector with itself.
type connWithNode struct {
	fullConn
	connector *connector
}

// Raw returns the wrapped connection.
func (c *connWithNode) Raw() driver.Conn { return c.fullConn }

// Close closes the connection and releases the node.
func (c *connWithNode) Close() error {
	err := c.fullConn.Close()
	if closeErr := c.connector.Close(); err == nil {
		err = closeErr
	}
	return err
}
