package hiqlite

import (
	"context"
	"errors"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// The errors of a node and the cluster. Test for them with errors.Is. The errors of
// SQLite are *Error values.
var (
	// ErrOutcomeUnknown: a write was proposed. It may have been applied, or may still be
	// applied later. Find out whether it was before you repeat it.
	ErrOutcomeUnknown = node.ErrOutcomeUnknown
	// ErrNoLeader: no majority of the nodes could be reached before the context ended or
	// Config.Timeout was over. The write was not applied and never will be, unless the
	// error is also ErrOutcomeUnknown.
	ErrNoLeader = node.ErrNoLeader
	// ErrClosed: the node is closed, or has stopped. Nothing was done.
	ErrClosed = node.ErrClosed
	// ErrTooLarge: a statement, batch or transaction does not fit into one entry of the
	// log, which has at most about 8 MiB.
	ErrTooLarge = node.ErrTooLarge
	// ErrTxExpired: a transaction has lost the write lease, because its node was not
	// reachable for Config.LeaseTTL or because it was open for longer than
	// ConnConfig.TxTimeout. Nothing of it was applied. RunTx runs it again.
	ErrTxExpired = node.ErrTxExpired
	// ErrDiskFull: this node's disk has too little free space. The node refuses writes
	// until there is more. With even less space it takes no part in the cluster, and
	// serves only local reads.
	ErrDiskFull = node.ErrDiskFull
	// ErrFunctionMissing: the log or the schema needs a Function or Collation that this
	// program's Config does not have, or has in another version. The node continues when
	// a program opens it that has the function.
	ErrFunctionMissing = node.ErrFunctionMissing
	// ErrUnauthorized: the server does not accept the secret of a remote client.
	ErrUnauthorized = protocol.ErrUnauthorized
	// ErrDamaged: files of the data folder are missing, unreadable, older than they were
	// before, or changed: for example, a page of the database does not match its
	// checksum. The node stops; the other nodes continue. Restore the folder from a copy,
	// or replace the disk.
	ErrDamaged = node.ErrDamaged
)

// An Error is an error of SQLite for a statement. Its text and its code are those of
// modernc.org/sqlite, on which many libraries rely. Test for codes with errors.Is and a
// Code:
//
//	if errors.Is(err, hiqlite.ErrConstraintUnique) { ... }
type Error struct {
	// Message is SQLite's message, followed by the code.
	Message string
	// ExtendedCode is SQLite's extended result code.
	ExtendedCode Code
	// Statement is the index of the failed statement in a Batch, from 0.
	Statement int
	// Hint says what to do, if the message does not make that clear.
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

// Is reports whether target is the error's extended code, or the primary code of that.
func (e *Error) Is(target error) bool {
	code, ok := target.(Code)
	return ok && (code == e.ExtendedCode || code == e.ExtendedCode.Primary())
}

// SafeToRetry reports whether the statement or transaction that failed with err can be
// run again: nothing of it was applied, and it may succeed the next time. That is so for
// SQLITE_BUSY, SQLITE_BUSY_SNAPSHOT, ErrNoLeader, and ErrTxExpired unless tx_timeout was
// over. It is not so for ErrOutcomeUnknown, and for errors that would occur again, such
// as a violated constraint.
//
// If a statement of a transaction fails, run the whole transaction again, as RunTx does,
// and not the statement alone.
func SafeToRetry(err error) bool {
	return repeatable(err) || errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrOutcomeUnknown)
}

// repeatable reports whether a transaction failed because of other transactions, so that
// it may succeed the next time, and nothing of it was applied.
func repeatable(err error) bool {
	switch {
	case errors.Is(err, ErrOutcomeUnknown), errors.Is(err, errTimedOut):
		return false
	case errors.Is(err, ErrTxExpired):
		return true
	}
	var e *Error
	return errors.As(err, &e) && (e.ExtendedCode == ErrBusy || e.ExtendedCode == ErrBusySnapshot)
}

// sqlError turns an error of the engine into an *Error. It returns the errors of the
// cluster as they are, even if they wrap an error of the engine.
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

// toError turns an error of the engine into an *Error, without what wraps it.
func toError(e *wire.Error) *Error {
	return &Error{Message: e.Message, ExtendedCode: Code(e.Code), Statement: e.Statement, Hint: e.Hint}
}

// misuse returns an error with the code SQLITE_ERROR that SQLite itself does not report.
func misuse(hint, format string, args ...any) error {
	return sqlError(sqlite.ArgumentError(hint, format, args...))
}

// readError turns the error of a read into an error for the program. If SQLite was
// interrupted because ctx has ended, that is the error of ctx.
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
