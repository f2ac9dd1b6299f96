//go:build race || invariants

package invariants

// Enabled reports whether the checks run. It is a constant, so that the compiler
// removes checks that do not.
const Enabled = true
