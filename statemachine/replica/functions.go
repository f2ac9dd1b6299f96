package replica

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// ErrFunctionMissing says that the log or the schema needs a function or a collation
// that this program does not have.
var ErrFunctionMissing = errors.New("hiqlite: this program lacks a function that the database needs")

// An operation names the functions that its statements may use. Those that the schema
// uses, in an index or a CHECK, are replicated state (State.Functions). A replica whose
// program lacks one of them would compute other rows, so it stops before that.

func missingFunction(f wire.Function) error {
	return fmt.Errorf("%w: %v: start it with a program whose Config.Functions or Config.Collations has it; nothing is lost: the node then continues where it stopped", ErrFunctionMissing, f)
}

// checkFunctions reports a function that an operation or the schema needs and
// this program lacks.
func (r *SQL) checkFunctions(needed []wire.Function) error {
	if f, missing := r.cfg.Functions.Missing(needed); missing {
		return missingFunction(f)
	}
	return nil
}

// noteFunctions updates the functions that the schema needs, after op has changed the
// schema.
func (r *SQL) noteFunctions(op *wire.Operation) error {
	if len(op.Functions) == 0 && len(r.functions) == 0 {
		return nil
	}
	texts, err := r.conn.TextsAsOwner("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
	if err != nil {
		return err
	}
	candidates := slices.Clone(r.functions)
	for _, f := range op.Functions {
		if !slices.Contains(candidates, f) {
			candidates = append(candidates, wire.Function{Name: string([]byte(f.Name)), Version: f.Version, Collation: f.Collation}) // the name points into the entry
		}
	}
	r.functions = sqlite.Mentioned(candidates, texts)
	slices.SortFunc(r.functions, wire.Function.Compare)
	return nil
}
