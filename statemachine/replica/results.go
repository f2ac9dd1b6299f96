package replica

import (
	"slices"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// maxKeptResult bounds, in bytes, a result that a session keeps with its rows to
// answer copies of its entries.
const maxKeptResult = 4 << 10

// keptResults returns what a session keeps of the results of an entry.
func keptResults(results []wire.Result) []wire.Result {
	out := make([]wire.Result, len(results))
	for i := range results {
		out[i] = keptResult(&results[i])
	}
	return out
}

// keptResult returns what a session keeps of a result: all but the rows of a large one.
func keptResult(r *wire.Result) wire.Result {
	out := *r
	if resultSize(r) <= maxKeptResult {
		return out
	}
	out.RowsDropped = true
	out.Statements = slices.Clone(out.Statements)
	for i := range out.Statements {
		out.Statements[i].Rows, out.Statements[i].More = nil, nil
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
