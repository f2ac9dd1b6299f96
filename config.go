package hiqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite/internal/identity"
	"github.com/hiqlite/hiqlite/internal/loopback"
	"github.com/hiqlite/hiqlite/internal/node"
)

// Defaults of a Config.
const (
	// DefaultTimeout bounds operations whose context has no deadline.
	DefaultTimeout = 30 * time.Second
	// DefaultMaxReaders bounds the SQLite connections of a node that read at
	// the same time.
	DefaultMaxReaders = 256
	// DefaultLeaseTTL is how long the write lease of an unreachable node keeps blocking
	// other writers.
	DefaultLeaseTTL = 5 * time.Second
	// DefaultBusyTimeout bounds the wait for other transactions. It is longer than
	// DefaultLeaseTTL and an election together, so that the loss of a node does not
	// make writes of other nodes fail.
	DefaultBusyTimeout = 10 * time.Second
	// DefaultMaxSteps bounds a write, in steps of SQLite's virtual machine, which
	// executes some 10 to 40 million per second. An UPDATE of a million rows takes 11
	// million steps, or 20 million if it changes an indexed column. A CREATE INDEX on a
	// million rows takes 9 million.
	DefaultMaxSteps = 200_000_000
	// DefaultTxTimeout bounds a transaction that has the write lease.
	DefaultTxTimeout = 60 * time.Second
)

// Consistency says what a read sees.
type Consistency int

const (
	// Local reads see what this node has applied: everything that was written through
	// it, and those writes of other nodes that have reached it.
	Local Consistency = iota
	// Linearizable reads see every write that any node acknowledged before they began.
	// They cost a round trip to the leader, and fail if there is no leader.
	Linearizable
)

// WithConsistency returns a context whose reads have this consistency. It takes
// precedence over that of the connection.
func WithConsistency(ctx context.Context, c Consistency) context.Context {
	return node.WithLinearizable(ctx, c == Linearizable)
}

// consistencyOf returns the consistency that WithConsistency has set, or otherwise.
func consistencyOf(ctx context.Context, otherwise Consistency) Consistency {
	linearizable, ok := node.Linearizable(ctx)
	switch {
	case !ok:
		return otherwise
	case linearizable:
		return Linearizable
	}
	return Local
}

func (c Consistency) String() string {
	if c == Linearizable {
		return "linearizable"
	}
	return "local"
}

// A Member is a node of the cluster in its configuration.
type Member struct {
	ID       uint64 // 1 to 2^32-1
	RaftAddr string // host:port on which it listens for the other nodes
	APIAddr  string // host:port on which it serves clients; not used yet
}

// A Secret is what the nodes of a cluster know and nobody else. However it is printed,
// logged or marshalled, the text is "[redacted]".
type Secret = identity.Secret

// NewSecret returns a secret of at least 16 bytes. White space around it does not count.
func NewSecret(text []byte) (Secret, error) {
	s, err := identity.NewSecret(text)
	if err != nil {
		err = fmt.Errorf("hiqlite: %w", err)
	}
	return s, err
}

// Config describes an embedded node. Only DataDir is required. A Config with nothing
// else makes a cluster of one node, which opens no network port.
type Config struct {
	// DataDir is the node's folder, which is created if it does not exist. It belongs to
	// one node of one cluster, and only one process at a time may use it.
	DataDir string
	// NodeID is the ID of this node in Nodes; 0: 1.
	NodeID uint64
	// Nodes lists all nodes of the cluster, including this one; empty: this node alone.
	// The list must be the same on all nodes. At the first start it decides which nodes
	// form the cluster. Later the addresses may change, but not the ids.
	Nodes []Member

	// ListenAddr is the host:port on which this node listens for the other nodes; "": its
	// RaftAddr in Nodes. It differs from RaftAddr if other nodes reach this one under
	// another address, for example behind NAT or in a container. The host may be empty or
	// 0.0.0.0 for all interfaces.
	ListenAddr string

	// SecretFile names a file with a secret that all nodes of the cluster hold, of at
	// least 16 bytes; white space around it does not count. From it come the keys by
	// which nodes recognise each other and encrypt their connections. A cluster with
	// addresses that are not loopback needs it, or certificates.
	SecretFile string
	// Secret is the secret itself, in place of SecretFile; see NewSecret.
	Secret Secret `json:"-"`
	// TLSCertFile, TLSKeyFile and TLSCAFile name the files, in PEM, of certificates that
	// replace the keys made from the secret: this node's certificate and its key, and
	// the certificates of the authority that signs for the nodes of this cluster, and
	// for nobody else: names are not checked. When the files change, new connections
	// use the new ones. Give all three or none.
	TLSCertFile, TLSKeyFile, TLSCAFile string
	// Insecure lets the nodes of a cluster with addresses that are not loopback talk
	// without encryption and authentication, if there is neither a secret nor a
	// certificate. Whoever can connect to a node can then read and change everything.
	Insecure bool

	// Timeout bounds operations whose context has no deadline; 0: 30 s.
	Timeout time.Duration
	// MaxReaders bounds the SQLite connections that read at the same time; 0: 256. Each
	// of them may use 2 MB. When all are in use, a query waits for one.
	MaxReaders int
	// MaxSteps bounds one write, or all writes of one transaction together, in steps of
	// SQLite's virtual machine; 0: 200 million, which take several seconds. Without a
	// bound, an endless statement would stop the cluster. Raise it for writes of tens of
	// millions of rows; see DefaultMaxSteps. A long write first runs with a lower bound,
	// and is undone and tried again with a higher one while its context lasts: see the
	// package comment.
	MaxSteps uint64
	// Tick is Raft's unit of time, in whole milliseconds; 0: 50 ms, or 20 ms for a
	// cluster of one node. The leader sends a heartbeat every second tick. An election
	// begins after 16 to 32 ticks without one. Tick must be the same on all nodes.
	Tick time.Duration
	// Timezone is the zone of SQL's 'localtime' and 'utc', under a name that
	// time.LoadLocation knows; "": the cluster's zone, whichever it is. The first node
	// with a Timezone sets the zone of the cluster, which is UTC before. The zone and its
	// rules cannot be changed afterwards, and are the same in all reads, writes and
	// transactions of all nodes. A node with another Timezone serves no SQL. For the zone
	// of time.Time values see ConnConfig.Location.
	Timezone string
	// LeaseTTL is how long the write lease of an unreachable node keeps blocking other
	// writers; at least 1 s; 0: 5 s. After that time the node's transaction expires, and
	// nothing of it is applied.
	LeaseTTL time.Duration
	// Migrations are applied before Ready returns; see Migrate.
	Migrations fs.FS `json:"-"`
	// Functions and Collations are added to those of SQLite; see Function.
	Functions  []Function  `json:"-"`
	Collations []Collation `json:"-"`
	// Logger gets the messages that cannot be returned as errors to a caller; nil:
	// slog.Default().
	Logger *slog.Logger `json:"-"`

	// Conn is the configuration of the connections of Node.DB.
	Conn ConnConfig

	hooks node.Hooks // for tests
}

// ConnConfig is the configuration of a connection: the parameters that
// modernc.org/sqlite reads from its DSN, with the same meaning, and those of hiqlite.
type ConnConfig struct {
	// Consistency is that of reads without WithConsistency.
	Consistency Consistency
	// BusyTimeout bounds the wait for other transactions, as PRAGMA busy_timeout does;
	// 0: 10 s.
	BusyTimeout time.Duration
	// Deferred makes transactions wait for the write lease when they first write, and not
	// when they begin. If rows have changed since the transaction's first read, its first
	// write fails with SQLITE_BUSY_SNAPSHOT.
	Deferred bool
	// TxTimeout bounds how long a transaction may hold the write lease; 0: 60 s. Without
	// a bound, a transaction that the program has forgotten would block all writers.
	TxTimeout time.Duration
	// TxTrace adds to the log line about a transaction that reached TxTimeout where in
	// the program it began. It costs each transaction some microseconds.
	TxTrace bool
	// ForeignKeysOff executes PRAGMA foreign_keys=OFF. The default is on, unlike SQLite's.
	ForeignKeysOff bool
	// QueryOnly executes PRAGMA query_only=ON, after Pragmas.
	QueryOnly bool
	// Pragmas, each "name=value" or "name(value)", are executed by each new connection.
	Pragmas []string

	// TimeFormat says how time.Time arguments are written as text:
	//
	//	""                     in UTC, as 2006-01-02 15:04:05.999999999+00:00, so that the
	//	                       order of the texts is the order of the times
	//	"sqlite"               the same layout, in the zone of the time
	//	"datetime"             the same without fraction and zone
	//	"string"               as time.Time.String does
	//	"string_no_monotonic"  the same without the monotonic clock
	TimeFormat string
	// TimeIntegerFormat makes time.Time arguments integers instead: "unix",
	// "unix_milli", "unix_micro" or "unix_nano".
	TimeIntegerFormat string
	// Location is the zone to which times are converted when they are read, and when they
	// are written with a TimeFormat other than ""; nil: they keep their own.
	Location *time.Location
	// IntToTime reads integers in columns of times (DATE, DATETIME, TIMESTAMP)
	// as times.
	IntToTime bool
	// TextToTime reads texts as times also in expressions, which have no declared type, if
	// they look like times.
	TextToTime bool

	// storageClasses returns cells as SQLite has them, without making times of texts.
	// A server sets it, because its clients convert the cells.
	storageClasses bool
}

// Validate returns an error with all faults of the Config, or nil. Open calls it.
func (c Config) Validate() error {
	c.setDefaults()
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("hiqlite: "+format, args...))
	}
	if c.DataDir == "" {
		fault("DataDir is empty: name the folder in which the node keeps its data")
	}
	ids, addresses := map[uint64]bool{}, map[string]uint64{}
	for _, m := range c.Nodes {
		if m.ID == 0 || m.ID > 1<<32-1 {
			fault("node id %d is not between 1 and 2^32-1", m.ID)
		}
		if ids[m.ID] {
			fault("node id %d is listed twice in the nodes", m.ID)
		}
		ids[m.ID] = true
		for _, a := range []struct{ what, address string }{{"Raft", m.RaftAddr}, {"API", m.APIAddr}} {
			if a.address == "" && (a.what == "API" || len(c.Nodes) == 1) {
				continue
			}
			if err := checkAddress(a.address); err != nil {
				fault("the %s address of node %d: %v", a.what, m.ID, err)
			} else if other, ok := addresses[a.address]; ok {
				fault("the address %s is listed twice in the nodes: for node %d and node %d", a.address, other, m.ID)
			}
			addresses[a.address] = m.ID
		}
	}
	if !ids[c.NodeID] {
		fault("node %d is not in the list of nodes %v", c.NodeID, memberIDs(c.Nodes))
	}
	if c.ListenAddr != "" {
		if _, port, err := net.SplitHostPort(c.ListenAddr); err != nil {
			fault("ListenAddr %q is not host:port", c.ListenAddr)
		} else if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
			fault("ListenAddr %q has no port between 1 and 65535", c.ListenAddr)
		}
	}
	if err := c.checkSecurity(); err != nil {
		faults = append(faults, err)
	}
	if c.Timeout < 0 {
		fault("Timeout %v is negative", c.Timeout)
	}
	if c.Timezone != "" {
		if _, err := node.LoadZone(c.Timezone); err != nil {
			fault("Timezone %q: %v", c.Timezone, err)
		}
	}
	if c.LeaseTTL < time.Second {
		fault("LeaseTTL %v is less than 1 s", c.LeaseTTL)
	}
	if c.MaxReaders < 0 {
		fault("MaxReaders %d is negative", c.MaxReaders)
	}
	if c.Tick < 0 || c.Tick%time.Millisecond != 0 {
		fault("Tick %v is not a whole number of milliseconds", c.Tick)
	}
	if _, err := c.functions(); err != nil {
		fault("%w", err)
	}
	if err := c.Conn.validate(); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// checkSecurity reports whether the nodes would talk in the clear without being told
// to.
func (c *Config) checkSecurity() error {
	files := 0
	for _, name := range []string{c.TLSCertFile, c.TLSKeyFile, c.TLSCAFile} {
		if name != "" {
			files++
		}
	}
	switch {
	case files != 0 && files != 3:
		return errors.New("hiqlite: certificates need all three of TLSCertFile, TLSKeyFile and TLSCAFile")
	case c.SecretFile != "" && c.Secret.Set():
		return errors.New("hiqlite: the secret is given twice, as Secret and as SecretFile")
	case files == 3 || c.Secret.Set() || c.SecretFile != "" || c.Insecure || len(c.Nodes) < 2:
		return nil
	}
	addresses := []string{}
	if c.ListenAddr != "" {
		addresses = append(addresses, c.ListenAddr)
	}
	for _, m := range c.Nodes {
		addresses = append(addresses, m.RaftAddr)
	}
	for _, address := range addresses {
		if !loopback.Is(address) {
			return fmt.Errorf("hiqlite: the nodes talk over a network (%s) and there is no secret: name a file with the same 16 bytes or more on all nodes as SecretFile (secret_file), or accept that everybody on the network can change the data with Insecure (insecure=true)", address)
		}
	}
	return nil
}

// validate sets defaults and returns an error with all faults.
func (c *Config) validate() error {
	c.setDefaults()
	return c.Validate()
}

func (c *Config) setDefaults() {
	if c.NodeID == 0 {
		c.NodeID = 1
	}
	if len(c.Nodes) == 0 {
		c.Nodes = []Member{{ID: c.NodeID}}
	}
	c.Nodes = slices.Clone(c.Nodes)
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.MaxReaders == 0 {
		c.MaxReaders = DefaultMaxReaders
	}
	if c.MaxSteps == 0 {
		c.MaxSteps = DefaultMaxSteps
	}
	if c.LeaseTTL == 0 {
		c.LeaseTTL = DefaultLeaseTTL
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
}

// options returns the options of the node's runtime. The Config is valid.
func (c *Config) options() (node.Options, error) {
	functions, err := c.functions()
	members := make([]node.Member, len(c.Nodes))
	for i, m := range c.Nodes {
		members[i] = node.Member{ID: m.ID, RaftAddr: m.RaftAddr}
	}
	return node.Options{
		DataDir: c.DataDir, ID: c.NodeID, Members: members, ListenAddr: c.ListenAddr,
		Secret: c.Secret, SecretFile: c.SecretFile, Certificates: identity.Files{Certificate: c.TLSCertFile, Key: c.TLSKeyFile, Authority: c.TLSCAFile},
		Timeout: c.Timeout, MaxReaders: c.MaxReaders, MaxSteps: c.MaxSteps, Tick: c.Tick,
		LeaseTTL: c.LeaseTTL, Timezone: c.Timezone, Functions: functions, Logger: c.Logger, Hooks: c.hooks,
	}, err
}

func memberIDs(members []Member) []uint64 {
	ids := make([]uint64, len(members))
	for i, m := range members {
		ids[i] = m.ID
	}
	slices.Sort(ids)
	return ids
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("%q is not host:port", address)
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
		return fmt.Errorf("%q has no port between 1 and 65535", address)
	}
	return nil
}

func (c *ConnConfig) validate() error {
	var faults []error
	if _, ok := timeFormats[c.TimeFormat]; !ok && c.TimeFormat != "" {
		faults = append(faults, unknownTimeFormat(c.TimeFormat))
	}
	if !slices.Contains([]string{"", "unix", "unix_milli", "unix_micro", "unix_nano"}, c.TimeIntegerFormat) {
		faults = append(faults, fmt.Errorf("hiqlite: unknown integer time format %q: use unix, unix_milli, unix_micro or unix_nano", c.TimeIntegerFormat))
	}
	if c.BusyTimeout < 0 {
		faults = append(faults, fmt.Errorf("hiqlite: the busy timeout %v is negative", c.BusyTimeout))
	}
	if c.TxTimeout < 0 {
		faults = append(faults, fmt.Errorf("hiqlite: the transaction timeout %v is negative", c.TxTimeout))
	}
	if c.Consistency != Local && c.Consistency != Linearizable {
		faults = append(faults, fmt.Errorf("hiqlite: unknown consistency %d", c.Consistency))
	}
	for _, p := range c.Pragmas {
		if strings.ContainsAny(p, ";\x00") {
			faults = append(faults, fmt.Errorf("hiqlite: pragma %q has more than one statement", p))
		}
	}
	return errors.Join(faults...)
}
