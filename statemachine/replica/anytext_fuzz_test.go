package replica

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// grammar generates texts that are nearly SQL. Most of them are well formed. Some names
// are keywords, some objects do not exist, and some numbers are the largest or smallest.
type grammar struct{ *rand.Rand }

func (g grammar) of(choices ...string) string { return choices[g.IntN(len(choices))] }

func (g grammar) name() string {
	return g.of("t", "u", "v", "ft", "rt", "gp", "ti", "tr", "IF", "\"if\"", "[select]", "`a b`", "'q'", "NOT", "main.t", "temp.t", "nosuch", "sqlite_schema", "sqlite_sequence",
		"sqlite_stat1", "ft_data", "rt_node", "ft_config", "rowid", "new", "old", "excluded", "\"\"", "k", "_hiqlite", "w", "x"+strconv.Itoa(g.IntN(4)))
}

func (g grammar) column() string {
	return g.of("a", "b", "c", "rowid", "id", "rank", "ft", "*", "_shape", "IF", "nosuch")
}

func (g grammar) value(depth int) string {
	if depth <= 0 {
		return g.of("NULL", "0", "-1", "9223372036854775807", "-9223372036854775808", "1e308", "9e999", "''", "'a'", "x''", "x'00ff'", "zeroblob(70000)", "'[1,2]'", "'{'", g.column())
	}
	v := func() string { return g.value(depth - 1) }
	switch g.IntN(12) {
	case 0:
		return v() + g.of("+", "-", "*", "/", "%", "||", "<<", "->", "->>", " IS ", " LIKE ", " GLOB ", " MATCH ", " REGEXP ", " COLLATE NOCASE=") + v()
	case 1:
		return g.of("abs", "hex", "unhex", "char", "json", "jsonb", "quote", "likelihood", "sum", "max", "group_concat", "randomblob", "zeroblob", "snippet", "bm25", "highlight",
			"geopoly_area", "rtreedepth", "rtreecheck", "fts5_decode", "sqlite_log", "strftime", "datetime", "raise", "printf", "format", "load_extension", "percentile") + "(" + v() + g.of("", ","+v(), ","+v()+","+v()) + ")"
	case 2:
		return "(SELECT " + v() + g.of("", " FROM "+g.name(), " FROM "+g.name()+" WHERE "+v(), " UNION SELECT "+v()) + ")"
	case 3:
		return "CASE WHEN " + v() + " THEN " + v() + " END"
	case 4:
		return "CAST(" + v() + " AS " + g.of("INT", "TEXT", "BLOB", "REAL", "IF") + ")"
	case 5:
		return v() + " IN (" + v() + "," + v() + ")"
	case 6:
		return g.of("sum", "row_number", "lag", "ntile", "nth_value") + "(" + v() + ") OVER (ORDER BY " + v() + ")"
	case 7:
		return g.of("RAISE(ABORT,'x')", "RAISE(FAIL,'x')", "RAISE(ROLLBACK,'x')", "RAISE(IGNORE)")
	}
	return g.value(0)
}

func (g grammar) statement(depth int) string {
	v := func() string { return g.value(2) }
	ifnot := g.of("", "", " IF NOT EXISTS", " IF EXISTS")
	switch g.IntN(22) {
	case 0:
		return "CREATE TABLE" + ifnot + " " + g.name() + g.of("(a,b)", "(a INTEGER PRIMARY KEY AUTOINCREMENT, b)", "(a PRIMARY KEY,b) WITHOUT ROWID", "(a INT,b TEXT) STRICT", "(a,b AS ("+v()+") STORED)", "(a UNIQUE,b CHECK("+v()+"))", "(a REFERENCES t,b DEFAULT ("+v()+"))", " AS SELECT "+v()+", "+v()+" FROM "+g.name())
	case 1:
		return "CREATE" + g.of("", " TEMP") + " VIEW" + ifnot + " " + g.name() + g.of("", "(a)", "(a,b)") + " AS SELECT " + v() + g.of("", " FROM "+g.name())
	case 2:
		return "CREATE" + g.of("", " UNIQUE") + " INDEX" + ifnot + " " + g.name() + " ON " + g.name() + "(" + g.of(g.column(), v()) + ")" + g.of("", " WHERE "+v())
	case 3:
		body := g.statement(0)
		return "CREATE TRIGGER" + ifnot + " " + g.name() + g.of(" BEFORE ", " AFTER ", " INSTEAD OF ") + g.of("INSERT", "UPDATE", "DELETE", "UPDATE OF a") + " ON " + g.name() + g.of("", " WHEN "+v()) + " BEGIN " + body + "; END"
	case 4:
		return "CREATE VIRTUAL TABLE" + ifnot + " " + g.name() + " USING " + g.of("fts5(", "rtree(", "rtree_i32(", "geopoly(", "fts5vocab(", "dbstat(", "nosuch(", "fts3(", "json_each(") + g.of("a", "a,b,c", "a,b,c,d,e", "id,a,b,+x", "a,content="+g.name(), "a,content=''", "a,content='',contentless_delete=1", "t,row", "ft,instance", "a,tokenize='"+g.of("porter", "trigram", "nosuch x", "unicode61 categories 'x'")+"'", "a,prefix='0 9999'", "a,detail=none", "a UNINDEXED,columnsize=0", "a,locale=1", "") + ")"
	case 5, 6, 7:
		return g.of("INSERT", "REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL", "INSERT OR ROLLBACK", "INSERT OR ABORT") + " INTO " + g.name() + g.of("", "(a)", "(a,b)", "(rowid,a)", "(ft,rank)", "(id,a,b)") + " " + g.of("VALUES("+v()+")", "VALUES("+v()+","+v()+")", "VALUES("+v()+","+v()+","+v()+")", "DEFAULT VALUES", "SELECT * FROM "+g.name(), "SELECT "+v()+","+v()+" FROM "+g.name()) + g.of("", " RETURNING "+v(), " ON CONFLICT DO NOTHING", " ON CONFLICT(a) DO UPDATE SET b="+v())
	case 8:
		return "INSERT INTO ft(ft" + g.of("", ",rank", ",rowid,a") + ") VALUES('" + g.of("optimize", "rebuild", "integrity-check", "delete", "delete-all", "merge", "automerge", "crisismerge", "pgsz", "rank", "usermerge", "hashsize", "flush", "secure-delete", "deletemerge", "nosuch") + "'" + g.of("", ","+v(), ","+v()+","+v()) + ")"
	case 9, 10:
		return "UPDATE " + g.of("", "OR FAIL ", "OR ROLLBACK ", "OR REPLACE ") + g.name() + " SET " + g.column() + "=" + v() + g.of("", " WHERE "+v(), " FROM "+g.name())
	case 11:
		return "DELETE FROM " + g.name() + g.of("", " WHERE "+v(), " RETURNING *")
	case 12:
		return "DROP " + g.of("TABLE", "VIEW", "INDEX", "TRIGGER") + ifnot + " " + g.name()
	case 13:
		return "ALTER TABLE " + g.name() + " " + g.of("RENAME TO "+g.name(), "RENAME "+g.column()+" TO "+g.column(), "ADD COLUMN "+g.name()+" "+g.of("", "NOT NULL", "DEFAULT "+v(), "AS ("+v()+")", "REFERENCES t CHECK("+v()+")"), "DROP COLUMN "+g.column())
	case 14:
		return "PRAGMA " + g.of("", "main.", "temp.") + g.of("user_version", "integrity_check", "quick_check", "foreign_key_check", "writable_schema", "page_size", "journal_mode", "max_page_count", "optimize", "schema_version", "foreign_keys", "defer_foreign_keys", "encoding", "recursive_triggers", "legacy_alter_table", "cell_size_check", "cache_spill", "hard_heap_limit", "locking_mode", "ignore_check_constraints") + g.of("", "="+g.of("1", "0", "ON", "77", "EXCLUSIVE", "'x'"), "("+g.name()+")")
	case 15:
		return g.of("ANALYZE", "REINDEX", "VACUUM", "ANALYZE "+g.name(), "REINDEX "+g.name(), "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT IF", "RELEASE IF", "ROLLBACK TO IF", "ATTACH 'x' AS y", "DETACH main", "EXPLAIN "+"COMMIT", "VACUUM INTO '/nosuch/x'")
	case 16:
		return "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+" + v() + " FROM c LIMIT 50) " + g.of("SELECT", "INSERT INTO t(a) SELECT", "INSERT INTO ft SELECT") + " n FROM c"
	case 17:
		return g.of("EXPLAIN ", "EXPLAIN QUERY PLAN ") + g.statement(0)
	case 18:
		deep := 1 << g.IntN(13)
		return "SELECT " + strings.Repeat(g.of("(", "-", "NOT ", "abs(", "(SELECT "), deep) + "1" + strings.Repeat(")", deep)
	case 19:
		if depth > 0 {
			return g.statement(0) + "; " + g.statement(depth-1)
		}
	case 20: // a part of the text is removed or doubled
		s := g.statement(0)
		i, j := g.IntN(len(s)+1), g.IntN(len(s)+1)
		return s[:max(i, j)] + s[min(i, j):]
	}
	return "SELECT " + v() + g.of("", " FROM "+g.name()) + g.of("", " WHERE "+v(), " GROUP BY "+v(), " ORDER BY 5", " LIMIT "+v())
}

// No text stops a replica, neither when the replica applies it nor at the next start. Two
// replicas that apply the same texts in different batches have the same rows. If
// HIQLITE_ANYTEXT is a duration, the test runs for so long, with random seeds.
func TestRandomTextsStopNoReplica(t *testing.T) {
	testrun.SkipUnderRace(t, testrun.OneGoroutine)
	end, seed := time.Time{}, uint64(1)
	if d, err := time.ParseDuration(os.Getenv("HIQLITE_ANYTEXT")); err == nil {
		end, seed = time.Now().Add(d), uint64(time.Now().UnixNano())
	}
	for round := 0; round < 3 || time.Now().Before(end); round++ {
		randomTexts(t, seed+uint64(round))
	}
}

func randomTexts(t *testing.T, seed uint64) {
	g := grammar{rand.New(rand.NewPCG(seed, 5))}
	h := newHistory()
	h.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); CREATE TABLE u(a UNIQUE, b REFERENCES t); CREATE VIRTUAL TABLE ft USING fts5(a); CREATE VIRTUAL TABLE rt USING rtree(id,a,b); CREATE VIRTUAL TABLE gp USING geopoly(a)")
	one, many := emptyMachine(t), emptyMachine(t)
	for len(h.entries) < 150 {
		text := g.statement(3)
		o := op(text)
		o.MaxSteps = 200_000
		before := len(h.entries)
		h.do(o)
		if g.IntN(4) == 0 {
			h.do(op("INSERT INTO t(a) VALUES(1)"), op(g.statement(2)), op("INSERT INTO ft VALUES('x')"))
		}
		one.apply(h.entries[one.index:before]...)
		if _, err := one.Update(append([]sm.Entry{}, h.entries[before:]...)); err != nil {
			t.Fatal(err)
		}
		one.index = uint64(len(h.entries))
		if err := one.Err(); err != nil {
			t.Fatalf("seed %d: %q stops the replica: %v", seed, text, err)
		}
	}
	one.restart(h)
	for many.index < uint64(len(h.entries)) {
		many.apply(h.entries[many.index:min(many.index+17, uint64(len(h.entries)))]...)
		if err := many.Err(); err != nil {
			t.Fatalf("seed %d: in batches of 17: %v", seed, err)
		}
	}
	dump := fmt.Sprintf("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name<>'%s' ORDER BY rowid", "_hiqlite")
	if a, b := one.rows(dump), many.rows(dump); a != b {
		t.Errorf("seed %d: the schemas differ:\n%s\n\n%s", seed, a, b)
	}
	one.Close()
	many.Close()
}
