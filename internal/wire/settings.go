package wire

// Settings are the PRAGMAs of a connection that change what statements mean. Every
// replica needs them to execute a statement in the same way. A bit is set if the
// PRAGMA differs from the default of this driver. On most connections none is set.
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

// KnownSettings are all settings that this build knows.
const KnownSettings = endOfSettings - 1

// settings decodes settings. It refuses those that this build does not know, because
// it would execute the statement in another way than newer builds.
func settings(n uint64, into *Settings) error {
	if n&^uint64(KnownSettings) != 0 {
		return ErrNewerFormat
	}
	*into = Settings(n)
	return nil
}
