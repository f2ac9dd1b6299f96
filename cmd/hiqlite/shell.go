package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/peterh/liner"
)

const (
	prompt       = "hiqlite> "
	continuation = "    ...> "

	// completeWithin bounds how long completion waits for the database.
	completeWithin = time.Second
	// maxHistoryLine bounds a statement that is kept in the history, in bytes.
	maxHistoryLine = 4 << 10
)

// interactive reads statements from the terminal until it ends.
func (s *shell) interactive(dsn string) error {
	line := liner.NewLiner()
	defer line.Close()
	line.SetCtrlCAborts(true)
	line.SetMultiLineMode(true)
	line.SetTabCompletionStyle(liner.TabPrints)
	line.SetWordCompleter(s.complete)
	history := historyFile()
	if f, err := os.Open(history); err == nil {
		_, _ = line.ReadHistory(f) // a damaged history is not worth an error
		f.Close()
	}
	fmt.Fprintf(s.printer.out, "Connected to %s. Statements end with ; and .help lists commands.\n", redactedDSN(dsn))
	err := s.loop(line)
	if saveErr := saveHistory(line, history); saveErr != nil {
		report(s.errs, fmt.Errorf("the history was not saved: %w", saveErr))
	}
	return err
}

// redactedDSN returns a DSN without its keys.
func redactedDSN(dsn string) string {
	name, _, _ := strings.Cut(dsn, "?")
	return name
}

// A lineReader reads lines and remembers statements.
type lineReader interface {
	Prompt(string) (string, error)
	AppendHistory(string)
}

// loop reads lines and runs the statements that they make.
func (s *shell) loop(line lineReader) error {
	pending := ""
	for {
		text := prompt
		if pending != "" {
			text = continuation
		}
		next, err := line.Prompt(text)
		switch {
		case errors.Is(err, liner.ErrPromptAborted):
			pending = "" // Ctrl-C forgets the statement
			continue
		case errors.Is(err, io.EOF):
			fmt.Fprintln(s.printer.out)
			return nil
		case err != nil:
			return err
		}
		if pending == "" && strings.HasPrefix(strings.TrimSpace(next), ".") {
			line.AppendHistory(strings.TrimSpace(next))
			err := interruptible(func(ctx context.Context) error { return s.command(ctx, strings.TrimSpace(next)) })
			if errors.Is(err, errQuit) {
				return nil
			}
			report(s.errs, err)
			continue
		}
		pending = s.runComplete(line, pending+next+"\n")
	}
}

// runComplete runs the statements that are complete, and returns the rest of the text.
func (s *shell) runComplete(line lineReader, text string) (rest string) {
	statements := splitter{rest: text}
	for {
		statement, complete := statements.next()
		if !complete {
			if blank(statement) {
				return ""
			}
			return statement
		}
		if blank(statement) {
			continue
		}
		if entry := historyEntry(statement); entry != "" {
			line.AppendHistory(entry)
		}
		began := time.Now()
		if err := interruptible(func(ctx context.Context) error { return s.query(ctx, statement) }); err != nil {
			if errors.Is(err, context.Canceled) {
				err = fmt.Errorf("interrupted after %v", time.Since(began).Round(time.Millisecond))
			}
			report(s.errs, err)
		}
	}
}

// historyEntry returns a statement as one line, or "" if that would change it or make
// it too long.
func historyEntry(statement string) string {
	if len(statement) > maxHistoryLine {
		return ""
	}
	var b strings.Builder
	for i := 0; i < len(statement); {
		end, kind := token(statement[i:])
		part := statement[i : i+end]
		i += end
		if strings.Contains(part, "\n") {
			switch {
			case kind != tokenSpace:
				return "" // a text of several lines
			case strings.HasPrefix(part, "--"):
				continue // a comment up to the end of the line
			}
			part = " "
		}
		b.WriteString(part)
	}
	return strings.TrimSpace(b.String())
}

// historyFile returns the path of the file in which statements are remembered.
func historyFile() string {
	folder := os.Getenv("XDG_STATE_HOME")
	if folder == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		folder = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(folder, "hiqlite", "history")
}

// saveHistory replaces the file. Only its owner can read it: statements have data.
func saveHistory(line *liner.State, name string) error {
	if name == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), "history-") // mode 0600
	if err != nil {
		return err
	}
	_, err = line.WriteHistory(f)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// keywords are those that completion offers.
var keywords = strings.Fields(`ABORT ALTER ANALYZE AND AS ASC AUTOINCREMENT BEGIN BETWEEN BY CASCADE CASE CAST CHECK
	COLLATE COLUMN COMMIT CONFLICT CONSTRAINT CREATE CROSS CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP DEFAULT
	DEFERRED DELETE DESC DISTINCT DO DROP ELSE END ESCAPE EXCEPT EXISTS EXPLAIN FOREIGN FROM FULL GLOB GROUP HAVING
	IF IGNORE IMMEDIATE IN INDEX INNER INSERT INTERSECT INTO IS ISNULL JOIN KEY LEFT LIKE LIMIT MATCH NATURAL NOT
	NOTNULL NULL OFFSET ON OR ORDER OUTER OVER PARTITION PLAN PRAGMA PRIMARY QUERY RECURSIVE REFERENCES REGEXP
	REINDEX RELEASE RENAME REPLACE RETURNING RIGHT ROLLBACK ROW ROWS SAVEPOINT SELECT SET STRICT TABLE TEMP THEN TO
	TRANSACTION TRIGGER UNION UNIQUE UPDATE USING VACUUM VALUES VIEW VIRTUAL WHEN WHERE WINDOW WITH WITHOUT`)

// complete offers what the word before the cursor may become: commands, keywords, and
// the names of tables and columns.
func (s *shell) complete(line string, pos int) (head string, offers []string, tail string) {
	runes := []rune(line)
	start := pos
	for start > 0 && (wordByte(byte(min(runes[start-1], 0x7f))) || runes[start-1] >= 0x80 || runes[start-1] == '.' && start == 1) {
		start--
	}
	head, word, tail := string(runes[:start]), string(runes[start:pos]), string(runes[pos:])
	if word == "" {
		return head, nil, tail
	}
	if strings.HasPrefix(word, ".") {
		for _, c := range shellCommands {
			if strings.HasPrefix("."+c.name, word) {
				offers = append(offers, "."+c.name)
			}
		}
		return head, offers, tail
	}
	ctx, cancel := context.WithTimeout(context.Background(), completeWithin)
	defer cancel()
	names, err := s.tableNames(ctx)
	if err == nil {
		if columns, err := s.texts(ctx, `SELECT DISTINCT c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c WHERE t.type IN ('table', 'view') ORDER BY 1`); err == nil {
			names = append(names, columns...)
		}
	}
	lower := word == strings.ToLower(word)
	for _, k := range keywords {
		if lower {
			k = strings.ToLower(k)
		}
		names = append(names, k)
	}
	for _, name := range names {
		if len(name) >= len(word) && strings.EqualFold(name[:len(word)], word) && !slices.Contains(offers, name) {
			offers = append(offers, name)
		}
	}
	return head, offers, tail
}
