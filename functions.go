package hiqlite

import (
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A Function is an SQL function that is written in Go: a scalar function, an aggregate
// or a window function. Config.Functions gives it to a node, and
// driver.RegisterFunction to the nodes that sql.Open starts.
//
// A Deterministic function may be used everywhere: in writes, and in the indexes,
// CHECKs, generated columns, views and triggers of the schema. All nodes execute every
// write, so all of them need the function. A node without the function, or with another
// Version of it, stops with ErrFunctionMissing when it has to apply such a write, and
// does not start if the schema needs the function. Once its program has the function,
// the node continues where it stopped. So deploy a function to all nodes before you use
// it. To change what a function computes without stopping nodes, give the changed
// function a new name.
//
// A function that is not Deterministic may only be used in reads, also in those of
// transactions.
//
// The Go functions are called from several goroutines at a time, and while writes are
// applied. So they must be fast and must not use the database. A panic becomes the error
// of the SQL statement. Arguments are nil, int64, float64, string or []byte, and the
// function may keep them. A result may also be a bool or a time.Time, which becomes text
// in UTC.
type Function struct {
	// Name is the name in SQL, in upper or lower case. It must not be the name of one
	// of SQLite's own functions.
	Name string
	// NArgs is the number of arguments, or -1 for any number. There may be several
	// functions with the same name and different numbers of arguments.
	NArgs int
	// Version is the version of what the function computes. Raise it with every change.
	Version uint64
	// Deterministic says that the function computes the same result from the
	// same arguments, on every machine, at all times.
	Deterministic bool
	// Scalar is called for each row. Exactly one of Scalar and Aggregate is set.
	Scalar func(args []driver.Value) (driver.Value, error)
	// Aggregate returns a new state for each group of rows.
	Aggregate func() Aggregate
	// Window says that Aggregate returns a WindowAggregate, so that the function can be
	// used with OVER.
	Window bool
}

// An Aggregate is the state of an aggregate function for one group of rows. One
// goroutine uses it at a time.
type Aggregate interface {
	// Step adds a row.
	Step(args []driver.Value) error
	// Final returns the result. It is called once, after all other methods.
	Final() (driver.Value, error)
}

// A WindowAggregate is an Aggregate over a window of rows that moves.
type WindowAggregate interface {
	Aggregate
	// Inverse removes the oldest of the rows that Step has added.
	Inverse(args []driver.Value) error
	// Value returns the result for the rows that are in the window now.
	Value() (driver.Value, error)
}

// A Collation is an order of texts, for COLLATE. The rules for a Deterministic Function
// apply to it too.
type Collation struct {
	Name string
	// Version is the version of the order. Raise it with every change.
	Version uint64
	// Compare returns a negative number if a comes before b, 0 if they are
	// equal, and a positive number otherwise. The order must be total.
	Compare func(a, b string) int
}

// functions returns the functions and collations of the Config in the engine's types.
func (c *Config) functions() (*sqlite.Functions, error) {
	if len(c.Functions) == 0 && len(c.Collations) == 0 {
		return nil, nil
	}
	functions := make([]sqlite.Function, len(c.Functions))
	for i, f := range c.Functions {
		functions[i] = sqlite.Function{Name: f.Name, Args: f.NArgs, Version: f.Version, Deterministic: f.Deterministic, Window: f.Window}
		if f.Scalar != nil {
			functions[i].Scalar = func(args []wire.Value) (wire.Value, error) { return functionResult(f.Scalar(functionArguments(args))) }
		}
		if f.Aggregate != nil {
			functions[i].Aggregate = func() sqlite.Aggregate { return newAggregate(f.Aggregate(), f.Window) }
		}
	}
	collations := make([]sqlite.Collation, len(c.Collations))
	for i, order := range c.Collations {
		collations[i] = sqlite.Collation{Name: order.Name, Version: order.Version, Compare: order.Compare}
	}
	return sqlite.NewFunctions(functions, collations)
}

func newAggregate(a Aggregate, window bool) sqlite.Aggregate {
	if !window {
		return &aggregate{a}
	}
	w, ok := a.(WindowAggregate)
	if !ok {
		panic(fmt.Sprintf("the Function says Window, but its Aggregate returned %T, which is not a hiqlite.WindowAggregate", a))
	}
	return &windowAggregate{aggregate{w}, w}
}

// aggregate adapts an Aggregate to the engine.
type aggregate struct{ Aggregate }

func (a *aggregate) Step(args []wire.Value) error { return a.Aggregate.Step(functionArguments(args)) }
func (a *aggregate) Final() (wire.Value, error)   { return functionResult(a.Aggregate.Final()) }

// windowAggregate adapts a WindowAggregate to the engine.
type windowAggregate struct {
	aggregate
	window WindowAggregate
}

func (w *windowAggregate) Inverse(args []wire.Value) error {
	return w.window.Inverse(functionArguments(args))
}
func (w *windowAggregate) Value() (wire.Value, error) { return functionResult(w.window.Value()) }

func functionArguments(args []wire.Value) []driver.Value {
	out := make([]driver.Value, len(args))
	for i, v := range args {
		switch v.Kind {
		case wire.Integer:
			out[i] = v.Int()
		case wire.Real:
			out[i] = v.Float()
		case wire.Text:
			out[i] = string(v.Data)
		case wire.Blob:
			out[i] = v.Data
		}
	}
	return out
}

func functionResult(v driver.Value, err error) (wire.Value, error) {
	if err != nil {
		return wire.Value{}, err
	}
	if t, ok := v.(time.Time); ok {
		v = t.UTC().Format(timeFormats["sqlite"])
	}
	a, err := new(ConnConfig).argument(driver.NamedValue{Value: v})
	if err != nil {
		return wire.Value{}, fmt.Errorf("the function returned a %T: return an integer, float64, bool, string, []byte, time.Time or nil", v)
	}
	return a.Value, nil
}
