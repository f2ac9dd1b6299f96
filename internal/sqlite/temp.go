package sqlite

import (
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// TEMP objects are in a schema of their own, in memory, and belong to one connection. The
// functions here copy them from one connection to another: DumpTemp encodes them, LoadTemp
// creates them on the other connection, and DropTemp removes them there.

// tempSchema is SQLite's name for the schema of TEMP objects.
const tempSchema = "temp"

// MaxTemp bounds the TEMP objects of a connection, in bytes. Their encoding has to fit
// into an entry of the log, together with a transaction.
const MaxTemp = 4 << 20

// AllowTemp says whether statements may make TEMP objects from now on. (On a Temp
// connection they always may.)
func (c *Conn) AllowTemp(on bool) {
	c.tempAllowed = on
	if !on {
		c.tempNames = nil
	}
}

// authorizeTemp decides about a statement that makes a TEMP object. a is the name of the
// object, and b that of its table if the object is an index or a trigger.
func (c *Conn) authorizeTemp(a, b string) int32 {
	switch {
	case c.asOwner:
		return lib.SQLITE_OK
	case strings.EqualFold(a, MetaTable), strings.EqualFold(b, MetaTable):
		return c.deny("the table "+MetaTable+" belongs to hiqlite", "choose another name")
	case strings.HasPrefix(lower(a), "sqlite_stat"):
		return c.denyTempStatistics()
	case c.tempAllowed, c.mode == Temp, c.mode == ReadOnly && c.classifying:
		c.actions.Temp, c.actions.ChangesSchema = true, true
		return lib.SQLITE_OK
	}
	return c.deny("TEMP tables, views, triggers and indexes are not supported here", "make them on a connection or in a transaction that can write")
}

// noteTemp records that a statement may use a TEMP object: it names one, or a table with
// a TEMP trigger, or a PRAGMA that would list it. The arguments are those of the
// authorizer.
func (c *Conn) noteTemp(a, b, db, inner string) {
	if db == tempSchema || c.tempNames[lower(a)] || c.tempNames[lower(b)] || c.tempNames[lower(inner)] || strings.HasPrefix(lower(a), "pragma_") {
		c.actions.Temp = true
	}
}

// transactions returns which of the schemas main (0) and temp (1) the statement uses, and
// which it writes. It takes this from the compiled program, so triggers and views are
// included.
func (s *Stmt) transactions() (uses, writes [2]bool) {
	v := at[lib.TVdbe](s.p)
	for i := range uintptr(max(0, v.FnOp)) {
		op := at[lib.TVdbeOp](v.FaOp + i*unsafe.Sizeof(lib.TVdbeOp{}))
		if op.Fopcode == lib.OP_Transaction && (op.Fp1 == 0 || op.Fp1 == 1) {
			uses[op.Fp1] = true
			writes[op.Fp1] = writes[op.Fp1] || op.Fp2 != 0
		}
	}
	return uses, writes
}

// UsesTemp reports whether the statement makes, changes or reads TEMP objects, or may do
// so.
func (s *Stmt) UsesTemp() bool {
	if s.Actions.Temp || len(s.c.tempNames) == 0 {
		return s.Actions.Temp
	}
	uses, _ := s.transactions()
	return uses[1] || s.c.namesTemp(libc.GoString(lib.Xsqlite3_sql(s.c.tls, s.p)))
}

// namesTemp reports whether a text has the name of a TEMP object. SQLite looks up all
// names of a statement, but it does not ask the authorizer about parts that it leaves out
// of its program, such as the first of two assignments to a column.
func (c *Conn) namesTemp(text string) bool {
	for text != "" {
		kind, n := firstToken(text)
		at := text[:n]
		text = text[n:]
		if kind == other && n > 1 { // a name in quotes, or a text
			quote := at[n-1:]
			for quote != "]" && strings.HasPrefix(text, quote) { // a quote inside of it, doubled
				_, n := firstToken(text)
				at, text = at+text[:n], text[n:]
			}
			at = strings.ReplaceAll(at[1:len(at)-1], quote+quote, quote)
		}
		if c.tempNames[lower(at)] {
			return true
		}
	}
	return false
}

// MayWrite reports whether the statement may change TEMP objects, and whether it may change
// anything else.
func (s *Stmt) MayWrite() (temp, others bool) {
	if !s.UsesTemp() {
		return false, true
	}
	_, writes := s.transactions()
	return writes[1], writes[0] || !writes[1]
}

// HasTemp reports whether the connection has TEMP objects.
func (c *Conn) HasTemp() (has bool, err error) {
	err = c.QueryAsOwner("SELECT 1 FROM sqlite_temp_schema LIMIT 1", func(*Stmt) error {
		has = true
		return nil
	})
	return has, err
}

// LoadTempNames loads the names of the connection's TEMP objects, which UsesTemp needs. It is
// called after TEMP objects were made or removed.
func (c *Conn) LoadTempNames() error {
	names, err := c.TextsAsOwner("SELECT name FROM sqlite_temp_schema UNION ALL SELECT tbl_name FROM sqlite_temp_schema")
	if err != nil {
		return err
	}
	c.tempNames = map[string]bool{}
	for _, name := range names {
		c.tempNames[lower(name)] = true
	}
	return nil
}

// tempTypes and tempKinds map the kinds to the types in sqlite_temp_schema, and back.
var tempTypes = map[wire.TempKind]string{wire.TempTable: "table", wire.TempIndex: "index", wire.TempView: "view", wire.TempTrigger: "trigger"}

var tempKinds = map[string]wire.TempKind{"table": wire.TempTable, "index": wire.TempIndex, "view": wire.TempView, "trigger": wire.TempTrigger}

// errTempFull returns the error for TEMP objects that take more than their limit.
func errTempFull(bytes int) error {
	return Full(fmt.Sprintf("the TEMP objects of this connection take %d bytes", bytes), tempFull)
}

var tempFull = fmt.Sprintf("a connection may have %d MiB of TEMP objects: each write that uses them contains them; use an ordinary table", MaxTemp>>20)

// LimitTemp makes SQLite fail statements that would make the TEMP objects larger than
// MaxTemp.
func (c *Conn) LimitTemp() error {
	return c.ExecAsOwner(fmt.Sprintf("PRAGMA temp.max_page_count=%d", MaxTemp/4096))
}

// ExplainTempFull adds a hint to the error of a statement that failed because of MaxTemp.
func (s *Stmt) ExplainTempFull(e *Error) {
	if e.Code == lib.SQLITE_FULL && e.Hint == "" && s.UsesTemp() {
		e.Hint = tempFull
	}
}

// DumpTemp encodes the connection's TEMP objects. It returns nil if there are none.
func (c *Conn) DumpTemp() (b []byte, err error) {
	defer c.AsOwner(true)()
	var objects []wire.TempObject
	// An index without a text belongs to its table, which creates it.
	err = c.QueryAsOwner("SELECT type, name, tbl_name, sql FROM sqlite_temp_schema WHERE sql IS NOT NULL ORDER BY rowid", func(s *Stmt) error {
		o := wire.TempObject{Kind: tempKinds[string(s.Bytes(0))], Name: string(s.Bytes(1)), SQL: string(s.Bytes(3))}
		if o.Kind == wire.TempIndex || o.Kind == wire.TempTrigger {
			o.Table = string(s.Bytes(2))
		}
		objects = append(objects, o)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range objects {
		o := &objects[i]
		var rows func(add func([]wire.Value) error) error
		if o.Kind == wire.TempTable {
			sql, err := c.describeTemp(o)
			if err != nil {
				return nil, err
			}
			rows = func(add func([]wire.Value) error) error { return c.eachTempRow(sql, add) }
		}
		if b, err = wire.AppendTempObject(b, o, rows); err != nil {
			return nil, err
		}
		if len(b) > MaxTemp+MaxTemp/2 {
			return nil, errTempFull(len(b))
		}
	}
	return b, nil
}

// eachTempRow calls add with the values of each row that a query returns. The slice is
// used again for the next row.
func (c *Conn) eachTempRow(sql string, add func([]wire.Value) error) error {
	var row []wire.Value
	return c.QueryAsOwner(sql, func(s *Stmt) error {
		row = row[:0]
		for i := range s.ColumnCount() {
			row = append(row, s.Value(i))
		}
		return add(row)
	})
}

// describeTemp sets the columns of a TEMP table in o, and whether its rows have a rowid.
// It returns the query that reads the rows.
func (c *Conn) describeTemp(o *wire.TempObject) (sql string, err error) {
	o.Columns, err = c.TextsAsOwner("SELECT name FROM pragma_table_xinfo(?, 'temp') WHERE hidden=0 ORDER BY cid", textArgument(o.Name))
	if err != nil {
		return "", err
	}
	var quoted []string
	for _, name := range o.Columns {
		quoted = append(quoted, quote(name))
	}
	from := " FROM temp." + quote(o.Name) + " NOT INDEXED"
	if rowid := rowidName(o.Columns); rowid != "" {
		sql = "SELECT " + rowid + "," + strings.Join(quoted, ",") + from
		if s, _, err := c.Prepare(sql, false); err == nil { // otherwise the table is WITHOUT ROWID
			s.Close()
			o.RowID = true
			return sql, nil
		}
	}
	return "SELECT " + strings.Join(quoted, ",") + from, nil
}

// rowidName returns a name for the rowid of a table that none of its columns has, or "".
func rowidName(columns []string) string {
	for _, rowid := range []string{"_rowid_", "rowid", "oid"} {
		if !slices.ContainsFunc(columns, func(name string) bool { return lower(name) == rowid }) {
			return rowid
		}
	}
	return ""
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// MentionsTemp reports whether a script may make TEMP objects: it has CREATE TEMP, or temp
// before a period. A script that only uses TEMP objects cannot be recognized by its text.
func MentionsTemp(script string) bool {
	last, word := "", ""
	for script != "" {
		kind, n := firstToken(script)
		at := script[:n]
		script = script[n:]
		if kind == space {
			continue
		}
		last, word = word, upper(strings.Trim(at, "\"'`[]"))
		if last == "CREATE" && (word == "TEMP" || word == "TEMPORARY") || last == "TEMP" && at == "." {
			return true
		}
	}
	return false
}

// prepareTemp makes SQLite keep TEMP objects in memory, and enforce MaxTemp.
func (c *Conn) prepareTemp() error {
	if err := c.ExecAsOwner("PRAGMA temp_store=MEMORY"); err != nil {
		return err
	}
	return c.LimitTemp()
}
