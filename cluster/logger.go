package cluster

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/lni/dragonboat/v4/logger"
)

// useSlog routes Dragonboat's log lines to slog. A process has only one logger
// factory of Dragonboat, so the lines go to what slog.Default() is when the line is
// written. Config.Logger is only for this package's own lines. Every line of
// Dragonboat has its Dragonboat package as "raft".
//
// Dragonboat's log database (pebble) writes to the standard library's log package,
// without an option to change that: errors of its background work, and those that it
// considers fatal. It writes nothing while all is well. A program that wants these
// lines in slog too calls slog.SetDefault, which captures the log package.
var useSlog = sync.OnceFunc(func() {
	defer func() {
		if r := recover(); r != nil {
			// The program has set a factory of its own, which is left in place.
			slog.Default().Debug("hiqlite: Dragonboat's logger was already set", "reason", r)
		}
	}()
	logger.SetLoggerFactory(func(pkg string) logger.ILogger { return raftLogger(pkg) })
})

// Importing Dragonboat changes the output and the format of the standard library's
// log package, for the whole program. A library must not do that, so this restores
// the defaults before main runs.
func init() {
	if strings.Contains(fmt.Sprintf("%T", log.Writer()), "capnslog") {
		log.SetOutput(os.Stderr)
		log.SetFlags(log.LstdFlags)
	}
}

// raftLogger is the logger of one Dragonboat package.
type raftLogger string

var _ logger.ILogger = raftLogger("")

// notable has the warnings that an operator needs. All others are the normal
// noise of a cluster that works: elections, votes, broken connections, and refused
// requests, whose callers get an error anyway.
var notable = []string{
	"deployment id does not match",
	"binary compatibility version not match",
	"unsupported OS/ARCH",
	"snapshot failed",
}

// expected has the errors that only say, repeatedly, that another node cannot be
// reached.
var expected = []string{
	"failed to get a connection",
	"failed to connect to",
	"failed to send snapshot",
	"failed to get a job",
	"failed to get the header", // the other node was killed or closed the connection
	"failed to get poison ack",
	"send batch failed",
	"failed to close the connection",
}

func contains(list []string, format string) bool {
	for _, s := range list {
		if strings.Contains(format, s) {
			return true
		}
	}
	return false
}

func (raftLogger) SetLevel(logger.LogLevel) {} // the slog handler decides

func (l raftLogger) Debugf(format string, args ...any) { l.log(slog.LevelDebug, format, args) }

func (l raftLogger) Infof(format string, args ...any) { l.log(slog.LevelDebug, format, args) }

func (l raftLogger) Warningf(format string, args ...any) {
	level := slog.LevelDebug
	if contains(notable, format) {
		level = slog.LevelWarn
	}
	l.log(level, format, args)
}

func (l raftLogger) Errorf(format string, args ...any) {
	level := slog.LevelError
	if contains(expected, format) {
		level = slog.LevelDebug
	}
	l.log(level, format, args)
}

// Panicf logs and panics. Dragonboat relies on Panicf not returning.
func (l raftLogger) Panicf(format string, args ...any) {
	l.log(slog.LevelError, format, args)
	panic("hiqlite: raft (" + string(l) + "): " + fmt.Sprintf(format, args...))
}

func (l raftLogger) log(level slog.Level, format string, args []any) {
	to := slog.Default()
	if !to.Enabled(context.Background(), level) {
		return
	}
	to.Log(context.Background(), level, fmt.Sprintf(format, args...), "raft", string(l))
}
