package hiqlite

import (
	"database/sql"
	"database/sql/driver"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// Values and types follow modernc.org/sqlite, wherever the row came from: the
// declared type of the column and the storage class of the cell decide.

// argument converts a driver's value for the log. The result may share memory
// with v: it is encoded, or bound, before the call of the driver returns.
func (c *ConnConfig) argument(v driver.NamedValue) (wire.Argument, error) {
	a := wire.Argument{Name: v.Name}
	switch x := v.Value.(type) {
	case nil:
	case int64:
		a.Value = wire.IntegerValue(x)
	case float64:
		a.Value = wire.RealValue(x)
	case bool:
		a.Kind = wire.Integer
		if x {
			a.Num = 1
		}
	case string:
		a.Value = wire.Value{Kind: wire.Text, Data: unsafe.Slice(unsafe.StringData(x), len(x))}
	case []byte:
		if x != nil {
			a.Value = wire.BlobValue(x)
		}
	case time.Time:
		var err error
		if a.Value, err = c.timeValue(x); err != nil {
			return a, err
		}
	default:
		return a, misuse("pass an integer, float, bool, string, []byte, time.Time or nil", "unsupported type %T of argument %d", x, v.Ordinal)
	}
	return a, nil
}

func (c *ConnConfig) arguments(args []driver.NamedValue) ([]wire.Argument, error) {
	if len(args) == 0 {
		return nil, nil
	}
	out := make([]wire.Argument, len(args))
	for i := range args {
		var err error
		if out[i], err = c.argument(args[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// A column is what is known of a result's column.
type column struct {
	name     string
	declType string // in upper case
	dated    bool   // it is one of times
}

func newColumns(from []wire.Column) []column {
	out := make([]column, len(from))
	for i, c := range from {
		out[i] = column{name: c.Name, declType: c.DeclType, dated: holdsTimes(c.DeclType)}
	}
	return out
}

// integer converts an INTEGER cell.
func (c *ConnConfig) integer(col *column, n int64) driver.Value {
	if !c.IntToTime || !col.dated {
		return n
	}
	switch {
	case c.TimeIntegerFormat == "unix_micro":
		return c.in(time.UnixMicro(n).UTC())
	case c.TimeIntegerFormat == "unix_nano":
		return c.in(time.Unix(0, n).UTC())
	case n > 1e12 || n < -1e12:
		return c.in(time.UnixMilli(n).UTC())
	}
	return c.in(time.Unix(n, 0).UTC())
}

// text converts a TEXT cell.
func (c *ConnConfig) text(col *column, s string) driver.Value {
	if col.dated || c.TextToTime && col.declType == "" {
		if t, ok := c.parseTime(s, !col.dated); ok {
			return t
		}
	}
	return s
}

// value converts a cell that stands in memory.
func (c *ConnConfig) value(col *column, v *wire.Value) driver.Value {
	switch v.Kind {
	case wire.Integer:
		return c.integer(col, v.Int())
	case wire.Real:
		return v.Float()
	case wire.Text:
		return c.text(col, string(v.Data))
	case wire.Blob:
		return append([]byte{}, v.Data...)
	}
	return nil
}

// cell converts a cell of a statement's current row.
func (c *ConnConfig) cell(col *column, s *sqlite.Stmt, i int) driver.Value {
	switch s.Kind(i) {
	case wire.Integer:
		return c.integer(col, s.Int(i))
	case wire.Real:
		return s.Float(i)
	case wire.Text:
		return c.text(col, string(s.Bytes(i)))
	case wire.Blob:
		return append([]byte{}, s.Bytes(i)...)
	}
	return nil
}

// scanType is the type that a cell of this storage class is best scanned into.
func (c *ConnConfig) scanType(col *column, kind wire.Kind) reflect.Type {
	switch kind {
	case wire.Integer:
		switch {
		case col.declType == "BOOLEAN":
			return reflect.TypeFor[bool]()
		case col.dated && c.IntToTime:
			return reflect.TypeFor[time.Time]()
		}
		return reflect.TypeFor[int64]()
	case wire.Real:
		return reflect.TypeFor[float64]()
	case wire.Text:
		if c.TextToTime && (col.dated || col.declType == "TIME") {
			return reflect.TypeFor[time.Time]()
		}
		return reflect.TypeFor[string]()
	case wire.Blob:
		return reflect.TypeFor[[]byte]()
	}
	return col.nullType()
}

// nullType is what a NULL, or no row at all, can be scanned into: by the rules
// that give a column of this declared type its affinity.
func (col *column) nullType() reflect.Type {
	says := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(col.declType, w) })
	}
	switch {
	case col.dated:
		return reflect.TypeFor[sql.NullTime]()
	case says("BOOL"):
		return reflect.TypeFor[sql.NullBool]()
	case says("INT"):
		return reflect.TypeFor[sql.NullInt64]()
	case says("CHAR", "CLOB", "TEXT"):
		return reflect.TypeFor[sql.NullString]()
	case says("BLOB"):
		return reflect.TypeFor[[]byte]()
	case says("REAL", "FLOA", "DOUB", "NUMERIC", "DECIMAL"):
		return reflect.TypeFor[sql.NullFloat64]()
	}
	return reflect.TypeFor[any]() // an expression, or a type of which anything can be
}

// length is the length that a cell of this storage class may have.
func length(kind wire.Kind) (int64, bool) {
	if kind == wire.Text || kind == wire.Blob {
		return math.MaxInt64, true
	}
	return 0, false
}
