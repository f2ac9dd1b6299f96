package sqlite

import (
	"strings"

	lib "modernc.org/sqlite/lib"
)

// A PragmaKind says what becomes of a PRAGMA.
type PragmaKind int

const (
	// PragmaRead is answered by the local replica.
	PragmaRead PragmaKind = iota
	// PragmaWrite is replicated.
	PragmaWrite
	// PragmaForeignKeys is a flag of the connection that travels with its writes.
	PragmaForeignKeys
	// PragmaQueryOnly is a flag of the connection.
	PragmaQueryOnly
	// PragmaSetting is accepted, answered and without effect: the replica
	// decides these things itself.
	PragmaSetting
	// PragmaAction is answered as if done, and left to the replica.
	PragmaAction
	// PragmaRefused would change what statements mean.
	PragmaRefused
)

// pragmas lists those that are more than a read. A setting that is read, not
// set, is a read.
var pragmas = map[string]PragmaKind{
	"user_version": PragmaWrite, "application_id": PragmaWrite,

	"foreign_keys": PragmaForeignKeys, "query_only": PragmaQueryOnly,

	"analysis_limit": PragmaSetting, "auto_vacuum": PragmaSetting, "automatic_index": PragmaSetting,
	"busy_timeout": PragmaSetting, "cache_size": PragmaSetting, "cache_spill": PragmaSetting,
	"cell_size_check": PragmaSetting, "checkpoint_fullfsync": PragmaSetting, "defer_foreign_keys": PragmaSetting,
	"fullfsync": PragmaSetting, "hard_heap_limit": PragmaSetting, "journal_mode": PragmaSetting,
	"journal_size_limit": PragmaSetting, "locking_mode": PragmaSetting, "max_page_count": PragmaSetting,
	"mmap_size": PragmaSetting, "page_size": PragmaSetting, "read_uncommitted": PragmaSetting,
	"secure_delete": PragmaSetting, "soft_heap_limit": PragmaSetting, "synchronous": PragmaSetting,
	"temp_store": PragmaSetting, "threads": PragmaSetting, "wal_autocheckpoint": PragmaSetting,

	"incremental_vacuum": PragmaAction, "optimize": PragmaAction, "shrink_memory": PragmaAction, "wal_checkpoint": PragmaAction,

	"case_sensitive_like": PragmaRefused, "count_changes": PragmaRefused, "data_store_directory": PragmaRefused,
	"default_cache_size": PragmaRefused, "empty_result_callbacks": PragmaRefused, "encoding": PragmaRefused,
	"full_column_names": PragmaRefused, "ignore_check_constraints": PragmaRefused, "legacy_alter_table": PragmaRefused,
	"recursive_triggers": PragmaRefused, "reverse_unordered_selects": PragmaRefused, "schema_version": PragmaRefused,
	"short_column_names": PragmaRefused, "temp_store_directory": PragmaRefused, "trusted_schema": PragmaRefused,
	"writable_schema": PragmaRefused,
}

// readsWithArgument are PRAGMAs whose argument says what to read.
var readsWithArgument = map[string]bool{
	"foreign_key_check": true, "foreign_key_list": true, "index_info": true, "index_list": true, "index_xinfo": true,
	"integrity_check": true, "quick_check": true, "table_info": true, "table_list": true, "table_xinfo": true,
}

// defaults are settings that say what is so already; to set them changes nothing.
var defaults = map[string]string{
	"case_sensitive_like": "0", "encoding": "utf-8", "ignore_check_constraints": "0", "legacy_alter_table": "0",
	"recursive_triggers": "0", "reverse_unordered_selects": "0", "trusted_schema": "1", "writable_schema": "0",
}

// KindOfPragma says what becomes of PRAGMA name, set to arg if it has one.
func KindOfPragma(name, arg string, hasArg bool) PragmaKind {
	kind, known := pragmas[name]
	switch {
	case !hasArg && kind == PragmaAction:
		return PragmaAction
	case !hasArg || readsWithArgument[name]:
		return PragmaRead
	case !known:
		return PragmaSetting // SQLite ignores unknown ones too
	case kind == PragmaRefused && sameSetting(defaults[name], arg):
		return PragmaSetting
	}
	return kind
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
	if c.own {
		return lib.SQLITE_OK
	}
	kind := KindOfPragma(name, arg, hasArg)
	if c.explaining() {
		return explainedPragma(kind)
	}
	if kind == PragmaRead {
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
		return c.deny("PRAGMA "+name+" would change what statements mean", "replicas must agree on it; it keeps SQLite's default")
	case c.mode == ReadOnly || c.asks:
		c.deferred = true
		return lib.SQLITE_DENY
	case kind == PragmaWrite || name == "defer_foreign_keys":
		return lib.SQLITE_OK
	}
	return lib.SQLITE_IGNORE
}
