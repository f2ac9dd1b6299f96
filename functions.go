package hiqlite

import (
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A Function is an SQL function in Go: a scalar function, an aggregate or a
// window function. It is given to a node by Config.Functions, and to one that
// sql.Open starts by driver.RegisterFunction.
//
// A Deterministic function may be used everywhere: in writes, and in the
// schema's indexes, CHECKs, generated columns, views and triggers. All nodes
// execute every write, so all of them need the function. A node that lacks it,
// or has another Version, does not compute something else: it stops with
// ErrFunctionMissing when it comes to such a write, or does not start if the
// schema needs it, and goes on where it stopped once its program has the
// function. So bring the function to all nodes first, and use it afterwards.
// To change what a function computes without stopping nodes, give the changed
// one a new name.
//
// Other functions may be used by reads, in transactions too.
//
// The Go functions are called from several goroutines at a time, and while
// writes are applied: they must be quick, must not use the database, and a
// panic becomes the error of the SQL statement. Arguments are nil, int64,
// float64, string or []byte, and are theirs to keep. Results may also be bool
// and time.Time, which becomes text in UTC.
type Function struct {
	// Name as SQL calls it; upper and lower case are the same. The names of
	// SQLite's own functions are refused.
	Name string
	// NArgs is the number of arguments, -1 for any number. Functions of one name
	// may differ in it.
	NArgs int
	// Version is that of what the function computes. Raise it with every change.
	Version uint64
	// Deterministic says that the function computes the same result from the
	// same arguments, on every machine, at all times.
	Deterministic bool
	// Scalar is called for each row. Exactly one of Scalar and Aggregate is set.
	Scalar func(args []driver.Value) (driver.Value, error)
	// Aggregate returns a new state for each group of rows.
	Aggregate func() Aggregate
	// Window says that what Aggregate returns is a WindowAggregate, so that the
	// function can be used with OVER.
	Window bool
}

// An Aggregate is the state of an aggregate function for one group of rows. One
// goroutine uses it at a time.
type Aggregate interface {
	// Step adds a row.
	Step(args []driver.Value) error
	// Final returns the result and is called once, last.
	Final() (driver.Value, error)
}

// A WindowAggregate is an Aggregate over a window that moves.
type WindowAggregate interface {
	Aggregate
	// Inverse takes back the oldest row that Step added.
	Inverse(args []driver.Value) error
	// Value returns the result for the rows that are in the window now.
	Value() (driver.Value, error)
}

// A Collation is an order of texts, for COLLATE. What is said of a Deterministic
// Function is true of it as well.
type Collation struct {
	Name string
	// Version is that of the order. Raise it with every change.
	Version uint64
	// Compare returns a negative number if a comes before b, 0 if they are
	// equal, a positive one otherwise. It must be a total order.
	Compare func(a, b string) int
}

// functions returns the configuration's functions for the engine.
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
		panic(fmt.Sprintf("%T is no hiqlite.WindowAggregate, though its Function says Window", a))
	}
	return &windowAggregate{aggregate{w}, w}
}

// aggregate is an Aggregate, to the engine.
type aggregate struct{ Aggregate }

func (a *aggregate) Step(args []wire.Value) error { return a.Aggregate.Step(functionArguments(args)) }
func (a *aggregate) Final() (wire.Value, error)   { return functionResult(a.Aggregate.Final()) }

// windowAggregate is a WindowAggregate, to the engine.
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
