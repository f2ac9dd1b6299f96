package wire

import (
	"errors"
	"testing"
)

// A setting that this build does not know may change what statements mean. So the entry counts
// as one of a newer format.
func TestUnknownSettingsAreANewerFormat(t *testing.T) {
	const unknown = Settings(1 << 30)
	statement := &Operation{Statements: []Statement{{SQL: "A", ChangedSettings: unknown}}}
	for name, op := range map[string]*Operation{"operation": {Settings: unknown, Statements: []Statement{{SQL: "A"}}}, "statement": statement} {
		var d Decoder
		if _, err := d.Decode(encode(1, 2, []*Operation{op})); !errors.Is(err, ErrNewerFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DecodeResult(AppendResult(nil, &Result{ChangedSettings: unknown})); !errors.Is(err, ErrNewerFormat) {
		t.Error(err)
	}
}
