package wire

import "google.golang.org/protobuf/encoding/protowire"

// TempKind says what a TEMP object is.
type TempKind uint8

// The kinds.
const (
	TempTable TempKind = iota + 1
	TempIndex
	TempView
	TempTrigger
)

// A TempObject is a TEMP object of a connection, as sqlite_temp_schema has it.
type TempObject struct {
	Kind  TempKind
	Name  string
	Table string // of an index or a trigger
	SQL   string

	// Only tables have the following.
	Columns []string // the columns with stored values, in the order of a row's cells
	RowID   bool     // the first cell of each row is its rowid

	rows []byte // the object's encoding
}

// AppendTempObject appends a TEMP object to the encoding of all of a connection.
// rows calls its argument with the cells of each row of a table.
func AppendTempObject(b []byte, o *TempObject, rows func(add func(cells []Value) error) error) ([]byte, error) {
	b, at := openMessage(b, 1)
	b = appendUint(b, 1, uint64(o.Kind))
	b = appendString(b, 2, o.Name)
	b = appendString(b, 3, o.Table)
	b = appendString(b, 4, o.SQL)
	for _, name := range o.Columns {
		b = appendBytesAlways(b, 5, name)
	}
	b = appendBool(b, 6, o.RowID)
	var err error
	if rows != nil {
		err = rows(func(cells []Value) error {
			var row int
			b, row = openMessage(b, 7)
			for _, v := range cells {
				var cell int
				b, cell = openMessage(b, 1)
				b = closeMessage(appendValue(b, v), cell)
			}
			b = closeMessage(b, row)
			return nil
		})
	}
	return closeMessage(b, at), err
}

// DecodeTemp decodes what AppendTempObject wrote. The objects point into b.
func DecodeTemp(b []byte) (objects []TempObject, err error) {
	err = fields(b, func(f protowire.Number, _ uint64, data []byte) error {
		if f != 1 {
			return nil
		}
		o := TempObject{rows: data}
		err := fields(data, func(f protowire.Number, n uint64, data []byte) error {
			switch f {
			case 1:
				o.Kind = TempKind(n)
			case 2:
				o.Name = string(data)
			case 3:
				o.Table = string(data)
			case 4:
				o.SQL = string(data)
			case 5:
				o.Columns = append(o.Columns, string(data))
			case 6:
				o.RowID = n != 0
			}
			return nil
		})
		objects = append(objects, o)
		return err
	})
	return objects, err
}

// EachRow calls f with the cells of each row of a table that was decoded. They
// are valid until f returns.
func (o *TempObject) EachRow(f func(cells []Argument) error) error {
	var cells []Argument
	width := len(o.Columns)
	if o.RowID {
		width++
	}
	return fields(o.rows, func(field protowire.Number, _ uint64, data []byte) error {
		if field != 7 {
			return nil
		}
		cells = cells[:0]
		err := fields(data, func(f protowire.Number, _ uint64, data []byte) error {
			if f != 1 {
				return nil
			}
			cells = append(cells, Argument{})
			return argument(data, &cells[len(cells)-1])
		})
		if err != nil {
			return err
		}
		if len(cells) != width {
			return errMalformed
		}
		return f(cells)
	})
}
