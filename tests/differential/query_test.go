package differential

import (
	"fmt"
)

// from returns a FROM clause and its scope.
func (g *generator) from(outer scope, depth int) (text string, s scope) {
	n := 1
	if g.chance(25) {
		n = 2
	}
	for i := range n {
		alias := fmt.Sprintf("q%d_%d", depth, i)
		what, from := g.fromItem(alias, depth)
		if i == 0 {
			text = what
			s = append(s, from)
			continue
		}
		s = append(s, from)
		join := g.pick(" JOIN ", " LEFT JOIN ", ", ", " CROSS JOIN ", " NATURAL JOIN ", " FULL JOIN ", " RIGHT JOIN ")
		text += join + what
		if join != ", " && join != " NATURAL JOIN " {
			text += " ON " + g.joinCondition(s)
		}
	}
	return text, append(s, outer...)
}

func (g *generator) joinCondition(s scope) string {
	if g.chance(70) {
		return g.column(s[:1]) + "=" + g.column(s[1:2])
	}
	return g.expression(s, 1)
}

func (g *generator) fromItem(alias string, depth int) (string, source) {
	if g.chance(12) && depth > 0 {
		return "(" + g.selectOf(nil, 2, depth-1, true) + ") AS " + alias, source{alias: alias, columns: []column{{name: "c1"}, {name: "c2"}}}
	}
	if g.chance(8) {
		return g.pick("json_each('[3,1,2,\"x\",null]')", "json_tree('{\"a\":[1,{\"b\":2}]}')") + " AS " + alias,
			source{alias: alias, columns: []column{{name: "key"}, {name: "value"}, {name: "type"}, {name: "atom"}, {name: "fullkey"}}}
	}
	t := g.anyTable()
	return g.tableName(t) + " AS " + alias, t.source(alias)
}

// tableName returns the name of a table, sometimes with its schema.
func (g *generator) tableName(t *table) string {
	if !g.sealed && g.chance(10) {
		return t.schema() + "." + quote(t.name)
	}
	return quote(t.name)
}

func (g *generator) where(s scope, depth int) string {
	if !g.chance(60) {
		return ""
	}
	for _, from := range s {
		if from.full && g.chance(70) {
			return " WHERE " + quote(from.alias) + " MATCH " + g.match(from)
		}
	}
	if g.chance(50) {
		return " WHERE " + g.condition(s)
	}
	return " WHERE " + g.expression(s, depth)
}

// condition returns a condition for which SQLite can use an index.
func (g *generator) condition(s scope) string {
	c := g.column(s)
	switch g.IntN(6) {
	case 0:
		return c + " IN (1, 2, " + g.leaf(s) + ")"
	case 1:
		return c + g.pick(" LIKE ", " GLOB ") + g.pick("'a%'", "'a*'", "'%b%'", g.leaf(nil))
	case 2:
		return c + " BETWEEN " + g.leaf(nil) + " AND " + g.leaf(nil)
	case 3:
		return c + g.pick(" IS NULL", " IS NOT NULL") + g.pick(" AND ", " OR ") + g.column(s) + " > " + g.leaf(nil)
	}
	return c + g.pick("=", "<", ">", "<=", ">=", " IS ", "<>") + g.leaf(s)
}

func (g *generator) match(from source) string {
	word := func() string { return g.pick("one", "two", "three", "alpha", "bet*", "gamma", "a*", "x1") }
	switch g.IntN(7) {
	case 0:
		return "'" + word() + " " + g.pick("AND", "OR", "NOT") + " " + word() + "'"
	case 1:
		return "'\"" + word() + " " + word() + "\"'"
	case 2:
		return "'NEAR(" + g.pick("one", "two") + " " + g.pick("alpha", "gamma") + ", 3)'"
	case 3:
		if len(from.columns) > 0 {
			return "'" + from.columns[g.IntN(len(from.columns))].name + ":" + word() + "'"
		}
	case 4:
		return "'^" + g.pick("one", "two") + "'"
	}
	return "'" + word() + "'"
}

// subquery returns a subquery that is an expression.
func (g *generator) subquery(outer scope, depth int) string {
	if len(outer) > 4 {
		return g.leaf(outer)
	}
	switch g.IntN(4) {
	case 0:
		return "EXISTS (" + g.selectOf(outer, 1, depth-1, false) + ")"
	case 1:
		return "(" + g.leaf(outer) + g.pick(" IN (", " NOT IN (") + g.selectOf(outer, 1, depth-1, false) + "))"
	case 2:
		text, s := g.from(nil, depth)
		return "(SELECT " + g.aggregate(s) + " FROM " + text + g.where(append(s, outer...), 1) + ")"
	}
	return "(" + g.selectOf(outer, 1, depth-1, true) + ")"
}

// selectOf returns a SELECT of n columns named c1, c2 and so on.
func (g *generator) selectOf(outer scope, n, depth int, ordered bool) string {
	text, s := g.from(outer, max(depth, 0))
	if !g.features.unordered {
		ordered = true // the value of a subquery is its first row
	}
	query := "SELECT " + list(n, func(i int) string { return g.expression(s, min(depth, 2)) + " AS c" + fmt.Sprint(i+1) }) + " FROM " + text + g.where(s, min(depth, 2))
	if ordered {
		query += g.order(n) + g.maybe(60, " LIMIT "+g.small())
	} else {
		query += g.maybe(30, " LIMIT "+g.small())
	}
	return query
}

// order returns an ORDER BY of all columns, so that the result does not depend on the
// query plan.
func (g *generator) order(n int) string {
	return " ORDER BY " + list(n, func(i int) string {
		return fmt.Sprint(i+1) + g.pick("", "", " DESC", " NULLS LAST", " COLLATE BINARY")
	})
}

func (g *generator) aggregate(s scope) string {
	e := func() string { return g.expression(s[:1], 1) }
	filter := g.maybe(20, " FILTER (WHERE "+e()+")")
	switch g.IntN(9) {
	case 0:
		return "count(*)" + filter
	case 1:
		return g.pick("count(", "sum(", "total(", "avg(", "min(", "max(") + g.maybe(30, "DISTINCT ") + e() + ")" + filter
	case 2, 3:
		x := g.column(s[:1])
		return g.pick("group_concat(", "group_concat(DISTINCT ", "string_agg(") + "quote(" + x + ")" + g.maybe(50, ", '|'") + " ORDER BY quote(" + x + "))" + filter
	case 4:
		x := g.column(s[:1])
		return "json_group_array(" + x + " ORDER BY " + x + ")" + filter
	case 5:
		x := g.column(s[:1])
		return "json_group_object(typeof(" + x + "), 1 ORDER BY " + x + ")"
	case 6:
		return "median_is_missing(" + e() + ")"
	}
	return g.pick("count(", "min(", "max(") + e() + ")"
}

// query returns a statement that reads.
func (g *generator) query() string {
	switch g.IntN(20) {
	case 0, 1, 2:
		t := g.anyTable()
		return "SELECT * FROM " + g.tableName(t) + g.where(scope{t.source(t.name)}, 2) + g.maybe(30, g.order(max(1, len(t.visible()))))
	case 3, 4:
		text, s := g.from(nil, 1)
		return "SELECT " + g.aggregate(s) + ", " + g.aggregate(s) + " FROM " + text + g.where(s, 2)
	case 5, 6:
		text, s := g.from(nil, 1)
		key := g.expression(s, 1)
		return "SELECT " + key + " AS k, " + g.aggregate(s) + " FROM " + text + g.where(s, 1) + " GROUP BY " + g.pick(key, "1", "k") + g.maybe(30, " HAVING "+g.aggregate(s)) + g.order(2)
	case 7:
		return "SELECT c1, c2 FROM (" + g.selectOf(nil, 2, 1, true) + ")" + g.pick(" UNION ", " UNION ALL ", " EXCEPT ", " INTERSECT ") + "SELECT c1, c2 FROM (" + g.selectOf(nil, 2, 1, true) + ")" + g.order(2)
	case 8, 9:
		return g.window()
	case 10:
		return g.with() + " SELECT * FROM cte" + g.order(1)
	case 11:
		return "SELECT " + list(1+g.IntN(4), func(int) string { return g.expression(nil, 3) + g.maybe(20, " AS \"x y\"") })
	case 12:
		return "VALUES(" + g.literal() + "," + g.leaf(nil) + ")" + g.maybe(50, ",("+g.leaf(nil)+","+g.literal()+")")
	case 13:
		text, s := g.from(nil, 1)
		return "SELECT DISTINCT " + g.column(s) + ", " + g.column(s) + " FROM " + text + g.where(s, 2)
	case 14:
		if all := g.schema.among(func(t *table) bool { return t.module == "fts5" }); len(all) > 0 {
			return g.fullText(g.oneOf(all))
		}
	case 15:
		return g.readPragma()
	case 16:
		text, s := g.from(nil, 1)
		return "SELECT * FROM " + text + g.where(s, 2)
	}
	return g.selectOf(nil, 1+g.IntN(4), 2, g.chance(60))
}

func (g *generator) window() string {
	text, s := g.from(nil, 0)
	e := func() string { return g.expression(s, 1) }
	over := " OVER (" + g.maybe(50, "PARTITION BY "+e()+" ") + "ORDER BY " + g.column(s) + ", " + g.column(s) + g.pick("", "", " RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW", " GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING", " GROUPS CURRENT ROW EXCLUDE TIES") + ")"
	f := g.pick("count(*)", "sum("+e()+")", "min("+e()+")", "rank()", "dense_rank()", "percent_rank()", "cume_dist()", "max("+e()+") FILTER (WHERE "+e()+")", "total("+e()+")")
	return "SELECT " + g.column(s) + ", " + f + over + " AS w FROM " + text + g.where(s, 1) + g.order(2)
}

func (g *generator) with() string {
	switch g.IntN(3) {
	case 0:
		return "WITH RECURSIVE cte(n) AS (SELECT 1 UNION ALL SELECT n+" + g.pick("1", "2", "n") + " FROM cte WHERE n < " + g.pick("5", "12") + ")"
	case 1:
		return "WITH cte(n, c2) AS " + g.pick("", "MATERIALIZED ", "NOT MATERIALIZED ") + "(" + g.selectOf(nil, 2, 1, true) + ")"
	}
	return "WITH one AS (" + g.selectOf(nil, 1, 1, true) + "), cte(n) AS (SELECT c1 FROM one UNION SELECT 3)"
}

func (g *generator) fullText(t *table) string {
	from := t.source(t.name)
	f := quote(t.name)
	what := g.pick("rowid, *", "rowid, rank", "rowid, bm25("+f+")", "highlight("+f+",0,'[',']')", "snippet("+f+",-1,'<','>','...',4)", "count(*)", "rowid, "+f+".*")
	return "SELECT " + what + " FROM " + f + g.pick("", " WHERE "+f+" MATCH "+g.match(from), " WHERE "+f+" MATCH "+g.match(from), "("+g.match(from)+")") + g.pick(" ORDER BY rowid", " ORDER BY rank, rowid")
}

// readPragma returns a PRAGMA whose result does not depend on the database file.
func (g *generator) readPragma() string {
	t := g.anyTable()
	switch g.IntN(8) {
	case 0:
		return "PRAGMA " + g.pick("table_info", "table_xinfo", "foreign_key_list", "index_list") + "(" + quote(t.name) + ")"
	case 1:
		return "PRAGMA " + g.pick("foreign_keys", "user_version", "application_id", "defer_foreign_keys", "foreign_key_check", "encoding", "recursive_triggers", "ignore_check_constraints", "legacy_alter_table", "reverse_unordered_selects", "trusted_schema", "writable_schema", "query_only")
	case 2:
		if len(g.schema.indexes) > 0 {
			return "PRAGMA " + g.pick("index_info", "index_xinfo") + "(" + quote(g.schema.indexes[g.IntN(len(g.schema.indexes))]) + ")"
		}
	case 3:
		return "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE '%hiqlite%' AND name NOT LIKE 'sqlite_s%' ORDER BY type, name"
	case 4:
		return "SELECT m.name, x.name, x.type, x.dflt_value, x.pk, x.hidden FROM sqlite_schema AS m, pragma_table_xinfo(m.name) AS x WHERE m.type = 'table' AND m.name NOT LIKE '%hiqlite%' AND m.name NOT LIKE 'sqlite_s%' ORDER BY 1, x.cid"
	case 6:
		return "SELECT type, name, tbl_name, sql FROM sqlite_temp_schema ORDER BY type, name"
	case 5:
		return "PRAGMA " + g.pick("integrity_check", "quick_check") + "(" + quote(t.name) + ")"
	}
	return "PRAGMA foreign_key_check(" + quote(t.name) + ")"
}
