package main

import (
	"bufio"
	"bytes"
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
		Use:   "sql [DSN] [SQL]",
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
  hiqlite sql "SELECT * FROM users"   # of the database in HIQLITE_DSN
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
			text, err := textOf(&d, args)
			if err != nil {
				return err
			}
			return runSQL(cmd, &d, mode, text)
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

// textOf returns the SQL, or the command of the shell, among the arguments; "": there is
// none. It sets the DSN if that is an argument. A single argument is the DSN, unless --dsn
// gives it, or the argument looks like SQL: SQL that was taken for the name of a folder
// would create that folder.
func textOf(d *database, args []string) (text string, err error) {
	switch {
	case len(args) == 2 && d.dsn != "":
		return "", usageError(errors.New("give the database once: as an argument or as --dsn"))
	case len(args) == 2:
		d.dsn = args[0]
		return args[1], nil
	case len(args) == 1 && (d.dsn != "" || looksLikeSQL(args[0])):
		return args[0], nil
	case len(args) == 1:
		d.dsn = args[0]
	}
	return "", nil
}

// looksLikeSQL reports whether an argument is SQL or a command of the shell, and not a DSN.
func looksLikeSQL(argument string) bool {
	folder, _, _ := strings.Cut(argument, "?")
	if _, err := os.Stat(folder); err == nil || strings.Contains(folder, "://") {
		return false
	}
	command := len(argument) > 1 && argument[0] == '.' && argument[1] >= 'a' && argument[1] <= 'z' && !strings.Contains(argument, "/")
	return command || strings.ContainsAny(strings.TrimSpace(argument), " \t\r\n;")
}

func runSQL(cmd *cobra.Command, d *database, mode, text string) (err error) {
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
	case strings.HasPrefix(strings.TrimSpace(text), "."):
		err = s.command(ctx, text)
		if errors.Is(err, errQuit) {
			err = nil
		}
		return err
	case text != "":
		return s.query(ctx, text)
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

const (
	// maxStatement bounds, in bytes, a statement of a script. The largest that can be
	// written has 8 MiB.
	maxStatement = 64 << 20
	// longStatement is how long a statement is whose end is not looked for after each
	// line, since its beginning is read again each time.
	longStatement = 64 << 10
)

// script runs the statements and commands of a text as it reads them, up to the first
// error.
func (s *shell) script(ctx context.Context, in io.Reader) error {
	lines := bufio.NewReaderSize(in, 64<<10)
	var pending bytes.Buffer
	at, enough := 1, 0 // the line with which pending begins, and how long it has to be to be split
	for first := true; ; first = false {
		line, err := lines.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		last := err != nil
		if first {
			line = strings.TrimPrefix(line, "\ufeff")
		}
		command := strings.HasPrefix(strings.TrimSpace(line), ".") && blank(pending.String())
		if command {
			at += strings.Count(pending.String(), "\n")
			pending.Reset()
		}
		pending.WriteString(line)
		if !last && !command && (!strings.Contains(line, ";") || pending.Len() < enough) {
			if pending.Len() > maxStatement {
				return fmt.Errorf("line %d: the statement has more than %d MiB", at, maxStatement>>20)
			}
			continue
		}
		text := pending.String()
		rest, err := s.runScript(ctx, text, at, last)
		if err != nil || last {
			return err
		}
		at += strings.Count(text[:len(text)-len(rest)], "\n")
		pending.Reset()
		pending.WriteString(rest)
		if enough = 0; len(rest) > longStatement {
			enough = len(rest) + len(rest)/4
		}
	}
}

// runScript runs the statements and commands of a part of a script, which begins with a
// line of this number. It returns the rest, which is incomplete. If there are no more
// lines, that is run too.
func (s *shell) runScript(ctx context.Context, part string, line int, last bool) (rest string, err error) {
	text := splitter{rest: part}
	for {
		text.rest = strings.TrimLeft(text.rest, " \t\r\n\f")
		if strings.HasPrefix(text.rest, ".") {
			command, rest, _ := strings.Cut(text.rest, "\n")
			text.rest = rest
			if err := s.command(ctx, strings.TrimSpace(command)); err != nil {
				return "", err
			}
			continue
		}
		at := line + strings.Count(part[:len(part)-len(text.rest)], "\n")
		statement, complete := text.next()
		switch {
		case !complete && blank(statement):
			return "", nil
		case !complete && !last:
			return statement, nil
		}
		if err := s.query(ctx, statement); err != nil {
			return "", fmt.Errorf("line %d: %w", at, err)
		}
		if !complete {
			return "", nil
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
