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

	"github.com/hiqlite/hiqlite/internal/node"
)

// Defaults of a Config.
const (
	// DefaultTimeout bounds operations whose context has no deadline.
	DefaultTimeout = 30 * time.Second
	// DefaultMaxReaders bounds the SQLite connections of a node that read at
	// the same time.
	DefaultMaxReaders = 256
	// DefaultLeaseTTL is when a dead node's transaction stops being in the way.
	DefaultLeaseTTL = 5 * time.Second
	// DefaultBusyTimeout bounds the wait for other transactions: it is longer
	// than a dead one can last, with an election beside.
	DefaultBusyTimeout = 10 * time.Second
	// DefaultMaxSteps bounds a write, in steps of SQLite's virtual machine, of
	// which a second has some 10 to 40 million. An UPDATE of a million rows takes
	// 11 million, with an index on what it changes 20 million, a CREATE INDEX on
	// as many rows 9 million.
	DefaultMaxSteps = 200_000_000
	// DefaultTxTimeout bounds a transaction that has the write lease.
	DefaultTxTimeout = 60 * time.Second
)

// Consistency says what a read sees.
type Consistency int

const (
	// Local reads see what this node has applied: everything that was written
	// through it, and of other nodes' writes what has arrived.
	Local Consistency = iota
	// Linearizable reads see every write acknowledged anywhere before they
	// began. They cost a round trip to the leader and fail without one.
	Linearizable
)

// WithConsistency returns a context whose reads have this consistency, whatever
// their connection was opened with.
func WithConsistency(ctx context.Context, c Consistency) context.Context {
	return node.WithLinearizable(ctx, c == Linearizable)
}

// consistencyOf returns what WithConsistency has set, or other.
func consistencyOf(ctx context.Context, other Consistency) Consistency {
	linearizable, ok := node.Linearizable(ctx)
	switch {
	case !ok:
		return other
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

// A Member is a node of the cluster, as its configuration names it.
type Member struct {
	ID       uint64 // 1 to 2^32-1
	RaftAddr string // host:port on which it listens for the other nodes
	APIAddr  string // host:port on which it serves clients; unused as yet
}

// Config describes an embedded node. Only DataDir is required: it alone makes a
// cluster of one node that opens no network port.
type Config struct {
	// DataDir is the node's folder, created if missing. It belongs to one node
	// of one cluster and to one process at a time.
	DataDir string
	// NodeID is this node's place in Nodes; 0: 1.
	NodeID uint64
	// Nodes lists all nodes of the cluster, the same on each of them, this one
	// included; empty: this node alone. It decides who forms the cluster at the
	// first start. Later on addresses may change, ids may not.
	Nodes []Member

	// ListenAddr is the host:port on which this node listens for the others, if
	// that is not its RaftAddr in Nodes: behind NAT, or in a container, others may
	// reach it under another address. The host may be empty or 0.0.0.0 for all
	// interfaces.
	ListenAddr string

	// Timeout bounds operations whose context has no deadline; 0: 30 s.
	Timeout time.Duration
	// MaxReaders bounds the SQLite connections that read at the same time, each
	// of which may hold 2 MB; 0: 256. A query more waits for one.
	MaxReaders int
	// MaxSteps bounds, in SQLite's virtual machine steps, what one write, or all
	// writes of one transaction, may do, so that an endless statement does not
	// stop the cluster; 0: 200 million, which takes some seconds: see
	// DefaultMaxSteps. Raise it for writes of tens of millions of rows. A write
	// that runs for long is undone and tried again with a higher bound as long as
	// its context lasts, see the package comment.
	MaxSteps uint64
	// Tick is Raft's unit of time, whole milliseconds: heartbeats come every
	// second one, an election after 20 to 40 without. The same on all nodes;
	// 0: 50 ms, or 20 ms for a node alone.
	Tick time.Duration
	// Timezone is the zone of SQL's 'localtime' and 'utc', as time.LoadLocation
	// knows it; "": the cluster's, which is UTC until a node with a Timezone has
	// set it. It is set once, with the rules that it has then, and is the same in
	// reads, writes and transactions of all nodes; a node with another one
	// answers no SQL. What time.Time arguments are is ConnConfig.Location's.
	Timezone string
	// LeaseTTL is when a transaction of a node that is not heard of any more
	// stops being in the way of others: it then has not happened. 1 s or more;
	// 0: 5 s.
	LeaseTTL time.Duration
	// Migrations are applied by Migrate before Ready returns; see there.
	Migrations fs.FS `json:"-"`
	// Functions and Collations are added to SQL's: see Function.
	Functions  []Function  `json:"-"`
	Collations []Collation `json:"-"`
	// Logger takes what concerns no caller; nil: slog.Default().
	Logger *slog.Logger

	// Conn is what connections of Node.DB begin with.
	Conn ConnConfig

	hooks node.Hooks // of tests
}

// ConnConfig is what a connection begins with: what modernc.org/sqlite reads
// from its DSN, under the same names, and what is hiqlite's own.
type ConnConfig struct {
	Consistency Consistency
	// BusyTimeout bounds the wait for transactions of others, as PRAGMA
	// busy_timeout does; 0: 10 s.
	BusyTimeout time.Duration
	// Deferred makes transactions wait for the write lease when they first
	// write, not when they begin. Rows may have changed by then: the write
	// fails with SQLITE_BUSY_SNAPSHOT.
	Deferred bool
	// TxTimeout ends a transaction that has the write lease for longer: one
	// that the program has forgotten, mostly; 0: 60 s.
	TxTimeout time.Duration
	// TxTrace makes the log line about a transaction that was ended name the
	// place in the program where it began. It costs some microseconds for each.
	TxTrace bool
	// ForeignKeysOff begins with PRAGMA foreign_keys=OFF. SQLite's own default
	// is off; here it is on.
	ForeignKeysOff bool
	// QueryOnly begins with PRAGMA query_only=ON, after Pragmas.
	QueryOnly bool
	// Pragmas are run, as "name=value" or "name(value)", by each new connection.
	Pragmas []string

	// TimeFormat is how time.Time arguments become text. "" is in UTC, as
	// 2006-01-02 15:04:05.999999999+00:00, whose order is that of the times.
	// "sqlite" is the same in the time's zone, "datetime" without fraction and
	// zone, "string" as time.Time.String has it, "string_no_monotonic" like it
	// without what it says of the monotonic clock.
	TimeFormat string
	// TimeIntegerFormat makes integers of them instead: "unix", "unix_milli",
	// "unix_micro" or "unix_nano".
	TimeIntegerFormat string
	// Location is the zone of times that are read, and of those written by a
	// TimeFormat; nil: as they are.
	Location *time.Location
	// IntToTime reads integers in columns of times (DATE, DATETIME, TIMESTAMP)
	// as times.
	IntToTime bool
	// TextToTime reads texts in expressions as times where they look like one.
	TextToTime bool
}

// Validate reports every fault at once. Open does so too.
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
			fault("node id %d stands twice in the list of nodes", m.ID)
		}
		ids[m.ID] = true
		for _, a := range []struct{ what, address string }{{"Raft", m.RaftAddr}, {"API", m.APIAddr}} {
			if a.address == "" && (a.what == "API" || len(c.Nodes) == 1) {
				continue
			}
			if err := checkAddress(a.address); err != nil {
				fault("the %s address of node %d: %v", a.what, m.ID, err)
			} else if other, ok := addresses[a.address]; ok {
				fault("the address %s stands twice in the list of nodes: for node %d and node %d", a.address, other, m.ID)
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

// validate fills in defaults and reports every fault.
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

// options returns what the node's runtime needs of a valid Config.
func (c *Config) options() (node.Options, error) {
	functions, err := c.functions()
	members := make([]node.Member, len(c.Nodes))
	for i, m := range c.Nodes {
		members[i] = node.Member{ID: m.ID, RaftAddr: m.RaftAddr}
	}
	return node.Options{
		DataDir: c.DataDir, ID: c.NodeID, Members: members, ListenAddr: c.ListenAddr,
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
			faults = append(faults, fmt.Errorf("hiqlite: pragma %q is more than one", p))
		}
	}
	return errors.Join(faults...)
}
