package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/hiqlite/hiqlite/internal/spelling"
)

// A shellCommand is a command of the shell that begins with a point.
type shellCommand struct {
	name, args, help string
	run              func(s *shell, ctx context.Context, args []string) error
}

var shellCommands []shellCommand

func init() {
	shellCommands = []shellCommand{
		{"dump", "[TABLE...]", "print the SQL that makes the database, or some of its tables", (*shell).dump},
		{"help", "", "print this list", (*shell).help},
		{"import", "[--skip N] FILE TABLE", "insert the rows of a file of comma-separated values", (*shell).importCommand},
		{"mode", "[MODE]", "print rows as " + strings.Join(modes, ", "), (*shell).setMode},
		{"quit", "", "end the shell, as Ctrl-D does", func(*shell, context.Context, []string) error { return errQuit }},
		{"read", "FILE", "run the statements and commands of a file, up to the first error", (*shell).read},
		{"schema", "[TABLE]", "print the statements that made the schema", (*shell).schema},
		{"tables", "[PATTERN]", "print the names of tables and views, such as those LIKE PATTERN", (*shell).tables},
	}
}

// command runs a command of the shell.
func (s *shell) command(ctx context.Context, line string) error {
	words, err := commandWords(line[1:])
	if err != nil {
		return err
	}
	if len(words) == 0 {
		return errors.New("write a command after the point; .help lists them")
	}
	if words[0] == "exit" {
		words[0] = "quit"
	}
	names := make([]string, len(shellCommands))
	for i, c := range shellCommands {
		if c.name == words[0] {
			return c.run(s, ctx, words[1:])
		}
		names[i] = c.name
	}
	return fmt.Errorf("there is no command .%s: did you mean .%s? .help lists all", words[0], spelling.Nearest(words[0], names))
}

// commandWords divides a line into words, which may be in quotation marks.
func commandWords(line string) (words []string, err error) {
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if quote := line[0]; quote == '"' || quote == '\'' {
			end := strings.IndexByte(line[1:], quote)
			if end < 0 {
				return nil, fmt.Errorf("the quotation mark %c is not closed", quote)
			}
			words, line = append(words, line[1:1+end]), line[end+2:]
			continue
		}
		end := strings.IndexAny(line, " \t")
		if end < 0 {
			end = len(line)
		}
		words, line = append(words, line[:end]), line[end:]
	}
	return words, nil
}

func (s *shell) help(context.Context, []string) error {
	for _, c := range shellCommands {
		fmt.Fprintf(s.printer.out, "%-30s %s\n", "."+strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	return nil
}

func (s *shell) setMode(_ context.Context, args []string) error {
	switch {
	case len(args) == 0:
		fmt.Fprintln(s.printer.out, s.printer.mode)
		return nil
	case len(args) > 1 || !slices.Contains(modes, args[0]):
		return fmt.Errorf(".mode: write one of %s", strings.Join(modes, ", "))
	}
	s.printer.mode = args[0]
	return nil
}

func (s *shell) tables(ctx context.Context, args []string) error {
	if len(args) > 1 {
		return errors.New("write .tables, or .tables and one pattern")
	}
	names, err := s.tableNames(ctx)
	if len(args) == 1 && err == nil {
		names, err = s.texts(ctx, `SELECT name FROM (SELECT name, type FROM sqlite_schema UNION SELECT name, type FROM sqlite_temp_schema)
			WHERE type IN ('table', 'view') AND name LIKE ? ORDER BY 1`, args[0])
	}
	for _, name := range names {
		fmt.Fprintln(s.printer.out, name)
	}
	return err
}

func (s *shell) schema(ctx context.Context, args []string) error {
	if len(args) > 1 {
		return errors.New("write .schema, or .schema and one table")
	}
	pattern := "%"
	if len(args) == 1 {
		pattern = args[0]
	}
	statements, err := s.texts(ctx, `SELECT sql FROM (SELECT sql, name, tbl_name, 0 AS temp, rowid AS r FROM sqlite_schema UNION ALL SELECT sql, name, tbl_name, 1, rowid FROM sqlite_temp_schema)
		WHERE sql IS NOT NULL AND tbl_name LIKE ? AND name <> 'sqlite_hiqlite' ORDER BY temp, r`, pattern) // the table of the replicas' own state
	for _, statement := range statements {
		fmt.Fprintln(s.printer.out, statement+";")
	}
	return err
}

// maxReadDepth bounds files that .read each other.
const maxReadDepth = 10

func (s *shell) read(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("write .read and a file")
	}
	if s.depth == maxReadDepth {
		return fmt.Errorf("%s: more than %d files read each other", args[0], maxReadDepth)
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	s.depth++
	defer func() { s.depth-- }()
	if err := s.script(ctx, f); err != nil && !errors.Is(err, errQuit) {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return nil
}
