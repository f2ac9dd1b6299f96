package differential

import "strings"

// A deviation is an intended difference from SQLite. docs/sql.md and the documentation
// of package hiqlite describe them.
type deviation struct {
	why   string
	holds func(s step, ours, theirs outcome) bool
}

var deviations = []deviation{
	{"a module that is not supported is refused before the rest of the statement is parsed", func(s step, ours, theirs outcome) bool {
		return strings.Contains(ours.err, "no such module") && theirs.err != ""
	}},
	{"query_only refuses statements that can write, even if they would write nothing", func(s step, ours, theirs outcome) bool {
		return strings.Contains(ours.err, "attempt to write a readonly database")
	}},
	{"a text with a syntax error is classified as if there was no transaction", func(s step, ours, theirs outcome) bool {
		return theirs.err != "" && (strings.Contains(ours.err, "incomplete input") || strings.Contains(ours.err, "syntax error") || strings.Contains(ours.err, "unrecognized token"))
	}},
	{"of two errors of a row that OR FAIL keeps and a deferred key forbids, another one is reported", func(s step, ours, theirs outcome) bool {
		return codeOf(ours.err) != "none]" && ours.err != "" && codeOf(theirs.err) == "787]"
	}},
	{"Prepare of a text that was classified before does not notice that its tables are gone", func(s step, ours, theirs outcome) bool {
		return s.how == keepPrepared && ours.err == "" && codeOf(theirs.err) == "1]"
	}},
	{"SQLite does not prepare foreign_key_check of a table without foreign keys again, so it does not notice that the table is gone", func(s step, ours, theirs outcome) bool {
		return s.how == runKept && strings.HasPrefix(s.text, "PRAGMA foreign_key_check(") && strings.Contains(ours.err, "no such table") && theirs.err == "" && len(theirs.rows) == 0
	}},
	{"REINDEX of a TEMP table without an index finds nothing", func(s step, ours, theirs outcome) bool {
		return strings.HasPrefix(s.text, "REINDEX") && strings.Contains(ours.err, "unable to identify the object to be reindexed")
	}},
	{"case_sensitive_like fails while a module has open statements; SQLite silently ignores it", func(s step, ours, theirs outcome) bool {
		return strings.Contains(ours.err, "case_sensitive_like cannot be changed")
	}},
	{"LIKE stays a deterministic function while it is case-sensitive", func(s step, ours, theirs outcome) bool {
		return strings.Contains(theirs.err, "non-deterministic functions prohibited")
	}},
	{"fts5vocab of a table that does not exist fails when it is read, which depends on the query plan", func(s step, ours, theirs outcome) bool {
		return strings.Contains(ours.err+theirs.err, "no such fts5 table")
	}},
	{"sqlite_schema lists hiqlite's own table", func(s step, ours, theirs outcome) bool {
		return strings.Contains(s.text, "sqlite_schema") && !strings.Contains(s.text, "name NOT LIKE '%hiqlite%'") && ours.err == "" && theirs.err == ""
	}},
	{"TEMP tables are not analyzed", func(s step, ours, theirs outcome) bool {
		return strings.Contains(ours.err, "ANALYZE of TEMP tables")
	}},
	{"of several mismatches, another one is reported", func(s step, ours, theirs outcome) bool {
		return strings.Contains(ours.err, mismatch) && strings.Contains(theirs.err, mismatch)
	}},
	{"an error in a TEMP table's CHECK is found when its schema is loaded", func(s step, ours, theirs outcome) bool {
		return strings.Contains(ours.err, "malformed database schema") && strings.Contains(s.text, "TEMP") && codeOf(theirs.err) == "1]"
	}},
	{"the statistics of TEMP tables are found only as temp.sqlite_stat1", func(s step, ours, theirs outcome) bool {
		return strings.Contains(ours.err, "no such table: sqlite_stat")
	}},
	{"integrity_check of a full-text index does not see what a connection has cached", func(s step, ours, theirs outcome) bool {
		return strings.Contains(s.text, "_check") && strings.Contains(strings.Join(theirs.rows, ""), "fts5: ")
	}},
}

func accepted(s step, ours, theirs outcome) bool {
	for _, d := range deviations {
		if d.holds(s, ours, theirs) {
			return true
		}
	}
	return false
}
