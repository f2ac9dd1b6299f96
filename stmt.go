package hiqlite

import (
	"context"
	"database/sql/driver"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// stmt is a prepared statement: a text and what is known of it. What SQLite
// prepares stays with the connections that read and apply; a change of the
// schema does not touch it.
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

// Close does nothing: nothing is held.
func (s *stmt) Close() error { return nil }

// NumInput leaves the check to the driver, which knows named parameters.
func (s *stmt) NumInput() int { return -1 }

// ExecContext runs the statement.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if err := s.c.usable(ctx); err != nil {
		return nil, err
	}
	class, err := s.c.current(ctx, s.text, s.class)
	if err != nil {
		return nil, err
	}
	return s.c.exec(ctx, s.text, class, args)
}

// QueryContext runs the statement and returns rows.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.c.usable(ctx); err != nil {
		return nil, err
	}
	class, err := s.c.current(ctx, s.text, s.class)
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

func named(args []driver.Value) []driver.NamedValue {
	out := make([]driver.NamedValue, len(args))
	for i, v := range args {
		out[i] = driver.NamedValue{Ordinal: i + 1, Value: v}
	}
	return out
}

// result is what an Exec answers.
type result struct{ lastInsertID, rowsAffected int64 }

var _ driver.Result = result{}

func (r result) LastInsertId() (int64, error) { return r.lastInsertID, nil }
func (r result) RowsAffected() (int64, error) { return r.rowsAffected, nil }

// resultOf leaves out what an earlier statement did, where SQLite would repeat it.
func resultOf(class *sqlite.Class, s *wire.StatementResult) result {
	if class.Schema || class.Kind == sqlite.Vacuum {
		return result{}
	}
	if s.TotalChanges == 0 {
		return result{s.RowID, 0} // changes() is that of an earlier one
	}
	return result{s.RowID, s.RowsAffected}
}
