package statemachine

import "github.com/hiqlite/hiqlite/internal/sqlite"

// leftTemp is the error of an operation that left a TEMP object on the
// connection that applies, where it would stay until a restart and change what
// later operations do. The authorizer refuses those; should it ever overlook
// one, the operation fails alike on every replica, and the object goes with it.
func (x *execution) leftTemp() error {
	found, err := x.conn.HasTemp()
	if err != nil || !found {
		return err
	}
	x.halfway = true
	return &sqlite.Error{Code: sqlite.CodeAuth, Message: "not authorized: TEMP tables, views, triggers and indexes are not supported here (23)"}
}
