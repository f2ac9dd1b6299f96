package replica

import "github.com/hiqlite/hiqlite/internal/sqlite"

// TEMP objects belong to one connection of database/sql. A transaction whose writes use
// them brings their content, as of its beginning, in wire.Operation.Temp. Every replica
// creates them on its apply connection, executes the transaction, which may change them,
// and removes them again.

// withTemp returns a function that creates the operation's TEMP objects, calls run, and
// removes them. If run fails, the rollback of the operation removes them.
func (x *execution) withTemp(run func() error) func() error {
	return func() error {
		defer x.conn.AllowTemp(false)
		x.schema, x.batch.temp = true, true // so that the schema is loaded again, however the operation ends
		if err := x.reload(); err != nil {
			return err
		}
		if x.virtual() {
			if err := x.loadSettings(); err != nil {
				return err
			}
		}
		x.conn.AllowTemp(true)
		if err := x.conn.LoadTemp(x.op.Temp); err != nil {
			return err
		}
		x.conn.SetState(x.op.Changes, 0, x.op.LastInsertID)
		if err := run(); err != nil {
			return err
		}
		if err := x.flush(); err != nil { // a change of the schema makes SQLite disconnect the virtual tables
			return err
		}
		x.stmts.clear()
		return x.conn.DropTemp()
	}
}

// leftTemp returns an error if an operation has left a TEMP object on the apply
// connection, where it would stay until a restart and change what later operations do. The
// authorizer refuses such statements, and withTemp removes its own objects. If one is
// overlooked nevertheless, the operation fails on every replica, which removes the object.
func (x *execution) leftTemp() error {
	found, err := x.conn.HasTemp()
	if err != nil || !found {
		return err
	}
	x.partial = true
	return sqlite.NotAuthorized("TEMP tables, views, triggers and indexes are not supported here", "")
}

// emptyTemp releases the memory of the TEMP database, which is empty.
func (r *SQL) emptyTemp() {
	r.stmts.clear()
	r.virtualKnown = false
	if err := r.conn.Exec("PRAGMA temp_store=FILE; PRAGMA temp_store=MEMORY"); err != nil {
		r.log.Warn("hiqlite: giving back the memory of TEMP objects", "error", err)
	}
}
