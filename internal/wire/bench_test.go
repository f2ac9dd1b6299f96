package wire

import (
	"fmt"
	"testing"
)

// BenchmarkDecode decodes the entry of a large transaction.
func BenchmarkDecode(b *testing.B) {
	const rows = 20_000
	var r Recorder
	for i := range rows {
		r.Add(&Statement{SQL: "INSERT INTO t(a,b) VALUES(?,?)", Args: []Argument{{Value: TextValue(fmt.Sprint("row ", i))}, {Value: IntegerValue(int64(i))}}})
	}
	cmd := EncodeEntry(1, 2, 0, []*EncodedOperation{r.Encode(&Operation{StampMS: 1_700_000_000_000, Seed: Seed{1}})})
	b.ReportAllocs()
	for b.Loop() {
		var d Decoder
		if _, err := d.Decode(cmd); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/rows, "ns/row")
}
