package wire

import "google.golang.org/protobuf/encoding/protowire"

// A Session makes each entry of one proposer apply once. R is the type of the results
// in its shard.
type Session[R any] struct {
	ID, Sequence uint64
	LastUsed     uint64 // the shard's clock when the session's last entry was applied, in milliseconds
	Results      []R

	Node, Incarnation uint64 // the proposer's
}

// AppendSession appends the encoding of s to b.
func AppendSession(b []byte, s *Session[Result]) []byte { return appendSession(b, s, AppendResult) }

func appendSession[R any](b []byte, s *Session[R], appendResult func([]byte, *R) []byte) []byte {
	b = appendUint(b, 1, s.ID)
	b = appendUint(b, 2, s.Sequence)
	b = appendUint(b, 3, s.LastUsed)
	for i := range s.Results {
		var at int
		b, at = openMessage(b, 4)
		b = appendResult(b, &s.Results[i])
		b = closeMessage(b, at)
	}
	b = appendUint(b, 5, s.Node)
	return appendUint(b, 6, s.Incarnation)
}

// DecodeSession decodes what AppendSession wrote, keeping nothing of b.
func DecodeSession(b []byte) (*Session[Result], error) {
	s := new(Session[Result])
	return s, fields(b, func(f protowire.Number, n uint64, data []byte) error { return s.field(f, n, data, DecodeResult) })
}

// field decodes one field.
func (s *Session[R]) field(f protowire.Number, n uint64, data []byte, decodeResult func([]byte) (*R, error)) error {
	switch f {
	case 1:
		s.ID = n
	case 2:
		s.Sequence = n
	case 3:
		s.LastUsed = n
	case 4:
		r, err := decodeResult(data)
		if err != nil {
			return err
		}
		s.Results = append(s.Results, *r)
	case 5:
		s.Node = n
	case 6:
		s.Incarnation = n
	}
	return nil
}
