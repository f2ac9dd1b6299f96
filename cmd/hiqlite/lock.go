package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/lock"
)

// locked has the flags of the lock command.
type locked struct {
	database
	ttl  time.Duration
	wait time.Duration
	try  bool
	kill time.Duration
}

func lockCommand() *cobra.Command {
	var l locked
	cmd := &cobra.Command{
		Use:   "lock KEY -- COMMAND [ARGUMENT...]",
		Short: "Run a command while holding a lock",
		Long: `Waits for the lock of KEY, runs COMMAND, and releases the lock. At most one holder
in the cluster has the lock at a time. If the lock is lost, because the cluster was
not reachable for the TTL, COMMAND and its children get SIGTERM, and SIGKILL soon
after it, before another can get the lock.

COMMAND has the fencing token of the lock in the variable HIQLITE_LOCK_TOKEN: a number
that is higher for each grant. SIGTERM and SIGINT are passed on to COMMAND.

The exit code is that of COMMAND; see also hiqlite help exit-codes.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return errors.New("write a key, --, and a command, as in hiqlite lock nightly -- ./backup.sh")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return l.run(cmd, args[0], args[1:]) },
	}
	l.flag(cmd)
	f := cmd.Flags()
	f.DurationVar(&l.ttl, "ttl", lock.DefaultTTL, "how long the lock stays with a holder that cannot be reached")
	f.DurationVar(&l.wait, "wait", 0, "how long to wait for the lock; 0: without a bound")
	f.BoolVar(&l.try, "try", false, "do not wait: fail if another has the lock")
	f.DurationVar(&l.kill, "kill-after", time.Second, "the time from SIGTERM to SIGKILL if the lock is lost; it is shortened so that the command ends before the lock does")
	return cmd
}

func (l *locked) run(cmd *cobra.Command, key string, command []string) error {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return notExecutable(err)
	}
	// The signals that end this process are passed on once the command runs.
	ctx := cmd.Context()
	err = l.with(ctx, func(_ *sql.DB, client hiqlite.Client) error {
		held, err := l.acquireLock(ctx, client, key)
		if err != nil {
			return &codedError{exitNotLocked, err}
		}
		err = l.runHeld(cmd, held, path, command)
		unlocking, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if unlockErr := held.Unlock(unlocking); unlockErr != nil && err == nil {
			report(cmd.ErrOrStderr(), fmt.Errorf("the lock was not released: %w", unlockErr))
		}
		return err
	})
	var coded *codedError
	if err != nil && !errors.As(err, &coded) || errors.As(err, &coded) && coded.code == exitUsage {
		err = &codedError{exitNotLocked, err}
	}
	return err
}

func (l *locked) acquireLock(ctx context.Context, client hiqlite.Client, key string) (*lock.Held, error) {
	locker := lock.New(client, lock.WithTTL(l.ttl))
	if l.try {
		return locker.TryLock(ctx, key)
	}
	if l.wait > 0 {
		waiting, cancel := context.WithTimeout(ctx, l.wait)
		defer cancel()
		held, err := locker.Lock(waiting, key)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("the lock %q was not free within %v", key, l.wait)
		}
		return held, err
	}
	return locker.Lock(ctx, key)
}

// runHeld runs the command, and ends it if the lock is lost.
func (l *locked) runHeld(cmd *cobra.Command, held *lock.Held, path string, command []string) error {
	c := exec.Command(path, command[1:]...)
	c.Args[0] = command[0]
	c.Stdin, c.Stdout, c.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	c.Env = append(os.Environ(), fmt.Sprintf("HIQLITE_LOCK_TOKEN=%d", held.Token()))
	// A command that reads from the terminal has to stay in the group that may.
	group := !isTerminal(c.Stdin)
	if group {
		ownGroup(c)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := c.Start(); err != nil {
		return notExecutable(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	lost := held.Done()
	var kill <-chan time.Time
	wasLost := false
	for {
		select {
		case err := <-ended:
			if wasLost {
				return &codedError{exitLockLost, fmt.Errorf("the lock %q was lost, and %s was ended", held.Key(), command[0])}
			}
			return commandError(err)
		case s := <-signals:
			sendSignal(c, group, s.(syscall.Signal))
		case <-lost:
			wasLost, lost = true, nil
			sendSignal(c, group, syscall.SIGTERM)
			// The lock is free for others a tenth of the TTL after this; see lock.Held.Done.
			kill = time.After(min(l.kill, l.ttl/20))
		case <-kill:
			sendSignal(c, group, syscall.SIGKILL)
		}
	}
}

// commandError returns the error with the exit code of a command that has ended.
func commandError(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	return &codedError{code: exitCodeOf(exit)}
}

func notExecutable(err error) error {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return &codedError{exitNotFound, err}
	}
	return &codedError{exitCannotRun, err}
}
