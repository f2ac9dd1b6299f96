package sqlite

import (
	"errors"
	"strconv"
	"strings"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// SQLite has one generator of random bytes for the whole process, which cannot be
// replaced. This is what it uses them for, and what this package does about each use:
//
//	random(), randomblob()             overridden, see makeDeterministic
//	rowids after the largest one       the row is refused, see TookMaxRowid
//	the header of fts5_locale()        overridden, see fixLocaleHeader
//	names of columns that occur more
//	than five times in a result        refused where they would be stored, see CheckColumnNames
//	salts of the write-ahead log,
//	nonces of rollback journals,
//	names of temporary files and of
//	VACUUM's database, RBU             nothing, because SQL cannot see them

// localeHeader is the header of the values that fts5_locale() returns, and which may be
// stored. SQLite chooses a random one for each connection.
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
	global := *at[uintptr](api) // the fts5_api is the first field of a Fts5Global
	if global == 0 {
		return errors.New("hiqlite: this build of SQLite has no FTS5")
	}
	at[lib.TFts5Global](global).FaLocaleHdr = localeHeader
	return nil
}

// CheckColumnNames returns an error if a statement stores or reads a column name that SQLite
// has chosen at random. It is called with ran=false before the statement runs, and with
// ran=true after it.
//
// SQLite makes the names of the columns of a result unique by adding a number: a, a:1,
// a:2, a:3, a:4, and then a random number. CREATE TABLE ... AS stores such names. The
// columns of a view get other random names on each connection, which matters if a
// statement reads the names as rows.
func (s *Stmt) CheckColumnNames(ran bool) error {
	a := &s.Actions
	switch {
	case ran && a.CreatesTable != "" && a.HasSelect:
		name, err := s.c.randomName(a.CreatesTable)
		if err != nil || name == "" {
			return err
		}
		return LogicError("the column "+strconv.Quote(name)+" of the new table "+a.CreatesTable+" was named at random",
			"its SELECT returns more than five columns of one name, as * of a join does; give them names: SELECT a.id AS a_id, ...")
	case !ran && a.ReadsColumnNames:
		views, err := s.c.TextsAsOwner("SELECT name FROM sqlite_schema WHERE type='view' UNION ALL SELECT name FROM sqlite_temp_schema WHERE type='view'")
		if err != nil {
			return err
		}
		for _, view := range views {
			// The columns of a view that has an error cannot be listed, here or by
			// the statement.
			if name, err := s.c.randomName(view); err == nil && name != "" {
				return LogicError("the column "+strconv.Quote(name)+" of the view "+view+" is named at random, and this write may read it",
					"the view returns more than five columns of one name; give them names in the view, or read pragma_table_info in a query of its own")
			}
		}
	}
	return nil
}

// randomName returns the name of the first column of a table or view that SQLite has named
// at random, or "".
func (c *Conn) randomName(table string) (string, error) {
	for _, schema := range []string{"main", tempSchema} {
		names, err := c.TextsAsOwner("SELECT name FROM pragma_table_xinfo(?, ?)", textArgument(table), textArgument(schema))
		if name := namedAtRandom(names); err != nil || name != "" {
			return name, err
		}
	}
	return "", nil
}

// namedAtRandom returns the first name with a random number, or "". It is a name with a
// number other than 1 to 4, after names with all of these numbers.
func namedAtRandom(names []string) string {
	seen := map[string]bool{}
next:
	for _, name := range names {
		folded := lower(name)
		seen[folded] = true
		i := strings.LastIndexByte(folded, ':')
		if i < 0 {
			continue
		}
		n, err := strconv.ParseUint(folded[i+1:], 10, 32)
		if err != nil || strconv.FormatUint(n, 10) != folded[i+1:] || 1 <= n && n <= 4 {
			continue
		}
		for k := 1; k <= 4; k++ {
			if !seen[folded[:i+1]+strconv.Itoa(k)] {
				continue next
			}
		}
		return name
	}
	return ""
}
