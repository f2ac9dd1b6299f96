// Package wire is the versioned schema of what hiqlite writes into its Raft
// log and its snapshots: hiqlite.proto, read and written by hand because it
// stands on the path of every write.
//
// Decoded texts and blobs point into the decoded buffer; whoever keeps them
// longer than the buffer copies them.
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

// FormatVersion is the version of log entries that this build writes, and the
// newest that it reads. Replicas apply the same bytes, so a change of what an
// entry means, the SQL engine's version included, is a new one.
const FormatVersion = 1

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

// An Argument is a value bound to a statement's parameter: by Name if it has
// one, otherwise by its place.
type Argument struct {
	Name string
	Value
}

// A Statement is a SQL text, which may hold several statements, and its arguments.
type Statement struct {
	SQL  string
	Args []Argument

	// Of a transaction's statements alone.
	LaterMS int64      // the clock has moved on since the statement before
	Skipped uint64     // statements that ran between the two and left nothing
	Fails   int        // the result code with which it failed, leaving something; 0: it did not
	State   *ConnState // if it asks for it
	// Settings are those in which the connection's, when the statement ran,
	// differed from the operation's.
	Settings Settings
}

// ConnState is what a connection answers to changes(), total_changes() and
// last_insert_rowid().
type ConnState struct{ Changes, TotalChanges, LastInsertID int64 }

// A Seed is where the random numbers of an operation begin: 256 bits that its
// proposer takes from the operating system, so that nobody can guess the numbers
// from others. Who can read the log, or a backup, can compute them.
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
	MaxSteps     uint64 // bound of virtual machine steps; 0: the format's own
	Vacuum       bool   // runs outside the transaction, alone in its entry
	Statements   []Statement
	Settings     Settings   // the connection's
	Lease        *Lease     // what it has to do with the write lease, if anything
	Temp         []byte     // the proposer's TEMP objects, see DecodeTemp; nil: it may have none
	Functions    []Function // of programs: a replica without them must not execute it
	Zone         *Zone      // the cluster's zone, unless it has another one
}

// A Function, or collation, that programs bring along.
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

// Lease says what an operation has to do with the write lease. One that has
// Acquire, Release or InUse does nothing else.
type Lease struct {
	Acquire uint64   // asks for it, under this id
	TTLMS   uint64   // with Acquire: when it lapses, see HeldLease
	Release []uint64 // gives up leases and places in the queue
	InUse   bool     // the session's lease is not idle

	Under       uint64 // applied under this lease, which ends with it
	Transaction bool   // with Under: applied under this lease only, and if Base is right
	Base        uint64 // the last entry that had changed rows when the lease was granted
	Keep        bool   // the lease goes on, idle, if nobody waits for it
	Checksum    Checksum
	// DeferForeignKeys checks all foreign keys at the transaction's end. Those
	// that were checked earlier when it ran were not violated.
	DeferForeignKeys bool
}

// A Checksum is one of what the statements of a transaction answered: a replica
// that comes to another one applies nothing of it.
type Checksum uint64

// Add adds what a statement answered: the changes that it made and the rowid
// that it gave, itself. (How often FTS5 writes what it holds back depends on
// savepoints, and shows in total_changes() and last_insert_rowid().)
func (c *Checksum) Add(code int, changes, rowid int64) {
	const prime = 1099511628211 // of FNV-1a
	for _, n := range [...]uint64{uint64(code), uint64(changes), uint64(rowid)} {
		*c = (*c ^ Checksum(n)) * prime
		*c ^= *c >> 32
	}
}

// A Result is what an operation answered: Err, or one result a statement.
type Result struct {
	Statements  []StatementResult
	Err         *Error
	RowsDropped bool     // rows were too large to be kept for a repeated entry
	Settings    Settings // in which the connection's differ now from the operation's: a script has changed them
	Lease       LeaseResult
}

// A LeaseResult says where an operation stands that concerns the write lease.
type LeaseResult struct {
	State LeaseState
	ID    uint64 // of the lease or place
	Base  uint64 // of a lease: the last entry that changed rows
}

// LeaseState is what became of an operation that concerns the write lease.
type LeaseState uint8

// The states.
const (
	LeaseNone    LeaseState = iota // it was applied without
	LeaseQueued                    // it has a place in the queue
	LeaseGranted                   // the lease is the session's
	LeaseKept                      // applied, and the lease is the session's still
	LeaseExpired                   // the lease is not the session's: nothing was applied
)

// A Session is what makes entries of one proposer apply once. R is what an
// operation of its shard answers.
type Session[R any] struct {
	ID, Sequence uint64
	LastUsed     uint64 // the shard's clock when the session's last entry was applied, in milliseconds
	Results      []R

	Node, Incarnation uint64 // the proposer's
}

// A HeldLease is the write lease while somebody holds it.
type HeldLease struct {
	ID      uint64 // 0: nobody does
	Session uint64
	Base    uint64 // the last entry that had changed rows when it was granted
	TTLMS   uint64 // it lapses so many ticks after the session's last entry, if others wait
	Idle    bool   // no transaction is known to run under it
}

// A Place in the queue for the lease keeps an operation until its turn.
type Waiter struct {
	Number            uint64
	Session, Sequence uint64
	Index             int // the operation's, in its entry
	Operation         Operation
}

// A State is what the replica keeps in memory beside its rows.
type State struct {
	SQLIndex uint64 // the last entry whose rows SQLite holds
	Applied  uint64 // the last entry applied
	Clock    uint64 // milliseconds
	Sessions []Session[Result]

	Changed        uint64 // the last entry that may have changed rows
	Lease          HeldLease
	Waiters        []Waiter // the queue for the lease
	LastWaiter     uint64   // the number of the last place
	ContendedSince uint64   // ticks since which somebody waits

	Functions []Function // that the schema needs

	Term    uint64 // of the last entry applied; 0: unknown
	History uint64 // a checksum over all entries applied

	Zone *Zone // of the cluster; nil: UTC
}
