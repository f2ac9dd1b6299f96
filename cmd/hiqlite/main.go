// Command hiqlite serves a node, gives access to a database, its caches, locks and
// channels from a shell, and measures clusters. docs/cli.md is its manual.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	_ "github.com/hiqlite/hiqlite/driver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// execute runs a command line and returns the exit code.
func execute(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	started := false // a command was found, and its flags and arguments are right
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	err := root.ExecuteContext(ctx)
	if err != nil && !started {
		err = usageError(err)
	}
	report(errs, err)
	return exitCode(err)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "hiqlite",
		Short: "A replicated SQLite",
		Long: `A replicated SQLite: a server, a shell, and access to caches, locks and channels.

Commands that use a database take its DSN: the data folder of a node, which then
runs inside of this process; "env:", for the node that the environment and
hiqlite.toml describe; or "hiqlite://host:port,host:port" for servers. Without a
DSN they use the environment variable HIQLITE_DSN, or else "env:".`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(
		serveCommand(), proxyCommand(), generateConfigCommand(),
		sqlCommand(), statusCommand(), kvCommand(), lockCommand(), listenCommand(), notifyCommand(),
		logCommand(), benchCommand(), versionCommand(), exitCodesTopic(),
	)
	return root
}

// report prints an error, each of its lines with the name of the program.
func report(w io.Writer, err error) {
	if err == nil || err.Error() == "" {
		return
	}
	name := paint(w, red, "hiqlite:")
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(w, name, strings.TrimPrefix(strings.TrimRight(line, "\n"), "hiqlite: "))
	}
}
