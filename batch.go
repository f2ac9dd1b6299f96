package hiqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A Statement is an SQL text with its arguments: the values that database/sql takes,
// including sql.Named.
type Statement struct {
	SQL  string
	Args []any
}

// Batch applies statements as one atomic write, in their order: all of them or, if
// one fails, none. It takes one round trip in the cluster and is the fastest way to
// write many rows. It returns one result for each statement.
//
// The error of a failed statement is an *Error whose Statement field is the
// statement's index in the batch. ErrTooLarge says that the batch is larger than
// about 8 MiB and has to be split. db must be a database of this driver. A statement
// that only reads is an error.
func Batch(ctx context.Context, db *sql.DB, stmts ...Statement) ([]sql.Result, error) {
	if len(stmts) == 0 {
		return nil, nil
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var results []sql.Result
	err = conn.Raw(func(raw any) error {
		c, err := unwrapConn(raw)
		if err != nil {
			return err
		}
		converted, err := driverStatements(stmts)
		if err != nil {
			return err
		}
		all, err := c.Batch(ctx, converted)
		for _, r := range all {
			results = append(results, r)
		}
		return err
	})
	return results, err
}

// driverStatements converts the arguments of statements.
func driverStatements(stmts []Statement) ([]connapi.Statement, error) {
	out := make([]connapi.Statement, len(stmts))
	for i := range stmts {
		args, err := driverValues(stmts[i].Args)
		if err != nil {
			return nil, withStatementIndex(i, err)
		}
		out[i] = connapi.Statement{SQL: stmts[i].SQL, Args: args}
	}
	return out, nil
}

// A clientConn is a connection of this driver: a *conn, or a *remoteConn.
type clientConn interface {
	connapi.Conn
	// Client returns what From returns for the connection.
	Client() Client
	// connectorWith returns a connector to the same database.
	connectorWith(change func(*ConnConfig)) driver.Connector
}

// unwrapConn returns the connection of this driver behind one of database/sql.
func unwrapConn(raw any) (clientConn, error) {
	if w, ok := raw.(interface{ Raw() driver.Conn }); ok {
		raw = w.Raw() // a wrapper, such as that of XSAM/otelsql
	}
	c, ok := raw.(clientConn)
	if !ok {
		return nil, fmt.Errorf("hiqlite: not a database of this driver (its connections are %T): open it with sql.Open(\"hiqlite\", ...)", raw)
	}
	return c, nil
}

// Batch is the function Batch on a connection.
func (c *conn) Batch(ctx context.Context, stmts []connapi.Statement) ([]driver.Result, error) {
	if err := c.checkUsable(ctx); err != nil {
		return nil, err
	}
	if c.temp != nil {
		return c.batchTemp(ctx, stmts)
	}
	op := &wire.Operation{
		Settings:     c.settings,
		LastInsertID: c.lastInsertID,
		Changes:      c.changes,
		Statements:   make([]wire.Statement, len(stmts)),
	}
	classes := make([]*sqlite.Class, len(stmts))
	schemaChanged := false // by an earlier statement of the batch
	for i := range stmts {
		if i > 0 && stmts[i].SQL == stmts[i-1].SQL {
			classes[i] = classes[i-1]
		} else if class, err := c.batchClass(ctx, stmts[i].SQL, schemaChanged); err != nil {
			return nil, withStatementIndex(i, err)
		} else {
			classes[i] = class
			schemaChanged = schemaChanged || class.Schema || class.Script
		}
		class := classes[i]
		if class.Temp || class == unknownClass && sqlite.MentionsTemp(stmts[i].SQL) {
			return c.batchTemp(ctx, stmts)
		}
		values, err := c.bind(class, stmts[i].Args)
		if err != nil {
			return nil, withStatementIndex(i, err)
		}
		op.Statements[i] = wire.Statement{SQL: stmts[i].SQL, Args: values}
	}
	r, err := c.propose(ctx, op, classes...)
	if err != nil {
		return nil, err
	}
	results := make([]driver.Result, len(r.Statements))
	for i := range r.Statements {
		results[i] = resultOf(classes[i], &r.Statements[i])
	}
	return results, nil
}

// unknownClass is the class of a statement that cannot be classified before the batch is
// applied, because it may use what an earlier statement of the batch creates. The
// replicas find out when they apply it.
var unknownClass = &sqlite.Class{Kind: sqlite.Write, Script: true}

// batchClass classifies a statement of a batch. schemaChanged says that an earlier
// statement of the batch changes the schema.
func (c *conn) batchClass(ctx context.Context, text string, schemaChanged bool) (class *sqlite.Class, err error) {
	if c.tx != nil {
		class, err = c.classify(ctx, text)
	} else if schemaChanged {
		if class, err = c.node.ClassifyNow(text, c.settings); node.MayBeStale(err) {
			return unknownClass, nil
		}
		err = readError(ctx, err)
	} else {
		class, err = c.node.Classify(ctx, text, c.settings)
		err = readError(ctx, err)
	}
	if err != nil {
		return nil, err
	}
	if class.Kind != sqlite.Write {
		return nil, misuse("run it outside of the batch", "a batch consists of writes, and this statement is not one")
	}
	return class, nil
}

// withStatementIndex adds to an error which statement of a batch it is about.
func withStatementIndex(i int, err error) error {
	if e, ok := err.(*Error); ok {
		e.Statement = i
		return e
	}
	return fmt.Errorf("hiqlite: statement %d of the batch: %w", i, err)
}

// driverValues converts arguments in the way that database/sql does.
func driverValues(args []any) ([]driver.NamedValue, error) {
	out := make([]driver.NamedValue, len(args))
	for i, arg := range args {
		out[i].Ordinal = i + 1
		if n, ok := arg.(sql.NamedArg); ok {
			out[i].Name, arg = n.Name, n.Value
		}
		v, err := driver.DefaultParameterConverter.ConvertValue(arg)
		if err != nil {
			return nil, misuse("", "converting argument %d: %v", i+1, err)
		}
		out[i].Value = v
	}
	return out, nil
}
