package wire

import "google.golang.org/protobuf/encoding/protowire"

// DecodeCommand decodes what EncodeCommand wrote. The command points into b.
func DecodeCommand(b []byte) (*Command, error) {
	c := new(Command)
	return c, fields(b, func(f protowire.Number, n uint64, data []byte) error { return c.field(f, n, data) })
}

// EncodeOutcome encodes an outcome, for a client of the API.
func EncodeOutcome(o *Outcome) []byte { return appendOutcome(nil, o) }

// DecodeOutcome decodes what EncodeOutcome wrote.
func DecodeOutcome(b []byte) (*Outcome, error) { return decodeOutcome(b) }
