package sqlite

import lib "modernc.org/sqlite/lib"

// A statement after EXPLAIN does not run. So what it would do is not recorded, and BEGIN,
// ATTACH and the like are not refused. PRAGMAs need care: SQLite executes many of them
// while it compiles them, also after EXPLAIN.

// explaining reports whether the statement that SQLite compiles now is an EXPLAIN. It
// returns false while SQLite compiles a trigger of such a statement.
func (c *Conn) explaining() bool {
	parse := c.rawDB().FpParse
	return parse != 0 && at[lib.TParse](parse).Fexplain != 0
}

// explainedPragma decides about a PRAGMA after EXPLAIN. SQLite compiles it only if
// compiling does not execute it. The program that EXPLAIN lists for the others is empty.
func explainedPragma(kind PragmaKind) int32 {
	if kind == PragmaAnswered || kind == PragmaReplicated {
		return lib.SQLITE_OK
	}
	return lib.SQLITE_IGNORE
}
