package sqlite

import (
	"errors"
	"strings"

	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// The dump of a virtual table is not its CREATE VIRTUAL TABLE, which would make
// the tables behind it, but the row that it has in sqlite_schema:
//
//	PRAGMA writable_schema=ON;
//	INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql) VALUES('table','f','f',0,'CREATE VIRTUAL TABLE f USING fts5(a)');
//	CREATE TABLE IF NOT EXISTS 'f_data'(id INTEGER PRIMARY KEY, block BLOB);
//
// That much PRAGMA writable_schema=ON allows, and no other change of
// sqlite_schema: a row that SQLite does not understand makes a database that
// nobody can open.

// schemaReadOnly is SQLite's error if sqlite_schema is written without leave.
const schemaReadOnly = "SQL logic error: table sqlite_master may not be modified (1)"

// compileSchemaRows compiles a statement that inserts into sqlite_schema, and
// does nothing else.
func (c *Conn) compileSchemaRows(p uintptr, size int, options uint32) int32 {
	c.actions = Actions{}
	c.schemaRows = true
	db := c.struct3()
	db.Fflags |= lib.SQLITE_WriteSchema
	rc := c.compile(p, size, options)
	db.Fflags &^= lib.SQLITE_WriteSchema
	c.schemaRows = false
	a := &c.actions
	if rc != lib.SQLITE_OK {
		return rc
	}
	if a.Schema || len(a.Inserts) != 1 { // a trigger's doing, say
		lib.Xsqlite3_finalize(c.tls, *at[uintptr](c.scratch))
		return c.denySchemaRows()
	}
	a.Schema, a.SchemaRows = true, true
	return rc
}

func (c *Conn) denySchemaRows() int32 {
	c.deny("PRAGMA writable_schema=ON lets virtual tables be inserted, as dumps do; this is another change of sqlite_schema", "use CREATE, ALTER and DROP")
	return lib.SQLITE_AUTH
}

// A SchemaMark tells which rows of sqlite_schema are new.
type SchemaMark struct{ rows, last int64 }

// MarkSchema returns one, before a statement inserts into sqlite_schema.
func (c *Conn) MarkSchema() (m SchemaMark, err error) {
	return m, c.each("SELECT count(*), coalesce(max(rowid),0) FROM sqlite_schema", nil, func(s *Stmt) error {
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
	err = c.each("SELECT type, name, tbl_name, sql, rootpage, (SELECT count(*) FROM sqlite_schema AS o WHERE o.name=n.name COLLATE NOCASE) FROM sqlite_schema AS n WHERE rowid>?",
		[]wire.Argument{{Value: wire.IntegerValue(m.last)}}, func(s *Stmt) error {
			rows = append(rows, row{string(s.Bytes(0)), string(s.Bytes(1)), string(s.Bytes(2)), string(s.Bytes(3)), s.Value(4), s.Int(5)})
			return nil
		})
	if err != nil {
		return err
	}
	if int64(len(rows)) != now.rows-m.rows {
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
	own := c.own
	c.own = false
	defer func() { c.own = own }()
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
	err := c.each("SELECT 1 FROM sqlite_schema LIMIT 1", nil, func(*Stmt) error { return nil })
	var e *Error
	if errors.As(err, &e) && e.Code == lib.SQLITE_CORRUPT {
		return refusedRow(e.Message)
	}
	return err
}

func refusedRow(why string) error {
	return &Error{Code: CodeError, Message: "SQL logic error: sqlite_schema cannot be changed in this way: " + why + " (1)",
		Hint: "PRAGMA writable_schema=ON lets virtual tables be inserted, as dumps do, and nothing else"}
}

// each runs a query of the replica's own and calls f for each row.
func (c *Conn) each(sql string, args []wire.Argument, f func(*Stmt) error) error {
	own := c.own
	c.own = true
	defer func() { c.own = own }()
	s, _, err := c.Prepare(sql, false)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Bind(args, nil); err != nil {
		return err
	}
	for {
		row, err := s.Step()
		if err != nil || !row {
			return err
		}
		if err := f(s); err != nil {
			return err
		}
	}
}
