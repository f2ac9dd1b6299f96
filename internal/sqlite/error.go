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
	return &Error{Code: int(rc), Message: text}
}

// CanAllocate reports that this machine gives out as much memory at once as
// SQLite ever asks for. SQLite itself refuses to ask for more than 2 GiB, with
// the same SQLITE_NOMEM, on every replica alike.
func (c *Conn) CanAllocate() bool {
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
)

// Local reports that an error tells of this machine (its disk, its memory, its
// files) and not of the statement: another replica may not have met it.
func Local(e *Error) bool {
	switch e.Code & 0xff {
	case lib.SQLITE_IOERR, lib.SQLITE_CANTOPEN, lib.SQLITE_NOTADB, lib.SQLITE_READONLY,
		lib.SQLITE_PROTOCOL, lib.SQLITE_PERM, lib.SQLITE_BUSY, lib.SQLITE_NOLFS:
		return true
	case lib.SQLITE_CORRUPT:
		// A virtual table's own check of its rows, alike on every replica.
		return e.Code != lib.SQLITE_CORRUPT_VTAB
	}
	return false
}

// Corrupt reports that the database file is not one, or is broken.
func Corrupt(e *Error) bool {
	code := e.Code & 0xff
	return code == lib.SQLITE_NOTADB || code == lib.SQLITE_CORRUPT && Local(e)
}

// SyntaxError reports that the text is no SQL whatever the schema.
func SyntaxError(e *Error) bool { return e.Code == lib.SQLITE_ERROR && isSyntax(e.Message) }
