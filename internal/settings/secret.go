package settings

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
)

// minSecret is the least size of a secret, in bytes. Nobody can try all secrets of 16
// random bytes.
const minSecret = 16

const redacted = "[redacted]"

// A Secret is a secret text. However it is printed, logged or marshalled, the text is
// "[redacted]".
type Secret struct{ text string }

// Reveal returns the secret.
func (s Secret) Reveal() string { return s.text }

// Set reports whether there is a secret.
func (s Secret) Set() bool { return s.text != "" }

func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (Secret) Format(s fmt.State, _ rune)   { io.WriteString(s, redacted) }
