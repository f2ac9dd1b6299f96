package sqlite

import (
	"strings"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// Settings returns the settings under which statements are prepared now.
func (c *Conn) Settings() wire.Settings { return c.settings }

// SetSettings makes the connection prepare statements under other settings. It also works
// inside a transaction, where PRAGMA foreign_keys would do nothing; no deferred foreign
// key may be violated then. Statements that have been prepared keep the settings under
// which they were prepared, so the caller has to discard them.
//
// SetSettings sets flags of the engine's connection. It does not execute PRAGMAs, because
// those would make the statements expire that virtual tables keep for themselves.
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

// setFlags is SetSettings without the setting of LIKE, which is not a flag.
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

// setLike makes LIKE case-sensitive or not. The PRAGMA does this by registering the
// function LIKE again. While a statement runs, SQLite would silently not do it.
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

// keepLikeConstant marks LIKE as a function that indexes, generated columns and CHECK
// constraints may use, as it was before the PRAGMA registered it again. Otherwise a
// schema that uses LIKE there could not be loaded while the setting is on.
func (c *Conn) keepLikeConstant() {
	for e := c.rawDB().FaFunc.Ffirst; e != 0; e = at[lib.THashElem](e).Fnext {
		for f := at[lib.THashElem](e).Fdata; f != 0; f = at[lib.TFuncDef](f).FpNext {
			if def := at[lib.TFuncDef](f); strings.EqualFold(libc.GoString(def.FzName), "like") {
				def.FfuncFlags |= lib.SQLITE_FUNC_CONSTANT
			}
		}
	}
}

// VirtualTableSettings are the settings that influence the statements that virtual tables
// prepare and keep for themselves. When one of them changes, the virtual tables have to
// be connected again.
const VirtualTableSettings = wire.CaseSensitiveLike | wire.ReverseUnorderedSelects
