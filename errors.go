package hiqlite

import (
	"context"
	"errors"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// The errors of the cluster. Test for them with errors.Is. What SQLite reports is
// an *Error.
var (
	// ErrOutcomeUnknown: a write was proposed, and may have been applied or may
	// still be. Find out before you repeat it.
	ErrOutcomeUnknown = node.ErrOutcomeUnknown
	// ErrNoLeader: no majority of the nodes could be reached for as long as the
	// context, or Config.Timeout, allowed. The write was not applied and never
	// will be, unless the error is ErrOutcomeUnknown too.
	ErrNoLeader = node.ErrNoLeader
	// ErrClosed: the node is closed, or has stopped. Nothing was done.
	ErrClosed = node.ErrClosed
	// ErrTooLarge: a statement, batch or transaction does not fit into an entry of
	// the log, which has about 8 MiB.
	ErrTooLarge = node.ErrTooLarge
	// ErrTxExpired: a transaction has lost the write lease, because the other nodes
	// did not hear of its node or because it took longer than it may. Nothing of it
	// was applied, and it can be run again: see RunTx.
	ErrTxExpired = node.ErrTxExpired
	// ErrDiskFull: there is too little free space on this node's disk. The node
	// takes no writes and, with even less space, no part in the cluster, until
	// there is more. Reads of its own rows go on.
	ErrDiskFull = node.ErrDiskFull
	// ErrFunctionMissing: the log or the schema needs a Function or Collation that
	// this program's Config does not have in that version. The node goes on once a
	// program that has it opens the node.
	ErrFunctionMissing = node.ErrFunctionMissing
	// ErrDamaged: files of the data folder are missing, unreadable, older than they
	// were, or not as they were written: a page of the database does not match its
	// checksum. The node stops, and the other nodes go on. Put back a copy, or
	// replace the disk.
	ErrDamaged = node.ErrDamaged
)

// An Error is what SQLite reported for a statement, in the words and with the
// code of modernc.org/sqlite, which many libraries look for. Test for codes with
// errors.Is and a Code:
//
//	if errors.Is(err, hiqlite.ErrConstraintUnique) { ... }
type Error struct {
	// Message is SQLite's, with the code after it.
	Message string
	// ExtendedCode is SQLite's extended result code.
	ExtendedCode Code
	// Statement is the index of the failed statement in a Batch, from 0.
	Statement int
	// Hint says what to do, where the message does not make that plain.
	Hint string
}

// Error returns the message and, after it, the hint.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + ": " + e.Hint
}

// Code returns SQLite's extended result code, as the errors of modernc.org/sqlite
// do.
func (e *Error) Code() int { return int(e.ExtendedCode) }

// Is reports whether target is the error's code: the extended one, or the primary
// one that it belongs to.
func (e *Error) Is(target error) bool {
	code, ok := target.(Code)
	return ok && (code == e.ExtendedCode || code == e.ExtendedCode.Primary())
}

// SafeToRetry reports whether err is known to have left nothing applied and may go
// away by itself, so that the same statement or transaction can be run again:
// SQLITE_BUSY and SQLITE_BUSY_SNAPSHOT, ErrTxExpired unless tx_timeout was over,
// and ErrNoLeader. It is false for ErrOutcomeUnknown, and for an error that would
// come again, such as a violated constraint.
//
// A statement of a transaction is not run again alone, but with the whole
// transaction, as RunTx does.
func SafeToRetry(err error) bool {
	return repeatable(err) || errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrOutcomeUnknown)
}

// repeatable reports whether a transaction failed because of other writers, and
// nothing of it was applied.
func repeatable(err error) bool {
	switch {
	case errors.Is(err, ErrOutcomeUnknown), errors.Is(err, errForgotten):
		return false
	case errors.Is(err, ErrTxExpired):
		return true
	}
	var e *Error
	return errors.As(err, &e) && (e.ExtendedCode == ErrBusy || e.ExtendedCode == ErrBusySnapshot)
}

// sqlError turns an error of the engine into an *Error. It returns other errors,
// also those that name an error of the engine as their cause, as they are.
func sqlError(err error) error {
	if e, ok := err.(*wire.Error); ok {
		return toError(e)
	}
	for _, known := range []error{ErrOutcomeUnknown, ErrNoLeader, ErrClosed, ErrTooLarge, ErrTxExpired, ErrDiskFull, ErrFunctionMissing, ErrDamaged} {
		if errors.Is(err, known) {
			return err
		}
	}
	var e *wire.Error
	if errors.As(err, &e) {
		return toError(e)
	}
	if errors.Is(err, replica.ErrReplicaClosed) {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err
}

func toError(e *wire.Error) *Error {
	return &Error{Message: e.Message, ExtendedCode: Code(e.Code), Statement: e.Statement, Hint: e.Hint}
}

// misuse returns an error with the code SQLITE_ERROR that SQLite itself does not report.
func misuse(hint, format string, args ...any) error {
	return sqlError(sqlite.ArgumentError(hint, format, args...))
}

// readError is the error of a read whose context may have ended.
func readError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var e *wire.Error
	if ctx.Err() != nil && errors.As(err, &e) && e.Code == sqlite.CodeInterrupt && e.Hint == "" {
		return ctx.Err()
	}
	return sqlError(err)
}
