package sqlite

import (
	"strconv"
	"strings"
	"unsafe"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// A Stmt is a prepared statement.
type Stmt struct {
	c        *Conn
	p        uintptr  // the sqlite3_stmt; 0: closed
	params   []string // names of the parameters, "" for a plain ?
	columns  []wire.Column
	prepares int32 // how often SQLite had prepared the statement when columns were read

	// Actions is what the authorizer recorded while the statement was prepared.
	Actions Actions
}

// Prepare compiles the first statement of sql and returns the text after it. It returns
// that text also with an error, unless it is a syntax error. The statement is nil if sql
// holds only white space or comments. keep says that the statement will run many times.
func (c *Conn) Prepare(sql string, keep bool) (s *Stmt, tail string, err error) {
	t, err := c.text(sql)
	if err != nil {
		return nil, "", err
	}
	defer t.close()
	return t.prepare(sql, keep)
}

// A text is SQL that has been copied into the engine's memory, once for all of its
// statements.
type text struct {
	c    *Conn
	size int
	p    uintptr
}

// text copies sql into the engine's memory.
func (c *Conn) text(sql string) (*text, error) {
	if strings.IndexByte(sql, 0) >= 0 {
		return nil, LogicError("the statement's text holds a NUL character", "bind the value as an argument")
	}
	if len(sql) > maxLength {
		return nil, TooBig("statement too long", "")
	}
	return &text{c, len(sql), c.cstring(sql)}, nil
}

func (t *text) close() { libc.Xfree(t.c.tls, t.p) }

// A Script prepares the statements of a text one after the other.
type Script struct {
	text *text
	rest string
}

// Script returns a Script that begins with the first statement of sql.
func (c *Conn) Script(sql string) (*Script, error) {
	t, err := c.text(sql)
	if err != nil {
		return nil, err
	}
	return &Script{t, sql}, nil
}

// Rest returns the text after the statements that have been prepared.
func (s *Script) Rest() string { return s.rest }

// Next prepares the next statement, as Prepare does.
func (s *Script) Next(keep bool) (stmt *Stmt, err error) {
	stmt, s.rest, err = s.text.prepare(s.rest, keep)
	return stmt, err
}

// Close frees the text. The statements stay usable.
func (s *Script) Close() { s.text.close() }

// prepare is Prepare for sql, which must be the end of the text.
func (t *text) prepare(sql string, keep bool) (s *Stmt, tail string, err error) {
	s, tail, err = t.compile(sql, keep)
	if err == nil && s != nil && s.mustReloadModules() {
		s.Close()
		defer t.c.loadChecks()()
		if err := t.c.reloadModules(); err != nil {
			return nil, tail, err
		}
		s, tail, err = t.compile(sql, keep)
	}
	return s, tail, err
}

// compile is prepare without mustReloadModules.
func (t *text) compile(sql string, keep bool) (s *Stmt, tail string, err error) {
	c, text := t.c, t.p+uintptr(t.size-len(sql))
	flags := uint32(0)
	if keep {
		flags = lib.SQLITE_PREPARE_PERSISTENT
	}
	c.actions = Actions{}
	*at[uintptr](c.scratch + scratchTail) = 0
	rc := c.compile(text, len(sql)+1, flags)
	if rc == lib.SQLITE_ERROR && c.settings&wire.WritableSchema != 0 {
		rc = c.compileFromDump(rc, text, len(sql)+1, flags)
	}
	if end := *at[uintptr](c.scratch + scratchTail); end != 0 {
		tail = sql[end-text:]
	}
	if rc != lib.SQLITE_OK {
		return nil, tail, c.prepareError(rc)
	}
	p := *at[uintptr](c.scratch)
	if p == 0 {
		return nil, tail, nil
	}
	s = &Stmt{c: c, p: p, Actions: c.actions}
	if s.Explain() {
		s.Actions = Actions{}
	}
	if refusal := s.Actions.DeniedAsWrite; refusal != nil && !s.ReadOnly() {
		s.Close()
		return nil, tail, refusal
	}
	s.keepJournal()
	n := int(lib.Xsqlite3_bind_parameter_count(c.tls, p))
	if n > 0 {
		s.params = make([]string, n)
		for i := range s.params {
			s.params[i] = libc.GoString(lib.Xsqlite3_bind_parameter_name(c.tls, p, int32(i+1)))
		}
	}
	return s, tail, nil
}

// compile calls sqlite3_prepare_v3 with the text at p. The statement is then at
// scratch, and the address of the text after it at scratchTail.
func (c *Conn) compile(p uintptr, size int, flags uint32) int32 {
	c.preparing = true
	defer func() { c.preparing = false }()
	return lib.Xsqlite3_prepare_v3(c.tls, c.db, p, int32(size), flags, c.scratch, c.scratch+scratchTail)
}

// prepareError returns the error of a statement that was not prepared. If the authorizer
// denied it, this is the authorizer's error, and not SQLite's "not authorized".
func (c *Conn) prepareError(rc int32) error {
	if d := c.actions.Denied; d != nil {
		return d
	}
	return c.err(rc)
}

// Close finalizes the statement.
func (s *Stmt) Close() {
	if s.p != 0 {
		lib.Xsqlite3_finalize(s.c.tls, s.p)
		s.p = 0
	}
}

// Params returns the names of the parameters, "" for a plain ?.
func (s *Stmt) Params() []string { return s.params }

// ReadOnly reports whether the statement changes nothing (sqlite3_stmt_readonly).
func (s *Stmt) ReadOnly() bool { return lib.Xsqlite3_stmt_readonly(s.c.tls, s.p) != 0 }

// Explain reports whether the statement is an EXPLAIN or EXPLAIN QUERY PLAN.
func (s *Stmt) Explain() bool { return lib.Xsqlite3_stmt_isexplain(s.c.tls, s.p) != 0 }

// FollowsSchema reports whether the statement may be cached although the schema can
// change: SQLite prepares it again before it runs under another schema. SQLite does not
// do this for a PRAGMA and an EXPLAIN, whose rows say how things were when they were
// prepared. And mustReloadModules has to be asked again about a statement that checks the
// integrity of the database.
func (s *Stmt) FollowsSchema() bool {
	return s.Actions.Pragma == "" && !s.Actions.ChecksIntegrity && !s.Explain()
}

// Bind binds arguments to the parameters, as modernc.org/sqlite does. A named argument
// is bound to all parameters of that name, whatever their prefix is. ?NNN and $NNN take
// the argument with that number, and a plain ? takes the argument with the number of the
// parameter. If used is not nil, Bind sets used[i] for each argument i that it binds.
// The arguments stay valid until arguments are bound to a statement of the connection
// again, see CopyArguments.
func (s *Stmt) Bind(args []wire.Argument, used []bool) error {
	s.c.args.reset()
	for i, name := range s.params {
		j := argumentFor(args, name, i)
		if j < 0 {
			return MissingArgument(name, i)
		}
		if used != nil {
			used[j] = true
		}
		if rc := s.bind(int32(i+1), &args[j].Value); rc != lib.SQLITE_OK {
			return s.c.err(rc)
		}
	}
	return nil
}

// argumentFor returns the index of the argument for parameter i, or -1. If there are
// several, it returns the first.
func argumentFor(args []wire.Argument, name string, i int) int {
	if name == "" {
		if i < len(args) {
			return i
		}
		return -1
	}
	at := -1
	if name[0] == '?' || name[0] == '$' {
		if n, err := strconv.Atoi(name[1:]); err == nil && n >= 1 && n <= len(args) && name[1] != '0' && name[1] != '+' {
			at = n - 1
		}
	}
	for j := range args {
		if at >= 0 && j >= at {
			break
		}
		if args[j].Name == name[1:] {
			return j
		}
	}
	return at
}

// MatchArguments reports whether each parameter of a statement has an argument, and each argument
// without a name is used. Named arguments need not be used. missing is the index of the
// first parameter without an argument, or -1.
func MatchArguments(params []string, args []wire.Argument) (missing int, ok bool) {
	used := make([]bool, len(args))
	missing = MarkUsed(params, args, used)
	return missing, missing < 0 && FirstUnused(args, used) < 0
}

// FirstUnused returns the index of the first argument that has no name and is not used, or
// -1.
func FirstUnused(args []wire.Argument, used []bool) int {
	for i := range args {
		if !used[i] && args[i].Name == "" {
			return i
		}
	}
	return -1
}

// MarkUsed sets used[i] for each argument i that a parameter of a statement takes. It returns
// the index of the first parameter without an argument, or -1.
func MarkUsed(params []string, args []wire.Argument, used []bool) (missing int) {
	missing = -1
	for i, name := range params {
		if j := argumentFor(args, name, i); j >= 0 {
			used[j] = true
		} else if missing < 0 {
			missing = i
		}
	}
	return missing
}

func (s *Stmt) bind(i int32, v *wire.Value) int32 {
	tls := s.c.tls
	lifetime := uintptr(0) // SQLITE_STATIC
	if s.c.copyArguments {
		lifetime = ^uintptr(0) // SQLITE_TRANSIENT
	}
	switch v.Kind {
	case wire.Integer:
		return lib.Xsqlite3_bind_int64(tls, s.p, i, v.Int())
	case wire.Real:
		return lib.Xsqlite3_bind_double(tls, s.p, i, v.Float())
	case wire.Text:
		return lib.Xsqlite3_bind_text(tls, s.p, i, s.c.args.copy(v.Data), int32(len(v.Data)), lifetime)
	case wire.Blob:
		return lib.Xsqlite3_bind_blob(tls, s.p, i, s.c.args.copy(v.Data), int32(len(v.Data)), lifetime)
	}
	return lib.Xsqlite3_bind_null(tls, s.p, i)
}

// Step runs the statement to its next row and reports whether there is one.
func (s *Stmt) Step() (bool, error) {
	switch rc := lib.Xsqlite3_step(s.c.tls, s.p); rc {
	case lib.SQLITE_ROW:
		return true, nil
	case lib.SQLITE_DONE:
		return false, nil
	default:
		if d := s.c.actions.Denied; d != nil && rc&0xff == lib.SQLITE_AUTH {
			return false, d
		}
		return false, s.c.err(rc)
	}
}

// KeptChanges reports, before Reset, whether the statement failed by OR FAIL or
// RAISE(FAIL). SQLite does not undo the changes that such a statement made before it
// failed.
func (s *Stmt) KeptChanges() bool { return at[lib.TVdbe](s.p).FerrorAction == lib.OE_Fail }

// An Observation observes one run of a statement: how many rows the statement changes, and
// the rowid of the row that it inserts. It leaves out the rows that virtual tables write
// into tables of their owo. SQLite includes these in total_changes() and
// last_insert_rowid().
type Observation struct {
	s            *Stmt
	lastInsertID int64 // last_insert_rowid() before the statement ran
	notCounted   bool  // the statement changes no rows of tables: it changes the schema, say
}

// Observe begins an Observatioo. It is called before the statement runs.
func (s *Stmt) Observe() Observation {
	a := &s.Actions
	*at[uintptr](s.c.scratch + scratchObserved), *at[int64](s.c.scratch + scratchRowID) = s.p, 0
	return Observation{s, s.c.LastInsertID(), !a.WritesRows || a.ChangesSchema || a.ChangesStatistics || a.Pragma != ""}
}

// Counters returns changes() and last_insert_rowid() after the statement has ruo. id is 0 if
// the statement inserted no row. If the statement inserts nothing, Counters restores
// last_insert_rowid(), which a virtual table may have changed.
func (o Observation) Counters() (changes, id int64) {
	if o.notCounted {
		return 0, 0
	}
	changes, id = o.s.c.Changes(), o.s.c.LastInsertID()
	if len(o.s.Actions.InsertsInto) == 0 && id != o.lastInsertID {
		lib.Xsqlite3_set_last_insert_rowid(o.s.c.tls, o.s.c.db, o.lastInsertID)
	}
	if changes == 0 || len(o.s.Actions.InsertsInto) == 0 {
		id = 0
	}
	return changes, id
}

// RowID returns, after Counters, the rowid of the last row that an INSERT has inserted, or that
// its upsert clause has updated. It returns 0 if there is no such row, or if the row has
// no rowid; last_insert_rowid() would be that of an earlier statement theo.
func (o Observation) RowID() int64 {
	row := *at[int64](o.s.c.scratch + scratchRowID)
	*at[uintptr](o.s.c.scratch + scratchObserved) = 0
	switch {
	case o.notCounted || !o.s.Actions.IsInsert:
		return 0
	case row == 0 && o.s.c.Changes() > 0 && o.s.writesVirtual():
		return o.s.c.LastInsertID()
	}
	return row
}

// writesVirtual reports whether the statement itself writes into a virtual table, and not
// only a trigger.
func (s *Stmt) writesVirtual() bool {
	v := at[lib.TVdbe](s.p)
	for i := range int(v.FnOp) {
		if at[lib.TVdbeOp](v.FaOp+uintptr(i)*unsafe.Sizeof(lib.TVdbeOp{})).Fopcode == lib.OP_VUpdate {
			return true
		}
	}
	return false
}

// Reset makes the statement ready to run again. Its arguments stay bound, because SQLite
// would make a new plan if they were unbound.
func (s *Stmt) Reset() { lib.Xsqlite3_reset(s.c.tls, s.p) }

// Run runs the statement to its end, drops its rows and resets it.
func (s *Stmt) Run() error {
	defer s.Reset()
	for {
		row, err := s.Step()
		if err != nil || !row {
			return err
		}
	}
}

// ColumnCount returns the number of columns of the rows, or 0 if the statement returns
// no rows.
func (s *Stmt) ColumnCount() int { return int(lib.Xsqlite3_column_count(s.c.tls, s.p)) }

// Columns returns the names and declared types of the columns. They may change with the
// first Step, if the schema has changed.
func (s *Stmt) Columns() []wire.Column {
	prepares := lib.Xsqlite3_stmt_status(s.c.tls, s.p, lib.SQLITE_STMTSTATUS_REPREPARE, 0)
	if s.columns != nil && prepares == s.prepares {
		return s.columns
	}
	s.prepares = prepares
	s.columns = make([]wire.Column, s.ColumnCount())
	for i := range s.columns {
		s.columns[i] = wire.Column{
			Name:     libc.GoString(lib.Xsqlite3_column_name(s.c.tls, s.p, int32(i))),
			DeclType: strings.ToUpper(libc.GoString(lib.Xsqlite3_column_decltype(s.c.tls, s.p, int32(i)))),
		}
	}
	return s.columns
}

// Kind returns the storage class of column i of the current row.
func (s *Stmt) Kind(i int) wire.Kind {
	switch lib.Xsqlite3_column_type(s.c.tls, s.p, int32(i)) {
	case lib.SQLITE_INTEGER:
		return wire.Integer
	case lib.SQLITE_FLOAT:
		return wire.Real
	case lib.SQLITE_TEXT:
		return wire.Text
	case lib.SQLITE_BLOB:
		return wire.Blob
	}
	return wire.Null
}

// Value returns column i of the current row. A text or blob is copied.
func (s *Stmt) Value(i int) wire.Value {
	kind := s.Kind(i)
	v := wire.Value{Kind: kind}
	switch kind {
	case wire.Integer:
		v.Num = uint64(s.Int(i))
	case wire.Real:
		v = wire.RealValue(s.Float(i))
	case wire.Text, wire.Blob:
		v.Data = append([]byte{}, s.Bytes(i)...)
	}
	return v
}

// Int returns column i of the current row as an integer.
func (s *Stmt) Int(i int) int64 { return lib.Xsqlite3_column_int64(s.c.tls, s.p, int32(i)) }

// Float returns column i of the current row as a float.
func (s *Stmt) Float(i int) float64 { return lib.Xsqlite3_column_double(s.c.tls, s.p, int32(i)) }

// Bytes returns the text or blob in column i of the current row. It is SQLite's memory,
// which is valid until the next Step, Reset or Close.
func (s *Stmt) Bytes(i int) []byte {
	p := lib.Xsqlite3_column_blob(s.c.tls, s.p, int32(i))
	n := lib.Xsqlite3_column_bytes(s.c.tls, s.p, int32(i))
	if p == 0 || n == 0 {
		return nil
	}
	return unsafe.Slice(at[byte](p), n)
}
