package sqlite

import (
	"errors"

	lib "modernc.org/sqlite/lib"
)

// MetaTable is the only table in the database that belongs to hiqlite. Programs can only
// read it. Its name begins with sqlite_, which SQLite reserves. So tools leave the table
// alone, as they leave sqlite_sequence alone, and SQLite lets nobody drop, alter or index
// it, and gathers no statistics about it.
const MetaTable = "sqlite_hiqlite"

// MakeMetaTable creates the meta table if it does not exist. SQLite accepts its name only
// while the schema is writable, and on a defensive connection it never is.
func (c *Conn) MakeMetaTable() (err error) {
	defer c.AsOwner(true)()
	if rc := c.configure(lib.SQLITE_DBCONFIG_DEFENSIVE, 0); rc != lib.SQLITE_OK {
		return c.err(rc)
	}
	defer func() {
		err = errors.Join(err, c.Exec("PRAGMA writable_schema=OFF"))
		if rc := c.configure(lib.SQLITE_DBCONFIG_DEFENSIVE, 1); rc != lib.SQLITE_OK {
			err = errors.Join(err, c.err(rc))
		}
	}()
	return c.Exec("PRAGMA writable_schema=ON; CREATE TABLE IF NOT EXISTS " + MetaTable + "(id INTEGER PRIMARY KEY, state BLOB NOT NULL)")
}
