// Package wire is the versioned schema of what hiqlite writes into its Raft
// log and its snapshots: hiqlite.proto, read and written by hand because it
// stands on the path of every write.
//
// Decoded texts and blobs point into the decoded buffer; whoever keeps them
// longer than the buffer copies them.
package wire

import (
	"errors"
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
}

// An Operation is atomic: all of its statements are applied, or none.
type Operation struct {
	StampMS        int64  // what SQL's clock shows, Unix milliseconds
	Seed           uint64 // of random() and randomblob()
	ForeignKeysOff bool   // the connection said PRAGMA foreign_keys=OFF
	LastInsertID   int64  // the connection's last_insert_rowid() before
	Changes        int64  // the connection's changes() before
	MaxSteps       uint64 // bound of virtual machine steps; 0: the format's own
	Vacuum         bool   // runs outside the transaction, alone in its entry
	Statements     []Statement
}

// A Tick moves the shard's clock from Expected to Next, in milliseconds.
type Tick struct{ Expected, Next uint64 }

// An Entry is one entry of the Raft log: operations of a session, or one of the
// others.
type Entry struct {
	Session, Sequence uint64
	OpenSession       bool
	Nonce             uint64 // of OpenSession
	Tick              *Tick
	HoldMS            uint64 // asks proposers to wait: the leader is about to hand over
	Operations        []Operation
}

// An Error is a statement's failure, as SQLite reported it.
type Error struct {
	Code      int    // extended result code
	Message   string // in the words and form of modernc.org/sqlite
	Statement int    // which of the operation's statements, from 0
	Hint      string
}

func (e *Error) Error() string { return e.Message }

// A Column of a result.
type Column struct{ Name, DeclType string }

// Rows are the rows a statement returned; Cells holds them one after the other.
type Rows struct {
	Columns []Column
	Cells   []Value
}

// Len returns the number of rows.
func (r *Rows) Len() int {
	if r == nil || len(r.Columns) == 0 {
		return 0
	}
	return len(r.Cells) / len(r.Columns)
}

// A StatementResult is what one statement answered.
type StatementResult struct {
	RowsAffected, LastInsertID int64
	TotalChanges               int64 // by how much total_changes() grew
	Rows                       *Rows // nil if it returns none
}

// ForeignKeys says what a script did to PRAGMA foreign_keys.
type ForeignKeys uint8

// What a script can do to PRAGMA foreign_keys.
const (
	ForeignKeysUntouched ForeignKeys = iota
	ForeignKeysSwitchedOn
	ForeignKeysSwitchedOff
)

// A Result is what an operation answered: Err, or one result a statement.
type Result struct {
	Statements  []StatementResult
	Err         *Error
	RowsDropped bool // rows were too large to be kept for a repeated entry
	ForeignKeys ForeignKeys
}

// A Session is what makes entries of one proposer apply once.
type Session struct {
	ID, Sequence uint64
	Used         uint64 // ticks when it was last used
	Results      []Result
}

// A State is what the replica keeps in memory beside its rows.
type State struct {
	SQLIndex uint64 // the last entry whose rows SQLite holds
	Applied  uint64 // the last entry applied
	Ticks    uint64 // milliseconds
	Sessions []Session
}
