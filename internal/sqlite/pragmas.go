package sqlite

import (
	"math"

	lib "modernc.org/sqlite/lib"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// Pragmas says of each PRAGMA what hiqlite does with it. docs/sql.md has the same
// PRAGMAs, and says the same in words; a test compares the two.
var Pragmas = map[string]Pragma{
	"collation_list":    {shared: true},
	"compile_options":   {},
	"data_version":      {},
	"database_list":     {},
	"foreign_key_check": {argument: true, shared: true},
	"foreign_key_list":  {argument: true, shared: true},
	"freelist_count":    {},
	"function_list":     {},
	"index_info":        {argument: true, shared: true},
	"index_list":        {argument: true, shared: true},
	"index_xinfo":       {argument: true, shared: true},
	"integrity_check":   {argument: true, integrity: true},
	"module_list":       {},
	"page_count":        {},
	"pragma_list":       {},
	"quick_check":       {argument: true, integrity: true},
	"table_info":        {argument: true, shared: true},
	"table_list":        {argument: true, shared: true},
	"table_xinfo":       {argument: true, shared: true},

	"application_id": {Kind: PragmaReplicated, shared: true},
	"user_version":   {Kind: PragmaReplicated, shared: true},

	"case_sensitive_like":       {Kind: PragmaSetting, setting: wire.CaseSensitiveLike, WriteOnly: true}, // see Conn.setLike
	"foreign_keys":              {Kind: PragmaSetting, setting: wire.ForeignKeysOff, inverted: true, flag: lib.SQLITE_ForeignKeys},
	"full_column_names":         {Kind: PragmaSetting, setting: wire.FullColumnNames, flag: lib.SQLITE_FullColNames},
	"ignore_check_constraints":  {Kind: PragmaSetting, setting: wire.IgnoreCheckConstraints, flag: lib.SQLITE_IgnoreChecks},
	"legacy_alter_table":        {Kind: PragmaSetting, setting: wire.LegacyAlterTable, flag: lib.SQLITE_LegacyAlter},
	"query_only":                {Kind: PragmaSetting, setting: wire.QueryOnly}, // enforced by the connection of database/sql
	"recursive_triggers":        {Kind: PragmaSetting, setting: wire.RecursiveTriggers, flag: lib.SQLITE_RecTriggers},
	"reverse_unordered_selects": {Kind: PragmaSetting, setting: wire.ReverseUnorderedSelects, flag: lib.SQLITE_ReverseOrder},
	"short_column_names":        {Kind: PragmaSetting, setting: wire.ShortColumnNamesOff, inverted: true, flag: lib.SQLITE_ShortColNames},
	"trusted_schema":            {Kind: PragmaSetting, setting: wire.UntrustedSchema, inverted: true, flag: lib.SQLITE_TrustedSchema},
	"writable_schema":           {Kind: PragmaSetting, setting: wire.WritableSchema}, // see Conn.compileFromDump

	"defer_foreign_keys": {Kind: PragmaTransaction, value: boolean},

	"analysis_limit":         {Kind: PragmaIgnored, value: between(0, math.MaxInt32), Echo: true},
	"auto_vacuum":            {Kind: PragmaIgnored},
	"automatic_index":        {Kind: PragmaIgnored, value: boolean},
	"busy_timeout":           {Kind: PragmaIgnored, value: atLeast(0), Echo: true, Column: "timeout"}, // the connection of database/sql reads the value
	"cache_size":             {Kind: PragmaIgnored, value: atLeast(math.MinInt32)},
	"cache_spill":            {Kind: PragmaIgnored},
	"cell_size_check":        {Kind: PragmaIgnored, value: boolean},
	"checkpoint_fullfsync":   {Kind: PragmaIgnored, value: boolean},
	"empty_result_callbacks": {Kind: PragmaIgnored, value: boolean},
	"fullfsync":              {Kind: PragmaIgnored, value: boolean},
	"hard_heap_limit":        {Kind: PragmaIgnored, Echo: true},
	"incremental_vacuum":     {Kind: PragmaIgnored, command: true},
	"journal_mode":           {Kind: PragmaIgnored, Answer: oneText("journal_mode", "wal")},
	"journal_size_limit":     {Kind: PragmaIgnored, value: atLeast(-1), Echo: true},
	"locking_mode":           {Kind: PragmaIgnored, Answer: oneText("locking_mode", "normal")},
	"max_page_count":         {Kind: PragmaIgnored, Echo: true},
	"mmap_size":              {Kind: PragmaIgnored, value: atLeast(0), Echo: true},
	"optimize":               {Kind: PragmaIgnored, command: true, Answer: &wire.Rows{Columns: []wire.Column{{Name: "optimize"}}}},
	"page_size":              {Kind: PragmaIgnored, shared: true},
	"read_uncommitted":       {Kind: PragmaIgnored, value: boolean},
	"secure_delete":          {Kind: PragmaIgnored, value: word(map[string]int64{"fast": 2}, boolean), Echo: true},
	"shrink_memory":          {Kind: PragmaIgnored, command: true},
	"soft_heap_limit":        {Kind: PragmaIgnored, Echo: true},
	"synchronous":            {Kind: PragmaIgnored, value: word(synchronousWords, between(0, 3))},
	"temp_store":             {Kind: PragmaIgnored, value: word(map[string]int64{"default": 0, "file": 1, "memory": 2}, between(0, 2))},
	"threads":                {Kind: PragmaIgnored, value: between(0, 8), Echo: true},
	"wal_autocheckpoint":     {Kind: PragmaIgnored, value: atLeast(0), Echo: true},
	"wal_checkpoint":         {Kind: PragmaIgnored, command: true, Answer: checkpointDone},

	"count_changes":        {Kind: PragmaRefused, initial: "0", refusal: "a write would return a row; ask its result for RowsAffected, or say RETURNING"},
	"data_store_directory": {Kind: PragmaRefused, refusal: "a node keeps its files in its data folder"},
	"default_cache_size":   {Kind: PragmaRefused, refusal: "SQLite has deprecated it; use cache_size"},
	"encoding":             {Kind: PragmaRefused, initial: "utf-8", shared: true, refusal: "the database exists already, in UTF-8"},
	"schema_version":       {Kind: PragmaRefused, refusal: "SQLite counts changes of the schema with it; another number corrupts the database"},
	"temp_store_directory": {Kind: PragmaRefused, refusal: "a node keeps its files in its data folder"},
}

var synchronousWords = map[string]int64{"off": 0, "no": 0, "false": 0, "normal": 1, "on": 1, "yes": 1, "true": 1, "full": 2, "extra": 3}

// checkpointDone says that PRAGMA wal_checkpoint has copied all of an empty log.
var checkpointDone = &wire.Rows{
	Columns: []wire.Column{{Name: "busy"}, {Name: "log"}, {Name: "checkpointed"}},
	Cells:   []wire.Value{wire.IntegerValue(0), wire.IntegerValue(0), wire.IntegerValue(0)},
}

func oneText(column, value string) *wire.Rows {
	return &wire.Rows{Columns: []wire.Column{{Name: column}}, Cells: []wire.Value{wire.TextValue(value)}}
}
