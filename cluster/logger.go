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

// useSlog routes Dragonboat's logging to slog. Dragonboat has one logger
// factory per process, so its lines go to slog.Default() as it is when the
// line is written, whatever Config.Logger says; only this package's own lines
// go there. Every line carries the Dragonboat package as "raft".
//
// Its log database (pebble) writes to the standard library's log package
// directly, hard-wired: background errors, and what it considers fatal. It
// writes nothing while all is well. A program that wants these lines in slog
// too sets slog.SetDefault, which captures the log package.
var useSlog = sync.OnceFunc(func() {
	defer func() {
		if r := recover(); r != nil {
			// The program set a factory of its own before: it wants that one.
			slog.Default().Debug("hiqlite: Dragonboat's logger was already set", "reason", r)
		}
	}()
	logger.SetLoggerFactory(func(pkg string) logger.ILogger { return raftLogger(pkg) })
})

// Importing Dragonboat redirects the standard library's log package, for the
// whole program, to a format of its own. A library has no business doing that:
// put back what every program expects, before main runs.
func init() {
	if strings.Contains(fmt.Sprintf("%T", log.Writer()), "capnslog") {
		log.SetOutput(os.Stderr)
		log.SetFlags(log.LstdFlags)
	}
}

// raftLogger is the logger of one Dragonboat package.
type raftLogger string

var _ logger.ILogger = raftLogger("")

// notable are the warnings that tell an operator something. All others
// (elections, votes, broken connections, refused requests whose caller gets an
// error anyway) are the noise of a cluster that works as designed.
var notable = []string{
	"deployment id does not match",
	"binary compatibility version not match",
	"unsupported OS/ARCH",
	"snapshot failed",
}

// expected are errors that only say that a peer is away, again and again.
var expected = []string{
	"failed to get a connection",
	"failed to connect to",
	"failed to send snapshot",
	"failed to get a job",
	"failed to get the header", // the peer was killed or closed the connection
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

func (raftLogger) SetLevel(logger.LogLevel) {} // slog's handler has the level

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

// Panicf logs and panics; Dragonboat relies on it not to return.
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
