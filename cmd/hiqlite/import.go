package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hiqlite/hiqlite"
)

const (
	importRows  = 1000      // rows of one batch
	importBytes = 512 << 10 // of the values of one batch
)

// importCommand inserts the rows of a file. A table that does not exist gets the
// columns of the file's first row.
func (s *shell) importCommand(ctx context.Context, args []string) error {
	skip := 0
	if len(args) > 1 && args[0] == "--skip" {
		n, err := strconv.Atoi(args[1])
		if err != nil || n < 0 {
			return fmt.Errorf(".import --skip %s: write a number of rows", args[1])
		}
		skip, args = n, args[2:]
	}
	if len(args) != 2 {
		return errors.New("write .import, a file, and a table")
	}
	// BEGIN fails in a transaction, whose lease the batches would wait for in vain.
	if _, err := s.conn.ExecContext(ctx, "BEGIN DEFERRED; ROLLBACK"); err != nil {
		return fmt.Errorf(".import cannot run inside a transaction, since it is not one: %w", err)
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(0)
	if info, err := f.Stat(); err != nil {
		return err
	} else if info.IsDir() {
		return fmt.Errorf("%s is a folder", args[0])
	} else if info.Mode().IsRegular() {
		size = info.Size()
	}
	bar := &progress{w: s.errs, size: size}
	i := &importer{shell: s, table: args[1], bar: bar}
	rows, err := i.run(ctx, f, skip)
	bar.end()
	if err != nil {
		return fmt.Errorf("%s: %w; %d rows before it are in the table", args[0], err, rows)
	}
	fmt.Fprintf(s.errs, "%d rows were imported into %s\n", rows, args[1])
	return nil
}

// An importer inserts rows by batches, each of them atomic.
type importer struct {
	shell  *shell
	table  string
	bar    *progress
	insert string
	width  int // columns

	batch []hiqlite.Statement
	bytes int
	lines []int // of the rows of the batch
	done  int   // rows that are in the table
}

func (i *importer) run(ctx context.Context, in io.Reader, skip int) (rows int, err error) {
	counted := &countingReader{r: in}
	text := bufio.NewReaderSize(counted, 256<<10)
	if b, err := text.Peek(3); err == nil && string(b) == "\ufeff" {
		_, _ = text.Discard(3)
	}
	r := csv.NewReader(text)
	r.FieldsPerRecord = -1 // checked here, to name the table
	r.ReuseRecord = true
	for range skip {
		if _, err := r.Read(); err != nil {
			return 0, ignoreEOF(err)
		}
	}
	if err := i.prepare(ctx, r); err != nil {
		return 0, ignoreEOF(err)
	}
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			err := i.flush(ctx)
			return i.done, err
		}
		if err != nil {
			err = errors.Join(err, i.flush(ctx))
			return i.done, err
		}
		line, _ := r.FieldPos(0)
		if len(record) != i.width {
			err := fmt.Errorf("line %d has %d values, and %s has %d columns", line, len(record), i.table, i.width)
			err = errors.Join(err, i.flush(ctx))
			return i.done, err
		}
		if err := i.add(ctx, record, line); err != nil {
			return i.done, err
		}
		i.bar.set(counted.n)
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// prepare makes the table if it does not exist, and the INSERT.
func (i *importer) prepare(ctx context.Context, r *csv.Reader) error {
	columns, err := i.columns(ctx)
	if err != nil {
		return err
	}
	if len(columns) == 0 {
		header, err := r.Read()
		if err != nil {
			return err
		}
		var definitions []string
		for _, name := range header {
			columns = append(columns, name)
			definitions = append(definitions, quoteName(name)+" TEXT")
		}
		if _, err := i.shell.db.ExecContext(ctx, "CREATE TABLE "+quoteName(i.table)+"("+strings.Join(definitions, ", ")+")"); err != nil {
			return err
		}
	}
	i.width = len(columns)
	names := make([]string, len(columns))
	for n, c := range columns {
		names[n] = quoteName(c)
	}
	i.insert = fmt.Sprintf("INSERT INTO %s(%s) VALUES(%s)", quoteName(i.table), strings.Join(names, ", "), strings.TrimSuffix(strings.Repeat("?, ", len(columns)), ", "))
	return nil
}

// columns returns the columns of the table that can be inserted.
func (i *importer) columns(ctx context.Context) ([]string, error) {
	rows, err := i.shell.db.QueryContext(hiqlite.WithConsistency(ctx, hiqlite.Linearizable), "SELECT name FROM pragma_table_xinfo(?) WHERE hidden=0", i.table)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var columns []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		columns = append(columns, name)
	}
	return columns, rows.Err()
}

func (i *importer) add(ctx context.Context, record []string, line int) error {
	args := make([]any, len(record))
	for n, v := range record {
		args[n] = v
		i.bytes += len(v)
	}
	i.lines = append(i.lines, line)
	i.batch = append(i.batch, hiqlite.Statement{SQL: i.insert, Args: args})
	if len(i.batch) < importRows && i.bytes < importBytes {
		return nil
	}
	return i.flush(ctx)
}

// flush writes the batch. If a row of it fails, none of it is in the table.
func (i *importer) flush(ctx context.Context) error {
	if len(i.batch) == 0 {
		return nil
	}
	_, err := hiqlite.Batch(ctx, i.shell.db, i.batch...)
	if err != nil {
		var sqlErr *hiqlite.Error
		if errors.As(err, &sqlErr) {
			return fmt.Errorf("line %d: %w", i.lines[sqlErr.Statement], err)
		}
		return fmt.Errorf("the rows from line %d on: %w", i.lines[0], err)
	}
	i.done += len(i.batch)
	i.batch, i.lines, i.bytes = i.batch[:0], i.lines[:0], 0
	return nil
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// progress draws a bar on a terminal, and nothing elsewhere.
type progress struct {
	w    io.Writer
	size int64 // 0: unknown

	drawn   time.Time
	visible bool
}

const barWidth = 40

func (p *progress) set(n int64) {
	if p.size == 0 || !isTerminal(p.w) || time.Since(p.drawn) < 100*time.Millisecond {
		return
	}
	p.drawn, p.visible = time.Now(), true
	done := min(barWidth, int(n*barWidth/p.size))
	fmt.Fprintf(p.w, "\r[%s%s] %3d %%", strings.Repeat("#", done), strings.Repeat(".", barWidth-done), min(100, n*100/p.size))
}

// end removes the bar.
func (p *progress) end() {
	if p.visible {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", barWidth+10))
	}
}
