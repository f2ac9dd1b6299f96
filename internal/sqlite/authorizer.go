package sqlite

import (
	"strings"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// Actions is what the authorizer has recorded about a statement while SQLite prepared
// it.
type Actions struct {
	Denied        *Error // the statement is refused, for this reason
	DeniedAsWrite *Error // the statement may only read; if it writes, this is the error
	Transaction   string // BEGIN, COMMIT, ROLLBACK, SAVEPOINT, RELEASE or ROLLBACK TO
	Savepoint     string // the savepoint of the last three

	Pragma    string // the name of the PRAGMA, in lower case
	PragmaArg string
	PragmaSet bool // the PRAGMA has an argument, and not to say what it reads

	ChangesSchema     bool   // it changes the schema
	altersTable       bool   // it is ALTER TABLE
	CreatesTable      string // the table that it creates
	CreatesVirtual    string // the virtual table that it creates
	ChangesStatistics bool   // it changes the statistics of the planner
	InsertsSchemaRows bool   // it inserts rows into sqlite_schema, see compileFromDump
	FromDump          bool   // it was compiled by compileFromDump

	WritesRows  bool     // it inserts, updates or deletes rows
	InsertsInto []string // the tables that it inserts into, triggers included
	IsInsert    bool     // it is itself an INSERT, and not only its triggers insert
	HasSelect   bool     // it contains a SELECT
	Temp        bool     // it makes TEMP objects, or may use some

	ReadsCounters    bool // it calls changes(), total_changes() or last_insert_rowid()
	ReadsColumnNames bool // it reads the names of columns as rows (pragma_table_info)
	ChecksIntegrity  bool // it checks the integrity of the database
}

// authorize is SQLite's authorizer callback. SQLite calls it for each thing that a
// statement would do, while it prepares the statement. Some statements, such as VACUUM,
// call it also while they run, for the statements that they prepare.
func authorize(tls *libc.TLS, _ uintptr, action int32, a, b, db, inner uintptr) int32 {
	c := connOf(tls)
	if c == nil {
		return lib.SQLITE_OK
	}
	if c.preparing && c.moduleCompiles() {
		// The statement that is being prepared does not do this.
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
		c.actions.HasSelect = true
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
		return c.authorizePragma(lower(libc.GoString(a)), libc.GoString(b), b != 0, libc.GoString(db))
	case lib.SQLITE_ATTACH, lib.SQLITE_DETACH:
		if c.asOwner || c.explaining() {
			return lib.SQLITE_OK // VACUUM attaches a file
		}
		return c.deny("ATTACH and DETACH are not supported", "a node holds one replicated database; open another data folder for a second one")
	case lib.SQLITE_TRANSACTION:
		return c.authorizeTransaction(libc.GoString(a), "")
	case lib.SQLITE_SAVEPOINT:
		return c.authorizeTransaction(savepoints[libc.GoString(a)], libc.GoString(b))
	case lib.SQLITE_CREATE_TEMP_INDEX, lib.SQLITE_CREATE_TEMP_TABLE, lib.SQLITE_CREATE_TEMP_TRIGGER, lib.SQLITE_CREATE_TEMP_VIEW:
		if action == lib.SQLITE_CREATE_TEMP_TABLE {
			c.actions.CreatesTable = libc.GoString(a)
		}
		return c.authorizeTemp(libc.GoString(a), libc.GoString(b))
	}
	return c.authorizeWrite(action, libc.GoString(a), libc.GoString(b), libc.GoString(db))
}

// privateTables are the tables whose content differs from replica to replica: they show the
// pages of the file, or the state of the replica. A write that read them would write
// other rows on each replica.
var privateTables = map[string]bool{
	MetaTable: true, "dbstat": true, "sqlite_dbpage": true, "sqlite_dbptr": true,
}

// allowedModules are the modules whose virtual tables programs may create. They keep their
// content in ordinary tables. A virtual table of dbstat or sqlite_dbpage would show the
// pages of the file under a name that is not in privateTables.
var allowedModules = map[string]bool{"fts5": true, "fts5vocab": true, "rtree": true, "rtree_i32": true, "geopoly": true}

// authorizeRead keeps writes from reading what differs from replica to replica.
func (c *Conn) authorizeRead(table, column string) int32 {
	table = lower(table)
	pragma, isPragma := strings.CutPrefix(table, "pragma_")
	if pragma == "table_info" || pragma == "table_xinfo" {
		c.actions.ReadsColumnNames = c.actions.ReadsColumnNames || isPragma
	}
	switch {
	case pragma == "quick_check" && isPragma && c.actions.altersTable:
		// ALTER TABLE uses it to find out whether the rows satisfy a new CHECK or NOT
		// NULL. A program cannot put a SELECT into an ALTER TABLE.
		return lib.SQLITE_OK
	case privateTables[table], isPragma && !Pragmas[pragma].shared:
		return c.denyWrite("a write cannot read "+table, "it differs from replica to replica; read it first, and write what you read")
	case (table == "sqlite_master" || table == "sqlite_temp_master") && strings.EqualFold(column, "rootpage"):
		return lib.SQLITE_IGNORE // it reads as NULL, because the numbers of pages differ
	}
	return lib.SQLITE_OK
}

func (c *Conn) authorizeFunction(name string) int32 {
	name = lower(name)
	if c.functions != nil && c.functions.readsOnly[name] && !c.asOwner {
		return c.denyWrite("a write cannot use the function "+name+"()", "it is not Deterministic, so replicas could compute different values; compute the value first, and write that")
	}
	switch name {
	case "load_extension":
		return c.deny("load_extension() is not supported", "every replica must compute the same; register nothing outside of SQL")
	case "changes", "total_changes", "last_insert_rowid":
		c.actions.ReadsCounters = true
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
			c.actions.CreatesTable = a
		}
		if db == tempSchema {
			return c.authorizeTemp(a, b)
		}
		c.actions.ChangesSchema = true
		if action == lib.SQLITE_CREATE_VTABLE && !allowedModules[lower(b)] {
			return c.denyModule(b)
		}
		if action == lib.SQLITE_CREATE_VTABLE {
			c.actions.CreatesVirtual = a
		}
	case lib.SQLITE_DROP_TABLE:
		if c.mode != Plain && strings.EqualFold(table, MetaTable) && !c.asOwner {
			// Tools that empty a database drop every table that they find. Dropping
			// this one does nothing, and is no error.
			return lib.SQLITE_IGNORE
		}
		c.actions.ChangesSchema = true
	case lib.SQLITE_DROP_TEMP_TABLE, lib.SQLITE_DROP_TEMP_INDEX, lib.SQLITE_DROP_TEMP_VIEW, lib.SQLITE_DROP_TEMP_TRIGGER:
		c.actions.ChangesSchema = true
	case lib.SQLITE_DROP_INDEX, lib.SQLITE_DROP_VIEW, lib.SQLITE_DROP_TRIGGER, lib.SQLITE_DROP_VTABLE, lib.SQLITE_ALTER_TABLE:
		c.actions.ChangesSchema = true
	case lib.SQLITE_INSERT:
		// However a CREATE is written, SQLite inserts a row into sqlite_temp_schema
		// for a TEMP object. For CREATE TRIGGER temp.x ON main.t this is the only
		// call that names the temp schema.
		if db == tempSchema && table == "sqlite_temp_master" {
			if rc := c.authorizeTemp(a, b); rc != lib.SQLITE_OK {
				return rc
			}
		}
		c.actions.IsInsert = c.actions.IsInsert || !c.actions.WritesRows
		c.actions.InsertsInto = append(c.actions.InsertsInto, table)
		c.actions.WritesRows = true
	case lib.SQLITE_UPDATE, lib.SQLITE_DELETE:
		if c.fromDump && !c.actions.ChangesSchema {
			return c.denySchemaChange()
		}
		c.actions.WritesRows = true
	case lib.SQLITE_ANALYZE:
		return c.authorizeAnalyze(table, db)
	case lib.SQLITE_REINDEX:
		return lib.SQLITE_OK
	}
	if strings.HasPrefix(table, "sqlite_stat") {
		c.actions.ChangesStatistics = true
	}
	if c.mode != Plain && strings.EqualFold(table, MetaTable) && !c.asOwner {
		return c.deny("the table "+MetaTable+" belongs to hiqlite", "it keeps writes from being applied twice; it can be read, not changed")
	}
	return lib.SQLITE_OK
}

func (c *Conn) authorizeAnalyze(table, db string) int32 {
	if db == tempSchema && !c.asOwner {
		return c.denyTempStatistics()
	}
	c.actions.ChangesStatistics = true
	if strings.EqualFold(table, MetaTable) {
		return lib.SQLITE_IGNORE // the rows of the table differ from replica to replica
	}
	return lib.SQLITE_OK
}

func (c *Conn) denyTempStatistics() int32 {
	return c.deny("ANALYZE of TEMP tables is not supported", "leave it out: SQLite uses the indexes of TEMP tables without it")
}

// savepoints maps what SQLite says about savepoints to the statements.
var savepoints = map[string]string{"BEGIN": "SAVEPOINT", "RELEASE": "RELEASE", "ROLLBACK": "ROLLBACK TO"}

func (c *Conn) authorizeTransaction(what, savepoint string) int32 {
	if c.asOwner || c.explaining() {
		return lib.SQLITE_OK
	}
	c.actions.Transaction, c.actions.Savepoint = what, savepoint
	if c.mode == ReadOnly || c.classifying {
		return lib.SQLITE_OK // the statement is classified and will not run
	}
	return c.deny(what+" inside a script is not supported", "a script is one transaction already: leave BEGIN, COMMIT and SAVEPOINT out")
}

func (c *Conn) denyModule(name string) int32 {
	if privateTables[lower(name)] {
		return c.deny("virtual tables of the module "+name+" are not supported", "what they show differs from replica to replica; read "+name+" itself")
	}
	c.actions.Denied = LogicError("no such module: "+name, "")
	return lib.SQLITE_DENY
}

// deny refuses the statement that is being prepared. The first refusal becomes the error
// of the statement.
func (c *Conn) deny(what, hint string) int32 {
	if c.actions.Denied == nil {
		c.actions.Denied = NotAuthorized(what, hint)
	}
	return lib.SQLITE_DENY
}

// denyWrite refuses what only a read may do. On an Apply connection every statement counts
// as a write. On the others it is known only after the statement has been prepared
// whether it writes, and text.compile refuses it then.
func (c *Conn) denyWrite(what, hint string) int32 {
	if c.mode == Apply {
		return c.deny(what, hint)
	}
	c.actions.DeniedAsWrite = NotAuthorized(what, hint)
	return lib.SQLITE_OK
}
