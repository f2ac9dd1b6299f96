package driver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hiqlite/hiqlite/internal/spelling"
)

// Other SQLite drivers have keys that this one does not have. The error for such a
// key says what to write instead; spelling.Nearest would only suggest a similar spelling.

// otherPragmas maps keys of other drivers, mostly of mattn/go-sqlite3, to the PRAGMAs
// that they set.
var otherPragmas = map[string]string{
	"_cache_size": "cache_size", "_case_sensitive_like": "case_sensitive_like", "_cslike": "case_sensitive_like",
	"_defer_foreign_keys": "defer_foreign_keys", "_defer_fk": "defer_foreign_keys", "_ignore_check_constraints": "ignore_check_constraints",
	"_locking_mode": "locking_mode", "_locking": "locking_mode", "_recursive_triggers": "recursive_triggers", "_rt": "recursive_triggers",
	"_secure_delete": "secure_delete", "_writable_schema": "writable_schema", "_temp_store": "temp_store", "_mmap_size": "mmap_size",
	"_page_size": "page_size", "_wal_autocheckpoint": "wal_autocheckpoint", "_journal_size_limit": "journal_size_limit",
	"_trusted_schema": "trusted_schema", "_legacy_alter_table": "legacy_alter_table", "_encoding": "encoding",
}

// otherKeys maps the remaining keys of other drivers to what to write instead.
var otherKeys = map[string]string{
	"_loc":             "write _timezone with the zone's name, as in _timezone=Europe/Berlin; for the process's own zone _timezone=Local",
	"loc":              "write _timezone with the zone's name, as in _timezone=Europe/Berlin",
	"parsetime":        "leave it out: texts in DATE, DATETIME and TIMESTAMP columns are times",
	"_timefmt":         "write _time_format, or leave it out",
	"_mutex":           "leave it out: connections can be used by any goroutine",
	"_stmt_cache_size": "leave it out: prepared statements are kept by the node",
	"_loadextension":   "leave it out: extensions cannot be loaded, because every replica must compute the same",
	"_auth":            "leave it out: there are no users in the database",
	"_auth_user":       "leave it out: there are no users in the database",
	"_auth_pass":       "leave it out: there are no users in the database",
	"_auth_crypt":      "leave it out: there are no users in the database",
	"_auth_salt":       "leave it out: there are no users in the database",
	"_key":             "leave it out: files are not encrypted; use an encrypted file system",
	"_pragma_key":      "leave it out: files are not encrypted; use an encrypted file system",
	"_crypto_key":      "leave it out: files are not encrypted; use an encrypted file system",
}

// secretKeys are the names under which somebody may write the secret itself. The errors
// about unknown keys never show a value.
var secretKeys = []string{"secret", "secret_raft", "secret_api", "password", "pass", "token"}

// unknownKey returns the error for a key that this driver does not have.
func unknownKey(name, value string) error {
	lower := strings.ToLower(name)
	if pragma, ok := otherPragmas[lower]; ok {
		if value == "" {
			value = "..."
		}
		return fmt.Errorf("the DSN's key %q is another driver's: write _pragma=%s(%s)", name, pragma, value)
	}
	if hint, ok := otherKeys[lower]; ok {
		return fmt.Errorf("the DSN's key %q is another driver's: %s", name, hint)
	}
	if slices.Contains(secretKeys, lower) {
		return fmt.Errorf("the DSN's key %q is unknown: secrets do not belong in a DSN, because DSNs end up in logs; name a file with the secret as secret_file", name)
	}
	return fmt.Errorf("the DSN's key %q is unknown: did you mean %s?", name, spelling.Nearest(name, keyNames()))
}
