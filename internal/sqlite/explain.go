package sqlite

import lib "modernc.org/sqlite/lib"

// Nothing of what stands behind EXPLAIN runs, so it is neither recorded as what
// the statement does, nor refused for what it would do: BEGIN, ATTACH and the
// like are compiled as any other. PRAGMAs are not: SQLite does many of them while
// it compiles them, behind EXPLAIN too.

// explaining reports that the statement which SQLite compiles now is explained.
// Within what is compiled for a part of it, as a trigger, that is not known.
func (c *Conn) explaining() bool {
	parse := c.rawDB().FpParse
	return parse != 0 && at[lib.TParse](parse).Fexplain != 0
}

// explainedPragma makes SQLite compile those PRAGMAs only which it does not do at
// once. Of the others an empty program is listed.
func explainedPragma(kind PragmaKind) int32 {
	if kind == PragmaAnswered || kind == PragmaReplicated {
		return lib.SQLITE_OK
	}
	return lib.SQLITE_IGNORE
}
