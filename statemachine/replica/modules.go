package replica

// loadSettings makes every full-text table of the apply connection know its own
// settings. FTS5 keeps them in memory and reads them anew when it reads its index
// and sees that they have changed. 'rebuild' and 'delete-all' write an index
// without having read it, by what is in memory: what was loaded by an earlier
// operation, or by none since a restart, or in one that was undone. So all replicas
// load them before an operation, wherever one of them could have missed something.
func (r *SQL) loadSettings() error {
	if r.settingsLoaded {
		return nil
	}
	r.conn.ForgetFileErrors() // those of the operation before
	r.conn.Owner(true)
	defer r.conn.Owner(false)
	tables, err := column(r.conn, `SELECT v.name FROM sqlite_schema v WHERE v.type='table' AND v.rootpage=0
		AND EXISTS(SELECT 1 FROM sqlite_schema c WHERE c.type='table' AND c.name=v.name||'_config')`)
	if err != nil {
		return err
	}
	for _, table := range tables {
		name := quote(table, `"`)
		// There is no such setting: the statement fails, once those there are are loaded.
		err := r.conn.Exec("INSERT INTO " + name + "(" + name + ", rank) VALUES('hiqlite loads settings', 0)")
		if r.conn.Local(err) {
			return err
		}
	}
	r.settingsLoaded = true
	return nil
}
