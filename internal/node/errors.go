package node

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/hiqlite/hiqlite/cluster"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/replica"
)

// The errors of a node, which the root package exports with their documentation.
var (
	ErrOutcomeUnknown  = cluster.ErrOutcomeUnknown
	ErrNoLeader        = cluster.ErrNoLeader
	ErrClosed          = cluster.ErrClosed
	ErrTooLarge        = cluster.ErrTooLarge
	ErrTxExpired       = errors.New("hiqlite: the transaction has expired, nothing of it was applied")
	ErrDiskFull        = errors.New("hiqlite: disk full")
	ErrFunctionMissing = replica.ErrFunctionMissing
	ErrDamaged         = replica.ErrDamaged
)

// failure returns why the SQL machine had to stop, or nil.
func (n *Node) failure() error {
	if n.sql == nil {
		return nil
	}
	err := n.sql.machine.Err()
	if err == nil || errors.Is(err, ErrDiskFull) {
		return err
	}
	var e *wire.Error
	if errors.Is(err, syscall.ENOSPC) || errors.As(err, &e) && sqlite.PrimaryCode(e.Code) == sqlite.CodeFull {
		return fmt.Errorf("%w: %w; free some space and start the node again", ErrDiskFull, err)
	}
	return err
}

// withCause adds to ErrClosed why the node stopped, and to ErrNoLeader why it
// takes no part in the cluster.
func (n *Node) withCause(err error) error {
	if err == nil {
		return nil
	}
	if failure := n.failure(); failure != nil && errors.Is(err, ErrClosed) {
		return fmt.Errorf("%w: %w", err, failure)
	}
	if paused := n.pausedError(); paused != nil && errors.Is(err, ErrNoLeader) {
		return fmt.Errorf("%w: %w", err, paused)
	}
	return err
}

// Transient reports that an operation failed because of others: a transaction had
// the write lease for too long, or its own lease expired. Nothing was applied, and
// the same operation may succeed now.
func Transient(err error) bool {
	if errors.Is(err, ErrOutcomeUnknown) {
		return false
	}
	var e *wire.Error
	if errors.As(err, &e) {
		return e.Code == sqlite.CodeBusy || e.Code == sqlite.CodeBusySnapshot
	}
	return errors.Is(err, ErrTxExpired)
}
