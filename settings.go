package hiqlite

import (
	"context"
	"maps"
	"slices"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// settings are the PRAGMAs that a connection was told, as it answers them. None
// has an effect, but busy_timeout and defer_foreign_keys.
type settings map[string]int64

func (s *settings) set(name string, value int64) {
	if *s == nil {
		*s = settings{}
	}
	(*s)[name] = value
}

// configure runs a PRAGMA that sets something, or a script with such.
func (c *conn) configure(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (resultSet, error) {
	if !class.Script {
		if c.tx != nil && class.Pragma == "defer_foreign_keys" {
			if err := c.tx.deferForeignKeys(ctx, sqlite.Truth(class.PragmaArg)); err != nil {
				return nil, err
			}
		}
		rows, err := c.apply(class)
		if err != nil {
			return nil, err
		}
		if rows == nil && sqlite.Pragmas[class.Pragma].Echo {
			if rows = c.setting(class.Pragma); rows == nil {
				return c.read(ctx, "PRAGMA "+class.Pragma, &sqlite.Class{}, nil)
			}
		}
		return newMemoryRows(&c.cfg, rows), nil
	}
	reads := slices.ContainsFunc(class.Parts, func(p sqlite.Part) bool { return p.Kind == sqlite.Read })
	if reads && c.tx == nil && c.consistency(ctx) == Linearizable { // once for all of them
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
			next, err = c.answer(ctx, part.SQL, &part.Class, args)
		}
		if err == nil {
			err = all.add(&part.Class, next, i == len(class.Parts)-1)
		}
		if err != nil {
			return nil, readError(ctx, err)
		}
	}
	return newSets(&c.cfg, all.sets, nil)
}

// apply does what a PRAGMA says, as far as it concerns the connection.
func (c *conn) apply(class *sqlite.Class) (*wire.Rows, error) {
	name, arg := class.Pragma, class.PragmaArg
	pragma := sqlite.Pragmas[name]
	if pragma.Kind == sqlite.PragmaTravels {
		return nil, c.set(pragma.Set(c.travels, arg))
	}
	switch name {
	case "journal_mode":
		return oneText(name, "wal"), nil
	case "locking_mode":
		return oneText(name, "normal"), nil
	case "wal_checkpoint":
		return &wire.Rows{
			Columns: []wire.Column{{Name: "busy"}, {Name: "log"}, {Name: "checkpointed"}},
			Cells:   []wire.Value{wire.IntegerValue(0), wire.IntegerValue(0), wire.IntegerValue(0)},
		}, nil
	case "optimize":
		return &wire.Rows{Columns: []wire.Column{{Name: name}}}, nil
	}
	if class.PragmaSet {
		if value, taken := pragma.Read(arg); taken {
			c.settings.set(name, value)
		}
	}
	return nil, nil
}

// set changes the settings that travel. PRAGMA foreign_keys, which SQLite
// ignores inside a transaction, without a word, holds there until the
// transaction ends: so that neither a table that is rebuilt loses the rows of
// others, nor does a program that knows it to be ignored leave the connection
// with it.
func (c *conn) set(travels wire.Settings) error {
	t := c.tx
	if t == nil {
		c.travels = travels
		return nil
	}
	if t.view != nil {
		if err := t.explain(t.view.Use(travels)); err != nil {
			return err
		}
	}
	if changed := (c.travels ^ travels) & wire.ForeignKeysOff &^ t.others; changed != 0 {
		t.others |= changed
		t.outside |= c.travels & changed
	}
	c.travels = travels
	return nil
}

func (c *conn) queryOnly() bool { return c.travels&wire.QueryOnly != 0 }

// restoring returns what takes back what a script does to the connection's
// settings, if it fails.
func (c *conn) restoring(script bool) func(failed error) {
	if !script {
		return func(error) {}
	}
	tx, inside, outside, others := c.tx, c.travels, c.travels, maps.Clone(c.settings)
	if tx != nil {
		outside = outside&^tx.others | tx.outside
	}
	return func(failed error) {
		if failed == nil {
			return
		}
		c.settings = others
		if c.tx == tx {
			_ = c.set(inside) // it fails if the transaction is over, with its settings
			return
		}
		c.travels = outside
		delete(c.settings, "defer_foreign_keys") // of a transaction that has ended
	}
}

// setting answers a PRAGMA that the connection knows better than SQLite, or
// returns nil.
func (c *conn) setting(name string) *wire.Rows {
	if pragma := sqlite.Pragmas[name]; pragma.Kind == sqlite.PragmaTravels && name != "case_sensitive_like" { // which SQLite does not tell
		return oneInteger(name, pragma.On(c.travels))
	}
	value, ok := c.settings[name]
	if !ok {
		return nil
	}
	if name == "busy_timeout" {
		name = "timeout"
	}
	return &wire.Rows{Columns: []wire.Column{{Name: name}}, Cells: []wire.Value{wire.IntegerValue(value)}}
}

func oneText(name, value string) *wire.Rows {
	return &wire.Rows{Columns: []wire.Column{{Name: name}}, Cells: []wire.Value{wire.TextValue(value)}}
}

func oneInteger(name string, on bool) *wire.Rows {
	v := wire.IntegerValue(0)
	if on {
		v = wire.IntegerValue(1)
	}
	return &wire.Rows{Columns: []wire.Column{{Name: name}}, Cells: []wire.Value{v}}
}
