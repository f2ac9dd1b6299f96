package wire

import (
	"bytes"
	"encoding/binary"
	"math"
	"reflect"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// sampleRecords returns a record of each type, with every field.
func sampleRecords() []Record {
	return []Record{
		&ShardRecord{Clock: 5000, SessionClock: 4000, Seen: Seen{SQL: 300, KV: 70}, Applied: 1 << 50},
		&SessionRecord{*sampleMemorySession()},
		&KVRecord{LastVersion: 9},
		&BucketRecord{Name: "bucket", MaxEntries: 10, MaxBytes: math.MaxUint64},
		&KVEntryRecord{Key: "key\xff\x00", Value: "value\x00\xff", Version: 8, Expires: true},
		&CounterRecord{Key: "n", Counter: math.MinInt64, Version: 7},
		&ExpiryRecord{Version: 8, Timer: Timer{End: 1500, Phase: 2}},
		&LocksRecord{LastToken: 12, LastRenewal: 4, HolderLostToken: 11},
		&LockOwnerRecord{Owner: 1<<63 | 5, Epoch: 2, TTLMS: 10_000, Renewal: 3, Node: 2, Incarnation: 1 << 40},
		&LockWaiterRecord{Key: "lock", Owner: 1<<63 | 5, Waiter: 7, Token: 12, Seen: Seen{SQL: 300, KV: 70}, HolderLost: true},
		&LockRenewalRecord{Owner: 1<<63 | 5, Renewal: 3, Timer: Timer{End: 10_000, Phase: 1}},
		&MessagesRecord{LastIndex: 6, LastForgotten: 5},
		&MessageRecord{Channel: "channel", Payload: "payload", Index: 6, TimeMS: 1_700_000_000_123, Seen: Seen{SQL: 299, KV: 70}, PublishedAt: 4900},
		&EndRecord{Count: 13},
	}
}

// The records follow each other as in a snapshot.
func TestGoldenRecords(t *testing.T) {
	var got []byte
	for _, r := range sampleRecords() {
		b := AppendRecord(nil, r)
		got = append(binary.AppendUvarint(got, uint64(len(b))), b...)
	}
	rest := golden(t, "records", got)
	if !bytes.Equal(got, rest) {
		t.Errorf("records are written differently than before:\n%x\n%x", got, rest)
	}
	for _, want := range sampleRecords() {
		n, used := binary.Uvarint(rest)
		r, err := DecodeRecord(rest[used : used+int(n)])
		if err != nil || !reflect.DeepEqual(r, want) {
			t.Errorf("%+v was decoded as %+v, %v", want, r, err)
		}
		rest = rest[used+int(n):]
	}
	if len(rest) > 0 {
		t.Errorf("after the records there is %x", rest)
	}
}

// The sample has every type of record once, and no field of it is zero.
func TestTheSampleHasEveryRecord(t *testing.T) {
	seen := map[protowire.Number]bool{}
	for _, r := range sampleRecords() {
		v := reflect.ValueOf(r).Elem()
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("field %s of the %T is zero", v.Type().Field(i).Name, r)
			}
		}
		if seen[r.number()] || reflect.TypeOf(newRecord(r.number())) != v.Addr().Type() {
			t.Errorf("a %T has number %d", r, r.number())
		}
		seen[r.number()] = true
	}
	for n := range protowire.Number(100) {
		if (newRecord(n) != nil) != seen[n] {
			t.Errorf("record %d is %T", n, newRecord(n))
		}
	}
}

func genTimer(t *rapid.T) Timer {
	return Timer{End: some(t, "end"), Phase: rapid.Byte().Draw(t, "phase")}
}

func genSeen(t *rapid.T) Seen { return Seen{some(t, "sql"), some(t, "kv")} }

func genRecord(t *rapid.T) Record {
	text := func(what string) string { return string(genBytes(t, what)) }
	switch newRecord(protowire.Number(rapid.IntRange(1, 14).Draw(t, "type"))).(type) {
	case *ShardRecord:
		return &ShardRecord{some(t, "clock"), some(t, "session clock"), genSeen(t), some(t, "applied")}
	case *SessionRecord:
		r := &SessionRecord{Session[Outcome]{ID: some(t, "session"), Sequence: some(t, "sequence"), LastUsed: some(t, "used"), Node: some(t, "node"), Incarnation: some(t, "incarnation")}}
		for range rapid.IntRange(0, 3).Draw(t, "outcomes") {
			r.Results = append(r.Results, genOutcome(t))
		}
		for range rapid.IntRange(0, 2).Draw(t, "earlier") {
			var outcomes []Outcome
			for range rapid.IntRange(0, 2).Draw(t, "outcomes of an earlier entry") {
				outcomes = append(outcomes, genOutcome(t))
			}
			r.Earlier = append(r.Earlier, outcomes)
		}
		return r
	case *KVRecord:
		return &KVRecord{some(t, "version")}
	case *BucketRecord:
		return &BucketRecord{text("name"), some(t, "entries"), some(t, "bytes")}
	case *KVEntryRecord:
		return &KVEntryRecord{text("key"), text("value"), some(t, "version"), rapid.Bool().Draw(t, "expires")}
	case *CounterRecord:
		return &CounterRecord{text("key"), int64(some(t, "counter")), some(t, "version")}
	case *ExpiryRecord:
		return &ExpiryRecord{some(t, "version"), genTimer(t)}
	case *LocksRecord:
		return &LocksRecord{some(t, "token"), some(t, "renewal"), some(t, "holder lost")}
	case *LockOwnerRecord:
		return &LockOwnerRecord{some(t, "owner"), some(t, "epoch"), some(t, "renewal"), some(t, "ttl"), some(t, "node"), some(t, "incarnation")}
	case *LockWaiterRecord:
		return &LockWaiterRecord{text("key"), some(t, "owner"), some(t, "waiter"), some(t, "token"), genSeen(t), rapid.Bool().Draw(t, "holder lost")}
	case *LockRenewalRecord:
		return &LockRenewalRecord{some(t, "owner"), some(t, "renewal"), genTimer(t)}
	case *MessagesRecord:
		return &MessagesRecord{some(t, "last"), some(t, "forgotten")}
	case *MessageRecord:
		return &MessageRecord{some(t, "index"), text("channel"), text("payload"), int64(some(t, "time")), genSeen(t), some(t, "published")}
	}
	return &EndRecord{some(t, "count")}
}

// recordOf returns a record that was parsed with the schema.
func recordOf(record message) Record {
	f := record.WhichOneof(record.Descriptor().Oneofs().ByName("record"))
	m := record.sub(string(f.Name()))
	text := func(name string) string { return string(m.bytes(name)) }
	seen := func() Seen { return Seen{m.uint("sql_index"), m.uint("kv_index")} }
	timer := func() Timer { return Timer{m.sub("timer").uint("end"), uint8(m.sub("timer").uint("phase"))} }
	switch f.Name() {
	case "shard":
		return &ShardRecord{m.uint("clock"), m.uint("session_clock"), seen(), m.uint("applied")}
	case "session":
		r := &SessionRecord{Session[Outcome]{ID: m.uint("id"), Sequence: m.uint("sequence"), LastUsed: m.uint("last_used"), Node: m.uint("node"), Incarnation: m.uint("incarnation")}}
		for _, o := range m.list("results") {
			r.Results = append(r.Results, outcomeOf(o))
		}
		for _, earlier := range m.list("earlier") {
			var outcomes []Outcome
			for _, o := range earlier.list("results") {
				outcomes = append(outcomes, outcomeOf(o))
			}
			r.Earlier = append(r.Earlier, outcomes)
		}
		return r
	case "end":
		return &EndRecord{m.uint("count")}
	case "kv":
		return &KVRecord{m.uint("last_version")}
	case "bucket":
		return &BucketRecord{text("name"), m.uint("max_entries"), m.uint("max_bytes")}
	case "kv_entry":
		return &KVEntryRecord{text("key"), text("value"), m.uint("version"), m.bool("expires")}
	case "counter":
		return &CounterRecord{text("key"), m.int("counter"), m.uint("version")}
	case "expiry":
		return &ExpiryRecord{m.uint("version"), timer()}
	case "locks":
		return &LocksRecord{m.uint("last_token"), m.uint("last_renewal"), m.uint("holder_lost_token")}
	case "lock_owner":
		return &LockOwnerRecord{m.uint("owner"), m.uint("epoch"), m.uint("renewal"), m.uint("ttl_ms"), m.uint("node"), m.uint("incarnation")}
	case "lock_waiter":
		return &LockWaiterRecord{text("key"), m.uint("owner"), m.uint("waiter"), m.uint("token"), seen(), m.bool("holder_lost")}
	case "lock_renewal":
		return &LockRenewalRecord{m.uint("owner"), m.uint("renewal"), timer()}
	case "messages":
		return &MessagesRecord{m.uint("last_index"), m.uint("last_forgotten")}
	case "message":
		return &MessageRecord{m.uint("index"), text("channel"), text("payload"), m.int("time_ms"), seen(), m.uint("published_at")}
	}
	panic(f.Name())
}

func TestRecordsFollowTheSchema(t *testing.T) {
	desc := schema(t).ByName("Record")
	rapid.Check(t, func(t *rapid.T) {
		want := genRecord(t)
		m := parse(t, desc, AppendRecord(nil, want))
		if got := recordOf(m); !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v is %+v under the schema", want, got)
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeRecord(b); err != nil || !reflect.DeepEqual(back, want) {
			t.Fatalf("%+v, written by the library, was decoded as %+v, %v", want, back, err)
		}
	})
}

// A record does not refer to the buffer that it was decoded from.
func TestRecordsKeepNothingOfTheBuffer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genRecord(t)
		b := AppendRecord([]byte("before"), want)[len("before"):]
		got, err := DecodeRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		clear(b)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v became %+v", want, got)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	for _, r := range sampleRecords() {
		f.Add(AppendRecord(nil, r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRecord(b)
		if err != nil {
			return
		}
		first := AppendRecord(nil, r)
		back, err := DecodeRecord(first)
		if err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%+v became %+v, %v", r, back, err)
		}
	})
}
