package wire

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// sampleCommands returns commands that together have every field.
func sampleCommands() []*Command {
	all := []*Command{
		KVPut{Kind: KindKVCompareAndSwap, Bucket: "bucket", Key: "key\xff\x00", Value: []byte{0, 1, 255}, TTLMS: 1500, Version: 1 << 40}.Command(),
		KVDelete{Bucket: "bucket", Key: "key", ReturnValue: true}.Command(),
		CounterAdd{Bucket: "bucket", Key: "n", Delta: math.MinInt64}.Command(),
		CounterSet{Bucket: "bucket", Key: "n", Counter: math.MaxInt64}.Command(),
		KVSetLimits{Bucket: "bucket", MaxEntries: 10, MaxBytes: math.MaxUint64, Override: true}.Command(),
		LockAcquire{Key: "lock", OwnerTTLMS: 10_000, Owner: 1<<63 | 5, Waiter: 7, OwnerExists: true}.Command(),
		LockRelease{Owner: 1<<63 | 5, Waiter: 7, CaughtUp: true, OwnerStays: true}.Command(),
		LockRenew{Owner: 1<<63 | 5, LastWaiter: 9, Waiters: []uint64{7, 0, math.MaxUint64}}.Command(),
		Notify{Channel: "channel", Payload: []byte("payload"), TimeMS: 1_700_000_000_123}.Command(),
		KVClearAll{}.Command(),
		{},
	}
	all[0].Seen, all[8].Seen = Seen{SQL: 300, KV: 70}, Seen{SQL: 1 << 50, KV: 70}
	return all
}

// manyCommands returns so many commands that an entry of them is compressed.
func manyCommands() (all []*Command) {
	for i := range 300 {
		all = append(all, &Command{Kind: KindKVPut, Bucket: "bucket", Key: fmt.Sprint("key", i), Value: []byte(strings.Repeat("value", i%7)), TTLMS: uint64(i)})
	}
	return all
}

func encodeCommands(session, sequence uint64, commands []*Command) []byte {
	encoded := make([][]byte, len(commands))
	for i, c := range commands {
		encoded[i] = EncodeCommand(c)
	}
	return EncodeCommands(session, sequence, 0, encoded)
}

// sameCommands compares decoded commands with those that were encoded. It does not
// distinguish nil slices from empty ones.
func sameCommands(e *Entry, session, sequence uint64, want []*Command) error {
	if e.Session != session || e.Sequence != sequence || e.OpenSession || e.ClockAdvance != nil || e.HoldMS != 0 || len(e.Operations) != 0 || len(e.Commands) != len(want) {
		return fmt.Errorf("decoded %+v", e)
	}
	for i := range want {
		if got, want := plainCommand(e.Commands[i]), plainCommand(*want[i]); !reflect.DeepEqual(got, want) {
			return fmt.Errorf("command %d is\n%#v, want\n%#v", i, got, want)
		}
	}
	return nil
}

// plainCommand returns a copy of a command without nil slices.
func plainCommand(c Command) Command {
	c.Value, c.Payload, c.Waiters = append([]byte{}, c.Value...), append([]byte{}, c.Payload...), append([]uint64{}, c.Waiters...)
	return c
}

func sampleMemorySession() *Session[Outcome] {
	return &Session[Outcome]{ID: 7, Sequence: 8, LastUsed: 9, Node: 2, Incarnation: 3, Results: []Outcome{
		{},
		{Code: Changed, Version: math.MaxUint64},
		{Existed: true, Version: 5, Value: "before\x00\xff"},
		{Existed: true, ValueDropped: true},
		{Counter: math.MinInt64},
		{MaxEntries: 10, MaxBytes: math.MaxUint64},
		{Token: 12, Epoch: 3, Seen: Seen{SQL: 300, KV: 70}, HolderLost: true},
		{Index: 6},
		{Code: UnknownCommand},
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

// TestGoldenCompressedEntry says why both are decoded.
func TestGoldenCompressedCommands(t *testing.T) {
	got := encodeCommands(1, 2, manyCommands())
	if got[1] != flagZstd {
		t.Fatal("the entry is not compressed")
	}
	for name, cmd := range map[string][]byte{"golden": golden(t, "entry-commands-zstd", got), "present": got} {
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

func TestGoldenClockAdvance(t *testing.T) {
	advance := ClockAdvance{Expected: 5, Next: 300, Nonce: 0x1122334455667788, Applied: 70, History: 0x8877665544332211}
	got := EncodeClockAdvance(advance)
	want := golden(t, "clock-advance-nonce", got)
	if !bytes.Equal(got, want) {
		t.Errorf("a clock advance is written differently than before:\n%x\n%x", got, want)
	}
	var d Decoder
	if e, err := d.Decode(want); err != nil || e.ClockAdvance == nil || *e.ClockAdvance != advance {
		t.Errorf("decoded %+v, %v", e, err)
	}
}

// Generators.

// genBytes draws any bytes, because names and keys need not be UTF-8.
func genBytes(t *rapid.T, what string) []byte {
	return append([]byte{}, rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, what)...)
}

// some draws a number that is often 0, because fields with the value 0 are not written.
func some(t *rapid.T, what string) uint64 {
	if rapid.Bool().Draw(t, what+"?") {
		return rapid.Uint64().Draw(t, what)
	}
	return 0
}

func genCommand(t *rapid.T) *Command {
	return &Command{Kind: CommandKind(rapid.Byte().Draw(t, "kind")), Origin: genOrigin(t), Seen: Seen{some(t, "sql"), some(t, "kv")},
		Waiters: rapid.SliceOfN(rapid.Uint64(), 0, 4).Draw(t, "waiters"),
		Key:     string(genBytes(t, "key")), Bucket: string(genBytes(t, "bucket")), Value: genBytes(t, "value"), TTLMS: some(t, "ttlms"), Version: some(t, "version"),
		Delta: int64(some(t, "delta")), Counter: int64(some(t, "counter")), MaxEntries: some(t, "maxentries"), MaxBytes: some(t, "maxbytes"), Override: rapid.Bool().Draw(t, "override"),
		Owner: some(t, "owner"), OwnerTTLMS: some(t, "ownerttlms"), OwnerExists: rapid.Bool().Draw(t, "ownerexists"), Waiter: some(t, "waiter"), CaughtUp: rapid.Bool().Draw(t, "caughtup"),
		OwnerStays: rapid.Bool().Draw(t, "ownerstays"), LastWaiter: some(t, "lastwaiter"), Channel: string(genBytes(t, "channel")), Payload: genBytes(t, "payload"), TimeMS: int64(some(t, "timems")),
	}
}

func genOrigin(t *rapid.T) *Origin {
	if rapid.Bool().Draw(t, "remote") {
		return &Origin{some(t, "session"), some(t, "sequence"), rapid.Bool().Draw(t, "last")}
	}
	return nil
}

func genOutcome(t *rapid.T) Outcome {
	return Outcome{Code: OutcomeCode(rapid.Byte().Draw(t, "code")), Admission: Admission(rapid.IntRange(0, 2).Draw(t, "admission")), Seen: Seen{some(t, "sql"), some(t, "kv")},
		Version: some(t, "version"), Existed: rapid.Bool().Draw(t, "existed"), Value: string(genBytes(t, "value")), ValueDropped: rapid.Bool().Draw(t, "valuedropped"), Counter: int64(some(t, "counter")),
		MaxEntries: some(t, "maxentries"), MaxBytes: some(t, "maxbytes"), Token: some(t, "token"), Epoch: some(t, "epoch"), HolderLost: rapid.Bool().Draw(t, "holderlost"),
		Index: some(t, "index"),
	}
}

func genCommands(t *rapid.T) []*Command {
	return rapid.SliceOfN(rapid.Custom(genCommand), 0, 12).Draw(t, "commands")
}

// Commands are decoded as they were encoded, also when the decoder is used again, and while
// another decoder is in use.
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
	c := &Command{Kind: CommandKind(m.uint("kind")), Origin: originOf(m), Seen: Seen{m.uint("sql_index"), m.uint("kv_index")},
		Key: string(m.bytes("key")), Bucket: string(m.bytes("bucket")), Value: m.bytes("value"), TTLMS: m.uint("ttl_ms"), Version: m.uint("version"),
		Delta: m.int("delta"), Counter: m.int("counter"), MaxEntries: m.uint("max_entries"), MaxBytes: m.uint("max_bytes"), Override: m.bool("override"),
		Owner: m.uint("owner"), OwnerTTLMS: m.uint("owner_ttl_ms"), OwnerExists: m.bool("owner_exists"), Waiter: m.uint("waiter"), CaughtUp: m.bool("caught_up"),
		OwnerStays: m.bool("owner_stays"), LastWaiter: m.uint("last_waiter"), Channel: string(m.bytes("channel")), Payload: m.bytes("payload"), TimeMS: m.int("time_ms"),
	}
	waiters := m.field("waiters").List()
	for i := range waiters.Len() {
		c.Waiters = append(c.Waiters, waiters.Get(i).Uint())
	}
	return c
}

func outcomeOf(m message) Outcome {
	return Outcome{Code: OutcomeCode(m.uint("code")), Admission: Admission(m.uint("admission")), Seen: Seen{m.uint("sql_index"), m.uint("kv_index")},
		Version: m.uint("version"), Existed: m.bool("existed"), Value: string(m.bytes("value")), ValueDropped: m.bool("value_dropped"), Counter: m.int("counter"),
		MaxEntries: m.uint("max_entries"), MaxBytes: m.uint("max_bytes"), Token: m.uint("token"), Epoch: m.uint("epoch"), HolderLost: m.bool("holder_lost"),
		Index: m.uint("index"),
	}
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
		// In the other direction, decode what the protobuf library writes.
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

// The combiner fills entries by the sizes of commands, so these must be upper bounds.
func TestTheSizeOfACommandIsAnUpperBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := 64
		var encoded [][]byte
		for _, c := range genCommands(t) {
			b := EncodeCommand(c)
			n += len(b) + 6
			encoded = append(encoded, b)
		}
		if got := len(EncodeCommands(math.MaxUint64, math.MaxUint64, 0, encoded)); got > n {
			t.Fatalf("the entry has %d bytes, the sum of the sizes is %d", got, n)
		}
	})
}

// A kind that does not fit into its type is not truncated to another kind. Replicas of all
// builds refuse it. They also refuse a snapshot with a record that they do not know.
func TestKindsOfLaterBuildsAreUnknown(t *testing.T) {
	var d Decoder
	e, err := d.Decode([]byte{FormatVersion, 0, 8<<3 | 2, 3, 1 << 3, 0x81, 0x02}) // 257
	if err != nil || len(e.Commands) != 1 || e.Commands[0].Kind != 0 {
		t.Errorf("decoded %+v, %v", e, err)
	}
	if r, err := DecodeRecord([]byte{15<<3 | 2, 2, 1 << 3, 13}); err != errUnknownRecord {
		t.Errorf("a record of a later build was decoded as %+v, %v", r, err)
	}
}

func TestUnknownFieldsOfCommandsAndRecordsAreIgnored(t *testing.T) {
	extra := []byte{0xf8, 0x07, 5, 0xfa, 0x07, 2, 'h', 'i', 0xf9, 0x07, 1, 2, 3, 4, 5, 6, 7, 8, 0xfd, 0x07, 1, 2, 3, 4} // field 127, of every kind
	var encoded [][]byte
	for _, c := range sampleCommands() {
		encoded = append(encoded, append(EncodeCommand(c), extra...))
	}
	var d Decoder
	e, err := d.Decode(EncodeCommands(1, 2, 0, encoded))
	if err != nil {
		t.Fatal(err)
	}
	if err := sameCommands(e, 1, 2, sampleCommands()); err != nil {
		t.Error(err)
	}
	for _, want := range sampleRecords() {
		if r, err := DecodeRecord(append(AppendRecord(nil, want), extra...)); err != nil || !reflect.DeepEqual(r, want) {
			t.Errorf("%+v was decoded as %+v, %v", want, r, err)
		}
	}
}

// A truncated entry is an error or a shorter entry. The same holds for a truncated record.
func TestTruncatedCommandsAndRecords(t *testing.T) {
	cmd := encodeCommands(12, 345, sampleCommands())
	var d Decoder
	for n := range cmd {
		if e, err := d.Decode(cmd[:n]); err == nil && len(e.Commands) >= len(sampleCommands()) {
			t.Errorf("an entry truncated to %d of %d bytes was decoded completely", n, len(cmd))
		}
	}
	for _, want := range sampleRecords() {
		b := AppendRecord(nil, want)
		for n := range b {
			if r, err := DecodeRecord(b[:n]); err == nil && reflect.DeepEqual(r, want) {
				t.Errorf("%+v was decoded completely from %d of %d bytes", want, n, len(b))
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
		// The decoded entry can be encoded and decoded again without a loss.
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
