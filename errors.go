package hiqlite

import (
	"context"
	"errors"
	"fmt"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// Errors to test for with errors.Is. What SQLite itself says comes as *Error.
var (
	// ErrOutcomeUnknown: a write was proposed and may be, or become, applied.
	// Find out before repeating it.
	ErrOutcomeUnknown = cluster.ErrOutcomeUnknown
	// ErrNoLeader: no majority of the nodes could be reached for as long as the
	// context, or Config.Timeout, allowed. The write was not, and will not be,
	// applied, unless ErrOutcomeUnknown stands beside it.
	ErrNoLeader = cluster.ErrNoLeader
	// ErrClosed: the node was closed, or has stopped; nothing was done.
	ErrClosed = cluster.ErrClosed
	// ErrTooLarge: a statement or batch does not fit into an entry of the log.
	ErrTooLarge = cluster.ErrTooLarge
	// ErrTxExpired: a transaction lost the write lease, because its node was not
	// heard of or it took longer than it may; nothing of it was applied. It can
	// be run again, see RunTx.
	ErrTxExpired = errors.New("hiqlite: the transaction has expired, nothing of it was applied")
	// ErrDiskFull: there is too little free space on this node's disk. It takes
	// no writes, and with even less no part in the cluster, until there is more;
	// reads of its own rows go on.
	ErrDiskFull = errors.New("hiqlite: disk full")
	// ErrFunctionMissing: the log or the schema needs a Function or Collation
	// that this program's Config does not have in that version. The node goes on
	// once it is started by a program that has it.
	ErrFunctionMissing = replica.ErrFunctionMissing
	// ErrDamaged: files of the data folder are missing, unreadable, older than
	// they were, or not as they were written: a page of the database does not
	// match its checksum. The node stops; the others go on. Put back a copy, or
	// replace the disk.
	ErrDamaged = replica.ErrDamaged
)

// An Error is what SQLite reported for a statement, in the words and with the
// code of modernc.org/sqlite, for which many libraries look.
type Error struct {
	// Message is SQLite's, with the code behind it.
	Message string
	// ExtendedCode is SQLite's extended result code: a violated UNIQUE is 2067.
	ExtendedCode int
	// Statement is the place of the failed statement in a Batch, from 0.
	Statement int
	// Hint says what to do, where that is not plain from the message.
	Hint string
}

// Error returns the message and, behind it, the hint.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + ": " + e.Hint
}

// Code returns SQLite's extended result code.
func (e *Error) Code() int { return e.ExtendedCode }

// sqlError turns an error of the engine's into an *Error, and leaves others.
func sqlError(err error) error {
	var e *wire.Error
	if errors.As(err, &e) {
		return &Error{Message: e.Message, ExtendedCode: e.Code, Statement: e.Statement, Hint: e.Hint}
	}
	if errors.Is(err, replica.ErrReplicaClosed) {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err
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
