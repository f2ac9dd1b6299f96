package replica

// loadSettings makes every full-text table of the apply connection load its settings.
// FTS5 caches them, and loads them again when it reads its index and finds that they have
// changed. But 'rebuild' and 'delete-all' write an index without reading it, with the
// settings in the cache: those of an earlier operation, of one that was undone, or the
// defaults after a restart. So all replicas load the settings before each operation for
// which the caches of two replicas could differ.
func (r *SQL) loadSettings() error {
	if r.settingsLoaded {
		return nil
	}
	r.conn.ForgetFileErrors() // forget errors of the operation before
	defer r.conn.AsOwner(true)()
	tables, err := r.conn.TextsAsOwner(`SELECT v.name FROM sqlite_schema v WHERE v.type='table' AND v.rootpage=0
		AND EXISTS(SELECT 1 FROM sqlite_schema c WHERE c.type='table' AND c.name=v.name||'_config')`)
	if err != nil {
		return err
	}
	for _, table := range tables {
		name := quote(table, `"`)
		// There is no such setting, so the statement fails, after FTS5 has loaded the
		// existing ones.
		err := r.conn.Exec("INSERT INTO " + name + "(" + name + ", rank) VALUES('hiqlite loads settings', 0)")
		if r.conn.Local(err) {
			return err
		}
	}
	r.settingsLoaded = true
	return nil
}
