package replica

import (
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A Query is a statement that runs on a reader.
type Query struct {
	r     *Reader
	stmt  *sqlite.Stmt
	kept  *cachedStmt // the statement in the reader's cache; nil: Close closes the statement
	ended error
}

// Query binds args to the first statement of sql and returns the text after it. The
// query is nil if sql has no statement. A reader runs one query at a time.
func (r *Reader) Query(sql string, args []wire.Argument) (q *Query, tail string, err error) {
	conn, err := r.currentConn()
	if err != nil {
		return nil, "", err
	}
	q = &Query{r: r}
	if kept := r.stmts.get(sql); kept != nil {
		q.stmt, q.kept = kept.Stmt, kept
	} else {
		stmt, rest, err := r.prepare(conn, sql)
		if err != nil || stmt == nil {
			return nil, rest, err
		}
		if stmt.FollowsSchema() && sqlite.IsBlank(rest) {
			q.kept = r.stmts.keep(sql, stmt)
		} else {
			tail = rest
		}
		q.stmt = stmt
	}
	if err := q.stmt.Bind(args, nil); err != nil {
		q.Close()
		return nil, tail, err
	}
	r.since.Store(int64(time.Since(processStart)))
	r.mu.Lock()
	r.query = q
	r.mu.Unlock()
	return q, tail, nil
}

// verifySchema is a query without rows. It makes its connection load the schema again,
// if that has changed since it was last loaded.
const verifySchema = "SELECT 1 FROM main." + sqlite.MetaTable + " WHERE 0"

// prepare prepares the first statement of sql with the present schema. SQLite compares
// the schema that a connection has cached with that of the database only when a statement
// runs, and, during prepare, when a name is missing. Without verifySchema an outdated
// schema would make correct statements fail and PRAGMAs return wrong rows.
func (r *Reader) prepare(conn *sqlite.Conn, sql string) (*sqlite.Stmt, string, error) {
	if err := r.verify.Run(); err != nil {
		return nil, "", err
	}
	return conn.Prepare(sql, true)
}

// Columns returns the query's columns; before the first Next they may be those
// of an earlier schema.
func (q *Query) Columns() []wire.Column { return q.stmt.Columns() }

// Next steps to the next row, if there is one, and calls row with the statement
// to read it.
func (q *Query) Next(row func(*sqlite.Stmt)) (bool, error) {
	q.r.step.Lock()
	defer q.r.step.Unlock()
	if err := q.reason(); err != nil {
		return false, err
	}
	more, err := q.stmt.Step()
	if err != nil {
		q.uncacheStmt()
		if reason := q.reason(); reason != nil {
			err = reason
		}
		return false, err
	}
	if more && row != nil {
		row(q.stmt)
	}
	return more, nil
}

// Close ends the query. The reader may run another.
func (q *Query) Close() {
	q.r.step.Lock()
	defer q.r.step.Unlock()
	if q.stmt == nil {
		return
	}
	q.r.mu.Lock()
	if q.r.query == q {
		q.r.query = nil
		q.r.since.Store(0)
	}
	q.r.mu.Unlock()
	if q.kept == nil {
		q.stmt.Close()
	} else {
		q.stmt.Reset()
	}
	q.stmt = nil
}

// uncacheStmt removes the statement of a failed query from the cache. If it has failed
// because SQLite could not prepare it again with a newer schema, SQLite would only
// repeat that attempt.
func (q *Query) uncacheStmt() {
	if q.kept != nil {
		q.r.stmts.remove(q.kept)
		q.kept = nil
	}
}
