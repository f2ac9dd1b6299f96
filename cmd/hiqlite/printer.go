package main

import (
	"bufio"
	"database/sql"
	"encoding/base64"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
)

// modes are the forms in which rows can be printed.
var modes = []string{"table", "csv", "json", "line", "list"}

// A printer prints the rows of results. It keeps only a bounded number of rows.
type printer struct {
	mode string
	out  io.Writer
}

// print prints all result sets.
func (p *printer) print(rows *sql.Rows) error {
	w := bufio.NewWriterSize(p.out, 64<<10)
	for {
		if err := p.resultSet(w, rows); err != nil {
			w.Flush()
			return err
		}
		if !rows.NextResultSet() {
			break
		}
	}
	if err := rows.Err(); err != nil {
		w.Flush()
		return err
	}
	return w.Flush()
}

func (p *printer) resultSet(w *bufio.Writer, rows *sql.Rows) error {
	columns, err := rows.Columns()
	if err != nil || len(columns) == 0 {
		return err
	}
	types, err := rows.ColumnTypes()
	if err != nil {
		return err
	}
	var form rowForm
	switch p.mode {
	case "csv":
		form = &csvForm{w: csv.NewWriter(w)}
	case "json":
		form = &jsonForm{w: w}
	case "line":
		form = &lineForm{w: w}
	case "list":
		form = &listForm{w: w}
	default:
		form = &tableForm{w: w, terminal: p.out}
	}
	if err := form.begin(columns); err != nil {
		return err
	}
	cells := make([]any, len(columns))
	targets := make([]any, len(columns))
	for i := range cells {
		targets[i] = &cells[i]
	}
	for rows.Next() {
		if err := rows.Scan(targets...); err != nil {
			return err
		}
		for i, c := range cells {
			if t, ok := c.(time.Time); ok {
				cells[i] = timeText(t, types[i].DatabaseTypeName())
			}
		}
		if err := form.row(cells); err != nil {
			return err
		}
	}
	return form.end()
}

// timeText returns a time as the common texts of SQLite have it. The driver has made
// it from a text in a column of times, whose exact form is lost.
func timeText(t time.Time, declared string) string {
	if declared == "DATE" && t.Equal(t.Truncate(24*time.Hour)) {
		return t.Format(time.DateOnly)
	}
	if _, offset := t.Zone(); offset == 0 {
		return t.Format("2006-01-02 15:04:05.999999999")
	}
	return t.Format("2006-01-02 15:04:05.999999999-07:00")
}

// cellText returns a value as text; NULL is the given text.
func cellText(v any, null string) string {
	switch v := v.(type) {
	case nil:
		return null
	case []byte:
		return "x'" + hex.EncodeToString(v) + "'"
	case float64:
		return floatText(v)
	case string:
		return v
	case bool:
		if v {
			return "1"
		}
		return "0"
	}
	return fmt.Sprint(v)
}

// floatText returns a REAL as SQLite prints it: with a point, so that it does not look
// like an integer.
func floatText(f float64) string {
	switch {
	case math.IsInf(f, 1):
		return "Inf"
	case math.IsInf(f, -1):
		return "-Inf"
	}
	format := byte('f')
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e15) {
		format = 'e'
	}
	s := strconv.FormatFloat(f, format, -1, 64)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return s
}

// A rowForm prints the rows of one result set.
type rowForm interface {
	begin(columns []string) error
	row(cells []any) error
	end() error
}

// tableRows is how many rows a table looks at for the widths of its columns. Longer
// results are printed in parts of so many rows.
const tableRows = 1000

// maxColumn bounds the width of a column, in characters.
const maxColumn = 100

type tableForm struct {
	w        *bufio.Writer
	terminal io.Writer
	columns  []string
	rows     [][]string
	numbers  []bool // columns of numbers, which are aligned to the right
	widths   []int
	printed  bool
}

func (f *tableForm) begin(columns []string) error {
	f.columns = columns
	return nil
}

func (f *tableForm) row(cells []any) error {
	if len(f.rows) == 0 {
		f.numbers = slices.Repeat([]bool{true}, len(cells))
	}
	line := make([]string, len(cells))
	for i, c := range cells {
		line[i] = visible(cellText(c, "NULL"))
		switch c.(type) {
		case nil, int64, float64, bool:
		default:
			f.numbers[i] = false
		}
	}
	f.rows = append(f.rows, line)
	if len(f.rows) == tableRows {
		return f.flush()
	}
	return nil
}

// visible writes control characters as escapes, so that a value stays on its line and
// cannot change the terminal.
func visible(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }) && utf8.ValidString(s) {
		return s
	}
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`), `\\`, `\`)
}

func (f *tableForm) end() error {
	if len(f.rows) > 0 || !f.printed {
		return f.flush()
	}
	return nil
}

func (f *tableForm) flush() error {
	if f.widths == nil {
		f.widths = make([]int, len(f.columns))
		for i, c := range f.columns {
			f.widths[i] = runewidth.StringWidth(visible(c))
		}
	}
	for _, row := range f.rows {
		for i, c := range row {
			f.widths[i] = max(f.widths[i], min(maxColumn, runewidth.StringWidth(c)))
		}
	}
	if !f.printed {
		header := make([]string, len(f.columns))
		rule := make([]string, len(f.columns))
		for i, c := range f.columns {
			header[i] = paint(f.terminal, bold, runewidth.FillRight(visible(c), f.widths[i]))
			rule[i] = strings.Repeat("-", f.widths[i])
		}
		fmt.Fprintln(f.w, strings.TrimRight(strings.Join(header, "  "), " "))
		fmt.Fprintln(f.w, strings.Join(rule, "  "))
		f.printed = true
	}
	for _, row := range f.rows {
		for i, c := range row {
			if f.numbers[i] {
				row[i] = runewidth.FillLeft(c, f.widths[i])
			} else {
				row[i] = runewidth.FillRight(c, f.widths[i])
			}
			if c == "NULL" {
				row[i] = paint(f.terminal, dim, row[i])
			}
		}
		fmt.Fprintln(f.w, strings.TrimRight(strings.Join(row, "  "), " "))
	}
	f.rows = f.rows[:0]
	return nil
}

type csvForm struct{ w *csv.Writer }

func (f *csvForm) begin(columns []string) error { return f.w.Write(columns) }

func (f *csvForm) row(cells []any) error {
	line := make([]string, len(cells))
	for i, c := range cells {
		line[i] = cellText(c, "")
	}
	return f.w.Write(line)
}

func (f *csvForm) end() error {
	f.w.Flush()
	return f.w.Error()
}

type jsonForm struct {
	w       *bufio.Writer
	columns []string
	rows    int
}

func (f *jsonForm) begin(columns []string) error {
	for _, c := range columns {
		name, err := json.Marshal(c)
		if err != nil {
			return err
		}
		f.columns = append(f.columns, string(name))
	}
	return nil
}

func (f *jsonForm) row(cells []any) error {
	separator := ",\n"
	if f.rows == 0 {
		separator = "["
	}
	f.rows++
	f.w.WriteString(separator + "{")
	for i, c := range cells {
		if i > 0 {
			f.w.WriteByte(',')
		}
		b, err := jsonCell(c)
		if err != nil {
			return err
		}
		fmt.Fprintf(f.w, "%s:%s", f.columns[i], b)
	}
	return f.w.WriteByte('}')
}

// jsonCell returns a value in JSON: blobs in base64, and infinite numbers as numbers
// that are too large, as SQLite does.
func jsonCell(v any) ([]byte, error) {
	switch v := v.(type) {
	case float64:
		if math.IsInf(v, 1) {
			return []byte("9.0e+999"), nil
		}
		if math.IsInf(v, -1) {
			return []byte("-9.0e+999"), nil
		}
		return []byte(floatText(v)), nil
	case []byte:
		return json.Marshal(base64.StdEncoding.EncodeToString(v))
	}
	return json.Marshal(v)
}

func (f *jsonForm) end() error {
	if f.rows == 0 {
		f.w.WriteByte('[')
	}
	_, err := f.w.WriteString("]\n")
	return err
}

type lineForm struct {
	w       *bufio.Writer
	columns []string
	rows    int
}

func (f *lineForm) begin(columns []string) error {
	f.columns = columns
	return nil
}

func (f *lineForm) row(cells []any) error {
	if f.rows++; f.rows > 1 {
		f.w.WriteByte('\n')
	}
	for i, c := range cells {
		fmt.Fprintf(f.w, "%s = %s\n", f.columns[i], visible(cellText(c, "NULL")))
	}
	return nil
}

func (f *lineForm) end() error { return nil }

// listForm prints the values alone, separated by |, for scripts.
type listForm struct{ w *bufio.Writer }

func (f *listForm) begin([]string) error { return nil }

func (f *listForm) row(cells []any) error {
	for i, c := range cells {
		if i > 0 {
			f.w.WriteByte('|')
		}
		f.w.WriteString(cellText(c, ""))
	}
	return f.w.WriteByte('\n')
}

func (f *listForm) end() error { return nil }
