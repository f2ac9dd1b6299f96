package differential

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A runner runs the steps of one script on the reference and on clusters, and compares
// the outcomes.
type runner struct {
	reference *database
	others    []*database
	done      script
	diverged  bool // an intended deviation has changed one database only, so what follows differs
	worked    bool // the last step has succeeded on the reference
	succeeded int  // number of steps that have succeeded

	open    [connections]bool // the reference has an open transaction
	counted [connections]counted
}

// counted says which counters of a connection can be compared. In SQLite, statements
// that fail change them too; in hiqlite, they do not.
type counted struct {
	changesDiffer, idDiffers bool
	idBefore                 string // last_insert_rowid() before the statement
}

// differ reports whether a counter may differ by intention.
func (c *counted) differ() bool { return c.changesDiffer || c.idDiffers }

// usesCounters reports whether a statement may return or store the value of a counter.
func usesCounters(text string) bool {
	return strings.Contains(text, "changes()") || strings.Contains(text, "last_insert_rowid()")
}

// A difference is a difference between two databases.
type difference struct {
	kind         string
	codes        string // of the errors
	what         string
	who          *database
	ours, theirs string
}

func (d *difference) String() string {
	return fmt.Sprintf("%s: %s: %s\n--- modernc.org/sqlite\n%s\n--- hiqlite\n%s", d.who.name, d.kind, d.what, d.theirs, d.ours)
}

// newRunner returns a runner with a reference, a single node and a cluster of three.
func newRunner(t testing.TB) *runner {
	r := &runner{reference: newReference(t), others: []*database{newDatabase(t, 1), newDatabase(t, 3)}}
	t.Cleanup(func() { r.each((*database).close) })
	return r
}

// begin empties all databases.
func (r *runner) begin() {
	r.diverged, r.done, r.open, r.counted = false, nil, [connections]bool{}, [connections]counted{}
	r.reference.begin()
	for _, d := range r.others {
		d.begin()
	}
}

// step runs a step on all databases and returns how they differ, or nil.
func (r *runner) step(s step) *difference {
	if r.diverged || usesCounters(s.text) && (r.counted[s.conn].differ() || len(parts(s.text)) > 1 && insertsBySQLite.MatchString(s.text)) {
		return nil
	}
	r.done = append(r.done, s)
	switch s.how {
	case compareAll:
		return r.compareAll("")
	case reconnect:
		r.each(func(d *database) { d.reconnect(s.conn) })
		r.open[s.conn], r.counted[s.conn] = false, counted{}
		return nil
	case restart, snapshot:
		r.each(func(d *database) {
			if s.how == restart {
				d.restart(s.conn)
			} else {
				d.snapshot(s.conn)
			}
		})
		r.open, r.counted = [connections]bool{}, [connections]counted{}
		return r.compareAll(" after " + hows[s.how])
	}
	before := r.open[s.conn]
	c := &r.counted[s.conn]
	if strings.HasPrefix(s.text, "INSERT") || strings.HasPrefix(s.text, "REPLACE") {
		c.idBefore = r.reference.run(step{conn: s.conn, text: "SELECT 'id ' || last_insert_rowid()"}).first()
	}
	theirs, lost := r.runReference(s)
	r.worked = theirs.err == ""
	found := r.compareOthers(s, theirs)
	if s.how == keepPrepared && theirs.err != "" {
		r.each(func(d *database) { d.forget(s.conn, s.slot) })
	}
	if theirs.cause != nil && strings.Contains(theirs.err, "interrupted") {
		return nil // the statement took too long
	}
	if r.diverged {
		return nil
	}
	if found != nil {
		return found
	}
	if lost || before && theirs.err != "" && !r.open[s.conn] && !r.ends(s) {
		return r.endRolledBack(s)
	}
	return r.compareCounters(s, theirs)
}

func (r *runner) each(do func(*database)) {
	do(r.reference)
	for _, d := range r.others {
		do(d)
	}
}

func (r *runner) compareOthers(s step, theirs outcome) *difference {
	for _, d := range r.others {
		ours := d.run(s)
		r.diverged = r.diverged || strings.Contains(ours.err, "the largest rowid") || strings.Contains(ours.err, "ANALYZE of TEMP tables") || ours.err == "" && strings.Contains(theirs.err, "non-deterministic")
		if kind := differ(s, r.counted[s.conn], ours, theirs); kind != "" {
			return &difference{kind, codeOf(ours.err) + "/" + codeOf(theirs.err), s.String(), d, ours.String(), theirs.String()}
		}
	}
	return nil
}

// controls reports whether a text begins or ends transactions.
func controls(text string) bool {
	for _, part := range parts(text) {
		switch firstWord(part) {
		case "BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE":
			return true
		}
	}
	return false
}

// parts returns the statements of a script. The generator ends each with a newline, and
// writes newlines nowhere else.
func parts(text string) []string { return strings.Split(text, ";\n") }

func firstWord(text string) string {
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return ""
	}
	return strings.ToUpper(strings.TrimRight(fields[0], ";"))
}

// ends reports whether a step is a single statement that controls transactions.
func (r *runner) ends(s step) bool {
	return len(parts(s.text)) == 1 && controls(s.text)
}

// runReference runs a step on the reference in the way in which hiqlite is documented to
// run it. lost reports whether it rolled back a transaction that was open before.
func (r *runner) runReference(s step) (o outcome, lost bool) {
	d := r.reference
	text := s.text
	r.reloadTemp(s.conn)
	if len(parts(text)) > 1 {
		return r.runScript(s)
	}
	if firstWord(text) == "BEGIN" {
		s.text = "BEGIN IMMEDIATE" // hiqlite's transactions wait for the write lease when they begin
		if r.open[s.conn] || d.exec(s.conn, "BEGIN IMMEDIATE; ROLLBACK") != nil {
			s.text = "BEGIN" // a transaction is open, or query_only is on, so that hiqlite does not wait
		}
	}
	if !controls(text) { // make SQLite notice changes of the schema by other connections
		_ = d.exec(s.conn, "SELECT 1 FROM sqlite_schema")
	}
	if r.open[s.conn] && !controls(text) && s.how != keepPrepared {
		_ = d.exec(s.conn, "SAVEPOINT one")
		o = d.run(s)
		if o.err != "" && !keeps[codeOf(o.err)] { // SQLite may keep rows of a failed statement
			_ = d.exec(s.conn, "ROLLBACK TO one")
		}
		_ = d.exec(s.conn, "RELEASE one") // fails after OR ROLLBACK
	} else {
		o = d.run(s)
	}
	if controls(text) || (r.open[s.conn] && o.err != "") {
		r.open[s.conn] = r.inTransaction(s.conn)
	}
	return o, false
}

// reloadTemp makes the reference load its TEMP views and triggers again. SQLite looks up
// their tables when it loads them, which it does again after another connection has
// changed the schema. hiqlite loads them for each transaction and after each change of
// the schema. So a TEMP table that was created later may take the place of the table
// that the view or trigger was created for.
func (r *runner) reloadTemp(conn int) {
	step := step{conn: conn, text: "SELECT count(*) FROM sqlite_temp_schema WHERE type IN ('view', 'trigger')"}
	if r.reference.run(step).first() != "0" {
		_ = r.reference.exec(conn, "PRAGMA writable_schema=RESET")
	}
}

// keeps has the codes, as codeOf returns them, of errors after which OR FAIL and
// RAISE(FAIL) keep the rows that were changed before.
var keeps = map[string]bool{"19]": true, "275]": true, "1299]": true, "1555]": true, "1811]": true, "2067]": true, "2579]": true}

// runScript runs a script of several statements, which is atomic in hiqlite.
func (r *runner) runScript(s step) (o outcome, lost bool) {
	d, before := r.reference, r.open[s.conn]
	_ = d.exec(s.conn, "SELECT 1 FROM sqlite_schema") // see runReference
	if err := d.exec(s.conn, "SAVEPOINT atomic"); err != nil {
		return failed(err), false
	}
	o = d.run(s)
	if o.err == "" {
		if err := d.exec(s.conn, "RELEASE atomic"); err != nil {
			o = failed(err)
		}
	}
	if o.err != "" {
		_ = d.exec(s.conn, "ROLLBACK TO atomic") // fails after OR ROLLBACK
		_ = d.exec(s.conn, "RELEASE atomic")
	}
	r.open[s.conn] = r.inTransaction(s.conn)
	return o, before && !r.open[s.conn]
}

// inTransaction reports whether a connection of the reference has an open transaction.
func (r *runner) inTransaction(conn int) bool {
	if r.reference.exec(conn, "BEGIN") != nil {
		return true
	}
	_ = r.reference.exec(conn, "ROLLBACK")
	return false
}

// endRolledBack ends transactions that a statement has rolled back. The reference's
// connections are out of them; in hiqlite each statement fails until the transaction is
// ended.
func (r *runner) endRolledBack(s step) *difference {
	r.counted[s.conn] = counted{changesDiffer: true, idDiffers: true}
	for _, d := range r.others {
		if err := d.exec(s.conn, "SELECT 1"); err == nil {
			return &difference{"a transaction that was rolled back goes on", "", s.String(), d, "no error", ""}
		}
		if err := d.exec(s.conn, "ROLLBACK"); err != nil {
			return &difference{"a transaction that was rolled back cannot be ended", "", s.String(), d, err.Error(), ""}
		}
	}
	return nil
}

// insertsBySQLite matches statements whose internal inserts, into tables of a module or
// of VACUUM, SQLite counts as the program's.
var insertsBySQLite = regexp.MustCompile(`VACUUM|CREATE VIRTUAL|\b(f[1-5]|r[12]|p1)\b`)

// compareCounters compares changes() and last_insert_rowid() of the connections. Once
// they may differ, they are compared again after the next statement that sets them.
func (r *runner) compareCounters(s step, theirs outcome) *difference {
	c := &r.counted[s.conn]
	ran := s.how != keepPrepared && theirs.result != nothingKept
	one := len(parts(s.text)) == 1
	switch {
	case theirs.err != "" || !one:
		c.changesDiffer, c.idDiffers = true, true
	case controls(s.text) || r.open[s.conn] && !changesRows(s.text) && !strings.HasPrefix(s.text, "SELECT"):
		c.changesDiffer, c.idDiffers = true, true // modules write what they have buffered
	case insertsBySQLite.MatchString(s.text):
		c.changesDiffer, c.idDiffers = c.changesDiffer || r.open[s.conn], true
	case strings.HasPrefix(s.text, "DROP TABLE"):
		c.changesDiffer = true // SQLite counts the rows that it deletes for foreign keys
	case strings.Contains(s.text, "sqlite_stat"):
		c.changesDiffer = true // it is a change of the schema, which does not count
		return nil
	case ran && one && changesRows(s.text):
		c.changesDiffer = false
	}
	if !ran || !one || !changesRows(s.text) {
		return nil
	}
	for i, what := range []string{"changes()", "last_insert_rowid()"} {
		may := []*bool{&c.changesDiffer, &c.idDiffers}[i]
		query := step{conn: s.conn, text: "SELECT " + what}
		theirs := r.reference.run(query)
		equal := true
		for _, d := range r.others {
			ours := d.run(query)
			if ours.String() == theirs.String() {
				continue
			}
			if equal = false; !*may {
				return &difference{what, "", s.String(), d, ours.String(), theirs.String()}
			}
		}
		*may = *may && !equal
	}
	return nil
}

// differ returns the kind of difference between two outcomes, or "".
func differ(s step, c counted, ours, theirs outcome) string {
	switch {
	case ours.err == "" && theirs.err == "":
	case ours.err == theirs.err:
		return ""
	case accepted(s, ours, theirs):
		return ""
	case theirs.err == "":
		return "only hiqlite fails"
	case ours.err == "":
		return "hiqlite does not fail"
	default:
		return "another error"
	}
	switch {
	case accepted(s, ours, theirs):
		return ""
	case ours.columns != theirs.columns, ours.lengths != theirs.lengths && ours.sameFirstRow(theirs):
		return "other columns"
	case !sameRows(s, ours.rows, theirs.rows):
		return "other rows"
	case ours.result != theirs.result:
		if gaveNone := strings.HasSuffix(ours.result, ", id 0") && strings.HasSuffix(theirs.result, ", "+c.idBefore); (c.idDiffers || gaveNone || strings.Contains(s.text, "DO UPDATE") || len(parts(s.text)) > 1) && withoutID(ours.result) == withoutID(theirs.result) {
			return ""
		}
		return "another result"
	}
	return ""
}

// codeOf returns the code in the text of an error.
func codeOf(err string) string {
	_, code, _ := strings.Cut(err, "[code ")
	return code
}

func withoutID(result string) string {
	before, _, _ := strings.Cut(result, ", id ")
	return before
}

// sameRows compares rows, in their order if the statement has an ORDER BY.
func sameRows(s step, ours, theirs []string) bool {
	if slices.Equal(ours, theirs) {
		return true
	}
	if strings.Contains(s.text, "ORDER BY") && !strings.Contains(s.text, "COLLATE") && !strings.Contains(s.text, "*") {
		return false
	}
	a, b := slices.Clone(ours), slices.Clone(theirs)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// compareAll compares all rows of all databases, and the nodes of each cluster.
func (r *runner) compareAll(when string) *difference {
	var queries []string
	theirs := r.reference.dump(&queries)
	for _, d := range r.others {
		ours := d.dump(&queries)
		for i := range queries {
			if ours[i] != theirs[i] && !(strings.Contains(ours[i], mismatch) && strings.Contains(theirs[i], mismatch)) {
				return &difference{"other rows are kept" + when, codeOf(ours[i]) + "/" + codeOf(theirs[i]), queries[i], d, ours[i], theirs[i]}
			}
		}
		if what := d.unequal(); what != "" {
			d.spoiled = true
			return &difference{"the nodes differ" + when, "", what, d, "", ""}
		}
	}
	return nil
}

const schemaDump = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE '%hiqlite%' AND name <> 'sqlite_sequence' ORDER BY type, name"

// mismatch is part of an error of which SQLite reports one of several, in the order of a
// hash table.
const mismatch = "foreign key mismatch"

// dump returns the results of queries. If there are none yet, it sets them to
// dumpQueries.
func (d *database) dump(queries *[]string) (all []string) {
	if *queries == nil {
		*queries = d.queries()
	}
	ctx, cancel := stepContext()
	defer cancel()
	c, err := d.at(0).Conn(ctx) // a new connection, since virtual tables of others may have outdated caches
	if err != nil {
		d.t.Fatalf("%s: %v", d.name, err)
	}
	defer c.Close()
	for _, text := range *queries {
		o := ofConn(c, text).see(ctx, step{})
		if strings.Contains(text, "FROM sqlite_sequence") && o.err != "" {
			o = outcome{} // the first AUTOINCREMENT creates it, and it stays
		}
		if !strings.Contains(text, "ORDER BY") {
			slices.Sort(o.rows)
		}
		all = append(all, o.err+strings.Join(o.rows, "\n"))
	}
	return all
}

// dumpQueries returns queries whose results together are the whole content.
func (d *database) queries() []string {
	queries := []string{schemaDump, "SELECT * FROM sqlite_sequence ORDER BY name", "PRAGMA user_version", "PRAGMA application_id", "PRAGMA foreign_key_check", "PRAGMA integrity_check"}
	ctx, cancel := stepContext()
	defer cancel()
	c, err := d.at(0).Conn(ctx)
	if err != nil {
		d.t.Fatalf("%s: %v", d.name, err)
	}
	defer c.Close()
	tables, err := queryAll(ctx, c, "SELECT name, type, wr, ncol FROM pragma_table_list WHERE schema = 'main' AND type <> 'view' AND name NOT LIKE '%hiqlite%' AND name NOT IN ('sqlite_schema', 'sqlite_sequence') ORDER BY name")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, row := range tables {
		if shadow := text(row[0]); strings.HasPrefix(shadow, "f") && (strings.HasSuffix(shadow, "_data") || strings.HasSuffix(shadow, "_idx") || strings.HasSuffix(shadow, "_docsize")) {
			continue // savepoints begin new segments, and replicas do not execute all savepoints
		}
		name, without := text(row[0]), row[2] == int64(1)
		query := "SELECT rowid, * FROM main." + quote(name) + " ORDER BY rowid"
		if strings.HasPrefix(name, "sqlite_stat") {
			query = "SELECT * FROM " + name + " WHERE tbl NOT LIKE 'f_\\__%' ESCAPE '\\' ORDER BY 1, 2, 3" // in the order of a hash table
		} else if without || strings.HasPrefix(name, "fv") {
			query = "SELECT * FROM main." + quote(name)
		}
		queries = append(queries, query)
	}
	return queries
}
