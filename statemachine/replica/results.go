package replica

import (
	"slices"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// maxKeptResult bounds, in bytes, a result that a session keeps with its rows to
// answer a copy of its last entry.
const maxKeptResult = 4 << 10

// keptResults returns what a session keeps of results: all but the rows of large
// ones.
func keptResults(results []wire.Result) []wire.Result {
	out := slices.Clone(results)
	for i := range out {
		if resultSize(&out[i]) <= maxKeptResult {
			continue
		}
		out[i].RowsDropped = true
		out[i].Statements = slices.Clone(out[i].Statements)
		for j := range out[i].Statements {
			out[i].Statements[j].Rows, out[i].Statements[j].More = nil, nil
		}
	}
	return out
}

// resultSize returns the approximate size of a result in bytes.
func resultSize(r *wire.Result) int {
	n := 0
	for i := range r.Statements {
		for _, rows := range r.Statements[i].Sets() {
			for _, c := range rows.Columns {
				n += len(c.Name) + len(c.DeclType) + 4
			}
			n += rows.Size()
		}
	}
	return n
}
