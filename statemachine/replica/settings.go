package replica

import (
	"context"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// Each operation and query brings its settings. A connection that runs them keeps the
// settings of the last one, because the next one usually has the same, and changes them
// only when they differ.

// switchSettings switches the connection to settings. If they differ, it empties the
// cache, since the cached statements were prepared under other settings.
func (p *stmtCache) switchSettings(settings wire.Settings) error {
	if p.conn.Settings() == settings {
		return nil
	}
	p.removeAll()
	return p.conn.SetSettings(settings)
}

// useSettings makes the apply connection execute under settings.
func (r *SQL) useSettings(settings wire.Settings) error {
	before := r.conn.Settings()
	if before == settings {
		return nil
	}
	if err := r.stmts.switchSettings(settings); err != nil {
		return err
	}
	if (before^settings)&sqlite.VirtualTableSettings != 0 && r.virtual() {
		return r.reload()
	}
	return nil
}

// settings returns the settings that are in force for the operation now.
func (x *execution) settings() wire.Settings { return x.conn.Settings() }

// changesSettings reports whether a statement is a PRAGMA that changes wire.Settings.
func changesSettings(a *sqlite.Actions) bool {
	return a.PragmaSet && sqlite.Pragmas[a.Pragma].Kind == sqlite.PragmaSetting
}

// runSettingPragma executes a PRAGMA of a script that changes wire.Settings. To its author
// a script runs outside of a transaction, where such a PRAGMA has an effect.
func (x *execution) runSettingPragma(a *sqlite.Actions) error {
	p := sqlite.Pragmas[a.Pragma]
	settings := p.Set(x.settings(), a.PragmaArg)
	if err := x.changeSettings(settings); err != nil {
		return err
	}
	x.result.ChangedSettings = settings ^ x.op.Settings
	return nil
}

// changeSettings changes the settings between two statements of the operation.
func (x *execution) changeSettings(settings wire.Settings) error {
	if (settings^x.settings())&wire.ForeignKeysOff != 0 && x.conn.DeferredViolations() {
		return sqlite.ForeignKeyViolated()
	}
	return x.useSettings(settings)
}

func queryOnly() error {
	return sqlite.ReadOnlyDatabase("the connection was told PRAGMA query_only=ON")
}

// schemaRows executes a statement that inserts rows into sqlite_schema.
func (x *execution) schemaRows(s *sqlite.Stmt) error {
	s.ResetSteps()
	x.noteChanges(s)
	if err := x.setSavepoint(); err != nil {
		return err
	}
	mark, err := x.conn.MarkSchema()
	if err != nil {
		return err
	}
	if err := s.Run(); err != nil {
		return err
	}
	if err := x.conn.CheckSchemaRows(mark); err != nil {
		return err
	}
	if err := x.reload(); err != nil {
		return err
	}
	return x.conn.CheckSchemaLoads()
}

// schemaRows runs a statement that inserts rows into sqlite_schema.
func (t *Transaction) schemaRows(ctx context.Context, s *sqlite.Stmt) (err error) {
	mark, err := t.conn.MarkSchema()
	if err != nil {
		return err
	}
	if err := t.conn.ExecAsOwner("SAVEPOINT " + savepoint); err != nil {
		return err
	}
	if _, err = t.step(ctx, s); err == nil {
		err = t.conn.CheckSchemaRows(mark)
	}
	if err == nil {
		if err = t.reload(); err == nil {
			err = t.conn.CheckSchemaLoads()
		}
	}
	if t.fatal != nil || t.conn.Autocommit() {
		return err
	}
	end := "RELEASE " + savepoint
	if err != nil {
		end = "ROLLBACK TO " + savepoint + "; " + end
	}
	if failed := t.conn.ExecAsOwner(end); failed != nil {
		t.fatal = failed
		return failed
	}
	return err
}

// SwitchSettings runs and records the following statements under other settings. If that
// is not possible now, it returns an error and changes nothing.
func (t *Transaction) SwitchSettings(settings wire.Settings) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return err
	}
	changed := t.conn.Settings() ^ settings
	if changed&wire.ForeignKeysOff != 0 && t.conn.DeferredViolations() {
		return sqlite.ForeignKeysInUse()
	}
	if changed&sqlite.VirtualTableSettings != 0 {
		t.dirty = true // virtual tables have statements of both settings
	}
	return t.reason(t.stmts.switchSettings(settings))
}
