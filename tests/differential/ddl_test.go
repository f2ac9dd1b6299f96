package differential

import (
	"fmt"
	"strings"
)

// change returns a statement that changes the schema.
func (g *generator) change() string {
	tables := len(g.schema.among(func(t *table) bool { return t.kind == "table" }))
	if tables < 2 || (tables < 6 && g.chance(20)) {
		return g.createTable()
	}
	switch g.IntN(24) {
	case 0, 1, 2, 3:
		return g.createIndex()
	case 4, 5:
		return g.createView()
	case 6, 7, 8:
		return g.createTrigger()
	case 9, 10:
		return g.createVirtual()
	case 11, 12, 13, 14, 15:
		return g.alter()
	case 16, 17:
		return g.drop()
	case 18:
		return g.createTableAs()
	case 19:
		return g.pick("ANALYZE", "ANALYZE", "ANALYZE "+quote(g.ordinary().name), "ANALYZE main")
	case 20:
		return g.pick("REINDEX", "REINDEX "+quote(g.ordinary().name), "REINDEX NOCASE")
	case 21:
		if g.features.unordered || len(g.schema.among(func(t *table) bool { return t.temp })) == 0 { // SQLite loses indexes of tables that TEMP tables hide
			return "VACUUM"
		}
	case 22:
		return g.pick("PRAGMA user_version="+g.small(), "PRAGMA application_id="+g.small(), "DROP TABLE IF EXISTS sqlite_stat1", "PRAGMA temp.user_version", "DROP TABLE IF EXISTS temp.t1", "DELETE FROM sqlite_stat1", "UPDATE sqlite_sequence SET seq = seq + 3", "DELETE FROM sqlite_sequence WHERE seq > 5")
	}
	return g.createTable()
}

func (g *generator) newTable() string {
	return g.pick("t1", "t2", "t3", "t4", "t5", "t6", "t7", "select", "odd name")
}

func (g *generator) newColumn() string {
	return g.pick("a", "b", "c", "d", "e", "f", "g", "order", "x y")
}

func (g *generator) declared() string {
	return g.pick("INTEGER", "INT", "TEXT", "REAL", "BLOB", "NUMERIC", "", "VARCHAR(10)", "DECIMAL(10,2)", "BOOLEAN", "DATE", "DATETIME", "TIMESTAMP", "ANY")
}

func (g *generator) createTable() string {
	if g.features.temp && g.chance(15) {
		return "CREATE TEMP TABLE " + g.maybe(30, "IF NOT EXISTS ") + quote(g.newTable()) + "(" + g.columnsOf(false, false) + ")"
	}
	strict, without := g.chance(12), g.chance(12)
	options := []string{}
	if strict {
		options = append(options, "STRICT")
	}
	if without {
		options = append(options, "WITHOUT ROWID")
	}
	return "CREATE TABLE " + g.maybe(20, "IF NOT EXISTS ") + quote(g.newTable()) + "(" + g.columnsOf(strict, without) + ") " + strings.Join(options, ", ")
}

func (g *generator) columnsOf(strict, without bool) string {
	var columns []column
	var parts []string
	keyed := false
	for _, name := range []string{"a", "b", "c", "d", "e", "order", "x y"}[:2+g.IntN(6)] {
		if g.chance(10) && name != "a" {
			continue
		}
		c := column{name: name, decl: g.declared()}
		if strict {
			c.decl = g.pick("INTEGER", "INT", "TEXT", "REAL", "BLOB", "ANY")
		}
		def := ""
		switch {
		case name == "a" && (without || g.chance(50)):
			keyed = true
			c.decl = g.pick("INTEGER", "INTEGER", "INTEGER", "TEXT", "INT")
			def = " PRIMARY KEY"
			if c.decl == "INTEGER" && !without && g.chance(30) {
				def += " AUTOINCREMENT"
			} else if g.chance(10) {
				def += " DESC"
			}
		default:
			def = g.constraints(columns, c)
		}
		columns = append(columns, c)
		parts = append(parts, strings.TrimRight(quote(name)+" "+c.decl+def, " "))
	}
	if !keyed && g.chance(20) && len(columns) > 1 {
		parts = append(parts, "PRIMARY KEY("+quote(columns[0].name)+", "+quote(columns[1].name)+")")
	}
	if g.chance(15) && len(columns) > 1 {
		parts = append(parts, "UNIQUE("+quote(columns[len(columns)-1].name)+", "+quote(columns[0].name)+")"+g.onConflict())
	}
	if g.chance(15) {
		parts = append(parts, g.maybe(40, "CONSTRAINT c ")+"CHECK("+g.check(columns)+")")
	}
	if g.chance(15) {
		parts = append(parts, "FOREIGN KEY("+quote(columns[0].name)+") "+g.references())
	}
	return strings.Join(parts, ", ")
}

func (g *generator) onConflict() string {
	return g.maybe(25, " ON CONFLICT "+g.pick("REPLACE", "IGNORE", "FAIL", "ABORT", "ROLLBACK"))
}

// check returns a condition that most values meet.
func (g *generator) check(columns []column) string {
	c := quote(columns[g.IntN(len(columns))].name)
	return g.pick("length("+c+") < 20", c+" IS NOT 'bad'", "typeof("+c+") <> 'blob'", c+" IS NULL OR "+c+" <> -5", "json_valid("+c+") IN (0,1)", "abs(coalesce("+c+",0)) >= 0")
}

func (g *generator) references() string {
	t := g.ordinary()
	column := ""
	if keys := keysOf(t); len(keys) == 1 {
		column = "(" + quote(keys[0].name) + ")"
	} else if len(t.unique) > 0 && len(t.unique[0]) == 1 {
		column = "(" + quote(t.unique[0][0]) + ")"
	} else if g.chance(70) {
		column = "(rowid)" // an error
	}
	return "REFERENCES " + quote(t.name) + column + g.pick("", "", " ON DELETE CASCADE", " ON DELETE SET NULL", " ON UPDATE CASCADE", " ON DELETE SET DEFAULT ON UPDATE SET NULL", " ON DELETE RESTRICT", " ON DELETE CASCADE ON UPDATE CASCADE") + g.pick("", "", " DEFERRABLE INITIALLY DEFERRED")
}

func (g *generator) constraints(before []column, c column) string {
	var b strings.Builder
	if len(before) > 0 && g.chance(12) {
		s := scope{{columns: before}}
		e := g.within(func() string { return g.generatedExpression(s) })
		return " " + g.maybe(50, "GENERATED ALWAYS ") + "AS (" + e + ")" + g.pick("", " STORED", " VIRTUAL") + g.maybe(10, " UNIQUE")
	}
	if g.chance(10) {
		b.WriteString(" NOT NULL" + g.onConflict())
	}
	if g.chance(12) {
		b.WriteString(" UNIQUE" + g.onConflict())
	}
	if g.chance(25) {
		def := g.pick("1", "'d'", "NULL", "1.5", "x'01'", "-1", "(1+2)", "(abs(-3))")
		if g.features.nondeterministic {
			def = g.pick(def, "(random())", "CURRENT_TIMESTAMP", "(hex(randomblob(3)))", "(julianday('now'))")
		}
		b.WriteString(" DEFAULT " + def)
	}
	if g.chance(12) {
		b.WriteString(" COLLATE " + g.collation())
	}
	if g.chance(8) {
		b.WriteString(" CHECK(" + g.check([]column{c}) + ")")
	}
	if g.chance(10) {
		b.WriteString(" " + g.references())
	}
	return b.String()
}

// generatedExpression returns an expression of columns only, without the table's name.
func (g *generator) generatedExpression(s scope) string {
	c := quote(s[0].columns[g.IntN(len(s[0].columns))].name)
	return g.pick(c+" || 'g'", "length("+c+")", c+" + 1", "json_extract("+c+", '$.a')", "substr("+c+",1,2)", "typeof("+c+")", "lower("+c+")", "CAST("+c+" AS REAL)", "round("+c+", 1)")
}

func (g *generator) createTableAs() string {
	query := g.selectOf(nil, 1+g.IntN(3), 1, true)
	if !strings.Contains(query, " LIMIT ") {
		query += " LIMIT 20"
	}
	return "CREATE " + g.maybe(boolean(g.features.temp)*20, "TEMP ") + "TABLE " + g.maybe(20, "IF NOT EXISTS ") + quote(g.newTable()) + " AS " + g.within(func() string { return query })
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (g *generator) createIndex() string {
	t := g.ordinary()
	s := scope{{columns: t.visible()}}
	if len(t.columns) == 0 {
		return "REINDEX"
	}
	part := func(int) string {
		c := quote(t.columns[g.IntN(len(t.columns))].name)
		if g.chance(20) {
			return g.within(func() string { return g.generatedExpression(s) })
		}
		return c + g.maybe(20, " COLLATE "+g.collation()) + g.maybe(20, " DESC")
	}
	where := ""
	if g.chance(20) {
		c := quote(t.columns[g.IntN(len(t.columns))].name)
		where = " WHERE " + g.pick(c+" IS NOT NULL", c+" > 1", c+" LIKE 'a%'", "typeof("+c+") = 'text'", c+" IN (1,2,3)")
	}
	return "CREATE " + g.maybe(20, "UNIQUE ") + "INDEX " + g.maybe(20, "IF NOT EXISTS ") + g.newIndex() + " ON " + quote(t.name) + "(" + list(1+g.IntN(3), part) + ")" + where
}

func (g *generator) newIndex() string { return fmt.Sprint("i", 1+g.IntN(8)) }

func (g *generator) createView() string {
	return "CREATE " + g.maybe(boolean(g.features.temp)*20, "TEMP ") + "VIEW " + g.maybe(20, "IF NOT EXISTS ") + g.pick("v1", "v2", "v3") + g.maybe(20, "(va, vb)") + " AS " +
		g.within(func() string {
			if g.chance(20) && g.features.counters && g.features.unordered {
				return "SELECT changes() AS va, last_insert_rowid() AS vb"
			}
			if g.chance(30) {
				return "SELECT * FROM " + quote(g.anyTable().name)
			}
			return g.selectOf(nil, 2, 1, g.chance(50))
		})
}

func (g *generator) createTrigger() string {
	t := g.ordinary()
	if g.chance(15) {
		t = g.oneOf(g.schema.among(func(t *table) bool { return t.kind == "view" }))
	}
	when := g.pick("BEFORE", "AFTER", "AFTER", "")
	if t.kind == "view" {
		when = "INSTEAD OF"
	}
	event := g.pick("INSERT", "UPDATE", "DELETE")
	var s scope
	if event != "DELETE" {
		s = append(s, source{alias: "new", columns: t.visible()})
	}
	if event != "INSERT" {
		s = append(s, source{alias: "old", columns: t.visible()})
	}
	if event == "UPDATE" && g.chance(30) && len(t.columns) > 0 {
		event += " OF " + quote(t.columns[g.IntN(len(t.columns))].name)
	}
	temp := ""
	if g.features.temp && g.chance(15) {
		temp = "TEMP "
	}
	return g.within(func() string {
		body := ""
		for range 1 + g.IntN(2) {
			body += g.triggered(s) + "; "
		}
		return "CREATE " + temp + "TRIGGER " + g.maybe(20, "IF NOT EXISTS ") + g.pick("g1", "g2", "g3", "g4") + " " + when + " " + event + " ON " + quote(t.name) + g.maybe(20, " FOR EACH ROW") +
			g.maybe(30, " WHEN "+g.expression(s, 1)) + " BEGIN " + body + "END"
	})
}

// triggered returns a statement for the body of a trigger.
func (g *generator) triggered(s scope) string {
	t := g.ordinary()
	if g.chance(15) {
		t = g.writable()
	}
	columns := t.settable()
	if len(columns) == 0 {
		return "SELECT 1"
	}
	value := func(c column) string {
		if g.chance(50) {
			return g.leaf(s)
		}
		return g.valueFor(c)
	}
	switch g.IntN(10) {
	case 0:
		return "SELECT RAISE(" + g.pick("ABORT", "FAIL", "ROLLBACK") + ", 'raised') WHERE " + g.column(s) + " = " + g.small()
	case 1:
		return "SELECT RAISE(IGNORE) WHERE " + g.column(s) + " = " + g.small()
	case 2, 3:
		c := columns[g.IntN(len(columns))]
		return "UPDATE " + quote(t.name) + " SET " + quote(c.name) + " = " + value(c) + " WHERE " + quote(columns[0].name) + " = " + g.column(s)
	case 4:
		return "DELETE FROM " + quote(t.name) + " WHERE " + quote(columns[0].name) + " = " + g.column(s)
	case 5:
		return "SELECT " + g.expression(s, 1)
	}
	columns = g.columnsFor(t)
	return g.pick("INSERT", "INSERT OR IGNORE", "INSERT OR REPLACE") + " INTO " + quote(t.name) + "(" + names(columns) + ") VALUES(" + list(len(columns), func(i int) string { return value(columns[i]) }) + ")"
}

func (g *generator) createVirtual() string {
	content := g.ordinary()
	switch g.IntN(9) {
	case 0:
		return "CREATE VIRTUAL TABLE " + g.maybe(20, "IF NOT EXISTS ") + "f1 USING fts5(body, title, prefix='2 3')"
	case 1:
		return "CREATE VIRTUAL TABLE f2 USING fts5(x, y UNINDEXED, tokenize='porter unicode61', detail=" + g.pick("full", "column", "none") + ")"
	case 2:
		if len(content.columns) > 0 && g.features.unordered { // if the index does not match its content, results depend on its segments
			return "CREATE VIRTUAL TABLE f3 USING fts5(" + quote(content.columns[0].name) + ", content=" + quote(content.name) + ")"
		}
	case 3:
		return "CREATE VIRTUAL TABLE f4 USING fts5(z, content='', contentless_delete=" + g.pick("0", "1") + ")"
	case 4:
		return "CREATE VIRTUAL TABLE f5 USING fts5(t, tokenize='trigram')"
	case 5:
		return "CREATE VIRTUAL TABLE fv USING fts5vocab(f1, '" + g.pick("row", "col", "instance") + "')"
	case 6:
		return "CREATE VIRTUAL TABLE r1 USING rtree(id, lo, hi)"
	case 7:
		return "CREATE VIRTUAL TABLE r2 USING " + g.pick("rtree(id, x0, x1, y0, y1, +note)", "rtree_i32(id, x0, x1, y0, y1)")
	}
	return g.pick("CREATE VIRTUAL TABLE p1 USING geopoly(kind)", "CREATE VIRTUAL TABLE f1 USING fts5(body)", "CREATE VIRTUAL TABLE x1 USING nosuch(a)", "CREATE VIRTUAL TABLE r1 USING rtree(id, lo)")
}

func (g *generator) alter() string {
	t := g.ordinary()
	if g.chance(8) {
		t = g.anyTable()
	}
	if len(t.columns) == 0 {
		return "REINDEX"
	}
	c := quote(t.columns[g.IntN(len(t.columns))].name)
	alter := "ALTER TABLE " + quote(t.name)
	switch g.IntN(8) {
	case 0, 1:
		n := column{name: g.newColumn(), decl: g.declared()}
		return alter + " ADD COLUMN " + quote(n.name) + " " + n.decl + g.constraints(t.visible(), n)
	case 2:
		return alter + " DROP COLUMN " + c
	case 3, 4:
		return alter + " RENAME COLUMN " + c + " TO " + quote(g.newColumn())
	case 5:
		if t.module != "" { // see insertsBySQLite
			return alter + " RENAME TO " + t.name[:1] + g.pick("1", "2")
		}
		return alter + " RENAME TO " + quote(g.newTable())
	case 6:
		return alter + " ALTER COLUMN " + c + g.pick(" SET NOT NULL", " DROP NOT NULL")
	}
	return alter + g.pick(" ADD CONSTRAINT k CHECK("+g.check(t.columns)+")", " DROP CONSTRAINT c", " DROP CONSTRAINT k", " ADD COLUMN z", " DROP COLUMN z")
}

func (g *generator) drop() string {
	switch g.IntN(6) {
	case 0:
		t := g.anyTable()
		return "DROP " + map[bool]string{true: "VIEW ", false: "TABLE "}[t.kind == "view"] + quote(t.name)
	case 1, 2:
		if len(g.schema.indexes) > 0 {
			return "DROP INDEX " + quote(g.schema.indexes[g.IntN(len(g.schema.indexes))])
		}
		return "DROP INDEX IF EXISTS " + g.newIndex()
	case 3:
		if len(g.schema.triggers) > 0 {
			return "DROP TRIGGER " + quote(g.schema.triggers[g.IntN(len(g.schema.triggers))])
		}
		return "DROP TRIGGER IF EXISTS g1"
	case 4:
		return g.pick("DROP VIEW IF EXISTS v1", "DROP VIEW v2", "DROP TABLE v1", "DROP INDEX i1")
	}
	return "DROP TABLE IF EXISTS " + quote(g.ordinary().name)
}
