package differential

import (
	"context"
	"database/sql"
	"strings"
)

// A schema has the present tables, indexes and triggers of a connection.
type schema struct {
	tables   []table
	indexes  []string
	triggers []string
}

// A table is a table or a view.
type table struct {
	name         string
	temp         bool
	kind         string // table, view, virtual or shadow
	module       string // of a virtual table
	withoutRowid bool
	strict       bool
	columns      []column
	unique       [][]string // columns of its unique indexes
}

type column struct {
	name      string
	decl      string
	notNull   bool
	generated bool
	key       bool
	hidden    bool
}

// readSchema reads the schema as the connection sees it: with the changes of its
// transaction and with its TEMP objects.
func readSchema(ctx context.Context, c *sql.Conn) (*schema, error) {
	s := &schema{}
	tables, err := queryAll(ctx, c, "SELECT schema, name, type, wr, strict FROM pragma_table_list WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE '%hiqlite%' ORDER BY 1, 2")
	if err != nil {
		return nil, err
	}
	sqls, err := queryAll(ctx, c, "SELECT type, name, coalesce(sql,''), 0 FROM sqlite_schema WHERE name NOT LIKE '%hiqlite%' UNION ALL SELECT type, name, coalesce(sql,''), 1 FROM sqlite_temp_schema ORDER BY 2, 4")
	if err != nil {
		return nil, err
	}
	for _, row := range sqls {
		switch {
		case row[0] == "index" && row[2] != "":
			s.indexes = append(s.indexes, text(row[1]))
		case row[0] == "trigger":
			s.triggers = append(s.triggers, text(row[1]))
		}
	}
	for _, row := range tables {
		t := table{temp: row[0] == "temp", name: text(row[1]), kind: text(row[2]), withoutRowid: row[3] == int64(1), strict: row[4] == int64(1)}
		if t.kind == "shadow" {
			continue
		}
		if t.kind == "virtual" {
			for _, of := range sqls {
				if of[1] == row[1] && of[0] == "table" {
					t.module = moduleOf(text(of[2]))
				}
			}
		}
		if err := t.read(ctx, c); err != nil {
			continue // a view of a table that does not exist any more
		}
		s.tables = append(s.tables, t)
	}
	return s, nil
}

func (t *table) read(ctx context.Context, c *sql.Conn) error {
	columns, err := queryAll(ctx, c, "SELECT name, type, \"notnull\", hidden, pk FROM pragma_table_xinfo(?, ?)", t.name, t.schema())
	if err != nil {
		return err
	}
	for _, row := range columns {
		hidden := row[3].(int64)
		t.columns = append(t.columns, column{name: text(row[0]), decl: text(row[1]), notNull: row[2] == int64(1), generated: hidden >= 2, hidden: hidden == 1, key: row[4] != int64(0)})
	}
	if t.kind != "table" {
		return nil
	}
	unique, err := queryAll(ctx, c, "SELECT i.name, x.name FROM pragma_index_list(?, ?) AS i, pragma_index_info(i.name, ?) AS x WHERE i.\"unique\" AND NOT i.partial ORDER BY i.name, x.seqno", t.name, t.schema(), t.schema())
	if err != nil {
		return err
	}
	last := ""
	for _, row := range unique {
		if row[1] == nil {
			continue
		}
		if name := text(row[0]); name != last {
			t.unique, last = append(t.unique, nil), name
		}
		t.unique[len(t.unique)-1] = append(t.unique[len(t.unique)-1], text(row[1]))
	}
	return nil
}

func (t *table) schema() string {
	if t.temp {
		return "temp"
	}
	return "main"
}

// visible returns the columns that * stands for.
func (t *table) visible() (all []column) {
	for _, c := range t.columns {
		if !c.hidden {
			all = append(all, c)
		}
	}
	return all
}

// settable returns the columns that can be written.
func (t *table) settable() (all []column) {
	for _, c := range t.columns {
		if !c.hidden && !c.generated {
			all = append(all, c)
		}
	}
	return all
}

func (t *table) source(alias string) source {
	return source{alias: alias, columns: t.visible(), rowid: t.hasRowid(), full: t.module == "fts5"}
}

func (t *table) hasRowid() bool {
	return t.kind != "view" && !t.withoutRowid && t.module != "fts5vocab"
}

func moduleOf(sql string) string {
	_, rest, _ := strings.Cut(strings.ToLower(sql), " using ")
	name, _, _ := strings.Cut(strings.TrimSpace(rest), "(")
	return strings.TrimSpace(name)
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	}
	return ""
}

// queryAll returns all rows of a query.
func queryAll(ctx context.Context, c *sql.Conn, query string, args ...any) (all [][]any, err error) {
	rows, err := c.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		row, pointers := make([]any, len(names)), make([]any, len(names))
		for i := range row {
			pointers[i] = &row[i]
		}
		if err := rows.Scan(pointers...); err != nil {
			return nil, err
		}
		all = append(all, row)
	}
	return all, rows.Err()
}

// among returns the tables for which ok returns true.
func (s *schema) among(holds func(t *table) bool) (all []*table) {
	for i := range s.tables {
		if holds(&s.tables[i]) {
			all = append(all, &s.tables[i])
		}
	}
	return all
}

func (g *generator) anyTable() *table {
	return g.oneOf(g.schema.among(func(*table) bool { return true }))
}

// ordinary reports whether a table is neither a view nor virtual.
func (g *generator) ordinary() *table {
	return g.oneOf(g.schema.among(func(t *table) bool { return t.kind == "table" }))
}

var missing = table{name: "nope", kind: "table", columns: []column{{name: "a"}, {name: "b"}}}

func (g *generator) oneOf(all []*table) *table {
	if len(all) == 0 {
		return &missing
	}
	return all[g.IntN(len(all))]
}
