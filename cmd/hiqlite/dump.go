package main

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

// dump prints the SQL that makes the database, in the form of SQLite's own shell. All
// of it is read in one transaction.
func (s *shell) dump(ctx context.Context, tables []string) (err error) {
	// Not on the connection of the shell, which may be in a transaction.
	tx, err := s.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	d := &dumper{ctx: ctx, tx: tx, w: bufio.NewWriterSize(s.printer.out, 64<<10)}
	d.line("PRAGMA foreign_keys=OFF;")
	d.line("BEGIN TRANSACTION;")
	if err := d.all(tables); err != nil {
		d.line("ROLLBACK; -- due to errors")
		d.w.Flush()
		return err
	}
	if d.writableSchema {
		d.line("PRAGMA writable_schema=OFF;")
	}
	d.line("COMMIT;")
	return d.w.Flush()
}

type dumper struct {
	ctx            context.Context
	tx             *sql.Tx
	w              *bufio.Writer
	writableSchema bool
}

func (d *dumper) line(text string) {
	d.w.WriteString(text)
	d.w.WriteByte('\n')
}

// object is a row of sqlite_schema.
type object struct{ kind, name, table, sql string }

func (d *dumper) all(tables []string) error {
	objects, err := d.objects()
	if err != nil {
		return err
	}
	wanted := func(o object) bool {
		return len(tables) == 0 || slices.ContainsFunc(tables, func(t string) bool { return strings.EqualFold(t, o.table) })
	}
	for _, t := range tables {
		if !slices.ContainsFunc(objects, func(o object) bool { return strings.EqualFold(t, o.name) }) {
			return fmt.Errorf("there is no table %s", t)
		}
	}
	sequence := false
	for _, o := range objects {
		switch {
		case o.kind != "table" || !wanted(o):
		case strings.EqualFold(o.name, "sqlite_sequence"):
			sequence = true
		default:
			if err := d.table(o); err != nil {
				return err
			}
		}
	}
	if sequence {
		d.line("DELETE FROM sqlite_sequence;")
		if err := d.rows("sqlite_sequence"); err != nil {
			return err
		}
	}
	for _, o := range objects {
		if o.kind != "table" && wanted(o) {
			d.line(o.sql + ";")
		}
	}
	return nil
}

func (d *dumper) objects() (objects []object, err error) {
	rows, err := d.tx.QueryContext(d.ctx, "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var o object
		if err := rows.Scan(&o.kind, &o.name, &o.table, &o.sql); err != nil {
			return nil, err
		}
		objects = append(objects, o)
	}
	return objects, rows.Err()
}

func (d *dumper) table(o object) error {
	lower := strings.ToLower(o.name)
	switch {
	case strings.HasPrefix(lower, "sqlite_stat"):
		d.line("ANALYZE sqlite_schema;")
	case strings.HasPrefix(lower, "sqlite_"):
		return nil
	case strings.HasPrefix(o.sql, "CREATE VIRTUAL TABLE"):
		// Its rows are in ordinary tables, which must not be made a second time.
		if !d.writableSchema {
			d.line("PRAGMA writable_schema=ON;")
			d.writableSchema = true
		}
		d.line(fmt.Sprintf("INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql)VALUES('table',%s,%s,0,%s);", quote(o.name), quote(o.name), quote(o.sql)))
		return nil
	default:
		d.line(o.sql + ";")
	}
	return d.rows(o.name)
}

// rows prints an INSERT for each row of a table.
func (d *dumper) rows(table string) error {
	columns, generated, err := d.columns(table)
	if err != nil {
		return err
	}
	var values, names []string
	for _, c := range columns {
		values = append(values, "quote("+quoteName(c)+")")
		names = append(names, quoteName(c))
	}
	into := quoteName(table)
	if generated {
		into += "(" + strings.Join(names, ",") + ")"
	}
	rows, err := d.tx.QueryContext(d.ctx, "SELECT "+strings.Join(values, "||','||")+" FROM "+quoteName(table))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var row sql.RawBytes
		if err := rows.Scan(&row); err != nil {
			return err
		}
		d.w.WriteString("INSERT INTO " + into + " VALUES(")
		d.w.Write(row)
		d.line(");")
	}
	return rows.Err()
}

// columns returns the columns of a table that can be inserted, and whether there are
// others.
func (d *dumper) columns(table string) (columns []string, generated bool, err error) {
	rows, err := d.tx.QueryContext(d.ctx, "SELECT name, hidden FROM pragma_table_xinfo(?)", table)
	if err != nil {
		return nil, false, err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var hidden int
		if err := rows.Scan(&name, &hidden); err != nil {
			return nil, false, err
		}
		if hidden != 0 {
			generated = true
			continue
		}
		columns = append(columns, name)
	}
	return columns, generated, rows.Err()
}

// quote returns a text as SQL.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// quoteName returns a name as SQL.
func quoteName(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
