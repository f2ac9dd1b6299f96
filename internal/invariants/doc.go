// Package invariants says whether the checks of internal invariants run. They run
// in builds with the race detector and in builds with the tag "invariants", that is
// in tests, and cost nothing in other builds. An invariant that does not hold is a
// bug of this project, and panics.
package invariants
