package hiqlite

import (
	"context"
	"database/sql/driver"
	"strconv"
	"strings"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// settings are the PRAGMAs that a connection was told, to answer them.
type settings map[string]string

func (s *settings) set(name, value string) {
	if *s == nil {
		*s = settings{}
	}
	(*s)[name] = value
}

// echoed are settings whose setter answers with the new value.
var echoed = map[string]bool{
	"analysis_limit": true, "busy_timeout": true, "hard_heap_limit": true, "journal_size_limit": true, "max_page_count": true,
	"mmap_size": true, "secure_delete": true, "soft_heap_limit": true, "threads": true, "wal_autocheckpoint": true,
}

// named values of settings that SQLite answers as numbers.
var settingNumbers = map[string]map[string]int64{
	"synchronous": {"off": 0, "normal": 1, "full": 2, "extra": 3},
	"temp_store":  {"default": 0, "file": 1, "memory": 2},
}

// configure runs a PRAGMA that sets something, or a script with such.
func (c *conn) configure(ctx context.Context, class *sqlite.Class) (driver.Rows, error) {
	if !class.Script {
		return newMemoryRows(&c.cfg, c.apply(class)), nil
	}
	var rows driver.Rows = newMemoryRows(&c.cfg, nil)
	for i := range class.Parts {
		part := &class.Parts[i]
		next, err := c.answer(ctx, part.SQL, &part.Class, nil)
		if err != nil {
			rows.Close()
			return nil, err
		}
		if len(next.Columns()) == 0 {
			next.Close()
			continue
		}
		rows.Close()
		rows = next
	}
	return rows, nil
}

// apply does what a PRAGMA says, as far as it concerns the connection.
func (c *conn) apply(class *sqlite.Class) *wire.Rows {
	name, arg := class.Pragma, class.PragmaArg
	switch name {
	case "foreign_keys":
		c.foreignKeysOff = !sqlite.Truth(arg)
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
	}
	if !class.PragmaSet {
		return nil
	}
	c.settings.set(name, arg)
	if echoed[name] {
		return c.setting(name)
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
	column := name
	if name == "busy_timeout" {
		column = "timeout"
	}
	if n, ok := settingNumbers[name][strings.ToLower(value)]; ok {
		value = strconv.FormatInt(n, 10)
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return nil // what SQLite makes of such a value, only SQLite knows
	}
	return &wire.Rows{Columns: []wire.Column{{Name: column}}, Cells: []wire.Value{wire.IntegerValue(n)}}
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
