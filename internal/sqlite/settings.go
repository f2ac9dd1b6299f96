package sqlite

import (
	"strings"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// Settings are those under which statements are prepared now.
func (c *Conn) Settings() wire.Settings { return c.settings }

// SetSettings makes the connection prepare statements under other settings,
// inside a transaction too, where PRAGMA foreign_keys would do nothing. No
// deferred foreign key may be violated then. What was prepared before keeps the
// settings that it was prepared under: the caller forgets it.
//
// It changes the engine's flags and not by PRAGMAs, which would also make
// statements expire that virtual tables keep for themselves.
func (c *Conn) SetSettings(s wire.Settings) error {
	changed := c.settings ^ s
	if changed == 0 {
		return nil
	}
	if changed&wire.CaseSensitiveLike != 0 {
		if err := c.setLike(s&wire.CaseSensitiveLike != 0); err != nil {
			return err
		}
	}
	c.setFlags(s)
	return nil
}

// setFlags is SetSettings, but for LIKE.
func (c *Conn) setFlags(s wire.Settings) {
	if s == c.settings {
		return
	}
	db := c.rawDB()
	for _, p := range Pragmas {
		if p.IsOn(s) {
			db.Fflags |= p.flag
		} else {
			db.Fflags &^= p.flag
		}
	}
	c.settings = s
}

// setLike registers LIKE anew, which the engine does not do while a statement
// runs: without a word.
func (c *Conn) setLike(caseSensitive bool) error {
	if c.rawDB().FnVdbeActive > 0 {
		return newError(CodeBusy, "PRAGMA case_sensitive_like cannot be changed while a query is open", "close its rows first")
	}
	sql := "PRAGMA case_sensitive_like=OFF"
	if caseSensitive {
		sql = "PRAGMA case_sensitive_like=ON"
	}
	if err := c.ExecAsOwner(sql); err != nil {
		return err
	}
	c.keepLikeConstant()
	return nil
}

// keepLikeConstant makes LIKE what it was before the PRAGMA registered it anew: a
// function that an index, a generated column and a CHECK may use. Without it a
// schema in which one does cannot be loaded while the setting is on.
func (c *Conn) keepLikeConstant() {
	for e := c.rawDB().FaFunc.Ffirst; e != 0; e = at[lib.THashElem](e).Fnext {
		for f := at[lib.THashElem](e).Fdata; f != 0; f = at[lib.TFuncDef](f).FpNext {
			if def := at[lib.TFuncDef](f); strings.EqualFold(libc.GoString(def.FzName), "like") {
				def.FfuncFlags |= lib.SQLITE_FUNC_CONSTANT
			}
		}
	}
}

// ReachVirtualTables are the settings that statements are prepared under which
// virtual tables keep for themselves: when one changes, virtual tables begin
// anew.
const ReachVirtualTables = wire.CaseSensitiveLike | wire.ReverseUnorderedSelects
