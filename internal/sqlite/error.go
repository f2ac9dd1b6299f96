package sqlite

import (
	"fmt"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// An Error is an error that SQLite reported, or that this project reports as
// SQLite would. It has the extended result code, and the message in the words and
// form of modernc.org/sqlite, because libraries match both.
//
// All errors of this kind are made in this file, and the functions here are the
// only ones that know the form of a message. Some are results of operations and
// are computed on every replica: what they return depends on their arguments alone.
type Error = wire.Error

// newError returns an error whose message has SQLite's text for the code, the
// detail if there is one, and the code.
func newError(code int, detail, hint string) *Error {
	message := CodeText(code)
	if detail != "" {
		message += ": " + detail
	}
	message = fmt.Sprintf("%s (%d)", message, code)
	switch code {
	case CodeBusy:
		message += " (SQLITE_BUSY)"
	case CodeBusySnapshot:
		message += " (SQLITE_BUSY_SNAPSHOT)"
	}
	return &Error{Code: code, Message: message, Hint: hint}
}

// LogicError returns an error of code SQLITE_ERROR, in SQLite's form.
func LogicError(detail, hint string) *Error { return newError(CodeError, detail, hint) }

// ArgumentError returns an error of code SQLITE_ERROR that has only the given
// message, as those that modernc.org/sqlite reports by itself.
func ArgumentError(hint, format string, args ...any) *Error {
	return &Error{Code: CodeError, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// Busy returns the error of a write that another transaction keeps from running.
func Busy(hint string) *Error { return newError(CodeBusy, "", hint) }

// BusySnapshot returns the error of a transaction that has read and now wants to
// write, although others have changed rows since it read.
func BusySnapshot(hint string) *Error { return newError(CodeBusySnapshot, "", hint) }

// ReadOnlyDatabase returns the error of a write where only reads are allowed.
func ReadOnlyDatabase(hint string) *Error { return newError(CodeReadOnly, "", hint) }

// NotAuthorized returns the error of a statement that is refused.
func NotAuthorized(detail, hint string) *Error { return newError(CodeAuth, detail, hint) }

// Interrupted returns the error of a statement that was ended while it ran.
func Interrupted(detail, hint string) *Error { return newError(CodeInterrupt, detail, hint) }

// Full returns the error of a write for which there is no room.
func Full(detail, hint string) *Error { return newError(CodeFull, detail, hint) }

// TooBig returns the error of a text, value or result that exceeds its limit.
func TooBig(detail, hint string) *Error { return newError(CodeTooBig, detail, hint) }

// Aborted returns the error of an operation that was undone although none of its
// statements failed.
func Aborted(detail, hint string) *Error { return newError(CodeAbort, detail, hint) }

// RolledBack returns the error of statements in a transaction that SQLite has
// rolled back already.
func RolledBack(hint string) *Error {
	return newError(CodeRollback, "the transaction was rolled back by an earlier statement", hint)
}

// ForeignKeyViolated returns the error of a transaction or statement that has ended while
// a foreign key was violated.
func ForeignKeyViolated() *Error {
	return newError(CodeForeignKey, "FOREIGN KEY constraint failed", "")
}

// ForeignKeysInUse returns the error of PRAGMA foreign_keys while deferred foreign
// keys are violated.
func ForeignKeysInUse() *Error {
	return newError(CodeForeignKey, "PRAGMA foreign_keys cannot be changed while deferred foreign keys are violated",
		"set it before the transaction begins, or once they are satisfied")
}

// TransactionActive returns the error of BEGIN within a transaction.
func TransactionActive() *Error {
	return LogicError("cannot start a transaction within a transaction", "")
}

// NothingToCommit returns the error of COMMIT without a transaction.
func NothingToCommit() *Error { return LogicError("cannot commit - no transaction is active", "") }

// NothingToRollBack returns the error of ROLLBACK without a transaction.
func NothingToRollBack() *Error {
	return LogicError("cannot rollback - no transaction is active", "")
}

// NoSavepoint returns the error of RELEASE and ROLLBACK TO with a name that no
// savepoint has.
func NoSavepoint(name string) *Error { return LogicError("no such savepoint: "+name, "") }

// VacuumInTransaction returns the error of VACUUM within a transaction.
func VacuumInTransaction() *Error {
	return LogicError("cannot VACUUM from within a transaction", "")
}

// VacuumNotAlone returns the error of a VACUUM that is in a script or batch with other
// statements.
func VacuumNotAlone() *Error {
	return LogicError("VACUUM must stand alone", "send it as a statement of its own")
}

// NoStatement returns the error of a text without a statement.
func NoStatement() *Error { return ArgumentError("", "the text holds no statement") }

// MissingArgument returns the error of a statement that has no argument for a parameter.
// index is that of the parameter, counted from 0; it matters if the parameter has no name.
func MissingArgument(name string, index int) *Error {
	if name != "" {
		return ArgumentError("", "missing named argument %q", name[1:])
	}
	return ArgumentError("", "missing argument with index %d", index+1)
}

// TooManyArguments returns the error of a statement that was given more arguments
// than it has parameters.
func TooManyArguments(parameters, arguments int) *Error {
	return ArgumentError("", "too many arguments: the statement has %d parameters, got %d", parameters, arguments)
}

// UnusedArgument returns the error of a statement that has no parameter for the argument at
// index, counted from 0.
func UnusedArgument(index, parameters, arguments int) *Error {
	return ArgumentError("", "too many arguments: argument %d is used by no parameter; the statement has %d, got %d", index+1, parameters, arguments)
}

// UnusedScriptArgument returns the error of a script in which no statement has a parameter
// for the argument at index, counted from 0.
func UnusedScriptArgument(index int) *Error {
	return ArgumentError("each statement of a script binds from the first argument", "argument %d is used by no statement of the script", index+1)
}

// err returns the connection's last error, whose result code is rc.
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
	if found := c.fileNotes.err; found != nil && found.Code == int(rc) {
		e.Hint = found.Error()
	}
	return e
}

// canAllocate reports whether this computer can allocate as much memory at once as SQLite
// ever allocates. If it can, an SQLITE_NOMEM comes from SQLite's own limit of 2 GiB, which
// is the same on every replica.
func (c *Conn) canAllocate() bool {
	const maxAllocation = 2147483391 // SQLite's SQLITE_MAX_ALLOCATION_SIZE
	p := libc.Xmalloc(c.tls, maxAllocation)
	if p == 0 {
		return false
	}
	libc.Xfree(c.tls, p)
	return true
}

// IsCorrupt reports whether an error says that the database file is damaged, or is not a
// database.
func IsCorrupt(e *Error) bool {
	code := PrimaryCode(e.Code)
	return code == lib.SQLITE_NOTADB || code == lib.SQLITE_CORRUPT || e.Code == lib.SQLITE_IOERR_DATA
}

// IsSyntaxError reports whether an error says that a text is not SQL. This does not depend
// on the schema.
func IsSyntaxError(e *Error) bool { return e.Code == lib.SQLITE_ERROR && isSyntax(e.Message) }
