package driver

import (
	"slices"
	"sync"

	"github.com/hiqlite/hiqlite"
)

// registered are the functions and collations that nodes get when they are started.
var registered struct {
	mu         sync.Mutex
	functions  []hiqlite.Function
	collations []hiqlite.Collation
}

// RegisterFunction adds a function to the SQL of the nodes that [sql.Open] starts
// afterwards. Call it before sql.Open, for example in an init function. If the
// function is not valid, sql.Open returns the error.
func RegisterFunction(f hiqlite.Function) {
	registered.mu.Lock()
	defer registered.mu.Unlock()
	registered.functions = append(registered.functions, f)
}

// RegisterCollation adds a collation to the SQL of the nodes that [sql.Open] starts
// afterwards, as RegisterFunction does with functions.
func RegisterCollation(c hiqlite.Collation) {
	registered.mu.Lock()
	defer registered.mu.Unlock()
	registered.collations = append(registered.collations, c)
}

// addRegistered adds what has been registered to the configuration of a node.
func addRegistered(cfg *hiqlite.Config) {
	registered.mu.Lock()
	defer registered.mu.Unlock()
	cfg.Functions, cfg.Collations = slices.Clone(registered.functions), slices.Clone(registered.collations)
}
