package sqlite

import (
	"strings"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// moduleCompiles reports that what is being compiled is not the statement itself,
// but one that a virtual table's module prepares for itself meanwhile. It does so
// when it is used first on a connection: what a statement does must not seem to
// depend on that.
func (c *Conn) moduleCompiles() bool {
	for p := c.rawDB().FpParse; p != 0; {
		parse := at[lib.TParse](p)
		if parse.FpOuterParse != 0 && parse.FpToplevel == 0 { // a trigger's has both
			return true
		}
		p = parse.FpOuterParse
	}
	return false
}

// noteCheck notes that a statement reads a table, in the engine's memory, which
// checks the database's integrity.
func (c *Conn) noteCheck(table uintptr) {
	if table == 0 || *at[byte](table)|0x20 != 'p' {
		return // most are not pragma_...
	}
	if pragma, ok := strings.CutPrefix(strings.ToLower(libc.GoString(table)), "pragma_"); ok && Pragmas[pragma].integrity {
		c.actions.Checks = true
	}
}

// mustForget reports that the statement, just prepared, checks what modules hold
// while this connection may remember of it what is not so any more. FTS5 reads
// anew how its index is divided when it is queried, not when it is checked, and
// would call the index corrupt. The connection that applies has written itself
// what is there.
func (s *Stmt) mustForget() bool {
	return s.Actions.Checks && s.c.mode != Apply && s.c.mode != Plain && !s.c.asOwner && !s.c.classifying
}

// forgetModules makes virtual tables begin anew. What they hold back in this
// transaction is written before.
func (c *Conn) forgetModules() error {
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

// loadChecks makes the schema be loaded with its CHECK constraints until the
// returned function is called: from a file that it cannot write SQLite loads none,
// and integrity_check finds no row that violates one.
func (c *Conn) loadChecks() (restore func()) {
	file := at[lib.TBtShared](at[lib.TBtree](at[lib.TDb](c.rawDB().FaDb).FpBt).FpBt)
	was := file.FbtsFlags & lib.BTS_READ_ONLY
	file.FbtsFlags &^= lib.BTS_READ_ONLY
	return func() { file.FbtsFlags |= was }
}
