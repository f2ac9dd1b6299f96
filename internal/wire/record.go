package wire

import "google.golang.org/protobuf/encoding/protowire"

// A RecordKind says what piece of a snapshot a Record is.
type RecordKind uint8

// The kinds.
const (
	RecordShard   RecordKind = 1 // the first
	RecordSession RecordKind = 2
	RecordEnd     RecordKind = 3 // the last; Number counts those before it

	RecordBucket  RecordKind = 10
	RecordEntry   RecordKind = 11 // of the bucket before
	RecordCounter RecordKind = 12 // of the bucket before
	RecordExpiry  RecordKind = 13 // of an entry

	RecordOwner   RecordKind = 20
	RecordPlace   RecordKind = 21 // in the order of the queue
	RecordRenewal RecordKind = 22 // of an owner

	RecordMessage RecordKind = 30
)

// A Record is a piece of an in-memory shard's snapshot. Which fields it has
// depends on its kind; hiqlite.proto says what they mean.
type Record struct {
	Kind              RecordKind
	Name, Key, Value  string
	Version           uint64
	Number            int64
	Ticks, TTLMS      uint64
	Phase             uint8
	Seen              Seen
	Owner, ID         uint64
	MaxEntries        uint64
	MaxBytes          uint64
	Session           *Session[Outcome]
	Node, Incarnation uint64
	Expired           bool
	Unsure            uint64
}

// AppendRecord appends the encoding of r to b.
func AppendRecord(b []byte, r *Record) []byte {
	b = appendUint(b, 1, uint64(r.Kind))
	b = appendString(b, 2, r.Name)
	b = appendString(b, 3, r.Key)
	b = appendString(b, 4, r.Value)
	b = appendUint(b, 5, r.Version)
	b = appendInt(b, 6, r.Number)
	b = appendUint(b, 7, r.Ticks)
	b = appendUint(b, 8, r.TTLMS)
	b = appendUint(b, 9, uint64(r.Phase))
	b = appendUint(b, 10, r.Seen.SQL)
	if r.Owner != 0 {
		b = appendFixed(b, 11, r.Owner)
	}
	b = appendUint(b, 12, r.ID)
	b = appendUint(b, 13, r.MaxEntries)
	b = appendUint(b, 14, r.MaxBytes)
	if r.Session != nil {
		var at int
		b, at = openMessage(b, 15)
		b = closeMessage(appendSession(b, r.Session, appendOutcome), at)
	}
	b = appendUint(b, 16, r.Node)
	b = appendUint(b, 17, r.Incarnation)
	b = appendBool(b, 18, r.Expired)
	b = appendUint(b, 19, r.Unsure)
	return appendUint(b, 20, r.Seen.KV)
}

// DecodeRecord decodes what AppendRecord wrote, keeping nothing of b.
func DecodeRecord(b []byte) (*Record, error) {
	r := new(Record)
	return r, fields(b, func(f protowire.Number, n uint64, data []byte) (err error) {
		switch f {
		case 1:
			if n <= 0xff { // otherwise it is of a later build, and none that this one knows
				r.Kind = RecordKind(n)
			}
		case 2:
			r.Name = string(data)
		case 3:
			r.Key = string(data)
		case 4:
			r.Value = string(data)
		case 5:
			r.Version = n
		case 6:
			r.Number = protowire.DecodeZigZag(n)
		case 7:
			r.Ticks = n
		case 8:
			r.TTLMS = n
		case 9:
			r.Phase = uint8(n)
		case 10:
			r.Seen.SQL = n
		case 11:
			r.Owner = n
		case 12:
			r.ID = n
		case 13:
			r.MaxEntries = n
		case 14:
			r.MaxBytes = n
		case 15:
			r.Session, err = decodeSession(data, decodeOutcome)
		case 16:
			r.Node = n
		case 17:
			r.Incarnation = n
		case 18:
			r.Expired = n != 0
		case 19:
			r.Unsure = n
		case 20:
			r.Seen.KV = n
		}
		return err
	})
}
