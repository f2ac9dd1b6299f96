package differential

import (
	"fmt"
	"strings"
)

// write returns a statement that changes rows.
func (g *generator) write() string {
	t := g.writable()
	if t.module != "" { // a module's own writes change the counters in the middle of a statement
		defer func(before bool) { g.features.counters = before }(g.features.counters)
		g.features.counters = false
	}
	switch {
	case t.module == "fts5" && g.chance(60):
		return g.writeFullText(t)
	case strings.HasPrefix(t.module, "rtree") && g.chance(70):
		return g.writeRTree(t)
	}
	if g.features.ownFile && g.chance(8) {
		return g.copied(t)
	}
	if g.features.unordered && g.chance(25) {
		return g.unordered(t)
	}
	switch n := g.IntN(100); {
	case n < 48:
		return g.insert(t, false)
	case n < 55:
		return g.insertSelect(t)
	case n < 80:
		return g.update(t)
	}
	return g.delete(t)
}

// copied returns an INSERT of rows that could differ between replicas: of the layout of
// the database file, of statistics, or in the order in which a query finds them.
func (g *generator) copied(t *table) string {
	from := g.pick(
		"SELECT rootpage FROM sqlite_schema", "SELECT name FROM sqlite_schema", "SELECT rowid FROM sqlite_schema", "SELECT sql FROM sqlite_schema WHERE rootpage > 4", "SELECT name FROM sqlite_schema LIMIT 3",
		"SELECT name FROM pragma_table_list", "SELECT name || seq FROM pragma_index_list("+quote(g.anyTable().name)+")", "SELECT name FROM pragma_table_xinfo("+quote(g.anyTable().name)+")",
		"SELECT page_count FROM pragma_page_count", "SELECT freelist_count FROM pragma_freelist_count", "SELECT data_version FROM pragma_data_version", "SELECT schema_version FROM pragma_schema_version", "SELECT name FROM pragma_function_list", "SELECT file FROM pragma_database_list", "SELECT cache_size FROM pragma_cache_size",
		"SELECT pageno FROM dbstat", "SELECT sqlite_offset(rowid) FROM "+quote(g.ordinary().name), "SELECT sqlite_source_id()", "SELECT * FROM (SELECT stat FROM sqlite_stat1)", "SELECT nlt || quote(sample) FROM sqlite_stat4",
		"SELECT block FROM f1_data", "SELECT id || hex(block) FROM f1_data", "SELECT hex(data) FROM r1_node", "SELECT segid || term FROM f1_idx", "SELECT seq FROM sqlite_sequence", "SELECT last_insert_rowid()", "SELECT total_changes()", "SELECT name FROM pragma_foreign_key_list("+quote(g.anyTable().name)+")",
		"SELECT \"table\" || rowid FROM pragma_foreign_key_check", "SELECT rank FROM f1 WHERE f1 MATCH 'one OR two'", "SELECT term || cnt FROM fv", "SELECT integrity_check FROM pragma_integrity_check", "SELECT datetime('now','localtime')", "SELECT hiqlite_missing()", "SELECT rowid FROM sqlite_hiqlite", "SELECT value FROM json_each('[5,4,3]')",
	)
	if len(t.settable()) == 0 {
		return "SELECT 1"
	}
	c := t.settable()[g.IntN(len(t.settable()))]
	return g.verb() + " INTO " + quote(t.name) + "(" + quote(c.name) + ") " + from + " LIMIT 10"
}

// unordered returns a write whose rows depend on the query plan.
func (g *generator) unordered(t *table) string {
	other := g.ordinary()
	if len(t.settable()) == 0 || len(other.visible()) == 0 {
		return "SELECT 1"
	}
	s, o := scope{t.source(t.name)}, scope{other.source("o")}
	c := quote(t.settable()[g.IntN(len(t.settable()))].name)
	switch g.IntN(8) {
	case 0:
		return "UPDATE " + quote(t.name) + " SET " + c + " = " + g.column(o) + " FROM " + quote(other.name) + " AS o WHERE " + g.condition(append(s, o...))
	case 1:
		return "DELETE FROM " + quote(t.name) + " WHERE rowid IN (SELECT rowid FROM " + quote(t.name) + g.where(s, 1) + " LIMIT 3)"
	case 2:
		return "INSERT INTO " + quote(t.name) + "(" + c + ") SELECT group_concat(" + g.column(o) + ") FROM " + quote(other.name) + " AS o" + g.where(o, 1) + " GROUP BY " + g.column(o)
	case 3:
		return "INSERT INTO " + quote(t.name) + "(" + c + ") SELECT DISTINCT " + g.column(o) + " FROM " + quote(other.name) + " AS o" + g.where(o, 1) + g.pick("", " UNION SELECT "+g.literal(), " ORDER BY random()") + " LIMIT 6"
	case 4:
		if g.chance(30) { // rows of several pages, and writes that take too many steps
			return "INSERT INTO " + quote(t.name) + "(" + c + ") VALUES" + g.pick("(hex(randomblob(5000)))", "(zeroblob(20000))", "((WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n))", "(1), ((WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 400000) SELECT max(i) FROM n))")
		}
		return "INSERT INTO " + quote(t.name) + "(" + c + ") SELECT sum(" + g.column(o) + ") OVER (ORDER BY " + g.column(o) + " ROWS 2 PRECEDING) FROM " + quote(other.name) + " AS o LIMIT 6"
	case 5:
		return "CREATE TABLE " + g.maybe(50, "IF NOT EXISTS ") + quote(g.newTable()) + " AS SELECT * FROM " + quote(other.name) + " AS o JOIN " + quote(t.name) + " AS u ON " + g.column(o) + " = u." + c + " LIMIT 30"
	case 6:
		return "UPDATE " + g.conflict() + quote(t.name) + " SET " + c + " = (SELECT " + g.column(o) + " FROM " + quote(other.name) + " AS o" + g.where(o, 1) + " LIMIT 1)" + g.where(s, 1)
	}
	return "INSERT INTO " + quote(t.name) + "(" + c + ") WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < " + g.pick("20", "60", "100") + ") SELECT " + g.pick("i % 7", "i", "'k' || (i % 11)", "random() % 5", "i * 1.5", "hex(randomblob(2))") + " FROM n"
}

// writable returns a table, or sometimes a view or another object that usually cannot be
// written.
func (g *generator) writable() *table {
	if g.chance(90) {
		return g.oneOf(g.schema.among(func(t *table) bool { return t.kind != "view" && t.module != "fts5vocab" }))
	}
	return g.anyTable()
}

func (g *generator) verb() string {
	return g.pick("INSERT", "INSERT", "INSERT", "INSERT", "INSERT", "INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE", "INSERT OR IGNORE", "INSERT OR FAIL", "INSERT OR ABORT", "INSERT OR ROLLBACK")
}

// conflict returns an OR clause of an UPDATE, or "".
func (g *generator) conflict() string {
	return g.pick("", "", "", "", "OR REPLACE ", "OR IGNORE ", "OR FAIL ", "OR ABORT ", "OR ROLLBACK ")
}

// columnsFor chooses columns to write: usually all that have to be written.
func (g *generator) columnsFor(t *table) (all []column) {
	for _, c := range t.settable() {
		if g.chance(75) || c.notNull || (c.key && t.withoutRowid) {
			all = append(all, c)
		}
	}
	if len(all) == 0 && len(t.settable()) > 0 {
		all = t.settable()[:1]
	}
	return all
}

func names(columns []column) string {
	return list(len(columns), func(i int) string { return quote(columns[i].name) })
}

// valueFor returns a value that a column usually accepts.
func (g *generator) valueFor(c column) string {
	if g.chance(12) {
		return g.expression(nil, 2)
	}
	if g.style != noParams && !g.sealed && g.chance(25) {
		return g.parameter()
	}
	switch kind := strings.ToUpper(c.decl); {
	case strings.Contains(kind, "INT") && c.key && g.chance(40):
		return g.pick("NULL", "NULL", fmt.Sprint(1+g.IntN(30)))
	case strings.Contains(kind, "INT") || strings.Contains(kind, "BOOL"):
		return g.pick(g.small(), g.small(), "0", "-5", fmt.Sprint(g.IntN(1000)), "4294967296")
	case strings.Contains(kind, "TEXT"), strings.Contains(kind, "CHAR"):
		return g.pick("'a'", "'b'", "'A'", "'abc'", "'x"+g.small()+"'", "'12'", "'ä'", "'a b'")
	case strings.Contains(kind, "BLOB"):
		return g.pick("x'00'", "x'616263'", "x'"+g.small()+"f'", "zeroblob(2)")
	case strings.Contains(kind, "REAL"), strings.Contains(kind, "NUM"), strings.Contains(kind, "DEC"):
		return g.pick(g.small(), g.small()+".5", "0.1", "1e10", "-3.25")
	case strings.Contains(kind, "DAT"), strings.Contains(kind, "TIME"):
		return g.pick("'2024-02-29'", "'2024-02-29 12:34:56'", "'2024-02-29T12:34:56Z'", "1700000000", "'no date'")
	}
	if c.notNull {
		return g.pick(g.small(), "'k"+g.small()+"'")
	}
	return g.literal()
}

func (g *generator) row(columns []column) string {
	return "(" + list(len(columns), func(i int) string { return g.valueFor(columns[i]) }) + ")"
}

func (g *generator) insert(t *table, inner bool) string {
	into := " INTO " + g.tableOf(t, inner)
	columns := g.columnsFor(t)
	if (g.chance(4) && !inner) || len(columns) == 0 {
		if inner {
			return "SELECT 1"
		}
		return g.verb() + into + " DEFAULT VALUES" + g.returning(t)
	}
	text := g.verb() + into + "(" + names(columns) + ") VALUES" + list(1+g.IntN(3), func(int) string { return g.row(columns) })
	if strings.HasPrefix(text, "INSERT INTO") && t.kind == "table" && g.chance(30) {
		text += g.upsert(t, inner)
	}
	if inner {
		return text
	}
	return text + g.returning(t)
}

// tableOf returns the name of a table; inside of a trigger without its schema.
func (g *generator) tableOf(t *table, inner bool) string {
	if inner {
		return quote(t.name)
	}
	return g.tableName(t)
}

func (g *generator) upsert(t *table, inner bool) string {
	target := ""
	if len(t.unique) > 0 && g.chance(80) {
		key := t.unique[g.IntN(len(t.unique))]
		target = "(" + list(len(key), func(i int) string { return quote(key[i]) }) + ")"
	} else if keys := keysOf(t); len(keys) == 1 {
		target = "(" + quote(keys[0].name) + ")"
	}
	if target == "" || g.chance(25) {
		return " ON CONFLICT" + target + " DO NOTHING"
	}
	s := scope{t.source(t.name), {alias: "excluded", columns: t.settable()}}
	return " ON CONFLICT" + target + " DO UPDATE SET " + g.assignments(t, s, inner) + g.maybe(30, " WHERE "+g.expression(s, 1))
}

func keysOf(t *table) (all []column) {
	for _, c := range t.columns {
		if c.key {
			all = append(all, c)
		}
	}
	return all
}

func (g *generator) assignments(t *table, s scope, inner bool) string {
	columns := t.settable()
	if len(columns) == 0 {
		return "a = 1"
	}
	return list(1+g.IntN(2), func(int) string {
		c := columns[g.IntN(len(columns))]
		if g.chance(60) {
			return quote(c.name) + " = " + g.valueFor(c)
		}
		if inner {
			return quote(c.name) + " = " + g.leaf(s)
		}
		return quote(c.name) + " = " + g.expression(s, 2)
	})
}

func (g *generator) returning(t *table) string {
	if !g.chance(20) {
		return ""
	}
	s := scope{t.source(t.name)}
	return " RETURNING " + g.pick("*", g.column(s), g.column(s)+" AS r, "+g.expression(s, 1))
}

// insertSelect returns an INSERT of the rows of a query. If two databases are compared,
// their order does not depend on the query plan.
func (g *generator) insertSelect(t *table) string {
	columns := g.columnsFor(t)
	if len(columns) == 0 {
		return g.delete(t)
	}
	query := g.selectOf(nil, len(columns), 1, g.chance(50))
	if !strings.Contains(query, " LIMIT ") {
		query += " LIMIT 15"
	}
	return g.maybe(10, g.with()+" ") + g.verb() + " INTO " + g.tableName(t) + "(" + names(columns) + ") " + query + g.returning(t)
}

func (g *generator) update(t *table) string {
	s := scope{t.source(t.name)}
	text := "UPDATE " + g.conflict() + g.tableName(t) + " SET " + g.assignments(t, s, false)
	if other := g.ordinary(); g.chance(10) && (g.features.unordered || g.chance(30)) && other.kind == "table" {
		from := other.source("o")
		text += " FROM " + quote(other.name) + " AS o WHERE " + g.column(s) + " = " + g.column(scope{from})
		return text + g.returning(t)
	}
	return text + g.where(s, 2) + g.returning(t)
}

func (g *generator) delete(t *table) string {
	s := scope{t.source(t.name)}
	where := g.where(s, 2)
	if where == "" && g.chance(85) {
		where = " WHERE " + g.condition(s)
	}
	return "DELETE FROM " + g.tableName(t) + where + g.returning(t)
}

func (g *generator) writeFullText(t *table) string {
	f := quote(t.name)
	words := func() string {
		return "'" + strings.Join([]string{g.pick("one", "two", "three", "alpha"), g.pick("beta", "gamma", "x1", "one"), g.pick("two", "Über", "a-b", "")}, " ") + "'"
	}
	columns := t.settable()
	if len(columns) == 0 {
		return "DELETE FROM " + f
	}
	switch g.IntN(12) {
	case 0:
		return "INSERT INTO " + f + "(" + f + g.pick(") VALUES('optimize')", ") VALUES('rebuild')", ") VALUES('integrity-check')", ", rank) VALUES('merge', 8)", ", rank) VALUES('automerge', 2)", ", rank) VALUES('pgsz', 64)", ", rank) VALUES('crisismerge', 2)", ", rank) VALUES('usermerge', 2)", ", rank) VALUES('merge', -4)", ") VALUES('delete-all')", ", rank) VALUES('rank', 'bm25(2.0)')", ") VALUES('flush')")
	case 1, 2:
		return "UPDATE " + f + " SET " + quote(columns[0].name) + " = " + words() + " WHERE rowid " + g.pick("= ", "> ", "< ") + g.small()
	case 3:
		return "DELETE FROM " + f + " WHERE " + g.pick("rowid = "+g.small(), f+" MATCH "+g.match(t.source(t.name)))
	case 4:
		return g.pick("INSERT OR REPLACE", "INSERT OR IGNORE", "INSERT") + " INTO " + f + "(rowid, " + quote(columns[0].name) + ") VALUES(" + g.small() + ", " + words() + ")" + g.returning(t)
	}
	return "INSERT INTO " + f + "(" + names(columns) + ") VALUES(" + list(len(columns), func(int) string { return words() }) + ")" + g.maybe(30, ", ("+list(len(columns), func(int) string { return words() })+")")
}

func (g *generator) writeRTree(t *table) string {
	r := quote(t.name)
	columns := t.settable()
	box := func() string {
		return list(len(columns), func(i int) string {
			switch {
			case i == 0:
				return g.pick("NULL", "NULL", fmt.Sprint(g.IntN(60)))
			case i%2 == 1:
				return fmt.Sprint(g.IntN(50), ".25")
			}
			return fmt.Sprint(50 + g.IntN(50))
		})
	}
	if len(columns) < 3 {
		return "DELETE FROM " + r
	}
	low, high := quote(columns[1].name), quote(columns[2].name)
	switch g.IntN(8) {
	case 0:
		return "UPDATE " + r + " SET " + low + " = " + low + " - " + g.small() + g.maybe(60, " WHERE "+quote(columns[0].name)+" < "+g.small())
	case 1:
		return "DELETE FROM " + r + " WHERE " + low + " < " + g.small() + " AND " + high + " > 60"
	case 2:
		return g.pick("INSERT OR REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL") + " INTO " + r + " VALUES(" + box() + ")" + g.returning(t)
	case 3:
		return "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 40) INSERT INTO " + r + "(" + names(columns) + ") SELECT " + list(len(columns), func(i int) string {
			return []string{"i+" + fmt.Sprint(g.IntN(400)), "i%7", "i%7+i"}[min(i, 1+(i+1)%2)]
		}) + " FROM n"
	}
	return "INSERT INTO " + r + "(" + names(columns) + ") VALUES(" + box() + ")" + g.maybe(50, ", ("+box()+")")
}
