package sqlite

import (
	"errors"
	"strconv"
	"strings"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// SQLite has a generator of random bytes of its own, one for the process, that
// cannot be replaced. What it is used for:
//
//	random(), randomblob()             overridden: see makeDeterministic
//	rowids after the largest one       refused: see TookMaxRowid
//	the header of fts5_locale()        overridden: see fixLocaleHeader
//	names of columns that occur more
//	than five times in a result        refused where they would be stored: see RandomNames
//	salts of the write-ahead log,
//	nonces of rollback journals,
//	names of temporary files and of
//	VACUUM's database, RBU             nothing that SQL can see

// localeHeader stands before what fts5_locale() returns, which may be stored.
// SQLite draws it for each connection.
var localeHeader = [4]uint32{0x9bd84b8e, 0x41c5f1a2, 0x5a1d7e33, 0xd20f6c97}

// fixLocaleHeader makes fts5_locale() return the same on every connection.
func (c *Conn) fixLocaleHeader() error {
	text, kind := c.cstring("SELECT fts5(?1)"), c.cstring("fts5_api_ptr")
	defer libc.Xfree(c.tls, text)
	defer libc.Xfree(c.tls, kind)
	stmt, api := c.scratch, c.scratch+8
	*at[uintptr](api) = 0
	if rc := lib.Xsqlite3_prepare_v3(c.tls, c.db, text, -1, 0, stmt, 0); rc != lib.SQLITE_OK {
		return c.err(rc)
	}
	p := *at[uintptr](stmt)
	lib.Xsqlite3_bind_pointer(c.tls, p, 1, api, kind, 0)
	lib.Xsqlite3_step(c.tls, p)
	if rc := lib.Xsqlite3_finalize(c.tls, p); rc != lib.SQLITE_OK {
		return c.err(rc)
	}
	global := *at[uintptr](api) // fts5_api is what a Fts5Global begins with
	if global == 0 {
		return errors.New("hiqlite: this build of SQLite has no FTS5")
	}
	at[lib.TFts5Global](global).FaLocaleHdr = localeHeader
	return nil
}

// RandomNames refuses what a statement that has run would store, or one that is
// about to run would read, of columns that SQLite has named at random.
//
// It makes the names of a result's columns unique by a number: a, a:1, a:2, a:3,
// a:4, and then one that it draws. CREATE TABLE ... AS stores such a name. In a
// view each connection has its own, which matters where names are read as rows.
func (s *Stmt) RandomNames(ran bool) error {
	a := &s.Actions
	switch {
	case ran && a.Creates != "" && a.Selects:
		name, err := s.c.randomName(a.Creates)
		if err != nil || name == "" {
			return err
		}
		return LogicError("the column "+strconv.Quote(name)+" of the new table "+a.Creates+" was named at random",
			"its SELECT returns more than five columns of one name, as * of a join does; give them names: SELECT a.id AS a_id, ...")
	case !ran && a.ReadsNames:
		views, err := s.c.TextsAsOwner("SELECT name FROM sqlite_schema WHERE type='view' UNION ALL SELECT name FROM sqlite_temp_schema WHERE type='view'")
		if err != nil {
			return err
		}
		for _, view := range views {
			// A view that cannot be looked into says so to who looks into it.
			if name, err := s.c.randomName(view); err == nil && name != "" {
				return LogicError("the column "+strconv.Quote(name)+" of the view "+view+" is named at random, and this write may read it",
					"the view returns more than five columns of one name; give them names in the view, or read pragma_table_info in a query of its own")
			}
		}
	}
	return nil
}

// randomName returns the first column of a table or view that was named at random.
func (c *Conn) randomName(table string) (string, error) {
	for _, schema := range []string{"main", tempSchema} {
		names, err := c.TextsAsOwner("SELECT name FROM pragma_table_xinfo(?, ?)", textArgument(table), textArgument(schema))
		if name := namedAtRandom(names); err != nil || name != "" {
			return name, err
		}
	}
	return "", nil
}

// namedAtRandom returns the first name that SQLite drew: one with a number, of
// which 1 to 4 had all been given before.
func namedAtRandom(names []string) string {
	seen := map[string]bool{}
next:
	for _, name := range names {
		lower := strings.ToLower(name)
		seen[lower] = true
		i := strings.LastIndexByte(lower, ':')
		if i < 0 {
			continue
		}
		n, err := strconv.ParseUint(lower[i+1:], 10, 32)
		if err != nil || strconv.FormatUint(n, 10) != lower[i+1:] || 1 <= n && n <= 4 {
			continue
		}
		for k := 1; k <= 4; k++ {
			if !seen[lower[:i+1]+strconv.Itoa(k)] {
				continue next
			}
		}
		return name
	}
	return ""
}
