package sqlite

import (
	"math"
	"strconv"
	"strings"

	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// A PragmaKind says what becomes of a PRAGMA.
type PragmaKind int

const (
	// PragmaRead is answered by the local replica.
	PragmaRead PragmaKind = iota
	// PragmaWrite is replicated.
	PragmaWrite
	// PragmaTravels is a setting of the connection that changes what statements
	// mean: it travels with them to all replicas.
	PragmaTravels
	// PragmaSetting is accepted, answered and without effect: the replica
	// decides these things itself.
	PragmaSetting
	// PragmaAction is answered as if done, and left to the replica.
	PragmaAction
	// PragmaRefused cannot be set to anything but its default.
	PragmaRefused
)

// A Pragma is what becomes of one, when it is set.
type Pragma struct {
	Kind PragmaKind
	Echo bool // the setter answers with the new value
	Why  string

	setting wire.Settings // of one that travels
	off     bool          // setting says that it is off
	initial string        // of one that is refused: its value

	// How a setting's value is read. None of them: the setter is forgotten, and
	// the replica answers what it has.
	boolean bool
	words   map[string]int64
	number  func(n int64) (value int64, taken bool)
}

var (
	levels = map[string]int64{"off": 0, "no": 0, "false": 0, "normal": 1, "on": 1, "yes": 1, "true": 1, "full": 2, "extra": 3}
	stores = map[string]int64{"default": 0, "file": 1, "memory": 2}

	setting = Pragma{Kind: PragmaSetting}
	truth   = Pragma{Kind: PragmaSetting, boolean: true}
	action  = Pragma{Kind: PragmaAction}
	write   = Pragma{Kind: PragmaWrite}
)

// Pragmas has those that are more than a read. docs/sql.md says the same in
// words, and has the others too.
var Pragmas = map[string]Pragma{
	"user_version": write, "application_id": write,

	"foreign_keys":              {Kind: PragmaTravels, setting: wire.ForeignKeysOff, off: true},
	"recursive_triggers":        {Kind: PragmaTravels, setting: wire.RecursiveTriggers},
	"legacy_alter_table":        {Kind: PragmaTravels, setting: wire.LegacyAlterTable},
	"case_sensitive_like":       {Kind: PragmaTravels, setting: wire.CaseSensitiveLike},
	"trusted_schema":            {Kind: PragmaTravels, setting: wire.UntrustedSchema, off: true},
	"ignore_check_constraints":  {Kind: PragmaTravels, setting: wire.IgnoreCheckConstraints},
	"reverse_unordered_selects": {Kind: PragmaTravels, setting: wire.ReverseUnorderedSelects},
	"writable_schema":           {Kind: PragmaTravels, setting: wire.WritableSchema},
	"full_column_names":         {Kind: PragmaTravels, setting: wire.FullColumnNames},
	"short_column_names":        {Kind: PragmaTravels, setting: wire.ShortColumnNamesOff, off: true},
	"query_only":                {Kind: PragmaTravels, setting: wire.QueryOnly},

	"automatic_index": truth, "cell_size_check": truth, "checkpoint_fullfsync": truth, "defer_foreign_keys": truth,
	"empty_result_callbacks": truth, "fullfsync": truth, "read_uncommitted": truth,
	"secure_delete": {Kind: PragmaSetting, Echo: true, boolean: true, words: map[string]int64{"fast": 2}},
	"synchronous":   {Kind: PragmaSetting, words: levels, number: between(0, 3)},
	"temp_store":    {Kind: PragmaSetting, words: stores, number: between(0, 2)},

	"analysis_limit":     {Kind: PragmaSetting, Echo: true, number: between(0, math.MaxInt32)},
	"threads":            {Kind: PragmaSetting, Echo: true, number: between(0, 8)},
	"busy_timeout":       {Kind: PragmaSetting, Echo: true, number: atLeast(0)},
	"wal_autocheckpoint": {Kind: PragmaSetting, Echo: true, number: atLeast(0)},
	"mmap_size":          {Kind: PragmaSetting, Echo: true, number: atLeast(0)},
	"journal_size_limit": {Kind: PragmaSetting, Echo: true, number: atLeast(-1)},
	"cache_size":         {Kind: PragmaSetting, number: atLeast(math.MinInt32)},

	"hard_heap_limit": {Kind: PragmaSetting, Echo: true}, "max_page_count": {Kind: PragmaSetting, Echo: true},
	"soft_heap_limit": {Kind: PragmaSetting, Echo: true},

	"auto_vacuum": setting, "cache_spill": setting, "journal_mode": setting, "locking_mode": setting, "page_size": setting,

	"incremental_vacuum": action, "optimize": action, "shrink_memory": action, "wal_checkpoint": action,

	"count_changes":        {Kind: PragmaRefused, initial: "0", Why: "a write would return a row; ask its result for RowsAffected, or say RETURNING"},
	"data_store_directory": {Kind: PragmaRefused, Why: "a node keeps its files in its data folder"},
	"default_cache_size":   {Kind: PragmaRefused, Why: "SQLite has given it up; say cache_size"},
	"encoding":             {Kind: PragmaRefused, initial: "utf-8", Why: "the database is made already, in UTF-8"},
	"schema_version":       {Kind: PragmaRefused, Why: "SQLite counts changes of the schema with it; another number corrupts the database"},
	"temp_store_directory": {Kind: PragmaRefused, Why: "a node keeps its files in its data folder"},
}

// readsWithArgument are PRAGMAs whose argument says what to read.
var readsWithArgument = map[string]bool{
	"foreign_key_check": true, "foreign_key_list": true, "index_info": true, "index_list": true, "index_xinfo": true,
	"integrity_check": true, "quick_check": true, "table_info": true, "table_list": true, "table_xinfo": true,
}

func between(least, most int64) func(int64) (int64, bool) {
	return func(n int64) (int64, bool) { return n, n >= least && n <= most }
}

func atLeast(least int64) func(int64) (int64, bool) {
	return func(n int64) (int64, bool) { return max(n, least), true }
}

// Read reads the value to which a setting is set, and reports whether SQLite
// would take it.
func (p *Pragma) Read(arg string) (value int64, taken bool) {
	if n, ok := p.words[strings.ToLower(arg)]; ok {
		return n, true
	}
	if p.boolean {
		if Truth(arg) {
			return 1, true
		}
		return 0, true
	}
	n, err := strconv.ParseInt(arg, 0, 64)
	if err != nil || p.number == nil {
		return 0, false
	}
	return p.number(n)
}

// Set returns settings after a PRAGMA that travels was set to arg.
func (p *Pragma) Set(s wire.Settings, arg string) wire.Settings {
	if Truth(arg) != p.off {
		return s | p.setting
	}
	return s &^ p.setting
}

// On tells what a PRAGMA that travels answers.
func (p *Pragma) On(s wire.Settings) bool { return (s&p.setting != 0) != p.off }

// KindOfPragma says what becomes of PRAGMA name, set to arg if it has one.
func KindOfPragma(name, arg string, hasArg bool) PragmaKind {
	p, known := Pragmas[name]
	switch {
	case !hasArg && p.Kind == PragmaAction:
		return PragmaAction
	case !hasArg || readsWithArgument[name]:
		return PragmaRead
	case !known:
		return PragmaSetting // SQLite ignores unknown ones too
	case p.Kind == PragmaRefused && sameSetting(p.initial, arg):
		return PragmaSetting
	}
	return p.Kind
}

// sameSetting compares the values of a PRAGMA: on, yes, true and 1 are one.
func sameSetting(a, b string) bool {
	return a != "" && (strings.EqualFold(a, b) || (len(a) == 1 && Truth(a) == Truth(b)))
}

// Truth reads a PRAGMA's boolean as SQLite does.
func Truth(arg string) bool {
	switch strings.ToLower(arg) {
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

// authorizePragma records a PRAGMA. Preparing one executes it, so whatever is
// not to be executed here is denied or ignored here.
func (c *Conn) authorizePragma(name, arg string, hasArg bool, schema string) int32 {
	if c.asOwner {
		return lib.SQLITE_OK
	}
	kind := KindOfPragma(name, arg, hasArg)
	if c.explaining() {
		return explainedPragma(kind)
	}
	if kind == PragmaRead {
		c.actions.Checks = c.actions.Checks || integrityChecks[name]
		if c.actions.Pragma == "" {
			c.actions.Pragma = name
		}
		return lib.SQLITE_OK
	}
	c.actions.Pragma, c.actions.PragmaArg, c.actions.PragmaSet = name, arg, hasArg
	switch {
	case kind == PragmaWrite && schema == tempSchema:
		return c.deny("PRAGMA temp."+name+" is not supported", "it would exist on one connection of one node only; leave temp out")
	case kind == PragmaRefused:
		return c.deny("PRAGMA "+name+" cannot be set", Pragmas[name].Why)
	case c.mode == ReadOnly || c.mode == Temp || c.classifying:
		c.deferred = true
		return lib.SQLITE_DENY
	case kind == PragmaWrite || name == "defer_foreign_keys":
		return lib.SQLITE_OK
	}
	return lib.SQLITE_IGNORE
}
