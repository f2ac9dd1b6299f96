package sqlite

import (
	"errors"
	"strings"

	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// The dump of a virtual table is not its CREATE VIRTUAL TABLE, which would make
// the tables behind it, but the row that it has in sqlite_schema, and then these
// tables with their rows:
//
//	PRAGMA writable_schema=ON;
//	INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql) VALUES('table','f','f',0,'CREATE VIRTUAL TABLE f USING fts5(a)');
//	CREATE TABLE IF NOT EXISTS 'f_data'(id INTEGER PRIMARY KEY, block BLOB);
//	INSERT INTO f_data VALUES(1,X'');
//
// That much PRAGMA writable_schema=ON allows, and no other change: a row of
// sqlite_schema that SQLite does not understand makes a database that nobody can
// open. So SQLite itself is never told of the PRAGMA. When it does not compile
// one of these statements, it is asked again with leave for this one.

// compileByHand compiles a statement again that writes what only a virtual
// table's module, or CREATE, writes otherwise. rc is why it was not compiled.
func (c *Conn) compileByHand(rc int32, p uintptr, size int, options uint32) int32 {
	message := c.err(rc).Message
	schema := message == "SQL logic error: table sqlite_master may not be modified (1)"
	if !schema && !strings.HasSuffix(message, " may not be modified (1)") && !strings.Contains(message, "object name reserved for internal use") {
		return rc
	}
	db, before := c.rawDB(), c.actions
	c.actions, c.byHand = Actions{}, true
	db.Fflags &^= lib.SQLITE_Defensive
	if schema {
		db.Fflags |= lib.SQLITE_WriteSchema
	}
	again := c.compile(p, size, options)
	db.Fflags |= lib.SQLITE_Defensive
	db.Fflags &^= lib.SQLITE_WriteSchema
	c.byHand = false
	a := &c.actions
	if again != lib.SQLITE_OK {
		if a.Denied == nil { // it is another view, say
			c.actions = before
		}
		return again
	}
	if schema && (a.Schema || len(a.Inserts) != 1) { // a trigger's doing, say
		lib.Xsqlite3_finalize(c.tls, *at[uintptr](c.scratch))
		c.denyByHand()
		return lib.SQLITE_AUTH
	}
	a.Schema, a.SchemaRows, a.ByHand = true, schema, true
	return again
}

func (c *Conn) denyByHand() int32 {
	return c.deny("PRAGMA writable_schema=ON lets virtual tables, and the tables behind them, be made and filled as dumps do, and nothing else", "use CREATE, ALTER and DROP")
}

// A SchemaMark tells which rows of sqlite_schema are new.
type SchemaMark struct{ rows, last int64 }

// MarkSchema returns one, before a statement inserts into sqlite_schema.
func (c *Conn) MarkSchema() (m SchemaMark, err error) {
	return m, c.QueryAsOwner("SELECT count(*), coalesce(max(rowid),0) FROM sqlite_schema", func(s *Stmt) error {
		m = SchemaMark{s.Int(0), s.Int(1)}
		return nil
	})
}

// CheckSchemaRows refuses what was inserted into sqlite_schema since, unless it
// is virtual tables which could have been created in this way.
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
	// Rows of other types than text are shown as such: they match nothing.
	err = c.QueryAsOwner("SELECT type, name, tbl_name, sql, rootpage, (SELECT count(*) FROM sqlite_schema AS o WHERE o.name=n.name COLLATE NOCASE) FROM sqlite_schema AS n WHERE rowid>?",
		func(s *Stmt) error {
			rows = append(rows, row{string(s.Bytes(0)), string(s.Bytes(1)), string(s.Bytes(2)), string(s.Bytes(3)), s.Value(4), s.Int(5)})
			return nil
		}, wire.Argument{Value: wire.IntegerValue(m.last)})
	if err != nil {
		return err
	}
	if n := int64(len(rows)); n != now.rows-m.rows || n != c.Changes() { // those of REPLACE count as well
		return refusedRow("it replaces rows of sqlite_schema")
	}
	for _, r := range rows {
		switch {
		case r.kind != "table" || r.table != r.name || r.root.Kind != wire.Integer || r.root.Int() != 0:
			return refusedRow("the row is none of a virtual table")
		case r.alike != 1:
			return refusedRow("there is another " + r.name)
		}
		if err := c.checkVirtual(r.name, r.sql); err != nil {
			return err
		}
	}
	return nil
}

// checkVirtual prepares the statement that makes a virtual table, which is
// already in sqlite_schema, but not in what the connection knows of it.
func (c *Conn) checkVirtual(name, sql string) error {
	defer c.AsOwner(false)()                                                    // the statement is the program's
	if word, _, _ := strings.Cut(strings.ToUpper(sql), " "); word != "CREATE" { // SQLite takes it for an index
		return refusedRow("the row's sql does not begin with CREATE")
	}
	s, tail, err := c.Prepare(sql, false)
	if err != nil {
		return err
	}
	defer s.Close()
	if s.Actions.Virtual != name || strings.TrimSpace(tail) != "" || s.Explain() {
		return refusedRow("the row's sql is not the CREATE VIRTUAL TABLE of " + name)
	}
	return nil
}

// SchemaLoads refuses what was inserted into sqlite_schema if the schema, which
// the caller has made the connection forget, cannot be read anew with it.
func (c *Conn) SchemaLoads() error {
	err := c.ExecAsOwner("SELECT 1 FROM sqlite_schema LIMIT 1")
	var e *Error
	if errors.As(err, &e) && e.Code == lib.SQLITE_CORRUPT {
		return refusedRow(e.Message)
	}
	return err
}

func refusedRow(why string) error {
	return LogicError("sqlite_schema cannot be changed in this way: "+why,
		"PRAGMA writable_schema=ON lets virtual tables be inserted, as dumps do, and nothing else")
}
