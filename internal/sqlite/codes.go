package sqlite

import lib "modernc.org/sqlite/lib"

// Extended result codes, as SQLite defines them.
const (
	CodeError        = lib.SQLITE_ERROR
	CodeInternal     = lib.SQLITE_INTERNAL
	CodeAbort        = lib.SQLITE_ABORT
	CodeRollback     = lib.SQLITE_ABORT_ROLLBACK
	CodeBusy         = lib.SQLITE_BUSY
	CodeBusySnapshot = lib.SQLITE_BUSY_SNAPSHOT
	CodeReadOnly     = lib.SQLITE_READONLY
	CodeFull         = lib.SQLITE_FULL
	CodeInterrupt    = lib.SQLITE_INTERRUPT
	CodeNoMemory     = lib.SQLITE_NOMEM
	CodeTooBig       = lib.SQLITE_TOOBIG
	CodeAuth         = lib.SQLITE_AUTH
	CodeForeignKey   = lib.SQLITE_CONSTRAINT_FOREIGNKEY
	CodeNotNull      = lib.SQLITE_CONSTRAINT_NOTNULL

	// CodeCorrupt is the only code after which SQLite refuses to write until the
	// transaction is rolled back. ROLLBACK TO a savepoint is not enough.
	CodeCorrupt = lib.SQLITE_CORRUPT

	CodeReadFailed  = lib.SQLITE_IOERR_READ
	CodeWriteFailed = lib.SQLITE_IOERR_WRITE
	CodeCannotOpen  = lib.SQLITE_CANTOPEN
)

// codeTexts are the texts with which messages begin, by primary result code. They are those
// of sqlite3_errstr, and are repeated here because errors are also made where there is no
// connection to call it on.
var codeTexts = map[int]string{
	CodeError:             "SQL logic error",
	CodeAbort:             "query aborted",
	CodeBusy:              "database is locked",
	CodeReadOnly:          "attempt to write a readonly database",
	CodeInterrupt:         "interrupted",
	CodeFull:              "database or disk is full",
	CodeTooBig:            "string or blob too big",
	CodeAuth:              "not authorized",
	lib.SQLITE_CONSTRAINT: "constraint failed",
}

// PrimaryCode returns the primary result code of an extended one: SQLITE_BUSY for
// SQLITE_BUSY_SNAPSHOT, say.
func PrimaryCode(code int) int { return code & 0xff }
