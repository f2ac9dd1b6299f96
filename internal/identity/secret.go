package identity

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
)

// MinSecret is the least size of a secret, in bytes. Nobody can try all secrets of
// 16 random bytes.
const MinSecret = 16

// maxSecret bounds, in bytes, the file of a secret: a larger one is another file.
const maxSecret = 64 << 10

const redacted = "[redacted]"

// A Secret is shared by the nodes of a cluster. However it is printed, logged or
// marshalled, the text is "[redacted]".
type Secret struct{ bytes []byte }

var (
	_ fmt.Formatter          = Secret{}
	_ slog.LogValuer         = Secret{}
	_ json.Marshaler         = Secret{}
	_ encoding.TextMarshaler = Secret{}
)

// NewSecret returns a secret. White space around it does not count.
func NewSecret(text []byte) (Secret, error) {
	text = bytes.TrimSpace(text)
	if len(text) < MinSecret {
		return Secret{}, fmt.Errorf("the secret has %d bytes, and needs at least %d: make one with `openssl rand -base64 32`", len(text), MinSecret)
	}
	return Secret{bytes.Clone(text)}, nil
}

// ReadSecret reads a secret from a file. Wide reports whether users other than the
// owner of the file may read or write it.
func ReadSecret(path string) (s Secret, wide bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return Secret{}, false, fmt.Errorf("hiqlite: the secret cannot be read: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Secret{}, false, fmt.Errorf("hiqlite: the secret cannot be read: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	switch {
	case err != nil:
		return Secret{}, false, fmt.Errorf("hiqlite: the secret cannot be read: %w", err)
	case len(text) > maxSecret:
		return Secret{}, false, fmt.Errorf("hiqlite: the secret file %s is larger than %d bytes: name a file that holds only the secret", path, maxSecret)
	}
	if s, err = NewSecret(text); err != nil {
		return Secret{}, false, fmt.Errorf("hiqlite: the secret file %s: %w", path, err)
	}
	return s, info.Mode().Perm()&^fs.FileMode(0o600) != 0, nil
}

// Set reports whether the secret was made by NewSecret or ReadSecret.
func (s Secret) Set() bool { return s.bytes != nil }

// Text returns the secret itself, or "". A client sends it to a server that it has
// recognised.
func (s Secret) Text() string { return string(s.bytes) }

func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (Secret) Format(s fmt.State, _ rune)   { io.WriteString(s, redacted) }
