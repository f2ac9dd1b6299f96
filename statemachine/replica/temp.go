package replica

import "github.com/hiqlite/hiqlite/internal/sqlite"

// TEMP objects belong to one connection of one node. A transaction that uses
// them in what it writes brings them along, as they were at its beginning
// (wire.Operation.Temp): every replica makes them on its own connection, executes
// the transaction, which may change them, and removes them again.

// withTemp returns run with the operation's TEMP objects around it. If run
// fails, they go with what it did.
func (x *execution) withTemp(run func() error) func() error {
	return func() error {
		defer x.conn.AllowTemp(false)
		x.schema, x.batch.temp = true, true // so that the schema is loaded anew, however it ends
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
		if err := x.flush(); err != nil { // to change the schema takes the virtual tables away
			return err
		}
		x.programs.clear()
		return x.conn.DropTemp()
	}
}

// leftTemp is the error of an operation that left a TEMP object on the
// connection that applies, where it would stay until a restart and change what
// later operations do. The authorizer refuses those, and withTemp removes its
// own; should any be overlooked, the operation fails alike on every replica, and
// the object goes with it.
func (x *execution) leftTemp() error {
	found, err := x.conn.HasTemp()
	if err != nil || !found {
		return err
	}
	x.halfway = true
	return sqlite.NotAuthorized("TEMP tables, views, triggers and indexes are not supported here", "")
}

// emptyTemp gives back the memory that TEMP objects took. Nothing is in it.
func (r *SQL) emptyTemp() {
	r.programs.clear()
	r.virtualKnown = false
	if err := r.conn.Exec("PRAGMA temp_store=FILE; PRAGMA temp_store=MEMORY"); err != nil {
		r.log.Warn("hiqlite: giving back the memory of TEMP objects", "error", err)
	}
}
