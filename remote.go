package hiqlite

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/identity"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/remote"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// DefaultReconnectTimeout is how long a remote client looks for a node that it can
// reach. The election after the loss of a leader takes 0.8 to 1.6 s.
const DefaultReconnectTimeout = 10 * time.Second

// RemoteConfig describes a remote database. Only Addresses is required.
type RemoteConfig struct {
	// Addresses are host:port of the API of at least one node, or of a proxy. The other
	// nodes are learned from it.
	Addresses []string
	// SecretFile names a file with the secret of the API, and Secret is the secret
	// itself. Without both, the servers must have none.
	SecretFile string
	Secret     Secret `json:"-"`
	// TLS is how the connections are encrypted. If it is nil, they are encrypted if
	// there is a secret or TLSCAFile is set: servers are recognised by TLSCAFile, a file
	// in PEM with the certificates of the authority that has signed theirs, or else by
	// the secret.
	TLS       *tls.Config `json:"-"`
	TLSCAFile string
	// Insecure says that the connections are not encrypted, wherever they lead.
	Insecure bool
	// Timeout bounds operations whose context has no deadline; 0: 30 s. A server bounds
	// them by its own Config.Timeout, too.
	Timeout time.Duration
	// ReconnectTimeout is how long nodes are tried until one can be reached; 0: 10 s.
	ReconnectTimeout time.Duration
	// Logger gets the messages that cannot be returned as errors to a caller; nil:
	// slog.Default().
	Logger *slog.Logger `json:"-"`
	// Conn is the configuration of the connections of Remote.DB.
	Conn ConnConfig
}

// Validate returns an error with all faults of the RemoteConfig, or nil. Dial calls it.
func (c RemoteConfig) Validate() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("hiqlite: "+format, args...))
	}
	if len(c.Addresses) == 0 {
		fault("Addresses is empty: name the API of at least one node, as host:port")
	}
	for _, a := range c.Addresses {
		if err := checkAddress(a); err != nil {
			fault("the address %w", err)
		}
	}
	if c.Secret.Set() && c.SecretFile != "" {
		fault("the secret is given twice, as Secret and as SecretFile")
	}
	if c.Insecure && (c.TLS != nil || c.TLSCAFile != "") {
		fault("Insecure contradicts TLS and TLSCAFile")
	}
	if !c.Secret.Set() && c.SecretFile == "" && c.TLS == nil && c.TLSCAFile == "" && !c.Insecure && !c.onLoopback() {
		fault("the addresses %v are not loopback, and there is no secret by which to recognise the servers: name the secret of the API as SecretFile (secret_file)", c.Addresses)
	}
	if c.Timeout < 0 {
		fault("Timeout %v is negative", c.Timeout)
	}
	if c.ReconnectTimeout < 0 {
		fault("ReconnectTimeout %v is negative", c.ReconnectTimeout)
	}
	if err := c.Conn.validate(); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// onLoopback reports whether all addresses are on this machine.
func (c *RemoteConfig) onLoopback() bool {
	return !slices.ContainsFunc(c.Addresses, func(a string) bool { return !loopback.Is(a) })
}

// encryption returns the configuration of TLS, or nil.
func (c *RemoteConfig) encryption() (*tls.Config, error) {
	switch {
	case c.TLS != nil:
		return c.TLS, nil
	case c.TLSCAFile != "":
		authority, err := os.ReadFile(c.TLSCAFile)
		if err != nil {
			return nil, fmt.Errorf("hiqlite: the certificates of the authority: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(authority) {
			return nil, fmt.Errorf("hiqlite: %s holds no certificate in PEM", c.TLSCAFile)
		}
		return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}, nil
	case c.Insecure || !c.Secret.Set(): // without a secret, all addresses are loopback
		return nil, nil
	}
	return protocol.ClientTLS(c.Secret)
}

// A Remote is a database that is reached through the API of its nodes, or through a
// proxy. It holds no data.
type Remote struct {
	cfg    RemoteConfig
	client *remote.Client
	shards *remote.Shards
	db     *sql.DB

	logLeftOpen sync.Once // logs only the first connection that was returned to its pool inside a transaction
	closeOnce   sync.Once
	closeErr    error
}

var _ Client = (*Remote)(nil)

// Dial connects to a remote database, and learns its nodes. It fails if none of them
// can be reached within RemoteConfig.ReconnectTimeout. Later, lost connections are
// made again when they are needed. The caller must Close the Remote.
func Dial(ctx context.Context, cfg RemoteConfig) (*Remote, error) {
	r, err := NewRemote(cfg)
	if err != nil {
		return nil, err
	}
	if _, err := r.client.Status(ctx); err != nil {
		return nil, errors.Join(remoteError(err), r.Close())
	}
	return r, nil
}

// NewRemote is like Dial, and connects only when the database is used.
func NewRemote(cfg RemoteConfig) (*Remote, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.SecretFile != "" {
		var err error
		if cfg.Secret, _, err = identity.ReadSecret(cfg.SecretFile); err != nil {
			return nil, err
		}
	}
	encryption, err := cfg.encryption()
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.Addresses = slices.Clone(cfg.Addresses)
	client := remote.New(remote.Options{
		Addresses: cfg.Addresses, Secret: cfg.Secret.Text(), TLS: encryption, Timeout: cmp.Or(cfg.Timeout, DefaultTimeout),
		ReconnectTimeout: cmp.Or(cfg.ReconnectTimeout, DefaultReconnectTimeout),
	})
	r := &Remote{cfg: cfg, client: client, shards: remote.NewShards(client)}
	r.db = sql.OpenDB(r.Connector())
	return r, nil
}

// DB returns the database. It is closed with the Remote.
func (r *Remote) DB() *sql.DB { return r.db }

// Connector returns a connector to the database, for sql.OpenDB. Its connections have
// the configuration RemoteConfig.Conn.
func (r *Remote) Connector() driver.Connector { return &remoteConnector{r, r.cfg.Conn} }

// ConnectorWith returns a connector whose connections have the configuration c. It
// fails if c is not valid.
func (r *Remote) ConnectorWith(c ConnConfig) (driver.Connector, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	return &remoteConnector{r, c}, nil
}

// Close closes the database and all connections: open transactions are rolled back,
// and locks are released. It may be called more than once.
func (r *Remote) Close() error {
	r.closeOnce.Do(func() {
		r.shards.Close()
		r.closeErr = r.db.Close()
		r.client.Close()
	})
	return r.closeErr
}

// Ready returns once the leader, or a node that can be reached, is ready; see
// Node.Ready.
func (r *Remote) Ready(ctx context.Context) error { return remoteError(r.client.Ready(ctx)) }

// Status returns the state of the leader, or of a node that can be reached.
func (r *Remote) Status(ctx context.Context) (Status, error) {
	in, err := r.client.Status(ctx)
	if err != nil {
		return Status{}, remoteError(err)
	}
	s := Status{NodeID: in.NodeId, Leader: in.Leader, Term: in.Term, Applied: in.Applied, Commit: in.Commit, DatabaseBytes: in.DatabaseBytes, WALBytes: in.WalBytes}
	for _, m := range in.Members {
		s.Members = append(s.Members, Member{ID: m.Id, RaftAddr: m.RaftAddr, APIAddr: m.ApiAddr})
	}
	for _, x := range in.Shards {
		s.Shards = append(s.Shards, ShardStatus{Name: x.Name, Leader: x.Leader, Term: x.Term, Applied: x.Applied, Error: x.Error})
	}
	return s, nil
}

// Hash returns the hash of the leader's database, or of that of a node that can be
// reached; see Node.Hash.
func (r *Remote) Hash(ctx context.Context) (hash [32]byte, index uint64, err error) {
	out, err := r.client.Hash(ctx)
	if err != nil {
		return hash, 0, remoteError(err)
	}
	copy(hash[:], out.Hash)
	return hash, out.Index, nil
}

// InMemoryShards is for the packages kv, lock and pubsub.
func (r *Remote) InMemoryShards() shardapi.Shards { return r.shards.All() }

// remoteConnector opens connections to a remote database.
type remoteConnector struct {
	client *Remote
	cfg    ConnConfig
}

var _ connapi.Connector = (*remoteConnector)(nil)

func (c *remoteConnector) Connect(ctx context.Context) (driver.Conn, error) {
	opened, err := dialConn(ctx, c.client, c.cfg, nil)
	if err != nil {
		return nil, err
	}
	return opened, nil
}

func (c *remoteConnector) Driver() driver.Driver { return remoteDriver{c.client} }

// OpenConn opens a connection for a client of a proxy.
func (c *remoteConnector) OpenConn(ctx context.Context, cfg connapi.Config) (connapi.Conn, error) {
	opened, err := dialConn(ctx, c.client, serverConfig(cfg), cfg.Restore)
	if err != nil {
		return nil, err
	}
	return opened, nil
}

// Seen returns how far the client has seen.
func (c *remoteConnector) Seen() wire.Seen { return c.client.client.Seen() }

// OpenSession opens a session for the origins of a proxy's client.
func (c *remoteConnector) OpenSession(ctx context.Context, shard string) (uint64, error) {
	id, err := c.client.client.OpenOrigins(ctx, shard)
	return id, remoteError(err)
}

// CommitOutcome finds out what became of a commit of a proxy's client.
func (c *remoteConnector) CommitOutcome(ctx context.Context, origin wire.Origin) error {
	return remoteError(c.client.client.CommitOutcome(ctx, origin))
}

// Follow makes the nodes that the client uses see at least that much.
func (c *remoteConnector) Follow(_ context.Context, seen wire.Seen) error {
	c.client.client.RecordSeen(seen)
	return nil
}

// remoteDriver is what sql.DB.Driver returns for a Remote.
type remoteDriver struct{ client *Remote }

func (d remoteDriver) Open(string) (driver.Conn, error) {
	return d.client.Connector().Connect(context.Background())
}

// apiConfig returns what the server has to know of a connection's configuration.
func (c *ConnConfig) apiConfig() connapi.Config {
	return connapi.Config{
		Linearizable: c.Consistency == Linearizable, BusyTimeout: c.BusyTimeout, Deferred: c.Deferred, TxTimeout: c.TxTimeout,
		ForeignKeysOff: c.ForeignKeysOff, QueryOnly: c.QueryOnly, Pragmas: c.Pragmas,
	}
}

// serverConfig is the reverse of apiConfig, on a server.
func serverConfig(cfg connapi.Config) ConnConfig {
	own := ConnConfig{
		BusyTimeout: cfg.BusyTimeout, Deferred: cfg.Deferred, TxTimeout: cfg.TxTimeout,
		ForeignKeysOff: cfg.ForeignKeysOff, QueryOnly: cfg.QueryOnly, Pragmas: cfg.Pragmas,
		storageClasses: true,
	}
	if cfg.Linearizable {
		own.Consistency = Linearizable
	}
	return own
}
