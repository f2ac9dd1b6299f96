package wire

import (
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// A tempObject is a TEMP object with its rows.
type tempObject struct {
	TempObject
	Rows [][]Value
}

func encodeTemp(objects []tempObject) (b []byte, err error) {
	b = []byte{}
	for i := range objects {
		o := &objects[i]
		b, err = AppendTempObject(b, &o.TempObject, func(add func([]Value) error) error {
			for _, row := range o.Rows {
				if err := add(row); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}

func decodeTemp(b []byte) (out []tempObject, err error) {
	objects, err := DecodeTemp(b)
	if err != nil {
		return nil, err
	}
	for i := range objects {
		o := tempObject{TempObject: objects[i]}
		err := objects[i].EachRow(func(cells []Argument) error {
			row := []Value{}
			for _, c := range cells {
				if c.Data != nil {
					c.Data = append([]byte{}, c.Data...)
				}
				row = append(row, c.Value)
			}
			o.Rows = append(o.Rows, row)
			return nil
		})
		if err != nil {
			return nil, err
		}
		o.rows = nil
		out = append(out, o)
	}
	return out, nil
}

func sampleTemp() []byte {
	b, err := encodeTemp([]tempObject{
		{TempObject{Kind: TempTable, Name: "x", SQL: "CREATE TABLE x(a,b)", Columns: []string{"a", "b"}, RowID: true}, [][]Value{
			{IntegerValue(-1), TextValue("a\x00\xff"), {}}, {IntegerValue(1 << 40), RealValue(1.5), BlobValue([]byte{0, 255})},
		}},
		{TempObject{Kind: TempIndex, Name: "i", Table: "x", SQL: "CREATE INDEX i ON x(a)"}, nil},
		{TempObject{Kind: TempTrigger, Name: "g", Table: "t", SQL: "CREATE TRIGGER g AFTER INSERT ON main.t BEGIN SELECT 1; END"}, nil},
	})
	if err != nil {
		panic(err)
	}
	return b
}

func genTemp(t *rapid.T) tempObject {
	name := rapid.SampledFrom([]string{"", "a", "\xffname", "long name"})
	o := tempObject{TempObject: TempObject{Kind: TempKind(rapid.IntRange(1, 4).Draw(t, "kind")), Name: name.Draw(t, "name"), Table: name.Draw(t, "table"), SQL: name.Draw(t, "sql")}}
	if o.Kind != TempTable {
		return o
	}
	o.Columns = rapid.SliceOfN(name, 1, 4).Draw(t, "columns")
	width := len(o.Columns)
	if o.RowID = rapid.Bool().Draw(t, "rowid"); o.RowID {
		width++
	}
	for range rapid.IntRange(0, 5).Draw(t, "rows") {
		row := make([]Value, width)
		for i := range row {
			if row[i] = genValue(t); row[i].Kind >= Text && row[i].Data == nil {
				row[i].Data = []byte{}
			}
		}
		o.Rows = append(o.Rows, row)
	}
	return o
}

func TestTempObjectsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Custom(genTemp), 1, 5).Draw(t, "objects")
		b, err := encodeTemp(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeTemp(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v\n%+v\n%+v", err, got, want)
		}
		// A truncated encoding is an error, or has fewer objects or rows.
		if cut, err := decodeTemp(b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")]); err == nil && reflect.DeepEqual(cut, want) {
			t.Fatal("a truncated encoding was decoded completely")
		}
	})
}

// A row must have as many cells as its table has columns.
func TestRowsOfAnotherWidth(t *testing.T) {
	b, err := encodeTemp([]tempObject{{TempObject{Kind: TempTable, Columns: []string{"a"}}, [][]Value{{{}, {}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeTemp(b); !errors.Is(err, errMalformed) {
		t.Errorf("%v", err)
	}
}
