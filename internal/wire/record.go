package wire

import (
	"errors"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// A Record is a part of an in-memory shard's snapshot. The types of records are those in
// this file whose names end in Record. A snapshot begins with a ShardRecord and the
// SessionRecords, and ends with an EndRecord.
type Record interface {
	// number returns the number that the record's type has in the schema.
	number() protowire.Number
	// appendFields appends the encoding of the record's fields to b.
	appendFields(b []byte) []byte
	// field decodes one field. It keeps nothing of data.
	field(f protowire.Number, n uint64, data []byte) error
}

// errUnknownRecord says that a record was written by a newer hiqlite.
var errUnknownRecord = errors.New("hiqlite: the snapshot has a record that this version does not know; upgrade this node")

// newRecord returns an empty record of the type with a number, or nil if there is none.
func newRecord(number protowire.Number) Record {
	switch number {
	case 1:
		return new(ShardRecord)
	case 2:
		return new(SessionRecord)
	case 3:
		return new(EndRecord)
	case 4:
		return new(KVRecord)
	case 5:
		return new(BucketRecord)
	case 6:
		return new(KVEntryRecord)
	case 7:
		return new(CounterRecord)
	case 8:
		return new(ExpiryRecord)
	case 9:
		return new(LocksRecord)
	case 10:
		return new(LockOwnerRecord)
	case 11:
		return new(LockWaiterRecord)
	case 12:
		return new(LockRenewalRecord)
	case 13:
		return new(MessagesRecord)
	case 14:
		return new(MessageRecord)
	}
	return nil
}

// AppendRecord appends the encoding of r to b.
func AppendRecord(b []byte, r Record) []byte {
	b, at := openMessage(b, r.number())
	return closeMessage(r.appendFields(b), at)
}

// DecodeRecord decodes what AppendRecord wrote. The record does not point into b.
func DecodeRecord(b []byte) (Record, error) {
	var r Record
	err := fields(b, func(f protowire.Number, _ uint64, data []byte) error {
		next := newRecord(f)
		if next == nil { // a later version wrote it beside the record
			return nil
		}
		r = next
		return fields(data, r.field)
	})
	if err == nil && r == nil {
		err = errUnknownRecord
	}
	return r, err
}

// A ShardRecord has the state that all in-memory shards have.
type ShardRecord struct {
	Clock        uint64 // the shard's, in milliseconds
	SessionClock uint64 // the clock by which sessions and messages grow old
	Seen         Seen   // the highest indexes that commands have named
	Applied      uint64 // index of the last entry that the snapshot contains
}

func (*ShardRecord) number() protowire.Number { return 1 }

func (r *ShardRecord) appendFields(b []byte) []byte {
	b = appendUint(b, 1, r.Clock)
	b = appendUint(b, 2, r.SessionClock)
	b = appendUint(b, 3, r.Seen.SQL)
	b = appendUint(b, 4, r.Seen.KV)
	return appendUint(b, 5, r.Applied)
}

func (r *ShardRecord) field(f protowire.Number, n uint64, _ []byte) error {
	switch f {
	case 1:
		r.Clock = n
	case 2:
		r.SessionClock = n
	case 3:
		r.Seen.SQL = n
	case 4:
		r.Seen.KV = n
	case 5:
		r.Applied = n
	}
	return nil
}

// A SessionRecord has a session.
type SessionRecord struct{ Session[Outcome] }

func (*SessionRecord) number() protowire.Number { return 2 }

func (r *SessionRecord) appendFields(b []byte) []byte {
	return appendSession(b, &r.Session, appendOutcome)
}

func (r *SessionRecord) field(f protowire.Number, n uint64, data []byte) error {
	return r.Session.field(f, n, data, decodeOutcome)
}

// An EndRecord is the last record of a snapshot.
type EndRecord struct {
	Count uint64 // of the records before this one
}

func (*EndRecord) number() protowire.Number { return 3 }

func (r *EndRecord) appendFields(b []byte) []byte { return appendUint(b, 1, r.Count) }

func (r *EndRecord) field(f protowire.Number, n uint64, _ []byte) error {
	if f == 1 {
		r.Count = n
	}
	return nil
}

// A KVRecord is the first record of the kv shard itself. The buckets follow it, each
// with its entries and counters, and then the timers of entries.
type KVRecord struct {
	LastVersion uint64 // the version of the last change
}

func (*KVRecord) number() protowire.Number { return 4 }

func (r *KVRecord) appendFields(b []byte) []byte { return appendUint(b, 1, r.LastVersion) }

func (r *KVRecord) field(f protowire.Number, n uint64, _ []byte) error {
	if f == 1 {
		r.LastVersion = n
	}
	return nil
}

// A BucketRecord has a bucket of the kv shard. The KVEntryRecords and CounterRecords up
// to the next BucketRecord belong to it.
type BucketRecord struct {
	Name       string
	MaxEntries uint64 // 0: unlimited
	MaxBytes   uint64 // of keys and values; 0: unlimited
}

func (*BucketRecord) number() protowire.Number { return 5 }

func (r *BucketRecord) appendFields(b []byte) []byte {
	b = appendString(b, 1, r.Name)
	b = appendUint(b, 2, r.MaxEntries)
	return appendUint(b, 3, r.MaxBytes)
}

func (r *BucketRecord) field(f protowire.Number, n uint64, data []byte) error {
	switch f {
	case 1:
		r.Name = string(data)
	case 2:
		r.MaxEntries = n
	case 3:
		r.MaxBytes = n
	}
	return nil
}

// A KVEntryRecord has an entry of a bucket.
type KVEntryRecord struct {
	Key, Value string
	Version    uint64
	Expires    bool // the entry has a time to live; an ExpiryRecord has its timer
}

func (*KVEntryRecord) number() protowire.Number { return 6 }

func (r *KVEntryRecord) appendFields(b []byte) []byte {
	b = appendString(b, 1, r.Key)
	b = appendString(b, 2, r.Value)
	b = appendUint(b, 3, r.Version)
	return appendBool(b, 4, r.Expires)
}

func (r *KVEntryRecord) field(f protowire.Number, n uint64, data []byte) error {
	switch f {
	case 1:
		r.Key = string(data)
	case 2:
		r.Value = string(data)
	case 3:
		r.Version = n
	case 4:
		r.Expires = n != 0
	}
	return nil
}

// A CounterRecord has a counter of a bucket.
type CounterRecord struct {
	Key     string
	Counter int64
	Version uint64
}

func (*CounterRecord) number() protowire.Number { return 7 }

func (r *CounterRecord) appendFields(b []byte) []byte {
	b = appendString(b, 1, r.Key)
	b = appendInt(b, 2, r.Counter)
	return appendUint(b, 3, r.Version)
}

func (r *CounterRecord) field(f protowire.Number, n uint64, data []byte) error {
	switch f {
	case 1:
		r.Key = string(data)
	case 2:
		r.Counter = protowire.DecodeZigZag(n)
	case 3:
		r.Version = n
	}
	return nil
}

// An ExpiryRecord has the timer of an entry of the kv shard.
type ExpiryRecord struct {
	Version uint64 // of the entry
	Timer   Timer
}

func (*ExpiryRecord) number() protowire.Number { return 8 }

func (r *ExpiryRecord) appendFields(b []byte) []byte {
	b = appendUint(b, 1, r.Version)
	return r.Timer.append(b, 2)
}

func (r *ExpiryRecord) field(f protowire.Number, n uint64, data []byte) error {
	switch f {
	case 1:
		r.Version = n
	case 2:
		return fields(data, r.Timer.field)
	}
	return nil
}

// A Timer is the state of a timer, in an ExpiryRecord or a LockRenewalRecord.
type Timer struct {
	End   uint64 // on the shard's clock, in milliseconds; in phases 1 and 2: the duration
	Phase uint8  // 0: the timer runs; 1 or 2: two clock advances, or one, are missing until it begins
}

func (t *Timer) append(b []byte, field protowire.Number) []byte {
	b, at := openMessage(b, field)
	b = appendUint(b, 1, t.End)
	b = appendUint(b, 2, uint64(t.Phase))
	return closeMessage(b, at)
}

func (t *Timer) field(f protowire.Number, n uint64, _ []byte) error {
	switch f {
	case 1:
		t.End = n
	case 2:
		t.Phase = uint8(min(n, math.MaxUint8)) // a phase of a later version stays an unknown one
	}
	return nil
}
