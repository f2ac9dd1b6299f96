package wire

import "google.golang.org/protobuf/encoding/protowire"

// A Session makes each entry of one proposer apply once. R is the type of the results
// in its shard.
type Session[R any] struct {
	ID, Sequence uint64
	LastUsed     uint64 // the shard's clock when the session's last entry was applied, in milliseconds
	Results      []R    // of the entry with that sequence

	// Earlier has the results of the entries before the last one that may still be in
	// flight: those with the sequences from Sequence-len(Earlier) to Sequence-1.
	Earlier [][]R

	Node, Incarnation uint64 // the proposer's
}

// ResultsOf returns the results of an entry of the session, or nil if the session does
// not keep them.
func (s *Session[R]) ResultsOf(sequence uint64) []R {
	first := s.Sequence - uint64(len(s.Earlier))
	switch {
	case sequence == s.Sequence:
		return s.Results
	case sequence < first || sequence > s.Sequence:
		return nil
	}
	return s.Earlier[sequence-first]
}

// AppendSession appends the encoding of s to b.
func AppendSession(b []byte, s *Session[Result]) []byte { return appendSession(b, s, AppendResult) }

func appendSession[R any](b []byte, s *Session[R], appendResult func([]byte, *R) []byte) []byte {
	b = appendUint(b, 1, s.ID)
	b = appendUint(b, 2, s.Sequence)
	b = appendUint(b, 3, s.LastUsed)
	b = appendResults(b, 4, s.Results, appendResult)
	b = appendUint(b, 5, s.Node)
	b = appendUint(b, 6, s.Incarnation)
	for _, results := range s.Earlier {
		var at int
		b, at = openMessage(b, 7)
		b = appendResults(b, 1, results, appendResult)
		b = closeMessage(b, at)
	}
	return b
}

func appendResults[R any](b []byte, field protowire.Number, results []R, appendResult func([]byte, *R) []byte) []byte {
	for i := range results {
		var at int
		b, at = openMessage(b, field)
		b = appendResult(b, &results[i])
		b = closeMessage(b, at)
	}
	return b
}

// AppendGroupedSession appends s to an encoded SessionGroup.
func AppendGroupedSession(b []byte, s *Session[Result]) []byte {
	b, at := openMessage(b, 1)
	b = AppendSession(b, s)
	return closeMessage(b, at)
}

// DecodeSessionGroup decodes a SessionGroup, keeping nothing of b.
func DecodeSessionGroup(b []byte) (group []Session[Result], err error) {
	return group, fields(b, func(f protowire.Number, _ uint64, data []byte) error {
		if f != 1 {
			return nil
		}
		s, err := DecodeSession(data)
		if err == nil {
			group = append(group, *s)
		}
		return err
	})
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
	case 7:
		var results []R
		err := fields(data, func(f protowire.Number, _ uint64, data []byte) error {
			if f != 1 {
				return nil
			}
			r, err := decodeResult(data)
			if err == nil {
				results = append(results, *r)
			}
			return err
		})
		s.Earlier = append(s.Earlier, results)
		return err
	}
	return nil
}
