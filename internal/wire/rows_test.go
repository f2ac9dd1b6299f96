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
		t.Errorf("%+v became %+v, %v", want, got, err)
	}
}

func TestMalformedResultSets(t *testing.T) {
	for name, b := range map[string][]byte{
		"a result set without columns":   {1<<3 | 2, 6, 3<<3 | 2, 0, 7<<3 | 2, 0, 1 << 3, 2},
		"one without a first":            {1<<3 | 2, 4, 7<<3 | 2, 2, 1<<3 | 2, 0},
		"a row before its columns":       {1<<3 | 2, 8, 3<<3 | 2, 0, 7<<3 | 2, 4, 2<<3 | 2, 2, 1<<3 | 2, 0},
		"a row that is not whole":        {1<<3 | 2, 14, 3<<3 | 2, 0, 7<<3 | 2, 10, 1<<3 | 2, 0, 1<<3 | 2, 0, 2<<3 | 2, 2, 1<<3 | 2, 0, 1<<3 | 2, 0},
		"a result set that is cut short": {1<<3 | 2, 4, 3<<3 | 2, 0, 7<<3 | 2, 9},
	} {
		if r, err := DecodeResult(b); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
