package wire

import "google.golang.org/protobuf/encoding/protowire"

// A RecordKind says what part of a snapshot a Record is.
type RecordKind uint8

// The kinds, with the fields that they have besides Kind. A snapshot begins with
// RecordShard and the sessions, and ends with RecordEnd.
const (
	RecordShard   RecordKind = 1 // Clock, SessionClock, Seen, Applied
	RecordSession RecordKind = 2 // Session
	RecordEnd     RecordKind = 3 // Count

	RecordKV      RecordKind = 10 // Version, the last one that was given; the first record of the kv shard
	RecordBucket  RecordKind = 11 // Bucket, MaxEntries, MaxBytes
	RecordEntry   RecordKind = 12 // Key, Value, Version, Expires: of the bucket before it
	RecordCounter RecordKind = 13 // Key, Counter, Version: of the bucket before it
	RecordExpiry  RecordKind = 14 // Version of the entry, End, Phase

	RecordLocks   RecordKind = 20 // Token, Renewal, HolderLostToken; the first record of the lock shard
	RecordOwner   RecordKind = 21 // Owner, Epoch, TTLMS, Renewal, Node, Incarnation
	RecordWaiter  RecordKind = 22 // Key, Owner, Waiter, Token, Seen, HolderLost: in the order of the queue
	RecordRenewal RecordKind = 23 // Owner, Renewal, End, Phase

	RecordMessages RecordKind = 30 // Index, Forgotten; the first record of the pubsub shard
	RecordMessage  RecordKind = 31 // Channel, Payload, Index, TimeMS, Seen, SessionClock
)

// A Record is a part of an in-memory shard's snapshot. A field has one meaning,
// whatever the kind is.
type Record struct {
	Kind RecordKind

	Clock        uint64 // the shard's, in milliseconds
	SessionClock uint64 // the clock of the shard's sessions, now or when the message was applied
	Applied      uint64 // the last entry that the snapshot contains
	Seen         Seen   // the highest that commands have named; of a grant or message: when it was made
	Session      *Session[Outcome]
	Count        uint64 // of the records before this one

	Bucket, Key, Value string
	Version            uint64
	Expires            bool // the entry has a time to live
	Counter            int64
	MaxEntries         uint64
	MaxBytes           uint64

	// Of timers.
	End   uint64 // when the timer ends, on the shard's clock
	Phase uint8  // 0: the timer runs; 1 or 2: it starts with the next clock advance, or the one after that

	Owner             uint64
	Epoch             uint64 // the owner's first renewal
	Renewal           uint64 // the last one of the owner, or of all owners
	TTLMS             uint64 // of the owner
	Node, Incarnation uint64 // through which the owner was renewed last
	Waiter            uint64
	Token             uint64 // of the grant, 0: waits; or the last one that was given
	HolderLost        bool   // of a grant, see Outcome
	HolderLostToken   uint64 // the last token that was given when the holder of a lock expired; 0: all are known to have caught up since

	Channel, Payload string
	Index            uint64 // of the message, or of the last one
	Forgotten        uint64 // the index of the last message that is not kept any more
	TimeMS           int64  // the sender's clock
}

// AppendRecord appends the encoding of r to b.
func AppendRecord(b []byte, r *Record) []byte {
	b = appendUint(b, 1, uint64(r.Kind))
	b = appendString(b, 2, r.Key)
	b = appendString(b, 3, r.Value)
	b = appendUint(b, 4, r.Version)
	b = appendBool(b, 5, r.Expires)
	b = appendInt(b, 6, r.Counter)
	b = appendUint(b, 7, r.End)
	b = appendUint(b, 8, uint64(r.Phase))
	if r.Owner != 0 {
		b = appendFixed(b, 9, r.Owner)
	}
	b = appendUint(b, 10, r.Waiter)
	b = appendUint(b, 11, r.Token)
	b = appendUint(b, 12, r.Renewal)
	b = appendString(b, 13, r.Payload)
	b = appendUint(b, 14, r.Index)
	if r.Session != nil {
		var at int
		b, at = openMessage(b, 15)
		b = closeMessage(appendSession(b, r.Session, appendOutcome), at)
	}
	b = appendString(b, 16, r.Bucket)
	b = appendUint(b, 17, r.MaxEntries)
	b = appendUint(b, 18, r.MaxBytes)
	b = appendString(b, 19, r.Channel)
	b = appendInt(b, 20, r.TimeMS)
	b = appendUint(b, 21, r.Forgotten)
	b = appendUint(b, 22, r.Epoch)
	b = appendUint(b, 23, r.TTLMS)
	b = appendUint(b, 24, r.Node)
	b = appendUint(b, 25, r.Incarnation)
	b = appendBool(b, 26, r.HolderLost)
	b = appendUint(b, 27, r.HolderLostToken)
	b = appendUint(b, 28, r.Clock)
	b = appendUint(b, 29, r.SessionClock)
	b = appendUint(b, 30, r.Applied)
	b = appendUint(b, 31, r.Seen.SQL)
	b = appendUint(b, 32, r.Seen.KV)
	return appendUint(b, 33, r.Count)
}

// DecodeRecord decodes what AppendRecord wrote. The record does not point into b.
func DecodeRecord(b []byte) (*Record, error) {
	r := new(Record)
	return r, fields(b, r.field)
}

func (r *Record) field(f protowire.Number, n uint64, data []byte) (err error) {
	switch f {
	case 1:
		if n <= 0xff { // otherwise a later version wrote it; this one has no such kind
			r.Kind = RecordKind(n)
		}
	case 2:
		r.Key = string(data)
	case 3:
		r.Value = string(data)
	case 4:
		r.Version = n
	case 5:
		r.Expires = n != 0
	case 6:
		r.Counter = protowire.DecodeZigZag(n)
	case 7:
		r.End = n
	case 8:
		r.Phase = uint8(n)
	case 9:
		r.Owner = n
	case 10:
		r.Waiter = n
	case 11:
		r.Token = n
	case 12:
		r.Renewal = n
	case 13:
		r.Payload = string(data)
	case 14:
		r.Index = n
	case 15:
		r.Session, err = decodeSession(data, decodeOutcome)
	case 16:
		r.Bucket = string(data)
	case 17:
		r.MaxEntries = n
	case 18:
		r.MaxBytes = n
	case 19:
		r.Channel = string(data)
	case 20:
		r.TimeMS = protowire.DecodeZigZag(n)
	case 21:
		r.Forgotten = n
	default:
		r.laterField(f, n)
	}
	return err
}

func (r *Record) laterField(f protowire.Number, n uint64) {
	switch f {
	case 22:
		r.Epoch = n
	case 23:
		r.TTLMS = n
	case 24:
		r.Node = n
	case 25:
		r.Incarnation = n
	case 26:
		r.HolderLost = n != 0
	case 27:
		r.HolderLostToken = n
	case 28:
		r.Clock = n
	case 29:
		r.SessionClock = n
	case 30:
		r.Applied = n
	case 31:
		r.Seen.SQL = n
	case 32:
		r.Seen.KV = n
	case 33:
		r.Count = n
	}
}
