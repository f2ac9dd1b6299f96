package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/hiqlite/hiqlite"
)

// Exit codes. docs/cli.md and the topic exit-codes have the same list.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitAbsent      = 3
	exitUnavailable = 4
	exitUnknown     = 5
	exitLockLost    = 124
	exitNotLocked   = 125
	exitCannotRun   = 126
	exitNotFound    = 127
	exitInterrupted = 130
)

const exitCodesHelp = `  0    success
  1    the operation failed: an SQL error, a broken constraint, a file that cannot
       be read
  2    the command line or the settings are wrong, or the database cannot be
       opened; nothing was done
  3    what was asked for is not there: a key of kv get or kv delete
  4    there is no leader, no node answers, or the nodes refuse the secret
  5    the outcome of a write is unknown: it may have been applied, or still be
  130  interrupted by Ctrl-C or SIGTERM

hiqlite serve and proxy return 0 after SIGTERM and Ctrl-C.

hiqlite lock returns the exit code of its command, 128 and the number of a signal
if one has killed the command, or:

  124  the lock was lost, and the command was ended
  125  the lock was not taken, so the command was not started
  126  the command cannot be executed
  127  there is no such command
`

// exitCodesTopic is help without a command: hiqlite help exit-codes.
func exitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: "Exit codes:\n\n" + exitCodesHelp}
}

// A codedError is an error that has its own exit code.
type codedError struct {
	code int
	err  error // nil: nothing is printed
}

func (e *codedError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *codedError) Unwrap() error { return e.err }

func usageError(err error) error { return &codedError{exitUsage, err} }

func exitCode(err error) int {
	var coded *codedError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		return coded.code
	case errors.Is(err, hiqlite.ErrOutcomeUnknown):
		return exitUnknown
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, hiqlite.ErrNoLeader), errors.Is(err, hiqlite.ErrClosed), errors.Is(err, hiqlite.ErrUnauthorized):
		return exitUnavailable
	}
	return exitFailed
}
