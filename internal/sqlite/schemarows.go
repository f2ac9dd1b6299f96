package sqlite

import (
	"errors"
	"strings"

	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// sqlite3's .dump does not write a virtual table as CREATE VIRTUAL TABLE, because this
// would also create its shadow tables, in which its content is. It writes the row of the
// virtual table in sqlite_schema, and then the shadow tables with their rows:
//
//	PRAGMA writable_schema=ON;
//	INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql) VALUES('table','f','f',0,'CREATE VIRTUAL TABLE f USING fts5(a)');
//	CREATE TABLE IF NOT EXISTS 'f_data'(id INTEGER PRIMARY KEY, block BLOB);
//	INSERT INTO f_data VALUES(1,X'');
//
// After PRAGMA writable_schema=ON, hiqlite allows these statements and no other changes
// of sqlite_schema: nobody could open a database with a row that SQLite does not
// understand. So the PRAGMA does not set SQLite's own flag. If SQLite refuses to compile
// such a statement, compileFromDump sets the flag and compiles it once more.

// compileFromDump compiles a statement of a dump that SQLite has refused: it writes what
// otherwise only CREATE, or the module of a virtual table, writes. rc is the error with
// which SQLite refused it. If that has another reason, compileFromDump returns rc.
func (c *Conn) compileFromDump(rc int32, p uintptr, size int, options uint32) int32 {
	message := c.err(rc).Message
	schema := message == "SQL logic error: table sqlite_master may not be modified (1)"
	if !schema && !strings.HasSuffix(message, " may not be modified (1)") && !strings.Contains(message, "object name reserved for internal use") {
		return rc
	}
	db, before := c.rawDB(), c.actions
	c.actions, c.fromDump = Actions{}, true
	db.Fflags &^= lib.SQLITE_Defensive
	if schema {
		db.Fflags |= lib.SQLITE_WriteSchema
	}
	again := c.compile(p, size, options)
	db.Fflags |= lib.SQLITE_Defensive
	db.Fflags &^= lib.SQLITE_WriteSchema
	c.fromDump = false
	a := &c.actions
	if again != lib.SQLITE_OK {
		if a.Denied == nil { // the statement has another fault: it writes to a view, say
			c.actions = before
		}
		return again
	}
	if schema && (a.ChangesSchema || len(a.InsertsInto) != 1) { // a trigger inserts into sqlite_schema, say
		lib.Xsqlite3_finalize(c.tls, *at[uintptr](c.scratch))
		c.denySchemaChange()
		return lib.SQLITE_AUTH
	}
	a.ChangesSchema, a.InsertsSchemaRows, a.FromDump = true, schema, true
	return again
}

func (c *Conn) denySchemaChange() int32 {
	return c.deny("PRAGMA writable_schema=ON only allows what dumps contain: virtual tables that are inserted into sqlite_schema, and their shadow tables", "use CREATE, ALTER and DROP")
}

// A SchemaMark stands for the rows that sqlite_schema has at a time. Rows that are
// inserted later can be told from them.
type SchemaMark struct{ rows, last int64 }

// MarkSchema returns the SchemaMark of now, before a statement inserts into sqlite_schema.
func (c *Conn) MarkSchema() (m SchemaMark, err error) {
	err = c.QueryAsOwner("SELECT count(*), coalesce(max(rowid),0) FROM sqlite_schema", func(s *Stmt) error {
		m = SchemaMark{s.Int(0), s.Int(1)}
		return nil
	})
	return m, err
}

// CheckSchemaRows checks the rows that a statement has inserted into sqlite_schema since
// MarkSchema. The error is nil if each of them is a virtual table that CREATE VIRTUAL
// TABLE could have created.
func (c *Conn) CheckSchemaRows(m SchemaMark) error {
	now, err := c.MarkSchema()
	if err != nil {
		return err
	}
	type row struct {
		kind, name, table, sql string
		root                   wire.Value
		alike                  int64
	}
	var rows []row
	// A value that is not a text is read as a text here, and matches nothing.
	err = c.QueryAsOwner("SELECT type, name, tbl_name, sql, rootpage, (SELECT count(*) FROM sqlite_schema AS o WHERE o.name=n.name COLLATE NOCASE) FROM sqlite_schema AS n WHERE rowid>?",
		func(s *Stmt) error {
			rows = append(rows, row{string(s.Bytes(0)), string(s.Bytes(1)), string(s.Bytes(2)), string(s.Bytes(3)), s.Value(4), s.Int(5)})
			return nil
		}, wire.Argument{Value: wire.IntegerValue(m.last)})
	if err != nil {
		return err
	}
	if n := int64(len(rows)); n != now.rows-m.rows || n != c.Changes() { // REPLACE also counts the rows that it deletes
		return refusedRow("it replaces rows of sqlite_schema")
	}
	for _, r := range rows {
		switch {
		case r.kind != "table" || r.table != r.name || r.root.Kind != wire.Integer || r.root.Int() != 0:
			return refusedRow("the row is not that of a virtual table")
		case r.alike != 1:
			return refusedRow("there is another " + r.name)
		}
		if err := c.checkVirtual(r.name, r.sql); err != nil {
			return err
		}
	}
	return nil
}

// checkVirtual prepares the statement that creates a virtual table. Its row is already in
// sqlite_schema, but the connection has not loaded it, so SQLite does not report that the
// table exists.
func (c *Conn) checkVirtual(name, sql string) error {
	defer c.AsOwner(false)()                                          // the statement is the program's
	if word, _, _ := strings.Cut(upper(sql), " "); word != "CREATE" { // SQLite would load the row as an index
		return refusedRow("the row's sql does not begin with CREATE")
	}
	s, tail, err := c.Prepare(sql, false)
	if err != nil {
		return err
	}
	defer s.Close()
	if s.Actions.CreatesVirtual != name || strings.TrimSpace(tail) != "" || s.Explain() {
		return refusedRow("the row's sql is not the CREATE VIRTUAL TABLE of " + name)
	}
	return nil
}

// CheckSchemaLoads loads the schema, which the caller has made the connection forget. It
// returns an error if SQLite cannot load the rows that were inserted into sqlite_schema.
func (c *Conn) CheckSchemaLoads() error {
	err := c.ExecAsOwner("SELECT 1 FROM sqlite_schema LIMIT 1")
	var e *Error
	if errors.As(err, &e) && e.Code == lib.SQLITE_CORRUPT {
		return refusedRow(e.Message)
	}
	return err
}

func refusedRow(why string) error {
	return LogicError("sqlite_schema cannot be changed in this way: "+why,
		"PRAGMA writable_schema=ON only allows to insert virtual tables, as dumps do")
}
