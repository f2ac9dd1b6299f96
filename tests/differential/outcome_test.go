package differential

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	reference "modernc.org/sqlite"
)

// An outcome is what a program sees of a step.
type outcome struct {
	columns string // their names and declared types
	lengths string // of the columns; both drivers take them from the first row
	rows    []string
	result  string // of Exec
	err     string // with its code
	cause   error
}

func failed(err error) outcome {
	code := "none"
	var coded interface{ Code() int }
	var theirs *reference.Error
	switch {
	case errors.As(err, &theirs):
		code = fmt.Sprint(theirs.Code())
	case errors.As(err, &coded) && !strings.HasPrefix(err.Error(), "missing "): // the reference's error has no code
		code = fmt.Sprint(coded.Code())
	}
	return outcome{err: fmt.Sprintf("%s [code %s]", err, code), cause: err}
}

// first is the first row's text.
func (o outcome) first() string {
	if len(o.rows) == 0 {
		return ""
	}
	return strings.Trim(strings.TrimPrefix(o.rows[0], "string "), `" |`)
}

// sameFirstRow reports whether the first rows are equal. Without ORDER BY, SQLite may
// return the same rows in another order, which depends on the query plan.
func (o outcome) sameFirstRow(other outcome) bool {
	if len(o.rows) == 0 || len(other.rows) == 0 {
		return len(o.rows) == len(other.rows)
	}
	return o.rows[0] == other.rows[0]
}

func (o outcome) String() string {
	if o.err != "" {
		return "error: " + o.err
	}
	if o.result != "" {
		return o.result
	}
	const most = 12
	rows := o.rows
	if len(rows) > most {
		rows = append(slices.Clone(rows[:most]), fmt.Sprintf("... %d rows", len(o.rows)))
	}
	return o.columns + "\n" + o.lengths + "\n" + strings.Join(rows, "\n")
}

// executor has what a sql.Conn with a text and a sql.Stmt have in common.
type executor struct {
	query func(ctx context.Context, args ...any) (*sql.Rows, error)
	exec  func(ctx context.Context, args ...any) (sql.Result, error)
}

func ofConn(c *sql.Conn, text string) executor {
	return executor{
		func(ctx context.Context, args ...any) (*sql.Rows, error) { return c.QueryContext(ctx, text, args...) },
		func(ctx context.Context, args ...any) (sql.Result, error) { return c.ExecContext(ctx, text, args...) },
	}
}

func (e executor) see(ctx context.Context, s step) outcome {
	if s.how == exec || s.how == preparedExec {
		r, err := e.exec(ctx, s.values()...)
		return seeResult(s.text, r, err)
	}
	rows, err := e.query(ctx, s.values()...)
	return seeRows(rows, err)
}

// changesRows reports whether the result of a statement has a meaning. For other
// statements SQLite repeats the result of an earlier one.
func changesRows(text string) bool {
	for _, verb := range []string{"INSERT", "REPLACE", "UPDATE", "DELETE"} {
		if strings.HasPrefix(text, verb) {
			return true
		}
	}
	return false
}

func seeResult(text string, r sql.Result, err error) outcome {
	if err != nil {
		return failed(err)
	}
	if !changesRows(text) {
		return outcome{result: "ok"}
	}
	n, err := r.RowsAffected()
	if err != nil {
		return failed(err)
	}
	id, err := r.LastInsertId()
	if err != nil {
		return failed(err)
	}
	if strings.HasPrefix(text, "INSERT") || strings.HasPrefix(text, "REPLACE") {
		return outcome{result: fmt.Sprintf("rows %d, id %d", n, id)}
	}
	return outcome{result: fmt.Sprintf("rows %d", n)}
}

func seeRows(rows *sql.Rows, err error) outcome {
	if err != nil {
		return failed(err)
	}
	defer rows.Close()
	var o outcome
	types, err := rows.ColumnTypes()
	if err != nil {
		return failed(err)
	}
	for _, c := range types {
		length, bounded := c.Length()
		o.columns += fmt.Sprintf("%q %q; ", c.Name(), c.DatabaseTypeName())
		o.lengths += fmt.Sprintf("%d %v; ", length, bounded)
	}
	for rows.Next() {
		values, pointers := make([]any, len(types)), make([]any, len(types))
		for i := range values {
			pointers[i] = &values[i]
		}
		if err := rows.Scan(pointers...); err != nil {
			return failed(err)
		}
		line := ""
		for _, v := range values {
			line += seeValue(v) + " | "
		}
		o.rows = append(o.rows, line)
	}
	if err := rows.Err(); err != nil {
		return failed(err)
	}
	return o
}

func seeValue(v any) string {
	switch v := v.(type) {
	case nil:
		return "NULL"
	case int64:
		return fmt.Sprint(v)
	case string:
		// hiqlite reads RFC 3339 in lower case as a time, the reference as a text.
		if t, err := time.Parse(time.RFC3339, strings.ToUpper(v)); err == nil && v != strings.ToUpper(v) {
			return seeValue(t)
		}
	case time.Time:
		if v.Year() < 0 { // the reference returns a text
			return seeValue(v.Format(time.DateOnly))
		}
		return "time " + v.Format(time.RFC3339Nano)
	case float64:
		return fmt.Sprintf("%v(%x)", v, math.Float64bits(v))
	case []byte:
		return fmt.Sprintf("x'%x'", v) // the reference returns nil for an empty one
	}
	return fmt.Sprintf("%T %#v", v, v)
}
