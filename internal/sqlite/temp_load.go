package sqlite

import (
	"slices"
	"strings"

	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// withoutChecks calls f as hiqlite itself. Meanwhile rows are not checked against
// constraints, because they have been when they were first written, and sqlite_temp_schema
// can be written.
func (c *Conn) withoutChecks(f func() error) error {
	defer c.AsOwner(true)()
	flags := c.rawDB().Fflags
	c.setUncheckedFlags()
	defer func() { c.rawDB().Fflags = flags }()
	return f()
}

// setUncheckedFlags sets the flags of withoutChecks.
func (c *Conn) setUncheckedFlags() {
	db := c.rawDB()
	db.Fflags = db.Fflags&^(lib.SQLITE_ForeignKeys|lib.SQLITE_Defensive) | lib.SQLITE_IgnoreChecks | lib.SQLITE_WriteSchema
}

// reloadSchemas makes SQLite load all schemas again. The PRAGMA clears a flag of
// withoutChecks, which has to be set again.
func (c *Conn) reloadSchemas() error {
	err := c.Exec("PRAGMA writable_schema=RESET")
	c.setUncheckedFlags()
	return err
}

// LoadTemp creates the TEMP objects that DumpTemp has encoded, on a connection that has
// none. It changes changes(), total_changes() and last_insert_rowid(), which the caller
// has to set again.
func (c *Conn) LoadTemp(content []byte) error {
	objects, err := wire.DecodeTemp(content)
	if err != nil {
		return LogicError(err.Error(), "")
	}
	return c.withoutChecks(func() error {
		var sequence *wire.TempObject
		for i := range objects {
			o := &objects[i]
			switch {
			case o.Kind != wire.TempTable:
			case strings.HasPrefix(o.Name, "sqlite_"):
				sequence = o // sqlite_sequence, which SQLite creates with the first AUTOINCREMENT
			default:
				if err := c.loadTable(o); err != nil {
					return err
				}
			}
		}
		if sequence != nil {
			if err := c.loadSequence(sequence); err != nil {
				return err
			}
		}
		// Views and triggers get their rows in the schema, without CREATE. So those
		// whose tables have been dropped are loaded too, and have no effect, as when
		// SQLite opens a file.
		for i := range objects {
			if err := c.loadOther(&objects[i]); err != nil {
				return err
			}
		}
		if err := c.orderTemp(objects); err != nil {
			return err
		}
		if err := c.reloadSchemas(); err != nil {
			return err
		}
		c.TookMaxRowid()
		return c.LoadTempNames()
	})
}

// orderTemp gives the rows of sqlite_temp_schema the order of objects. SQLite loads them
// in this order. It attaches a trigger to a TEMP table only if it has loaded that table
// before the trigger. Otherwise it looks for a table of the same name in the database.
func (c *Conn) orderTemp(objects []wire.TempObject) error {
	trigger := slices.IndexFunc(objects, func(o wire.TempObject) bool { return o.Kind == wire.TempTrigger })
	if trigger < 0 || !slices.ContainsFunc(objects[trigger:], func(o wire.TempObject) bool { return o.Kind == wire.TempTable }) {
		return nil // LoadTemp has inserted the triggers after the tables
	}
	for i := range objects {
		o := &objects[i]
		// The indexes that belong to a table are not among the objects.
		rows, err := c.TextsAsOwner("SELECT rowid FROM sqlite_temp_schema WHERE type=?1 AND name=?2 OR ?1='table' AND tbl_name=?2 AND sql IS NULL ORDER BY rowid",
			textArgument(tempTypes[o.Kind]), textArgument(o.Name))
		if err != nil {
			return err
		}
		for _, row := range rows {
			err := c.ExecAsOwner("UPDATE sqlite_temp_schema SET rowid=(SELECT max(rowid)+1 FROM sqlite_temp_schema) WHERE rowid=" + row)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Conn) loadTable(o *wire.TempObject) error {
	rest, ok := strings.CutPrefix(o.SQL, "CREATE TABLE ")
	if !ok {
		return errNotTemp(o)
	}
	if err := c.Exec("CREATE TEMP TABLE " + rest); err != nil {
		return err
	}
	return c.loadRows(o)
}

// loadSequence fills sqlite_sequence, which has the last numbers of AUTOINCREMENT. SQLite
// creates this table with the first table that has AUTOINCREMENT, and keeps it when that
// table is dropped.
func (c *Conn) loadSequence(o *wire.TempObject) error {
	if err := c.Exec("CREATE TEMP TABLE " + droppedSequence + "(a INTEGER PRIMARY KEY AUTOINCREMENT); DROP TABLE temp." + droppedSequence); err != nil {
		return err
	}
	if err := c.Exec("DELETE FROM temp.sqlite_sequence"); err != nil {
		return err
	}
	return c.loadRows(o)
}

func (c *Conn) loadRows(o *wire.TempObject) error {
	names := make([]string, 0, len(o.Columns)+1)
	if o.RowID {
		names = append(names, rowidName(o.Columns))
	}
	for _, name := range o.Columns {
		names = append(names, quote(name))
	}
	insert, _, err := c.Prepare("INSERT INTO temp."+quote(o.Name)+"("+strings.Join(names, ",")+") VALUES(?"+strings.Repeat(",?", len(names)-1)+")", false)
	if err != nil {
		return err
	}
	defer insert.Close()
	return o.EachRow(func(cells []wire.Argument) error {
		if err := insert.Bind(cells, nil); err != nil {
			return err
		}
		return insert.Run()
	})
}

func (c *Conn) loadOther(o *wire.TempObject) error {
	switch o.Kind {
	case wire.TempTable:
		return nil
	case wire.TempIndex:
		for _, head := range []string{"CREATE INDEX ", "CREATE UNIQUE INDEX "} {
			if rest, ok := strings.CutPrefix(o.SQL, head); ok {
				return c.Exec(head + "temp." + rest)
			}
		}
		return errNotTemp(o)
	}
	kind, table := "view", o.Name
	if o.Kind == wire.TempTrigger {
		kind, table = "trigger", o.Table
	}
	return c.QueryAsOwner("INSERT INTO sqlite_temp_schema(type,name,tbl_name,rootpage,sql) VALUES(?,?,?,0,?)", nil,
		textArgument(kind), textArgument(o.Name), textArgument(table), textArgument(o.SQL))
}

func errNotTemp(o *wire.TempObject) error {
	return LogicError("this does not create a TEMP object: "+o.SQL, "")
}

// droppedSequence is the name to which sqlite_sequence is renamed before it is dropped,
// because SQLite drops no table of that name. loadSequence also uses it.
const droppedSequence = "_hiqlite_gone_sequence"

// DropTemp removes all TEMP objects.
func (c *Conn) DropTemp() error {
	c.tempNames = nil
	return c.withoutChecks(func() error {
		if err := c.Exec("DELETE FROM sqlite_temp_schema WHERE type IN ('view','trigger')"); err != nil {
			return err
		}
		if err := c.reloadSchemas(); err != nil {
			return err
		}
		tables, err := c.TextsAsOwner("SELECT name FROM sqlite_temp_schema WHERE type='table' ORDER BY rowid")
		if err != nil {
			return err
		}
		sequence := false
		for _, name := range tables {
			if strings.HasPrefix(name, "sqlite_") {
				sequence = true
			} else if err := c.Exec("DROP TABLE temp." + quote(name)); err != nil {
				return err
			}
		}
		if sequence {
			err := c.Exec("UPDATE sqlite_temp_schema SET name='" + droppedSequence + "', tbl_name='" + droppedSequence + "', sql='CREATE TABLE " + droppedSequence + "(name,seq)'")
			if err == nil {
				err = c.reloadSchemas()
			}
			if err == nil {
				err = c.Exec("DROP TABLE temp." + droppedSequence)
			}
			if err != nil {
				return err
			}
		}
		return c.reloadSchemas()
	})
}
