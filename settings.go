package hiqlite

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// localPragmas are the values of the PRAGMAs that only the connection keeps. It
// returns them when it is asked for them. Only busy_timeout and defer_foreign_keys
// have an effect.
type localPragmas map[string]int64

func (p *localPragmas) set(name string, value int64) {
	if *p == nil {
		*p = localPragmas{}
	}
	(*p)[name] = value
}

// runPragmas runs a PRAGMA that sets something, or a script with such PRAGMAs that
// writes nothing and begins no transaction.
func (c *conn) runPragmas(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	if !class.Script {
		return c.runPragma(ctx, class)
	}
	reads := slices.ContainsFunc(class.Parts, func(p sqlite.Part) bool { return p.Kind == sqlite.Read })
	if reads && c.tx == nil && c.consistency(ctx) == Linearizable { // once for all statements
		if err := c.node.Linearize(ctx); err != nil {
			return nil, err
		}
		ctx = WithConsistency(ctx, Local)
	}
	all := collector{conn: &c.cfg}
	for i := range class.Parts {
		part := &class.Parts[i]
		next, err := resultSet(nil), ctx.Err()
		if err == nil {
			next, err = c.runLocal(ctx, part.SQL, &part.Class, args)
		}
		if err == nil {
			err = all.add(&part.Class, next, i == len(class.Parts)-1)
		}
		if err != nil {
			return nil, readError(ctx, err)
		}
	}
	return newListedSets(&c.cfg, all.sets, nil)
}

// runPragma executes one PRAGMA that sets or does something, as the table
// sqlite.Pragmas says.
func (c *conn) runPragma(ctx context.Context, class *sqlite.Class) (resultSet, error) {
	pragma := sqlite.Pragmas[class.Pragma]
	if pragma.Kind == sqlite.PragmaSetting {
		if err := c.setSettings(pragma.Set(c.settings, class.PragmaArg)); err != nil {
			return nil, err
		}
		return newMemoryRows(&c.cfg, nil), nil
	}
	if pragma.Kind == sqlite.PragmaTransaction && c.tx != nil {
		if err := c.tx.deferForeignKeys(ctx, sqlite.Truth(class.PragmaArg)); err != nil {
			return nil, err
		}
	}
	if value, ok := pragma.Value(class.PragmaArg); ok && class.PragmaSet {
		c.pragmas.set(class.Pragma, value)
	}
	rows := pragma.Answer
	if pragma.Echo {
		if rows = c.pragmaRows(class.Pragma); rows == nil {
			return c.read(ctx, "PRAGMA "+class.Pragma, &sqlite.Class{}, nil)
		}
	}
	return newMemoryRows(&c.cfg, rows), nil
}

// setSettings changes the settings that operations carry. SQLite silently ignores
// PRAGMA foreign_keys inside a transaction. Here it takes effect there, but only
// until the transaction ends. So a program that switches foreign keys off to rebuild
// a table does not lose rows that refer to it, and a program that relies on the
// PRAGMA being ignored does not change its connection.
func (c *conn) setSettings(settings wire.Settings) error {
	t := c.tx
	if t == nil {
		c.settings = settings
		return nil
	}
	if t.view != nil {
		if err := t.viewError(t.view.SwitchSettings(settings)); err != nil {
			return err
		}
	}
	if changed := (c.settings ^ settings) & wire.ForeignKeysOff &^ t.changedSettings; changed != 0 {
		t.changedSettings |= changed
		t.settingsBefore |= c.settings & changed
	}
	c.settings = settings
	return nil
}

func (c *conn) queryOnly() bool { return c.settings&wire.QueryOnly != 0 }

// settingsRestorer returns a function that is called with the error of a script. If
// the script has failed, the function undoes its changes of the connection's settings.
func (c *conn) settingsRestorer(script bool) func(error) {
	if !script {
		return func(error) {}
	}
	tx, pragmas := c.tx, maps.Clone(c.pragmas)
	inTx, afterTx := c.settings, c.settings // the settings now, and once tx has ended
	if tx != nil {
		afterTx = tx.settingsAfterEnd()
	}
	return func(err error) {
		if err == nil {
			return
		}
		c.pragmas = pragmas
		if c.tx == tx {
			_ = c.setSettings(inTx) // if this fails, the transaction has ended, and its settings with it
			return
		}
		c.settings = afterTx
		delete(c.pragmas, "defer_foreign_keys") // the transaction that it was set for has ended
	}
}

// pragmaRows returns the rows of a PRAGMA whose value the connection keeps, or nil if
// SQLite has to be asked.
func (c *conn) pragmaRows(name string) *wire.Rows {
	pragma := sqlite.Pragmas[name]
	value, ok := c.pragmas[name]
	if pragma.Kind == sqlite.PragmaSetting && !pragma.WriteOnly {
		value, ok = 0, true
		if pragma.IsOn(c.settings) {
			value = 1
		}
	}
	if !ok {
		return nil
	}
	return &wire.Rows{
		Columns: []wire.Column{{Name: cmp.Or(pragma.Column, name)}},
		Cells:   []wire.Value{wire.IntegerValue(value)},
	}
}
