package sqlite

import (
	"fmt"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// An Error is what SQLite reported: its extended result code, and the message
// in the words and form of modernc.org/sqlite, which libraries match.
type Error = wire.Error

// err returns the connection's last error.
func (c *Conn) err(rc int32) *Error {
	text := libc.GoString(lib.Xsqlite3_errstr(c.tls, rc))
	if c.db != 0 {
		if msg := libc.GoString(lib.Xsqlite3_errmsg(c.tls, c.db)); msg != text {
			text += ": " + msg
		}
	}
	text = fmt.Sprintf("%s (%d)", text, rc)
	if rc == lib.SQLITE_BUSY {
		text += " (SQLITE_BUSY)"
	}
	e := &Error{Code: int(rc), Message: text}
	if said := c.files.err; said != nil && said.Code == int(rc) {
		e.Hint = said.Error()
	}
	return e
}

// canAllocate reports that this machine gives out as much memory at once as
// SQLite ever asks for. SQLite itself refuses to ask for more than 2 GiB, with
// the same SQLITE_NOMEM, on every replica alike.
func (c *Conn) canAllocate() bool {
	const most = 2147483391
	p := libc.Xmalloc(c.tls, most)
	if p == 0 {
		return false
	}
	libc.Xfree(c.tls, p)
	return true
}

// Codes of errors, as SQLite defines them.
const (
	CodeError      = lib.SQLITE_ERROR
	CodeAbort      = lib.SQLITE_ABORT
	CodeRollback   = lib.SQLITE_ABORT_ROLLBACK
	CodeBusy       = lib.SQLITE_BUSY
	CodeSnapshot   = lib.SQLITE_BUSY_SNAPSHOT
	CodeReadOnly   = lib.SQLITE_READONLY
	CodeFull       = lib.SQLITE_FULL
	CodeInterrupt  = lib.SQLITE_INTERRUPT
	CodeNoMemory   = lib.SQLITE_NOMEM
	CodeTooBig     = lib.SQLITE_TOOBIG
	CodeAuth       = lib.SQLITE_AUTH
	CodeForeignKey = lib.SQLITE_CONSTRAINT_FOREIGNKEY

	// CodeCorrupt is the one code after which SQLite refuses to write until
	// ROLLBACK: a savepoint does not help.
	CodeCorrupt = lib.SQLITE_CORRUPT

	CodeReadFailed  = lib.SQLITE_IOERR_READ
	CodeWriteFailed = lib.SQLITE_IOERR_WRITE
	CodeCannotOpen  = lib.SQLITE_CANTOPEN
)

// Corrupt reports that the database file is not one, or is broken.
func Corrupt(e *Error) bool {
	code := e.Code & 0xff
	return code == lib.SQLITE_NOTADB || code == lib.SQLITE_CORRUPT || e.Code == lib.SQLITE_IOERR_DATA
}

// SyntaxError reports that the text is no SQL whatever the schema.
func SyntaxError(e *Error) bool { return e.Code == lib.SQLITE_ERROR && isSyntax(e.Message) }
