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

// Values and types are those of modernc.org/sqlite, for rows from this node and from
// the replicas: they depend on the declared type of the column and the storage class
// of the cell.

// argument converts an argument of database/sql. The result may share memory with v,
// because it is encoded or bound before the driver's method returns.
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

// A column describes a column of a result.
type column struct {
	name       string
	declType   string // in upper case
	holdsTimes bool   // the declared type is one of dates or times
}

func newColumns(from []wire.Column) []column {
	out := make([]column, len(from))
	for i, c := range from {
		out[i] = column{name: c.Name, declType: c.DeclType, holdsTimes: holdsTimes(c.DeclType)}
	}
	return out
}

// integer converts an INTEGER cell.
func (c *ConnConfig) integer(col *column, n int64) driver.Value {
	if !c.IntToTime || !col.holdsTimes {
		return n
	}
	switch {
	case c.TimeIntegerFormat == "unix_micro":
		return c.inLocation(time.UnixMicro(n).UTC())
	case c.TimeIntegerFormat == "unix_nano":
		return c.inLocation(time.Unix(0, n).UTC())
	case n > 1e12 || n < -1e12:
		return c.inLocation(time.UnixMilli(n).UTC())
	}
	return c.inLocation(time.Unix(n, 0).UTC())
}

// text converts a TEXT cell.
func (c *ConnConfig) text(col *column, s string) driver.Value {
	if !c.storageClasses && (col.holdsTimes || c.TextToTime && col.declType == "") {
		if t, ok := c.parseTime(s, !col.holdsTimes); ok {
			return t
		}
	}
	return s
}

// wireCell converts a cell of rows in memory.
func (c *ConnConfig) wireCell(col *column, v *wire.Value) driver.Value {
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

// stmtCell converts a cell of the current row of a SQLite statement.
func (c *ConnConfig) stmtCell(col *column, s *sqlite.Stmt, i int) driver.Value {
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
		case col.holdsTimes && c.IntToTime:
			return reflect.TypeFor[time.Time]()
		}
		return reflect.TypeFor[int64]()
	case wire.Real:
		return reflect.TypeFor[float64]()
	case wire.Text:
		if c.TextToTime && (col.holdsTimes || col.declType == "TIME") {
			return reflect.TypeFor[time.Time]()
		}
		return reflect.TypeFor[string]()
	case wire.Blob:
		return reflect.TypeFor[[]byte]()
	}
	return col.nullType()
}

// nullType returns the scan type of a NULL, and of a column of a result without rows. It
// follows the rules by which SQLite derives a column's affinity from its declared type.
func (col *column) nullType() reflect.Type {
	contains := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(col.declType, w) })
	}
	switch {
	case col.holdsTimes:
		return reflect.TypeFor[sql.NullTime]()
	case contains("BOOL"):
		return reflect.TypeFor[sql.NullBool]()
	case contains("INT"):
		return reflect.TypeFor[sql.NullInt64]()
	case contains("CHAR", "CLOB", "TEXT"):
		return reflect.TypeFor[sql.NullString]()
	case contains("BLOB"):
		return reflect.TypeFor[[]byte]()
	case contains("REAL", "FLOA", "DOUB", "NUMERIC", "DECIMAL"):
		return reflect.TypeFor[sql.NullFloat64]()
	}
	return reflect.TypeFor[any]() // an expression, or a declared type that allows every value
}

// cellLength returns the greatest length of a cell of this storage class, if it has a
// variable length.
func cellLength(kind wire.Kind) (int64, bool) {
	if kind == wire.Text || kind == wire.Blob {
		return math.MaxInt64, true
	}
	return 0, false
}
