package hiqlite

import (
	"fmt"

	"github.com/hiqlite/hiqlite/internal/sqlite"
)

// A Code is a result code of SQLite, primary or extended. It is an error, so that it can
// be the target of errors.Is, which finds an *Error by its extended code and by the
// primary code of that. So errors.Is(err, ErrConstraint) is true for every violated
// constraint, and errors.Is(err, ErrConstraintUnique) for one kind of them.
type Code int

// The primary result codes of SQLite with which a statement can fail.
const (
	ErrSQL        Code = 1  // SQLITE_ERROR
	ErrInternal   Code = 2  // SQLITE_INTERNAL
	ErrPerm       Code = 3  // SQLITE_PERM
	ErrAbort      Code = 4  // SQLITE_ABORT
	ErrBusy       Code = 5  // SQLITE_BUSY
	ErrLocked     Code = 6  // SQLITE_LOCKED
	ErrNoMem      Code = 7  // SQLITE_NOMEM
	ErrReadOnly   Code = 8  // SQLITE_READONLY
	ErrInterrupt  Code = 9  // SQLITE_INTERRUPT
	ErrIO         Code = 10 // SQLITE_IOERR
	ErrCorrupt    Code = 11 // SQLITE_CORRUPT
	ErrNotFound   Code = 12 // SQLITE_NOTFOUND
	ErrFull       Code = 13 // SQLITE_FULL
	ErrCantOpen   Code = 14 // SQLITE_CANTOPEN
	ErrProtocol   Code = 15 // SQLITE_PROTOCOL
	ErrSchema     Code = 17 // SQLITE_SCHEMA
	ErrTooBig     Code = 18 // SQLITE_TOOBIG
	ErrConstraint Code = 19 // SQLITE_CONSTRAINT
	ErrMismatch   Code = 20 // SQLITE_MISMATCH
	ErrMisuse     Code = 21 // SQLITE_MISUSE
	ErrAuth       Code = 23 // SQLITE_AUTH
	ErrRange      Code = 25 // SQLITE_RANGE
	ErrNotADB     Code = 26 // SQLITE_NOTADB
)

// Extended result codes.
const (
	ErrAbortRollback        Code = 516  // SQLITE_ABORT_ROLLBACK
	ErrBusySnapshot         Code = 517  // SQLITE_BUSY_SNAPSHOT
	ErrConstraintCheck      Code = 275  // SQLITE_CONSTRAINT_CHECK
	ErrConstraintCommitHook Code = 531  // SQLITE_CONSTRAINT_COMMITHOOK
	ErrConstraintForeignKey Code = 787  // SQLITE_CONSTRAINT_FOREIGNKEY
	ErrConstraintFunction   Code = 1043 // SQLITE_CONSTRAINT_FUNCTION
	ErrConstraintNotNull    Code = 1299 // SQLITE_CONSTRAINT_NOTNULL
	ErrConstraintPrimaryKey Code = 1555 // SQLITE_CONSTRAINT_PRIMARYKEY
	ErrConstraintTrigger    Code = 1811 // SQLITE_CONSTRAINT_TRIGGER
	ErrConstraintUnique     Code = 2067 // SQLITE_CONSTRAINT_UNIQUE
	ErrConstraintVTab       Code = 2323 // SQLITE_CONSTRAINT_VTAB
	ErrConstraintRowID      Code = 2579 // SQLITE_CONSTRAINT_ROWID
	ErrConstraintPinned     Code = 2835 // SQLITE_CONSTRAINT_PINNED
	ErrConstraintDataType   Code = 3091 // SQLITE_CONSTRAINT_DATATYPE
)

// Primary returns the primary result code of an extended one: ErrConstraint for
// ErrConstraintUnique.
func (c Code) Primary() Code { return c & 0xff }

// Error returns the code's number and SQLite's text for it.
func (c Code) Error() string {
	return fmt.Sprintf("hiqlite: SQLite's result code %d (%s)", int(c), sqlite.CodeText(int(c)))
}
