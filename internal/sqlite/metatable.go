package sqlite

import (
	"errors"

	lib "modernc.org/sqlite/lib"
)

// MetaTable is the one table of the replica's own in the database. SQL may
// read it and nothing else. Its name is one of those that SQLite keeps for
// itself: tools leave such tables alone, as sqlite_sequence, and SQLite lets
// nobody drop, alter or index them, and no statistics be gathered of them.
const MetaTable = "sqlite_hiqlite"

// MakeMetaTable makes the meta table, if it is missing. SQLite refuses its name
// unless the schema is writable, which a defensive connection's never is.
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
