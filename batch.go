package hiqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"

	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A Statement is a SQL text and its arguments: values as database/sql takes
// them, sql.Named among them.
type Statement struct {
	SQL  string
	Args []any
}

// Batch applies statements as one atomic write, in order: all of them or, if
// one fails, none. It takes one round trip, where a transaction would take one
// for each statement, and is the fastest way to write many rows. There is one
// result for each statement.
//
// The error of a failed statement is an *Error whose Statement field is its
// place. ErrTooLarge says that the batch, about 8 MiB, has to be split. db must
// be a database of this driver; statements that only read are refused.
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
		c, err := ofDriver(raw)
		if err != nil {
			return err
		}
		results, err = c.batch(ctx, stmts)
		return err
	})
	return results, err
}

func ofDriver(raw any) (*conn, error) {
	if w, ok := raw.(interface{ Raw() driver.Conn }); ok {
		raw = w.Raw() // a connection around ours, as XSAM/otelsql makes them
	}
	c, ok := raw.(*conn)
	if !ok {
		return nil, fmt.Errorf("hiqlite: not a database of this driver (its connections are %T): open it with sql.Open(\"hiqlite\", ...)", raw)
	}
	return c, nil
}

func (c *conn) batch(ctx context.Context, stmts []Statement) ([]sql.Result, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	if c.temp != nil {
		return c.batchTemp(ctx, stmts)
	}
	op := &wire.Operation{
		Settings:     c.travels,
		LastInsertID: c.lastInsertID,
		Changes:      c.changes,
		Statements:   make([]wire.Statement, len(stmts)),
	}
	classes := make([]*sqlite.Class, len(stmts))
	made := false // a statement before it changed the schema
	for i := range stmts {
		if i > 0 && stmts[i].SQL == stmts[i-1].SQL {
			classes[i] = classes[i-1]
		} else if class, err := c.batchClass(ctx, stmts[i].SQL, made); err != nil {
			return nil, at(i, err)
		} else {
			classes[i] = class
			made = made || class.Schema || class.Script
		}
		class := classes[i]
		if class.Temp || class == unknownClass && sqlite.MentionsTemp(stmts[i].SQL) {
			return c.batchTemp(ctx, stmts)
		}
		args, err := driverValues(stmts[i].Args)
		if err != nil {
			return nil, at(i, err)
		}
		values, err := c.bind(class, args)
		if err != nil {
			return nil, at(i, err)
		}
		op.Statements[i] = wire.Statement{SQL: stmts[i].SQL, Args: values}
	}
	r, err := c.propose(ctx, op, classes...)
	if err != nil {
		return nil, err
	}
	results := make([]sql.Result, len(r.Statements))
	for i := range r.Statements {
		results[i] = resultOf(classes[i], &r.Statements[i])
	}
	return results, nil
}

// unknownClass stands for a statement that may use what one before it makes:
// only the replicas, applying it, can tell.
var unknownClass = &sqlite.Class{Kind: sqlite.Write, Script: true}

// batchClass classifies a statement of a batch; made says that one before it
// changes the schema.
func (c *conn) batchClass(ctx context.Context, text string, made bool) (class *sqlite.Class, err error) {
	if c.tx != nil {
		class, err = c.classify(ctx, text)
	} else if made {
		if class, err = c.node.ClassifyNow(text, c.travels); node.MayBeStale(err) {
			return unknownClass, nil
		}
		err = readError(ctx, err)
	} else {
		class, err = c.node.Classify(ctx, text, c.travels)
		err = readError(ctx, err)
	}
	if err != nil {
		return nil, err
	}
	if class.Kind != sqlite.Write {
		return nil, misuse("run it beside the batch", "a batch consists of writes, this statement is none")
	}
	return class, nil
}

// at tells which statement of a batch an error is about.
func at(i int, err error) error {
	if e, ok := err.(*Error); ok {
		e.Statement = i
		return e
	}
	return fmt.Errorf("hiqlite: statement %d of the batch: %w", i, err)
}

// driverValues converts arguments as database/sql does.
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
