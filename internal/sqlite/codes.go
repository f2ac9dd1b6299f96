package sqlite

import (
	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// Extended result codes, as SQLite defines them.
const (
	CodeError        = lib.SQLITE_ERROR
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

// CodeText returns SQLite's text for a result code, with which messages begin. Messages are
// part of results, so replicas must have the same texts: they are those of the engine,
// whose version belongs to the format of the log.
func CodeText(code int) string {
	tls := libc.NewTLS() // there may be no connection
	defer tls.Close()
	return libc.GoString(lib.Xsqlite3_errstr(tls, int32(code)))
}

// PrimaryCode returns the primary result code of an extended one: SQLITE_BUSY for
// SQLITE_BUSY_SNAPSHOT, say.
func PrimaryCode(code int) int { return code & 0xff }
