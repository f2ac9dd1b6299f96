package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// sampleCommands have every field.
func sampleCommands() []*Command {
	return []*Command{
		{Kind: KVCompareAndSwap, Seen: Seen{SQL: 300, KV: 70}, Name: "bucket", Key: "key\xff\x00", Value: []byte{0, 1, 255}, TTLMS: 1500, Version: 1 << 40},
		{Kind: CounterAdd, Name: "bucket", Key: "n", Number: math.MinInt64},
		{Kind: KVLimits, Name: "bucket", MaxEntries: 10, MaxBytes: math.MaxUint64, Force: true},
		{Kind: LockAcquire, Key: "lock", TTLMS: 10_000, Owner: 1<<63 | 5, ID: 7},
		{Kind: LockRenew, Owner: 1<<63 | 5, ID: 9, IDs: []uint64{7, 0, math.MaxUint64}},
		{Kind: Notify, Seen: Seen{SQL: 1 << 50, KV: 70}, Name: "channel", Value: []byte("payload"), Number: 1_700_000_000_123},
		{Kind: KVClearAll},
		{},
	}
}

// manyCommands are worth being compressed.
func manyCommands() (all []*Command) {
	for i := range 300 {
		all = append(all, &Command{Kind: KVPut, Name: "bucket", Key: fmt.Sprint("key", i), Value: []byte(strings.Repeat("value", i%7)), TTLMS: uint64(i)})
	}
	return all
}

func encodeCommands(session, sequence uint64, commands []*Command) []byte {
	encoded := make([][]byte, len(commands))
	for i, c := range commands {
		encoded[i] = EncodeCommand(c)
	}
	return EncodeCommands(session, sequence, encoded)
}

// sameCommands compares what was decoded with what was encoded: empty slices are
// nil or not.
func sameCommands(e *Entry, session, sequence uint64, want []*Command) error {
	if e.Session != session || e.Sequence != sequence || e.OpenSession || e.Tick != nil || e.HoldMS != 0 || len(e.Operations) != 0 || len(e.Commands) != len(want) {
		return fmt.Errorf("decoded %+v", e)
	}
	for i := range want {
		if got, want := plainCommand(e.Commands[i]), plainCommand(*want[i]); !reflect.DeepEqual(got, want) {
			return fmt.Errorf("command %d is\n%#v, want\n%#v", i, got, want)
		}
	}
	return nil
}

func plainCommand(c Command) Command {
	c.Value, c.IDs = append([]byte{}, c.Value...), append([]uint64{}, c.IDs...)
	return c
}

// sampleRecords are one of each kind, and have every field.
func sampleRecords() []*Record {
	return []*Record{
		{Kind: RecordShard, Ticks: 5000, TTLMS: 4000, Seen: Seen{SQL: 300, KV: 70}, Number: 1 << 50},
		{Kind: RecordSession, Session: sampleMemorySession()},
		{Kind: RecordBucket, Name: "bucket", Version: 9, MaxEntries: 10, MaxBytes: math.MaxUint64},
		{Kind: RecordEntry, Key: "key\xff\x00", Value: "value\x00\xff", Version: 8, Expired: true},
		{Kind: RecordCounter, Key: "n", Number: math.MinInt64, Version: 7},
		{Kind: RecordExpiry, Version: 8, Ticks: 1500, Phase: 2},
		{Kind: RecordOwner, Version: 12, ID: 4, Unsure: 11},
		{Kind: RecordOwner, Owner: 1<<63 | 5, TTLMS: 10_000, ID: 3, Node: 2, Incarnation: 1 << 40},
		{Kind: RecordPlace, Key: "lock", Owner: 1<<63 | 5, ID: 7, Version: 12, Seen: Seen{SQL: 300, KV: 70}, Expired: true},
		{Kind: RecordRenewal, Owner: 1<<63 | 5, ID: 3, Ticks: 10_000, Phase: 1},
		{Kind: RecordMessage, Name: "channel", Value: "payload", Version: 6, Number: 1_700_000_000_123, Seen: Seen{SQL: 299, KV: 70}, Ticks: 4900},
		{Kind: RecordEnd, Number: 10},
	}
}

func sampleMemorySession() *Session[Outcome] {
	return &Session[Outcome]{ID: 7, Sequence: 8, Used: 9, Node: 2, Incarnation: 3, Results: []Outcome{
		{},
		{Code: Changed, Index: math.MaxUint64},
		{Had: true, Index: 5, Value: "before\x00\xff"},
		{Had: true, Dropped: true},
		{Number: math.MinInt64},
		{Index: 12, Seen: Seen{SQL: 300, KV: 70}, Expired: true},
		{Code: Foreign},
	}}
}

func TestGoldenCommands(t *testing.T) {
	got := encodeCommands(12, 345, sampleCommands())
	want := golden(t, "entry-commands", got)
	if !bytes.Equal(got, want) {
		t.Errorf("commands are written differently than before:\n%x\n%x", got, want)
	}
	var d Decoder
	e, err := d.Decode(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := sameCommands(e, 12, 345, sampleCommands()); err != nil {
		t.Error(err)
	}
}

// See TestGoldenCompressedEntry.
func TestGoldenCompressedCommands(t *testing.T) {
	got := encodeCommands(1, 2, manyCommands())
	if got[1] != flagZstd {
		t.Fatal("it is not compressed")
	}
	for name, cmd := range map[string][]byte{"of before": golden(t, "entry-commands-zstd", got), "of today": got} {
		var d Decoder
		e, err := d.Decode(cmd)
		if err != nil {
			t.Fatal(name, err)
		}
		if err := sameCommands(e, 1, 2, manyCommands()); err != nil {
			t.Error(name, err)
		}
	}
}

func TestGoldenTick(t *testing.T) {
	tick := Tick{Expected: 5, Next: 300, Nonce: 0x1122334455667788, Applied: 70, History: 0x8877665544332211}
	got := EncodeTick(tick)
	want := golden(t, "tick-nonce", got)
	if !bytes.Equal(got, want) {
		t.Errorf("a tick is written differently than before:\n%x\n%x", got, want)
	}
	var d Decoder
	if e, err := d.Decode(want); err != nil || e.Tick == nil || *e.Tick != tick {
		t.Errorf("%+v, %v", e, err)
	}
}

// The records stand one behind the other, as in a snapshot.
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
			t.Errorf("%+v is %+v, %v", want, r, err)
		}
		rest = rest[used+int(n):]
	}
	if len(rest) > 0 {
		t.Errorf("%x is left", rest)
	}
}

// Generators.

// genBytes are any bytes: names and keys are not UTF-8.
func genBytes(t *rapid.T, what string) []byte {
	return append([]byte{}, rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, what)...)
}

// some is 0 as often as not: fields without a value are not written.
func some(t *rapid.T, what string) uint64 {
	if rapid.Bool().Draw(t, what+"?") {
		return rapid.Uint64().Draw(t, what)
	}
	return 0
}

func genCommand(t *rapid.T) *Command {
	return &Command{Kind: CommandKind(rapid.Byte().Draw(t, "kind")), Seen: Seen{some(t, "sql"), some(t, "kv")}, Name: string(genBytes(t, "name")), Key: string(genBytes(t, "key")),
		Value: genBytes(t, "value"), TTLMS: some(t, "ttl"), Version: some(t, "version"), Number: int64(some(t, "number")), Owner: some(t, "owner"), ID: some(t, "id"),
		IDs: rapid.SliceOfN(rapid.Uint64(), 0, 4).Draw(t, "ids"), MaxEntries: some(t, "entries"), MaxBytes: some(t, "bytes"), Force: rapid.Bool().Draw(t, "force")}
}

func genOutcome(t *rapid.T) Outcome {
	return Outcome{Code: OutcomeCode(rapid.Byte().Draw(t, "code")), Had: rapid.Bool().Draw(t, "had"), Dropped: rapid.Bool().Draw(t, "dropped"), Expired: rapid.Bool().Draw(t, "expired"),
		Index: some(t, "index"), Number: int64(some(t, "number")), Seen: Seen{some(t, "sql"), some(t, "kv")}, Value: string(genBytes(t, "value"))}
}

func genRecord(t *rapid.T) *Record {
	r := &Record{Kind: RecordKind(rapid.Byte().Draw(t, "kind")), Name: string(genBytes(t, "name")), Key: string(genBytes(t, "key")), Value: string(genBytes(t, "value")),
		Version: some(t, "version"), Number: int64(some(t, "number")), Ticks: some(t, "ticks"), TTLMS: some(t, "ttl"), Phase: rapid.Byte().Draw(t, "phase"), Seen: Seen{some(t, "sql"), some(t, "kv")},
		Owner: some(t, "owner"), ID: some(t, "id"), MaxEntries: some(t, "entries"), MaxBytes: some(t, "bytes"), Node: some(t, "node"), Incarnation: some(t, "incarnation"), Expired: rapid.Bool().Draw(t, "expired"), Unsure: some(t, "unsure")}
	if rapid.Bool().Draw(t, "of a session") {
		r.Session = &Session[Outcome]{ID: some(t, "session"), Sequence: some(t, "sequence"), Used: some(t, "used"), Node: some(t, "node"), Incarnation: some(t, "incarnation")}
		for range rapid.IntRange(0, 3).Draw(t, "outcomes") {
			r.Session.Results = append(r.Session.Results, genOutcome(t))
		}
	}
	return r
}

func genCommands(t *rapid.T) []*Command {
	return rapid.SliceOfN(rapid.Custom(genCommand), 0, 12).Draw(t, "commands")
}

// What decodes is what was encoded, also with memory that is used again, and
// beside another decoder.
func TestCommandsRoundTrip(t *testing.T) {
	var d Decoder
	rapid.Check(t, func(t *rapid.T) {
		first, second := genCommands(t), genCommands(t)
		if rapid.Bool().Draw(t, "large") {
			first = append(first, manyCommands()...)
		}
		session, sequence := rapid.Uint64().Draw(t, "session"), rapid.Uint64().Draw(t, "sequence")
		e, err := d.Decode(encodeCommands(session, sequence, first))
		if err != nil {
			t.Fatal(err)
		}
		var other Decoder
		f, err := other.Decode(encodeCommands(3, 4, second))
		if err != nil {
			t.Fatal(err)
		}
		if err := sameCommands(e, session, sequence, first); err != nil {
			t.Fatal(err)
		}
		if err := sameCommands(f, 3, 4, second); err != nil {
			t.Fatal(err)
		}
	})
}

func commandOf(m message) *Command {
	c := &Command{Kind: CommandKind(m.uint("kind")), Seen: Seen{m.uint("sql_index"), m.uint("kv_index")}, Name: string(m.bytes("name")), Key: string(m.bytes("key")), Value: m.bytes("value"),
		TTLMS: m.uint("ttl_ms"), Version: m.uint("version"), Number: m.int("number"), Owner: m.uint("owner"), ID: m.uint("id"),
		MaxEntries: m.uint("max_entries"), MaxBytes: m.uint("max_bytes"), Force: m.bool("force")}
	ids := m.field("ids").List()
	for i := range ids.Len() {
		c.IDs = append(c.IDs, ids.Get(i).Uint())
	}
	return c
}

func outcomeOf(m message) Outcome {
	return Outcome{Code: OutcomeCode(m.uint("code")), Index: m.uint("index"), Number: m.int("number"), Seen: Seen{m.uint("sql_index"), m.uint("kv_index")}, Dropped: m.bool("dropped"),
		Had: m.bool("had"), Value: string(m.bytes("value")), Expired: m.bool("expired")}
}

func recordOf(m message) *Record {
	r := &Record{Kind: RecordKind(m.uint("kind")), Name: string(m.bytes("name")), Key: string(m.bytes("key")), Value: string(m.bytes("value")), Version: m.uint("version"),
		Number: m.int("number"), Ticks: m.uint("ticks"), TTLMS: m.uint("ttl_ms"), Phase: uint8(m.uint("phase")), Seen: Seen{m.uint("sql_index"), m.uint("kv_index")}, Owner: m.uint("owner"), ID: m.uint("id"),
		MaxEntries: m.uint("max_entries"), MaxBytes: m.uint("max_bytes"), Node: m.uint("node"), Incarnation: m.uint("incarnation"), Expired: m.bool("expired"), Unsure: m.uint("unsure")}
	if s := m.sub("session"); m.has("session") {
		r.Session = &Session[Outcome]{ID: s.uint("id"), Sequence: s.uint("sequence"), Used: s.uint("used"), Node: s.uint("node"), Incarnation: s.uint("incarnation")}
		for _, o := range s.list("results") {
			r.Session.Results = append(r.Session.Results, outcomeOf(o))
		}
	}
	return r
}

func TestCommandsFollowTheSchema(t *testing.T) {
	desc := schema(t).ByName("Entry")
	rapid.Check(t, func(t *rapid.T) {
		commands := genCommands(t)
		cmd := encodeCommands(12, 34, commands)
		body := cmd[2:]
		if cmd[1]&flagZstd != 0 {
			var err error
			if body, err = decoder.DecodeAll(body, nil); err != nil {
				t.Fatal(err)
			}
		}
		entry := parse(t, desc, body)
		got := &Entry{Session: entry.uint("session"), Sequence: entry.uint("sequence")}
		for _, m := range entry.list("commands") {
			got.Commands = append(got.Commands, *commandOf(m))
		}
		if err := sameCommands(got, 12, 34, commands); err != nil {
			t.Fatal(err)
		}
		// And back: as the library writes it.
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(entry.Interface())
		if err != nil {
			t.Fatal(err)
		}
		var d Decoder
		e, err := d.Decode(append([]byte{FormatVersion, 0}, b...))
		if err != nil {
			t.Fatal(err)
		}
		if err := sameCommands(e, 12, 34, commands); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRecordsFollowTheSchema(t *testing.T) {
	desc := schema(t).ByName("Record")
	rapid.Check(t, func(t *rapid.T) {
		want := genRecord(t)
		m := parse(t, desc, AppendRecord(nil, want))
		if got := recordOf(m); !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v is under the schema %+v", want, got)
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeRecord(b); err != nil || !reflect.DeepEqual(back, want) {
			t.Fatalf("%+v came back as %+v, %v", want, back, err)
		}
	})
}

// A record outlives the buffer that it was read into.
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

// The combiner fills entries by this size.
func TestACommandsSizeIsAnUpperBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := 64
		var encoded [][]byte
		for _, c := range genCommands(t) {
			b := EncodeCommand(c)
			n += len(b) + 6
			encoded = append(encoded, b)
		}
		if got := len(EncodeCommands(math.MaxUint64, math.MaxUint64, encoded)); got > n {
			t.Fatalf("%d bytes, the sizes said %d", got, n)
		}
	})
}

// A kind that does not fit is no other one: replicas of all builds refuse it.
func TestAKindOfALaterBuildIsNone(t *testing.T) {
	var d Decoder
	e, err := d.Decode([]byte{FormatVersion, 0, 8<<3 | 2, 3, 1 << 3, 0x81, 0x02}) // 257
	if err != nil || len(e.Commands) != 1 || e.Commands[0].Kind != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	if r, err := DecodeRecord([]byte{1 << 3, 0x83, 0x02}); err == nil && r.Kind == RecordEnd { // 259
		t.Error("a record of a later kind ends the snapshot")
	}
}

func TestUnknownFieldsOfCommandsAndRecordsAreIgnored(t *testing.T) {
	extra := []byte{0xf8, 0x07, 5, 0xfa, 0x07, 2, 'h', 'i', 0xf9, 0x07, 1, 2, 3, 4, 5, 6, 7, 8, 0xfd, 0x07, 1, 2, 3, 4} // field 127, of every kind
	var encoded [][]byte
	for _, c := range sampleCommands() {
		encoded = append(encoded, append(EncodeCommand(c), extra...))
	}
	var d Decoder
	e, err := d.Decode(EncodeCommands(1, 2, encoded))
	if err != nil {
		t.Fatal(err)
	}
	if err := sameCommands(e, 1, 2, sampleCommands()); err != nil {
		t.Error(err)
	}
	for _, want := range sampleRecords() {
		if r, err := DecodeRecord(append(AppendRecord(nil, want), extra...)); err != nil || !reflect.DeepEqual(r, want) {
			t.Errorf("%+v is %+v, %v", want, r, err)
		}
	}
}

// A cut entry is an error or a shorter one; so is a cut record.
func TestCutCommandsAndRecords(t *testing.T) {
	cmd := encodeCommands(12, 345, sampleCommands())
	var d Decoder
	for n := range cmd {
		if e, err := d.Decode(cmd[:n]); err == nil && len(e.Commands) >= len(sampleCommands()) {
			t.Errorf("cut at %d of %d bytes it is whole", n, len(cmd))
		}
	}
	for _, want := range sampleRecords() {
		b := AppendRecord(nil, want)
		for n := range b {
			if r, err := DecodeRecord(b[:n]); err == nil && reflect.DeepEqual(r, want) {
				t.Errorf("%+v is whole at %d of %d bytes", want, n, len(b))
			}
		}
	}
}

func FuzzDecodeCommands(f *testing.F) {
	f.Add(encodeCommands(12, 345, sampleCommands()))
	f.Add(encodeCommands(1, 2, manyCommands()))
	f.Add([]byte{FormatVersion, 0, 8<<3 | 2, 2, 11<<3 | 2, 0})
	var d, again Decoder
	f.Fuzz(func(t *testing.T, cmd []byte) {
		e, err := d.Decode(cmd)
		if err != nil {
			return
		}
		// What was decoded is whole: writing it again gives the same content.
		var commands []*Command
		for i := range e.Commands {
			commands = append(commands, &e.Commands[i])
		}
		second, err := again.Decode(encodeCommands(e.Session, e.Sequence, commands))
		if err != nil {
			t.Fatal(err)
		}
		if err := sameCommands(second, e.Session, e.Sequence, commands); err != nil {
			t.Fatal(err)
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
