package sqlite

import (
	"strings"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// Actions is what preparing a statement told about it.
type Actions struct {
	Denied      *Error // why it was refused
	Schema      bool   // it changes the schema
	altersTable bool   // it is ALTER TABLE
	Statistics  bool   // it changes what the planner knows of the rows
	ConnState   bool   // it asks changes(), total_changes() or last_insert_rowid()
	Transaction string // BEGIN, COMMIT, ROLLBACK, SAVEPOINT
	Pragma      string // the PRAGMA's name, in lower case
	PragmaArg   string
	PragmaSet   bool     // it has an argument
	Rows        bool     // it inserts, updates or deletes
	Inserts     []string // tables it inserts into
	Insert      bool     // it is an INSERT itself, not only its triggers
	Savepoint   string   // the name of the savepoint that it sets or ends
	ReadsOwn    *Error   // why it may read, but not write
	Creates     string   // the table that it creates
	Selects     bool     // it has a SELECT in it
	ReadsNames  bool     // it reads the names of columns as rows
	ByHand      bool     // it makes or fills by hand what stands behind virtual tables
	SchemaRows  bool     // it inserts rows into sqlite_schema by hand
	Virtual     string   // the virtual table that it creates
	Checks      bool     // it checks the database's integrity
	Temp        bool     // it makes TEMP objects, or uses some
}

// authorize is SQLite's authorizer: it is asked about each thing that a
// statement does while it is prepared, and again by some while they run.
func authorize(tls *libc.TLS, _ uintptr, action int32, a, b, db, inner uintptr) int32 {
	c := connOf(tls)
	if c == nil {
		return lib.SQLITE_OK
	}
	if c.preparing && c.moduleCompiles() {
		before := c.actions
		defer func() {
			denied := c.actions.Denied
			c.actions = before
			c.actions.Denied = denied
		}()
	}
	if len(c.tempNames) > 0 {
		c.noteTemp(libc.GoString(a), libc.GoString(b), libc.GoString(db), libc.GoString(inner))
	}
	switch action {
	case lib.SQLITE_SELECT:
		c.actions.Selects = true
		return lib.SQLITE_OK
	case lib.SQLITE_RECURSIVE:
		return lib.SQLITE_OK
	case lib.SQLITE_READ:
		c.noteCheck(a)
		if c.replicates() && !c.asOwner {
			return c.authorizeRead(libc.GoString(a), libc.GoString(b))
		}
		return lib.SQLITE_OK
	case lib.SQLITE_FUNCTION:
		return c.authorizeFunction(libc.GoString(b))
	case lib.SQLITE_PRAGMA:
		return c.authorizePragma(strings.ToLower(libc.GoString(a)), libc.GoString(b), b != 0, libc.GoString(db))
	case lib.SQLITE_ATTACH, lib.SQLITE_DETACH:
		if c.asOwner || c.explaining() {
			return lib.SQLITE_OK // VACUUM attaches its own file
		}
		return c.deny("ATTACH and DETACH are not supported", "a node holds one replicated database; open another data folder for a second one")
	case lib.SQLITE_TRANSACTION:
		return c.authorizeTransaction(libc.GoString(a), "")
	case lib.SQLITE_SAVEPOINT:
		return c.authorizeTransaction(savepoints[libc.GoString(a)], libc.GoString(b))
	case lib.SQLITE_CREATE_TEMP_INDEX, lib.SQLITE_CREATE_TEMP_TABLE, lib.SQLITE_CREATE_TEMP_TRIGGER, lib.SQLITE_CREATE_TEMP_VIEW:
		if action == lib.SQLITE_CREATE_TEMP_TABLE {
			c.actions.Creates = libc.GoString(a)
		}
		return c.authorizeTemp(libc.GoString(a), libc.GoString(b))
	}
	return c.authorizeWrite(action, libc.GoString(a), libc.GoString(b), libc.GoString(db))
}

// private are tables whose content is a replica's own: how it lies in this
// file, or when what was written to it. A write that read them would write
// different rows on each replica.
var private = map[string]bool{
	MetaTable: true, "dbstat": true, "sqlite_dbpage": true, "sqlite_dbptr": true,
}

// modules are those of which virtual tables may be made: their content comes
// from ordinary tables. dbstat and sqlite_dbpage would show this file's pages,
// under a name that private does not know.
var modules = map[string]bool{"fts5": true, "fts5vocab": true, "rtree": true, "rtree_i32": true, "geopoly": true}

// authorizeRead keeps what is applied from reading what differs from replica
// to replica.
func (c *Conn) authorizeRead(table, column string) int32 {
	table = strings.ToLower(table)
	pragma, isPragma := strings.CutPrefix(table, "pragma_")
	if pragma == "table_info" || pragma == "table_xinfo" {
		c.actions.ReadsNames = c.actions.ReadsNames || isPragma
	}
	switch {
	case pragma == "quick_check" && isPragma && c.actions.altersTable:
		// ALTER TABLE asks it whether the rows meet a new CHECK or NOT NULL. The
		// statement has no place for a SELECT of the program's own.
		return lib.SQLITE_OK
	case private[table], isPragma && !Pragmas[pragma].shared:
		return c.denyWrite("a write cannot read "+table, "it differs from replica to replica; read it first, and write what you read")
	case (table == "sqlite_master" || table == "sqlite_temp_master") && strings.EqualFold(column, "rootpage"):
		return lib.SQLITE_IGNORE // NULL: pages are numbered as this file grew
	}
	return lib.SQLITE_OK
}

func (c *Conn) authorizeFunction(name string) int32 {
	name = strings.ToLower(name)
	if c.functions != nil && c.functions.readsOnly[name] && !c.asOwner {
		return c.denyWrite("a write cannot use the function "+name+"()", "it is not Deterministic, so each replica could compute something else: compute the value first, and write that")
	}
	switch name {
	case "load_extension":
		return c.deny("load_extension() is not supported", "every replica must compute the same; register nothing outside of SQL")
	case "changes", "total_changes", "last_insert_rowid":
		c.actions.ConnState = true
	case "sqlite_offset":
		if c.replicates() && !c.asOwner {
			return c.denyWrite("a write cannot use sqlite_offset()", "where a row lies in the file differs from replica to replica")
		}
	}
	return lib.SQLITE_OK
}

func (c *Conn) authorizeWrite(action int32, a, b, db string) int32 {
	table := a
	if action == lib.SQLITE_ALTER_TABLE {
		c.actions.altersTable = true
	}
	switch action {
	case lib.SQLITE_CREATE_INDEX, lib.SQLITE_CREATE_TRIGGER, lib.SQLITE_DROP_INDEX, lib.SQLITE_DROP_TRIGGER, lib.SQLITE_ALTER_TABLE:
		table = b
	}
	switch action {
	case lib.SQLITE_CREATE_TABLE, lib.SQLITE_CREATE_INDEX, lib.SQLITE_CREATE_VIEW, lib.SQLITE_CREATE_TRIGGER, lib.SQLITE_CREATE_VTABLE:
		if db == tempSchema && action == lib.SQLITE_CREATE_VTABLE {
			return c.deny("TEMP virtual tables are not supported", "make an ordinary virtual table, or a TEMP table")
		}
		if action == lib.SQLITE_CREATE_TABLE {
			c.actions.Creates = a
		}
		if db == tempSchema {
			return c.authorizeTemp(a, b)
		}
		c.actions.Schema = true
		if action == lib.SQLITE_CREATE_VTABLE && !modules[strings.ToLower(b)] {
			return c.denyModule(b)
		}
		if action == lib.SQLITE_CREATE_VTABLE {
			c.actions.Virtual = a
		}
	case lib.SQLITE_DROP_TABLE:
		if c.mode != Plain && strings.EqualFold(table, MetaTable) && !c.asOwner {
			// Tools that empty a database drop every table that they find. This
			// one stays, without a word.
			return lib.SQLITE_IGNORE
		}
		c.actions.Schema = true
	case lib.SQLITE_DROP_TEMP_TABLE, lib.SQLITE_DROP_TEMP_INDEX, lib.SQLITE_DROP_TEMP_VIEW, lib.SQLITE_DROP_TEMP_TRIGGER:
		c.actions.Schema = true
	case lib.SQLITE_DROP_INDEX, lib.SQLITE_DROP_VIEW, lib.SQLITE_DROP_TRIGGER, lib.SQLITE_DROP_VTABLE, lib.SQLITE_ALTER_TABLE:
		c.actions.Schema = true
	case lib.SQLITE_INSERT:
		// However it is spelled, what is made there begins as a row of
		// sqlite_temp_schema: CREATE TRIGGER temp.x ON main.t tells of main else.
		if db == tempSchema && table == "sqlite_temp_master" {
			if answer := c.authorizeTemp(a, b); answer != lib.SQLITE_OK {
				return answer
			}
		}
		c.actions.Insert = c.actions.Insert || !c.actions.Rows
		c.actions.Inserts = append(c.actions.Inserts, table)
		c.actions.Rows = true
	case lib.SQLITE_UPDATE, lib.SQLITE_DELETE:
		if c.byHand && !c.actions.Schema {
			return c.denyByHand()
		}
		c.actions.Rows = true
	case lib.SQLITE_ANALYZE:
		if db == tempSchema && !c.asOwner {
			return c.deny("ANALYZE of TEMP tables is not supported", "leave it out: indexes of TEMP tables are used without")
		}
		c.actions.Statistics = true
		if strings.EqualFold(table, MetaTable) {
			return lib.SQLITE_IGNORE // its rows differ from replica to replica
		}
		return lib.SQLITE_OK // it may look at every table
	case lib.SQLITE_REINDEX:
		return lib.SQLITE_OK
	}
	if strings.HasPrefix(table, "sqlite_stat") {
		c.actions.Statistics = true
	}
	if c.mode != Plain && strings.EqualFold(table, MetaTable) && !c.asOwner {
		return c.deny("the table "+MetaTable+" belongs to hiqlite", "it holds what makes writes apply once; it can be read, not changed")
	}
	return lib.SQLITE_OK
}

// savepoints names what the authorizer is told of savepoints.
var savepoints = map[string]string{"BEGIN": "SAVEPOINT", "RELEASE": "RELEASE", "ROLLBACK": "ROLLBACK TO"}

func (c *Conn) authorizeTransaction(what, savepoint string) int32 {
	if c.asOwner || c.explaining() {
		return lib.SQLITE_OK
	}
	c.actions.Transaction, c.actions.Savepoint = what, savepoint
	if c.mode == ReadOnly || c.classifying {
		return lib.SQLITE_OK // prepared to be classified, never run
	}
	return c.deny(what+" inside a script is not supported", "a script is one transaction already: leave BEGIN, COMMIT and SAVEPOINT out")
}

func (c *Conn) denyModule(name string) int32 {
	if private[strings.ToLower(name)] {
		return c.deny("virtual tables of the module "+name+" are not supported", "they would show what differs from replica to replica; read "+name+" itself")
	}
	c.actions.Denied = LogicError("no such module: "+name, "")
	return lib.SQLITE_DENY
}

func (c *Conn) deny(what, hint string) int32 {
	if c.actions.Denied == nil {
		c.actions.Denied = NotAuthorized(what, hint)
	}
	return lib.SQLITE_DENY
}

// denyWrite denies what a read may do. Whether a statement of a transaction is
// one shows only when it is prepared: see Prepare.
func (c *Conn) denyWrite(what, hint string) int32 {
	if c.mode == Apply {
		return c.deny(what, hint)
	}
	c.actions.ReadsOwn = NotAuthorized(what, hint)
	return lib.SQLITE_OK
}
