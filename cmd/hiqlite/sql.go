package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func sqlCommand() *cobra.Command {
	var d database
	var mode string
	var asJSON, asCSV, asTable bool
	cmd := &cobra.Command{
		Use:   "sql [DSN [SQL]]",
		Short: "Run SQL, or a shell",
		Long: `Runs SQL and prints its rows, or reads statements from standard input: at a terminal
it is a shell with history and completion, in which .help lists further commands.

SQL of several statements that does not say BEGIN is atomic. Statements from standard
input run one after the other, up to the first error. The exit code is 1 after an
error of SQL.

JSON has blobs in base64. Dates and times in columns that are declared as such are
printed in the common form, whatever form they have in the database.`,
		Example: `  hiqlite sql data
  hiqlite sql data "SELECT * FROM users" --json
  hiqlite sql hiqlite://db1:8200,db2:8200?secret_file=secret < schema.sql`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			given := 0
			for name, set := range map[string]bool{"json": asJSON, "csv": asCSV, "table": asTable, mode: cmd.Flags().Changed("mode")} {
				if set {
					mode = name
					given++
				}
			}
			if given > 1 {
				return usageError(errors.New("give one of --mode, --json, --csv and --table"))
			}
			if !slices.Contains(modes, mode) {
				return usageError(fmt.Errorf("--mode %s: write one of %s", mode, strings.Join(modes, ", ")))
			}
			if len(args) > 0 {
				d.dsn = args[0]
			}
			return runSQL(cmd, &d, mode, args)
		},
	}
	d.flag(cmd)
	f := cmd.Flags()
	f.StringVar(&mode, "mode", "table", "how rows are printed: "+strings.Join(modes, ", "))
	f.BoolVar(&asJSON, "json", false, "print an array of objects; short for --mode json")
	f.BoolVar(&asCSV, "csv", false, "print comma-separated values with a header; short for --mode csv")
	f.BoolVar(&asTable, "table", false, "print a table; short for --mode table")
	_ = cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions(modes, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runSQL(cmd *cobra.Command, d *database, mode string, args []string) (err error) {
	db, err := d.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	ctx := cmd.Context()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	s := &shell{
		db: db, conn: conn, printer: printer{mode: mode, out: cmd.OutOrStdout()},
		errs: cmd.ErrOrStderr(),
	}
	switch {
	case len(args) > 1 && strings.HasPrefix(strings.TrimSpace(args[1]), "."):
		err = s.command(ctx, args[1])
		if errors.Is(err, errQuit) {
			err = nil
		}
		return err
	case len(args) > 1:
		return s.query(ctx, args[1])
	case isTerminal(cmd.InOrStdin()) && isTerminal(cmd.OutOrStdout()):
		return s.interactive(d.name())
	}
	err = s.script(ctx, cmd.InOrStdin())
	if errors.Is(err, errQuit) {
		err = nil
	}
	return err
}

// A shell runs statements on one connection, so that transactions, TEMP tables and
// PRAGMAs work as in SQLite.
type shell struct {
	db      *sql.DB
	conn    *sql.Conn
	printer printer
	errs    io.Writer
	depth   int // of files that .read reads
}

// errQuit ends the shell.
var errQuit = errors.New("quit")

// query runs SQL and prints its rows.
func (s *shell) query(ctx context.Context, text string) error {
	rows, err := s.conn.QueryContext(ctx, text)
	if err != nil {
		return err
	}
	defer rows.Close()
	return s.printer.print(rows)
}

// maxScript bounds, in bytes, a script that is read from a file or standard input.
const maxScript = 1 << 30

// script runs the statements and commands of a text, up to the first error.
func (s *shell) script(ctx context.Context, in io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(in, maxScript+1))
	if err != nil {
		return err
	}
	if len(b) > maxScript {
		return fmt.Errorf("the script has more than %d MiB: divide it into files", maxScript>>20)
	}
	text := splitter{rest: strings.TrimPrefix(string(b), "\ufeff")}
	whole := len(text.rest)
	for {
		text.rest = strings.TrimLeft(text.rest, " \t\r\n\f")
		if strings.HasPrefix(text.rest, ".") {
			line, rest, _ := strings.Cut(text.rest, "\n")
			text.rest = rest
			if err := s.command(ctx, strings.TrimSpace(line)); err != nil {
				return err
			}
			continue
		}
		at := whole - len(text.rest)
		statement, complete := text.next()
		if !complete && blank(statement) {
			return nil
		}
		if err := s.query(ctx, statement); err != nil {
			return fmt.Errorf("line %d: %w", 1+strings.Count(string(b[:at]), "\n"), err)
		}
		if !complete {
			return nil
		}
	}
}

// interruptible calls f with a context that Ctrl-C ends.
func interruptible(f func(ctx context.Context) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	return f(ctx)
}

// tableNames returns the names of tables and views that can be read.
func (s *shell) tableNames(ctx context.Context) ([]string, error) {
	return s.texts(ctx, `SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\_%' ESCAPE '\'
		UNION SELECT name FROM sqlite_temp_schema WHERE type IN ('table', 'view') ORDER BY 1`)
}

// texts returns the first column of a query.
func (s *shell) texts(ctx context.Context, query string, args ...any) (texts []string, err error) {
	rows, err := s.conn.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var text sql.NullString
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		texts = append(texts, text.String)
	}
	return texts, rows.Err()
}
