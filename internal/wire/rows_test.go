package wire

import (
	"reflect"
	"testing"
)

func TestResultSetsRoundTrip(t *testing.T) {
	rows := func(name string, cells ...Value) *Rows {
		return &Rows{Columns: []Column{{name, "INT"}}, Cells: cells}
	}
	var s StatementResult
	if s.Sets() != nil {
		t.Error("a result without rows has result sets")
	}
	for _, r := range []*Rows{nil, rows("a"), {}, rows("b", IntegerValue(1), Value{}), rows("c", TextValue("x"))} {
		s.AddRows(r)
	}
	want := &Result{Statements: []StatementResult{s, {RowsAffected: 1}}}
	got, err := DecodeResult(AppendResult(nil, want))
	if err != nil || !reflect.DeepEqual(got, want) || len(got.Statements[0].Sets()) != 3 {
		t.Errorf("%+v was decoded as %+v, %v", want, got, err)
	}
}

func TestMalformedResultSets(t *testing.T) {
	for name, b := range map[string][]byte{
		"a result set without columns":           {1<<3 | 2, 6, 3<<3 | 2, 0, 7<<3 | 2, 0, 1 << 3, 2},
		"a later result set without a first one": {1<<3 | 2, 4, 7<<3 | 2, 2, 1<<3 | 2, 0},
		"a row before its columns":               {1<<3 | 2, 8, 3<<3 | 2, 0, 7<<3 | 2, 4, 2<<3 | 2, 2, 1<<3 | 2, 0},
		"a row with too few cells":               {1<<3 | 2, 14, 3<<3 | 2, 0, 7<<3 | 2, 10, 1<<3 | 2, 0, 1<<3 | 2, 0, 2<<3 | 2, 2, 1<<3 | 2, 0, 1<<3 | 2, 0},
		"a truncated result set":                 {1<<3 | 2, 4, 3<<3 | 2, 0, 7<<3 | 2, 9},
	} {
		if r, err := DecodeResult(b); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
