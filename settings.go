package hiqlite

import (
	"context"
	"math"
	"strconv"
	"strings"

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

// A settingKind says how SQLite reads a PRAGMA's value. Those that are not
// listed are answered by the replica, which they do not change.
type settingKind struct {
	echo    bool // the setter answers with the new value
	words   map[string]int64
	boolean bool
	number  func(n int64) (value int64, taken bool)
}

var (
	truth  = settingKind{boolean: true}
	levels = map[string]int64{"off": 0, "no": 0, "false": 0, "normal": 1, "on": 1, "yes": 1, "true": 1, "full": 2, "extra": 3}
	stores = map[string]int64{"default": 0, "file": 1, "memory": 2}

	settingKinds = map[string]settingKind{
		"automatic_index": truth, "cell_size_check": truth, "checkpoint_fullfsync": truth, "defer_foreign_keys": truth, "fullfsync": truth, "read_uncommitted": truth,
		"secure_delete": {echo: true, boolean: true, words: map[string]int64{"fast": 2}},
		"synchronous":   {words: levels, number: between(0, 3)}, "temp_store": {words: stores, number: between(0, 2)},

		"analysis_limit": {echo: true, number: between(0, math.MaxInt32)}, "threads": {echo: true, number: between(0, 8)},
		"busy_timeout": {echo: true, number: atLeast(0)}, "wal_autocheckpoint": {echo: true, number: atLeast(0)},
		"mmap_size": {echo: true, number: atLeast(0)}, "journal_size_limit": {echo: true, number: atLeast(-1)}, "cache_size": {number: atLeast(math.MinInt32)},

		"hard_heap_limit": {echo: true}, "max_page_count": {echo: true}, "soft_heap_limit": {echo: true},
	}
)

func between(least, most int64) func(int64) (int64, bool) {
	return func(n int64) (int64, bool) { return n, n >= least && n <= most }
}

func atLeast(least int64) func(int64) (int64, bool) {
	return func(n int64) (int64, bool) { return max(n, least), true }
}

// read reads a PRAGMA's value, and reports whether SQLite would take it.
func (k settingKind) read(arg string) (value int64, taken bool) {
	if n, ok := k.words[strings.ToLower(arg)]; ok {
		return n, true
	}
	if k.boolean {
		if sqlite.Truth(arg) {
			return 1, true
		}
		return 0, true
	}
	n, err := strconv.ParseInt(arg, 0, 64)
	if err != nil || k.number == nil {
		return 0, false
	}
	return k.number(n)
}

// configure runs a PRAGMA that sets something, or a script with such.
func (c *conn) configure(ctx context.Context, text string, class *sqlite.Class, args []wire.Argument) (seenRows, error) {
	if !class.Script {
		if c.tx != nil && class.Pragma == "defer_foreign_keys" {
			if err := c.tx.deferForeignKeys(ctx, sqlite.Truth(class.PragmaArg)); err != nil {
				return nil, err
			}
		}
		rows := c.apply(class)
		if kind := settingKinds[class.Pragma]; rows == nil && kind.echo {
			if rows = c.setting(class.Pragma); rows == nil {
				return c.read(ctx, "PRAGMA "+class.Pragma, &sqlite.Class{}, nil)
			}
		}
		return newMemoryRows(&c.cfg, rows), nil
	}
	var rows seenRows
	for i := range class.Parts {
		part := &class.Parts[i]
		next, err := c.answer(ctx, part.SQL, &part.Class, args)
		if err != nil {
			if rows != nil {
				rows.Close()
			}
			return nil, err
		}
		rows = laterRows(rows, next, lastPart(text, class.Parts, i))
	}
	return rows, nil
}

// apply does what a PRAGMA says, as far as it concerns the connection.
func (c *conn) apply(class *sqlite.Class) *wire.Rows {
	name, arg := class.Pragma, class.PragmaArg
	switch name {
	case "foreign_keys":
		if c.tx == nil { // inside a transaction it does nothing
			c.foreignKeysOff = !sqlite.Truth(arg)
		}
		return nil
	case "query_only":
		c.queryOnly = sqlite.Truth(arg)
		return nil
	case "journal_mode":
		return oneText(name, "wal")
	case "locking_mode":
		return oneText(name, "normal")
	case "wal_checkpoint":
		return &wire.Rows{
			Columns: []wire.Column{{Name: "busy"}, {Name: "log"}, {Name: "checkpointed"}},
			Cells:   []wire.Value{wire.IntegerValue(0), wire.IntegerValue(0), wire.IntegerValue(0)},
		}
	case "optimize":
		return &wire.Rows{Columns: []wire.Column{{Name: name}}}
	}
	if kind, ok := settingKinds[name]; ok && class.PragmaSet {
		if value, taken := kind.read(arg); taken {
			c.settings.set(name, value)
		}
	}
	return nil
}

// setting answers a PRAGMA that the connection knows better than SQLite, or
// returns nil.
func (c *conn) setting(name string) *wire.Rows {
	switch name {
	case "foreign_keys":
		return oneInteger(name, !c.foreignKeysOff)
	case "query_only":
		return oneInteger(name, c.queryOnly)
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
