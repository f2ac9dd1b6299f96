package replica

import (
	"context"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// Settings travel with each operation: a connection that executes or reads for
// others stays at those of the last one, as the next mostly has the same, and
// changes them when it comes to others.

// use makes the connection prepare statements under settings. Those that it has
// kept were prepared under others, and are forgotten.
func (p *programs) use(settings wire.Settings) error {
	if p.conn.Settings() == settings {
		return nil
	}
	p.forget()
	return p.conn.SetSettings(settings)
}

// useSettings makes the apply connection execute under settings.
func (r *SQL) useSettings(settings wire.Settings) error {
	before := r.conn.Settings()
	if before == settings {
		return nil
	}
	if err := r.programs.use(settings); err != nil {
		return err
	}
	if (before^settings)&sqlite.ReachVirtualTables != 0 && r.virtual() {
		return r.reload()
	}
	return nil
}

// settings are those that are in force now for the operation.
func (x *execution) settings() wire.Settings { return x.conn.Settings() }

// travels reports a PRAGMA that sets something which travels.
func travels(a *sqlite.Actions) bool {
	return a.PragmaSet && sqlite.Pragmas[a.Pragma].Kind == sqlite.PragmaTravels
}

// switchSetting does what a PRAGMA does on a connection outside of a transaction,
// which a script is to its author.
func (x *execution) switchSetting(a *sqlite.Actions) error {
	p := sqlite.Pragmas[a.Pragma]
	settings := p.Set(x.settings(), a.PragmaArg)
	if err := x.switchTo(settings); err != nil {
		return err
	}
	x.result.Settings = settings ^ x.op.Settings
	return nil
}

// switchTo changes the settings between two statements of the operation.
func (x *execution) switchTo(settings wire.Settings) error {
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
	x.note(s)
	if err := x.save(); err != nil {
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
	return x.conn.SchemaLoads()
}

// schemaRows runs a statement that inserts rows into sqlite_schema.
func (t *Transaction) schemaRows(ctx context.Context, s *sqlite.Stmt) (err error) {
	mark, err := t.conn.MarkSchema()
	if err != nil {
		return err
	}
	if err := t.owner("SAVEPOINT " + savepoint); err != nil {
		return err
	}
	if _, err = t.step(ctx, s); err == nil {
		err = t.conn.CheckSchemaRows(mark)
	}
	if err == nil {
		if err = t.reload(); err == nil {
			err = t.conn.SchemaLoads()
		}
	}
	if t.over != nil || t.conn.Autocommit() {
		return err
	}
	end := "RELEASE " + savepoint
	if err != nil {
		end = "ROLLBACK TO " + savepoint + "; " + end
	}
	if failed := t.owner(end); failed != nil {
		t.over = failed
		return failed
	}
	return err
}

// Use makes the statements that follow run under other settings, and records
// that they do. It fails, and changes nothing, if that cannot be done now.
func (t *Transaction) Use(settings wire.Settings) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.err(); err != nil {
		return err
	}
	changed := t.conn.Settings() ^ settings
	if changed&wire.ForeignKeysOff != 0 && t.conn.DeferredViolations() {
		return sqlite.ForeignKeysInUse()
	}
	if changed&sqlite.ReachVirtualTables != 0 {
		t.dirty = true // virtual tables have statements of both settings
	}
	return t.reason(t.programs.use(settings))
}
