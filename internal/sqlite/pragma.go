package sqlite

import (
	"strconv"
	"strings"

	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// A PragmaKind says what happens when a program sets a PRAGMA.
type PragmaKind int

const (
	// PragmaAnswered only reads, from this node's replica. An argument either says
	// what to read, or is ignored, as SQLite ignores it.
	PragmaAnswered PragmaKind = iota
	// PragmaReplicated is a write: all replicas execute it.
	PragmaReplicated
	// PragmaSetting is a setting of the connection that changes what statements
	// mean. Each operation contains the settings, see wire.Settings.
	PragmaSetting
	// PragmaTransaction is set for the rest of the transaction (defer_foreign_keys).
	PragmaTransaction
	// PragmaIgnored is accepted and has no effect, because the node decides.
	PragmaIgnored
	// PragmaRefused cannot be set to another value than it has.
	PragmaRefused
)

// A Pragma is a row of the table Pragmas. A row sets only the fields that apply to its
// PRAGMA.
type Pragma struct {
	Kind PragmaKind

	// Reading it:

	argument  bool   // of PragmaAnswered: the argument says what to read
	shared    bool   // all replicas answer the same, so a write may read it as a table
	integrity bool   // it makes virtual tables check themselves, see Stmt.mustReloadModules
	WriteOnly bool   // SQLite has no way to read it
	Column    string // the name of its column, if it is not that of the PRAGMA

	// Setting it:

	setting  wire.Settings                                 // of PragmaSetting: its bit
	inverted bool                                          // the bit says that the PRAGMA is off
	flag     uint64                                        // of PragmaSetting: the flag of the engine's connection that is set while it is on
	value    func(arg string) (value int64, accepted bool) // how SQLite reads its value; nil: the value is not kept
	Echo     bool                                          // setting it returns the new value
	Answer   *wire.Rows                                    // what setting it returns
	command  bool                                          // it does something, also without an argument
	initial  string                                        // of PragmaRefused: the value that it has, if it may be set to that
	refusal  string                                        // of PragmaRefused: the reason
}

// Value returns the value that SQLite would take from the argument of a PRAGMA, and
// whether the connection keeps the value, to return it when the PRAGMA is read.
func (p Pragma) Value(arg string) (value int64, kept bool) {
	if p.value == nil {
		return 0, false
	}
	return p.value(arg)
}

// Set returns s after a PragmaSetting was set to arg.
func (p Pragma) Set(s wire.Settings, arg string) wire.Settings {
	if Truth(arg) != p.inverted {
		return s | p.setting
	}
	return s &^ p.setting
}

// IsOn reports whether a PragmaSetting is on in s.
func (p Pragma) IsOn(s wire.Settings) bool { return (s&p.setting != 0) != p.inverted }

// kindOfUse returns what happens when PRAGMA name is used once, with the argument arg if
// hasArg is set.
func kindOfUse(name, arg string, hasArg bool) PragmaKind {
	p := Pragmas[name] // of an unknown PRAGMA, which SQLite ignores, a Pragma of kind PragmaAnswered
	switch {
	case !hasArg && p.command:
		return PragmaIgnored
	case !hasArg || p.argument:
		return PragmaAnswered
	case p.Kind == PragmaAnswered:
		return PragmaIgnored
	case p.Kind == PragmaRefused && sameValue(p.initial, arg):
		return PragmaIgnored
	}
	return p.Kind
}

// sameValue reports whether arg means the same as initial: on, yes, true and 1 do.
func sameValue(initial, arg string) bool {
	return initial != "" && (strings.EqualFold(initial, arg) || len(initial) == 1 && Truth(initial) == Truth(arg))
}

// Truth reads the argument of a boolean PRAGMA as SQLite does.
func Truth(arg string) bool {
	switch lower(arg) {
	case "on", "yes", "true":
		return true
	case "", "off", "no", "false":
		return false
	}
	for _, c := range arg {
		if c >= '1' && c <= '9' {
			return true
		}
		if c != '0' && c != '+' && c != '-' {
			return false
		}
	}
	return false
}

// These functions read the value of a PRAGMA as SQLite does.

func boolean(arg string) (int64, bool) {
	if Truth(arg) {
		return 1, true
	}
	return 0, true
}

// between accepts only numbers of the range.
func between(least, most int64) func(string) (int64, bool) {
	return func(arg string) (int64, bool) {
		n, err := strconv.ParseInt(arg, 0, 64)
		return n, err == nil && n >= least && n <= most
	}
}

// atLeast takes least for a smaller number.
func atLeast(least int64) func(string) (int64, bool) {
	return func(arg string) (int64, bool) {
		n, err := strconv.ParseInt(arg, 0, 64)
		return max(n, least), err == nil
	}
}

// word reads one of the words, or what other reads.
func word(words map[string]int64, other func(string) (int64, bool)) func(string) (int64, bool) {
	return func(arg string) (int64, bool) {
		if n, ok := words[lower(arg)]; ok {
			return n, true
		}
		return other(arg)
	}
}

// authorizePragma decides about a PRAGMA and records it. SQLite executes many PRAGMAs
// while it prepares them, so a PRAGMA that must not be executed on this connection is
// denied, or ignored, here.
func (c *Conn) authorizePragma(name, arg string, hasArg bool, schema string) int32 {
	if c.asOwner {
		return lib.SQLITE_OK
	}
	kind := kindOfUse(name, arg, hasArg)
	if c.explaining() {
		return explainedPragma(kind)
	}
	if kind == PragmaAnswered {
		c.actions.ChecksIntegrity = c.actions.ChecksIntegrity || Pragmas[name].integrity
		if c.actions.Pragma == "" {
			c.actions.Pragma = name
		}
		return lib.SQLITE_OK
	}
	c.actions.Pragma, c.actions.PragmaArg, c.actions.PragmaSet = name, arg, hasArg
	switch {
	case kind == PragmaReplicated && schema == tempSchema:
		return c.deny("PRAGMA temp."+name+" is not supported", "it would exist on one connection of one node only; leave temp out")
	case kind == PragmaRefused:
		return c.deny("PRAGMA "+name+" cannot be set", Pragmas[name].refusal)
	case c.mode == ReadOnly || c.mode == Temp || c.classifying:
		c.pragmaForCaller = true
		return lib.SQLITE_DENY
	case kind == PragmaReplicated || kind == PragmaTransaction:
		return lib.SQLITE_OK
	}
	return lib.SQLITE_IGNORE
}
