package wire

import "google.golang.org/protobuf/encoding/protowire"

// An Origin makes an operation, or a command, of a remote client apply once, through
// whichever nodes the client sends it. A remote client has sessions of its own, beside
// those of the nodes that make entries of its operations. It uses a session for one
// operation at a time, and a higher sequence for each. Node 0 has opened the session.
//
// A machine applies an operation only if its sequence is higher than the last one of
// its session. A copy of the last one gets the result that the session keeps. If that
// says that nothing was applied, and that the operation may be attempted again (see
// Result.RetryAbove), the copy is applied.
type Origin struct {
	Session  uint64
	Sequence uint64
	Last     bool // if this attempt is interrupted, there is no other one
}

func appendOrigin(b []byte, field protowire.Number, o *Origin) []byte {
	if o == nil {
		return b
	}
	b, at := openMessage(b, field)
	b = appendUint(b, 1, o.Session)
	b = appendUint(b, 2, o.Sequence)
	b = appendBool(b, 3, o.Last)
	return closeMessage(b, at)
}

func decodeOrigin(b []byte) (*Origin, error) {
	o := new(Origin)
	return o, fields(b, func(f protowire.Number, n uint64, _ []byte) error {
		switch f {
		case 1:
			o.Session = n
		case 2:
			o.Sequence = n
		case 3:
			o.Last = n != 0
		}
		return nil
	})
}

// An Admission says why an operation with an Origin was not applied.
type Admission uint8

// The admissions.
const (
	Admitted       Admission = iota // it was applied, now or before
	UnknownSession                  // its session does not exist; what the client sent under it before may have been applied
	StaleSequence                   // its session has applied a later one
)
