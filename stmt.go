package hiqlite

import (
	"context"
	"database/sql/driver"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// stmt is a prepared statement: a text and its class. The statements that SQLite
// prepares belong to the SQLite connections that read and apply, so a change of the
// schema does not make a stmt invalid.
type stmt struct {
	c     *conn
	text  string
	class *sqlite.Class
}

var (
	_ driver.Stmt             = (*stmt)(nil)
	_ driver.StmtExecContext  = (*stmt)(nil)
	_ driver.StmtQueryContext = (*stmt)(nil)
)

// Close does nothing, since a stmt holds only memory.
func (s *stmt) Close() error { return nil }

// NumInput returns -1, so that database/sql leaves the check of the number of arguments
// to conn.bind, which knows named parameters.
func (s *stmt) NumInput() int { return -1 }

// ExecContext runs the statement.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if err := s.c.checkUsable(ctx); err != nil {
		return nil, err
	}
	class, err := s.c.reclassify(ctx, s.text, s.class)
	if err != nil {
		return nil, err
	}
	return s.c.exec(ctx, s.text, class, args)
}

// QueryContext runs the statement and returns rows.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.c.checkUsable(ctx); err != nil {
		return nil, err
	}
	class, err := s.c.reclassify(ctx, s.text, s.class)
	if err != nil {
		return nil, err
	}
	return s.c.query(ctx, s.text, class, args)
}

// Exec is ExecContext without a context.
func (s *stmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.ExecContext(context.Background(), named(args))
}

// Query is QueryContext without a context.
func (s *stmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.QueryContext(context.Background(), named(args))
}

// named makes arguments without names for the methods with a context.
func named(args []driver.Value) []driver.NamedValue {
	out := make([]driver.NamedValue, len(args))
	for i, v := range args {
		out[i] = driver.NamedValue{Ordinal: i + 1, Value: v}
	}
	return out
}

// result is the result of Exec.
type result struct{ lastInsertID, rowsAffected int64 }

var _ driver.Result = result{}

func (r result) LastInsertId() (int64, error) { return r.lastInsertID, nil }
func (r result) RowsAffected() (int64, error) { return r.rowsAffected, nil }

// resultOf returns the result of a statement. Where SQLite would repeat the values of an
// earlier statement, it returns 0.
func resultOf(class *sqlite.Class, s *wire.StatementResult) result {
	if class.Schema || class.Kind == sqlite.Vacuum {
		return result{}
	}
	if s.TotalChanges == 0 {
		return result{s.RowID, 0} // RowsAffected is changes(), which repeats an earlier statement's
	}
	return result{s.RowID, s.RowsAffected}
}
