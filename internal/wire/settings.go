package wire

// Settings are the PRAGMAs of a connection that change what statements mean, so
// that every replica needs them to execute one alike. Each bit says that the
// PRAGMA is not at this driver's default; none is set on most connections.
type Settings uint32

// The settings. Their numbers are part of the format.
const (
	ForeignKeysOff          Settings = 1 << iota // PRAGMA foreign_keys=OFF
	RecursiveTriggers                            // PRAGMA recursive_triggers=ON
	LegacyAlterTable                             // PRAGMA legacy_alter_table=ON
	CaseSensitiveLike                            // PRAGMA case_sensitive_like=ON
	UntrustedSchema                              // PRAGMA trusted_schema=OFF
	IgnoreCheckConstraints                       // PRAGMA ignore_check_constraints=ON
	ReverseUnorderedSelects                      // PRAGMA reverse_unordered_selects=ON
	WritableSchema                               // PRAGMA writable_schema=ON, as far as dumps need it
	FullColumnNames                              // PRAGMA full_column_names=ON
	ShortColumnNamesOff                          // PRAGMA short_column_names=OFF
	QueryOnly                                    // PRAGMA query_only=ON
	endOfSettings
)

// KnownSettings are all that this build knows.
const KnownSettings = endOfSettings - 1

// settings checks what was read: a setting that this build does not know would
// make it execute the statement otherwise than others do.
func settings(n uint64, into *Settings) error {
	if n&^uint64(KnownSettings) != 0 {
		return ErrNewerFormat
	}
	*into = Settings(n)
	return nil
}
