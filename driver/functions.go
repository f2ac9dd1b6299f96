package driver

import (
	"slices"
	"sync"

	"github.com/hiqlite/hiqlite"
)

// registered are the functions of nodes that this package starts.
var registered struct {
	mu         sync.Mutex
	functions  []hiqlite.Function
	collations []hiqlite.Collation
}

// RegisterFunction adds a function to the SQL of all nodes that [sql.Open]
// starts after it. Call it before, in an init function for example. A fault of
// the function is reported by sql.Open.
func RegisterFunction(f hiqlite.Function) {
	registered.mu.Lock()
	defer registered.mu.Unlock()
	registered.functions = append(registered.functions, f)
}

// RegisterCollation adds a collation to the SQL of all nodes that [sql.Open]
// starts after it, as RegisterFunction does.
func RegisterCollation(c hiqlite.Collation) {
	registered.mu.Lock()
	defer registered.mu.Unlock()
	registered.collations = append(registered.collations, c)
}

// addRegistered gives a node what was registered.
func addRegistered(cfg *hiqlite.Config) {
	registered.mu.Lock()
	defer registered.mu.Unlock()
	cfg.Functions, cfg.Collations = slices.Clone(registered.functions), slices.Clone(registered.collations)
}
