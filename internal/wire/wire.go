// Package wire encodes and decodes what hiqlite writes into its Raft logs and its
// snapshots. The schema is hiqlite.proto. The code is written by hand instead of
// generated, because every write runs through it.
//
// Decoded texts and blobs point into the decoded buffer. A caller that keeps them
// longer than the buffer must copy them.
package wire

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// FormatVersion is the newest version of log entries that this build reads and writes. The bytes of a version are frozen: golden files in testdata pin
// them. Replicas must get the same rows from the same bytes, so whatever changes the
// meaning of an entry needs a new version. That includes a version of SQLite that
// computes something else.
const FormatVersion = 2

// An entry has the lowest version that has its meaning, so that older builds can read
// all entries but those that they would get wrong.
const (
	plainVersion  = 1
	windowVersion = 2 // the entry has the field oldest_in_flight
)

// ErrNewerFormat says that an entry was written by a newer hiqlite.
var ErrNewerFormat = errors.New("hiqlite: the log holds entries of a newer format; upgrade this node")

// Kind is SQLite's storage class of a Value.
type Kind uint8

// The storage classes.
const (
	Null Kind = iota
	Integer
	Real
	Text
	Blob
)

// A Value is one SQLite value: a bound argument or a cell of a row.
type Value struct {
	Kind Kind
	Num  uint64 // Integer: the int64's bits; Real: the float64's bits
	Data []byte // Text and Blob
}

// IntegerValue returns an INTEGER.
func IntegerValue(n int64) Value { return Value{Kind: Integer, Num: uint64(n)} }

// RealValue returns a REAL.
func RealValue(f float64) Value { return Value{Kind: Real, Num: math.Float64bits(f)} }

// TextValue returns a TEXT.
func TextValue(s string) Value { return Value{Kind: Text, Data: []byte(s)} }

// BlobValue returns a BLOB.
func BlobValue(b []byte) Value { return Value{Kind: Blob, Data: b} }

// Int returns the value of an INTEGER.
func (v Value) Int() int64 { return int64(v.Num) }

// Float returns the value of a REAL.
func (v Value) Float() float64 { return math.Float64frombits(v.Num) }

// An Argument is a value bound to a parameter of a statement: by Name if it has
// one, otherwise by its position.
type Argument struct {
	Name string
	Value
}

// A Statement is a SQL text, which may hold several statements, and its arguments.
type Statement struct {
	SQL  string
	Args []Argument

	// Only statements of a transaction have the following.
	LaterMS int64      // by how much SQL's clock has moved since the statement before, in milliseconds
	Skipped uint64     // how many statements ran since then and changed nothing
	Fails   int        // the result code of a statement that failed but kept changes; 0: it did not fail
	State   *ConnState // before the statement, if it reads that, or Skipped is not 0
	// ChangedSettings has the bits in which the connection's settings differed from the
	// operation's when the statement ran.
	ChangedSettings Settings
	// DeferForeignKeys says that PRAGMA defer_foreign_keys was on when the statement
	// ran: all foreign keys are checked at the end of the transaction.
	DeferForeignKeys bool
}

// ConnState is what changes(), total_changes() and last_insert_rowid() return on a
// connection.
type ConnState struct{ Changes, TotalChanges, LastInsertID int64 }

// A Seed is the seed of an operation's random numbers: 256 bits that the proposer
// gets from the operating system, so that nobody can guess a number from others. But
// anyone who can read the log, or a backup, can compute them.
type Seed [32]byte

// NewSeed returns a random seed.
func NewSeed() (s Seed) {
	rand.Read(s[:]) // never fails: it ends the process if the system has none
	return s
}

// Of returns the seed of the n-th statement of a transaction.
func (s *Seed) Of(n uint64) Seed {
	var b [len(s) + 8]byte
	copy(b[:], s[:])
	binary.LittleEndian.PutUint64(b[len(s):], n)
	return sha256.Sum256(b[:])
}

// An Operation is atomic: all of its statements are applied, or none.
type Operation struct {
	StampMS      int64  // what SQL's clock shows, Unix milliseconds
	Seed         Seed   // of random() and randomblob()
	LastInsertID int64  // the connection's last_insert_rowid() before
	Changes      int64  // the connection's changes() before
	MaxSteps     uint64 // bound in steps of SQLite's virtual machine; 0: the default of the format
	Vacuum       bool   // runs outside the transaction, alone in its entry
	Statements   []Statement
	Settings     Settings   // the connection's
	Lease        *Lease     // nil: the operation does not concern the write lease
	Temp         []byte     // the proposer's TEMP objects, see DecodeTemp; nil: the statements may not make any
	Functions    []Function // functions of programs; a replica that lacks one must not execute the operation
	Zone         *Zone      // sets the time zone of the cluster, unless it has one
	Origin       *Origin    // of a remote client's operation; nil: none
}

// A Function is a function or collation that programs register.
type Function struct {
	Name      string // in lower case
	Version   uint64 // of what it computes
	Collation bool
}

// Compare orders functions.
func (f Function) Compare(other Function) int {
	order := cmp.Compare(f.Name, other.Name)
	if order == 0 && f.Collation != other.Collation {
		order = 1
		if other.Collation {
			order = -1
		}
	}
	return cmp.Or(order, cmp.Compare(f.Version, other.Version))
}

// String names the function for people.
func (f Function) String() string {
	kind := "function"
	if f.Collation {
		kind = "collation"
	}
	return fmt.Sprintf("%s %s, version %d", kind, f.Name, f.Version)
}

// Lease says how an operation uses the write lease. An operation with Acquire, Release
// or InUse has no statements.
type Lease struct {
	Acquire uint64   // the id under which it acquires the lease; 0: it does not
	TTLMS   uint64   // with Acquire: when the lease expires, see HeldLease
	Release []uint64 // ids of leases to release and of waiters to remove from the queue
	InUse   bool     // the session uses its lease again, so it is not idle

	Under       uint64 // the id of the lease that it is applied under; the operation ends that lease
	Transaction bool   // with Under: it is applied only under this lease, and only if Base is right
	Base        uint64 // index of the last entry that had changed rows when the lease was granted
	Keep        bool   // the session keeps the lease, idle, if nobody waits for it
	Checksum    Checksum
}

// A Checksum is a checksum over the results of a transaction's statements. A replica
// that computes another one applies nothing of the transaction.
type Checksum uint64

// fnvPrime is the prime of FNV-1a for 64 bits.
const fnvPrime = 1099511628211

// Add adds the result of a statement: its result code, and the number of changes and
// the rowid of the statement itself. It does not use total_changes() and
// last_insert_rowid(), because they also count writes of FTS5's buffer, and their
// number depends on savepoints.
func (c *Checksum) Add(code int, changes, rowid int64) {
	for _, n := range [...]uint64{uint64(code), uint64(changes), uint64(rowid)} {
		*c = (*c ^ Checksum(n)) * fnvPrime
		*c ^= *c >> 32
	}
}

// A Result is the result of an operation: Err, or one result for each statement.
type Result struct {
	Statements      []StatementResult
	Err             *Error
	RowsDropped     bool     // the rows are not here: they were too large to be kept for a repeated entry
	ChangedSettings Settings // the bits in which the settings differ from the operation's after a script
	Lease           LeaseResult
	Admission       Admission // of the operation's Origin; if it is not Admitted, nothing else is set
	// RetryAbove is for an operation with an Origin of which nothing was applied, because
	// it took too many steps or was removed from the lease queue: a copy with more
	// MaxSteps than this is applied. 0: no copy is.
	RetryAbove uint64
}

// A LeaseResult is the part of a Result that concerns the write lease.
type LeaseResult struct {
	State LeaseState
	ID    uint64 // id of the lease or waiter
	Base  uint64 // of a lease: index of the last entry that changed rows
}

// LeaseState is what became of an operation that concerns the write lease.
type LeaseState uint8

// The states.
const (
	LeaseNone    LeaseState = iota // it was applied without the lease, or ended it
	LeaseQueued                    // it waits in the lease queue
	LeaseGranted                   // the session holds the lease now
	LeaseKept                      // it was applied, and the session still holds the lease
	LeaseExpired                   // the session does not hold the lease: nothing was applied
)

// A HeldLease is the write lease while a session holds it.
type HeldLease struct {
	ID      uint64 // 0: nobody holds the lease
	Session uint64
	Base    uint64 // index of the last entry that had changed rows when the lease was granted
	TTLMS   uint64 // while others wait, it expires this long after the session's last entry, in milliseconds
	Idle    bool   // no transaction is known to run under it
}

// A Waiter is an operation that waits in the lease queue.
type Waiter struct {
	Number            uint64
	Session, Sequence uint64
	Index             int // the position of the operation in its entry, from 0
	Operation         Operation
}

// A State is what the SQL machine keeps in memory in addition to its rows.
type State struct {
	SQLIndex uint64 // index of the last entry whose rows SQLite has
	Applied  uint64 // index of the last entry applied
	Clock    uint64 // the clock of the shard, in milliseconds
	Sessions []Session[Result]

	Changed        uint64 // index of the last entry that may have changed rows
	Lease          HeldLease
	Waiters        []Waiter // the lease queue, in its order
	LastWaiter     uint64   // the highest number that a waiter was given
	ContendedSince uint64   // the clock when the present holder began to keep somebody waiting

	Functions []Function // functions of programs that the schema uses

	Term    uint64 // Raft's term of the last entry applied; 0: unknown
	History uint64 // a checksum over all entries applied

	Zone *Zone // the time zone of the cluster; nil: UTC
}
