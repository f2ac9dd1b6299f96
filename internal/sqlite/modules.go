package sqlite

import (
	"strings"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// moduleCompiles reports whether SQLite is compiling a statement that the module of a
// virtual table prepares for itself, while the program's statement is being prepared. A
// module does so when it is used for the first time on a connection. What is recorded
// about a statement must not depend on that.
func (c *Conn) moduleCompiles() bool {
	for p := c.rawDB().FpParse; p != 0; {
		parse := at[lib.TParse](p)
		if parse.FpOuterParse != 0 && parse.FpToplevel == 0 { // the parser of a trigger has both
			return true
		}
		p = parse.FpOuterParse
	}
	return false
}

// noteCheck records that a statement checks the integrity of the database, if the table
// that it reads does so (pragma_integrity_check). table is the name in the engine's
// memory.
func (c *Conn) noteCheck(table uintptr) {
	if table == 0 || *at[byte](table)|0x20 != 'p' {
		return // not pragma_..., as most tables; this is called for each column
	}
	if pragma, ok := strings.CutPrefix(lower(libc.GoString(table)), "pragma_"); ok && Pragmas[pragma].integrity {
		c.actions.ChecksIntegrity = true
	}
}

// mustReloadModules reports whether the statement, which has just been prepared, checks the
// content of virtual tables although this connection may have an old version of it in
// memory. FTS5 reads the structure of its index again when it is queried, but not when it
// is checked, and would report an index that another connection has changed as corrupt.
// The Apply connection has written the content itself.
func (s *Stmt) mustReloadModules() bool {
	return s.Actions.ChecksIntegrity && s.c.mode != Apply && s.c.mode != Plain && !s.c.asOwner && !s.c.classifying
}

// reloadModules discards what virtual tables have in memory. Before that, they write the
// changes of this transaction that they have buffered.
func (c *Conn) reloadModules() error {
	defer c.AsOwner(true)()
	if c.mode == Speculate && !c.Autocommit() {
		changes, total, id := c.Changes(), c.TotalChanges(), c.LastInsertID()
		defer c.SetState(changes, total, id)
		if err := c.Exec("SAVEPOINT _hiqlite_check; RELEASE _hiqlite_check"); err != nil {
			return err
		}
	}
	return c.Exec("PRAGMA writable_schema=RESET")
}

// loadChecks makes SQLite load CHECK constraints with the schema until restore is called.
// From a file that it cannot write SQLite loads none, and integrity_check would not find
// rows that violate them.
func (c *Conn) loadChecks() (restore func()) {
	file := at[lib.TBtShared](at[lib.TBtree](at[lib.TDb](c.rawDB().FaDb).FpBt).FpBt)
	before := file.FbtsFlags & lib.BTS_READ_ONLY
	file.FbtsFlags &^= lib.BTS_READ_ONLY
	return func() { file.FbtsFlags |= before }
}
