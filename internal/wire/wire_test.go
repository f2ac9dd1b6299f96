package wire

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files, which needs a new format version once there is a release")

// golden returns the content of a golden file, which an earlier build wrote. With -update it
// writes got to the file first.
func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	if *update && got != nil {
		if err := os.WriteFile(path, []byte(split(hex.EncodeToString(got))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.ReplaceAll(string(b), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return want
}

// split returns hexadecimal text in lines.
func split(s string) string {
	var b strings.Builder
	for len(s) > 80 {
		b.WriteString(s[:80] + "\n")
		s = s[80:]
	}
	return b.String() + s + "\n"
}

// sample returns operations that together have every field and every kind of value.
func sample() []*Operation {
	return []*Operation{
		{
			StampMS: 1_700_000_000_123, Seed: Seed{0xfe, 0xdc, 31: 1}, Settings: ForeignKeysOff | LegacyAlterTable, LastInsertID: -5, Changes: 7, MaxSteps: 1 << 40,
			Statements: []Statement{
				{SQL: "INSERT INTO t VALUES(?,?,?,?,:e)", Args: []Argument{
					{}, {Value: IntegerValue(math.MinInt64)}, {Value: RealValue(math.Inf(-1))}, {Value: TextValue("a\x00\xff")}, {Name: "e", Value: BlobValue([]byte{0, 255})},
				}},
				{SQL: "INSERT INTO t VALUES(?,?,?,?,:e)", Args: []Argument{{Value: TextValue("")}, {Value: BlobValue([]byte{})}, {Value: IntegerValue(0)}, {Value: RealValue(0)}}},
				{SQL: "DELETE FROM t"},
			},
		},
		{StampMS: -1, Statements: []Statement{{SQL: "DELETE FROM t"}}},
		{StampMS: 1, Seed: Seed{31: 2}, Statements: []Statement{{SQL: "DELETE FROM t"}}},
		{Vacuum: true, Statements: []Statement{{SQL: ""}}},
		{Zone: &Zone{Name: "Europe/Berlin", Offsets: []Offset{{From: -2208988800, Seconds: 3600}, {From: 1711846800, Seconds: 7200}}}, Statements: []Statement{{SQL: "DELETE FROM t"}}},
		{Functions: []Function{{Name: "f", Version: 3}, {Name: "order", Collation: true}}, Statements: []Statement{{SQL: "DELETE FROM t"}}},
		{Temp: []byte{}, Statements: []Statement{{SQL: "CREATE TEMP TABLE x(a)"}}},
		{Temp: sampleTemp(), Statements: []Statement{{SQL: "DELETE FROM x"}}},
	}
}

func encode(session, sequence uint64, ops []*Operation) []byte {
	encoded := make([]*EncodedOperation, len(ops))
	for i, o := range ops {
		encoded[i] = EncodeOperation(o)
	}
	return EncodeEntry(session, sequence, 0, encoded)
}

// same compares decoded operations with those that were encoded. It does not distinguish nil
// slices from empty ones, except that an empty blob is not NULL.
func same(e *Entry, session, sequence uint64, ops []*Operation) error {
	if e.Session != session || e.Sequence != sequence || e.OpenSession || e.ClockAdvance != nil || len(e.Operations) != len(ops) {
		return fmt.Errorf("decoded %+v", e)
	}
	for i := range ops {
		got, want := e.Operations[i], *ops[i]
		if a, b := plain(got), plain(want); a != b {
			return fmt.Errorf("operation %d is\n%s, want\n%s", i, a, b)
		}
	}
	return nil
}

// plain returns an operation as text, for comparison: with the bits of a NaN, without nil slices,
// and with the targets of pointers.
func plain(o Operation) (out string) {
	if l := o.Lease; l != nil {
		lease := *l
		lease.Release = append([]uint64{}, l.Release...)
		out, o.Lease = fmt.Sprintf("%#v ", lease), nil
	}
	if origin := o.Origin; origin != nil {
		out, o.Origin = out+fmt.Sprintf("%#v ", *origin), nil
	}
	if z := o.Zone; z != nil {
		out, o.Zone = out+fmt.Sprintf("%q %v ", z.Name, z.Offsets), nil
	}
	statements := []Statement{}
	for _, s := range o.Statements {
		args := []Argument{}
		for _, a := range s.Args {
			if a.Data == nil {
				a.Data = []byte{}
			}
			args = append(args, a)
		}
		if s.State != nil {
			out, s.State = out+fmt.Sprintf("%d: %#v ", len(statements), *s.State), nil
		}
		s.Args = args
		statements = append(statements, s)
	}
	o.Statements = statements
	return out + fmt.Sprintf("%#v", o)
}

// An entry that was made while others were in flight has the version that knows the
// field. In an entry of an earlier version the field means nothing, as in the builds that
// did not know it.
func TestGoldenEntryInFlightWithOthers(t *testing.T) {
	got := EncodeEntry(12, 345, 342, []*EncodedOperation{EncodeOperation(sample()[1])})
	want := golden(t, "entry-window", got)
	if !bytes.Equal(got, want) {
		t.Errorf("the entry is written differently than before:\n%x\n%x", got, want)
	}
	var d Decoder
	e, err := d.Decode(want)
	if err != nil || e.Oldest != 342 || same(e, 12, 345, sample()[1:2]) != nil {
		t.Errorf("decoded %+v, %v", e, err)
	}
	want[0] = plainVersion
	if e, err := d.Decode(want); err != nil || e.Oldest != 0 || same(e, 12, 345, sample()[1:2]) != nil {
		t.Errorf("as version 1: decoded %+v, %v", e, err)
	}
	got = EncodeCommands(12, 345, 1, [][]byte{EncodeCommand(sampleCommands()[0])})
	if e, err := d.Decode(got); got[0] != windowVersion || err != nil || e.Oldest != 1 || sameCommands(e, 12, 345, sampleCommands()[:1]) != nil {
		t.Errorf("decoded %+v, %v", e, err)
	}
	if e, err := d.Decode(EncodeEntry(12, 345, 0, nil)); err != nil || e.Oldest != 0 || same(e, 12, 345, nil) != nil {
		t.Errorf("decoded %+v, %v", e, err)
	}
}

func TestGoldenSessionGroup(t *testing.T) {
	group := []Session[Result]{{ID: 7, Sequence: 8, LastUsed: 9, Results: []Result{{Statements: []StatementResult{{RowsAffected: 1, LastInsertID: 2}}}}}, {ID: 300, LastUsed: 9}}
	var got []byte
	for i := range group {
		got = AppendGroupedSession(got, &group[i])
	}
	want := golden(t, "session-group", got)
	if !bytes.Equal(got, want) {
		t.Errorf("the group is written differently than before:\n%x\n%x", got, want)
	}
	if decoded, err := DecodeSessionGroup(want); err != nil || !reflect.DeepEqual(decoded, group) {
		t.Errorf("decoded %+v, %v", decoded, err)
	}
	if _, err := DecodeSessionGroup(want[:len(want)-1]); err == nil {
		t.Error("half a group was decoded")
	}
}

func TestGoldenSessionOfSeveralEntriesInFlight(t *testing.T) {
	session := &Session[Result]{ID: 7, Sequence: 8, LastUsed: 9, Results: []Result{{}}, Earlier: [][]Result{{{RowsDropped: true}, {}}, nil}}
	got := AppendSession(nil, session)
	want := golden(t, "session-window", got)
	if !bytes.Equal(got, want) {
		t.Errorf("the session is written differently than before:\n%x\n%x", got, want)
	}
	if s, err := DecodeSession(want); err != nil || !reflect.DeepEqual(s, session) {
		t.Errorf("decoded %+v, %v", s, err)
	}
	for sequence, results := range map[uint64]int{0: 0, 5: 0, 6: 2, 7: 0, 8: 1, 9: 0} {
		if got := len(session.ResultsOf(sequence)); got != results {
			t.Errorf("entry %d has %d results, want %d", sequence, got, results)
		}
	}
}

func TestGoldenEntry(t *testing.T) {
	got := encode(12, 345, sample())
	want := golden(t, "entry", got)
	if !bytes.Equal(got, want) {
		t.Errorf("entries are written differently than before:\n%x\n%x", got, want)
	}
	var d Decoder
	e, err := d.Decode(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := same(e, 12, 345, sample()); err != nil {
		t.Error(err)
	}
}

// Another version of zstd may compress differently, so the test does not compare the bytes. It
// checks that the present decoder decodes the golden bytes and the present ones.
func TestGoldenCompressedEntry(t *testing.T) {
	var ops []*Operation
	for i := range 300 {
		ops = append(ops, &Operation{StampMS: int64(i), Seed: Seed{byte(i), byte(i >> 8)}, Statements: []Statement{{SQL: "INSERT INTO t VALUES(?,?)",
			Args: []Argument{{Value: IntegerValue(int64(i))}, {Value: TextValue(strings.Repeat("text", i%9))}}}}})
	}
	got := encode(1, 2, ops)
	if got[1] != flagZstd {
		t.Fatal("the entry is not compressed")
	}
	for name, cmd := range map[string][]byte{"of before": golden(t, "entry-zstd", got), "of today": got} {
		var d Decoder
		e, err := d.Decode(cmd)
		if err != nil {
			t.Fatal(name, err)
		}
		if err := same(e, 1, 2, ops); err != nil {
			t.Error(name, err)
		}
	}
}

func TestGoldenOthers(t *testing.T) {
	for name, got := range map[string][]byte{
		"open-session":  EncodeOpenSession(0x1122334455667788, 0, 0),
		"clock-advance": EncodeClockAdvance(ClockAdvance{Expected: 5, Next: 300}),
		"hold":          EncodeHold(250),
		"result":        AppendResult(nil, &sampleState().Sessions[0].Results[0]),
		"state":         AppendState(nil, sampleState()),
	} {
		if want := golden(t, name, got); !bytes.Equal(got, want) {
			t.Errorf("%s is written differently than before:\n%x\n%x", name, got, want)
		}
	}
	var d Decoder
	if e, err := d.Decode(golden(t, "open-session", nil)); err != nil || !e.OpenSession || e.Nonce != 0x1122334455667788 {
		t.Errorf("decoded %+v, %v", e, err)
	}
	if e, err := d.Decode(golden(t, "clock-advance", nil)); err != nil || e.ClockAdvance == nil || *e.ClockAdvance != (ClockAdvance{Expected: 5, Next: 300}) {
		t.Errorf("decoded %+v, %v", e, err)
	}
	if e, err := d.Decode(golden(t, "hold", nil)); err != nil || e.HoldMS != 250 {
		t.Error(e, err)
	}
	if s, err := DecodeState(golden(t, "state", nil)); err != nil || !reflect.DeepEqual(s, sampleState()) {
		t.Errorf("decoded %+v, %v", s, err)
	}
	if r, err := DecodeResult(golden(t, "result", nil)); err != nil || !reflect.DeepEqual(r, &sampleState().Sessions[0].Results[0]) {
		t.Errorf("decoded %+v, %v", r, err)
	}
}

func sampleState() *State {
	return &State{SQLIndex: 1, Applied: 1 << 50, Clock: 3, Sessions: []Session[Result]{
		{ID: 7, Sequence: 8, LastUsed: 9, Results: []Result{
			{Statements: []StatementResult{
				{RowsAffected: 3, LastInsertID: -4},
				{Rows: &Rows{Columns: []Column{{"a", "TEXT"}, {"", ""}, {"n\xff", "Int"}}, Cells: []Value{TextValue("x"), {}, IntegerValue(-1), BlobValue([]byte{}), RealValue(1.5), TextValue("")}}},
				{Rows: &Rows{Columns: []Column{{"none", ""}}}},
				{Rows: &Rows{Columns: []Column{{"none", ""}}}, More: []*Rows{{Columns: []Column{{"b", "INT"}}, Cells: []Value{IntegerValue(7), {}}}, {Columns: []Column{{"", ""}, {"", ""}}}}},
			}},
			{Err: &Error{Code: 2067, Message: "UNIQUE \xff", Statement: 3, Hint: "try"}, RowsDropped: true, ChangedSettings: ForeignKeysOff | QueryOnly},
			{},
		}},
		{ID: 10},
	}}
}

// Generators.

func genValue(t *rapid.T) Value {
	switch rapid.IntRange(0, 4).Draw(t, "kind") {
	case 1:
		return IntegerValue(rapid.Int64().Draw(t, "int"))
	case 2:
		return Value{Kind: Real, Num: rapid.Uint64().Draw(t, "real")}
	case 3:
		return TextValue(string(rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "text")))
	case 4:
		return BlobValue(append([]byte{}, rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "blob")...))
	}
	return Value{}
}

func genOperation(t *rapid.T) *Operation {
	o := &Operation{StampMS: rapid.Int64().Draw(t, "stamp"), Seed: Seed(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "seed")), Settings: genSettings(t), LastInsertID: rapid.Int64().Draw(t, "last"),
		Changes: rapid.Int64().Draw(t, "changes"), MaxSteps: rapid.Uint64().Draw(t, "steps"), Vacuum: rapid.Bool().Draw(t, "vacuum"), Zone: genZone(t)}
	o.Origin = genOrigin(t)
	for range rapid.IntRange(0, 5).Draw(t, "statements") {
		s := Statement{SQL: rapid.SampledFrom([]string{"", "A", "B", "C\xff", strings.Repeat("long ", 50), rapid.String().Draw(t, "sql")}).Draw(t, "text")}
		for range rapid.IntRange(0, 4).Draw(t, "args") {
			s.Args = append(s.Args, Argument{Name: rapid.SampledFrom([]string{"", "a", "\xffname"}).Draw(t, "name"), Value: genValue(t)})
		}
		if rapid.IntRange(0, 2).Draw(t, "of a transaction") == 0 {
			s.LaterMS, s.Skipped, s.Fails = rapid.Int64().Draw(t, "later"), rapid.Uint64().Draw(t, "skipped"), int(rapid.Uint32().Draw(t, "fails"))
			s.ChangedSettings = genSettings(t)
			s.DeferForeignKeys = rapid.Bool().Draw(t, "defer")
			if rapid.Bool().Draw(t, "reads state") {
				s.State = &ConnState{rapid.Int64().Draw(t, "changes"), rapid.Int64().Draw(t, "total"), rapid.Int64().Draw(t, "last")}
			}
		}
		o.Statements = append(o.Statements, s)
	}
	if rapid.IntRange(0, 2).Draw(t, "leased") == 0 {
		o.Lease = genLease(t)
	}
	if rapid.IntRange(0, 2).Draw(t, "temp") == 0 {
		o.Temp, _ = encodeTemp(rapid.SliceOfN(rapid.Custom(genTemp), 0, 3).Draw(t, "objects"))
	}
	return o
}

func genSettings(t *rapid.T) Settings {
	return Settings(rapid.Uint32Max(uint32(KnownSettings)).Draw(t, "settings"))
}

func genLease(t *rapid.T) *Lease {
	return &Lease{Acquire: rapid.Uint64().Draw(t, "acquire"), TTLMS: rapid.Uint64().Draw(t, "ttl"), Release: rapid.SliceOfN(rapid.Uint64(), 0, 3).Draw(t, "release"),
		InUse: rapid.Bool().Draw(t, "in use"), Under: rapid.Uint64().Draw(t, "under"), Transaction: rapid.Bool().Draw(t, "transaction"), Base: rapid.Uint64().Draw(t, "base"),
		Keep: rapid.Bool().Draw(t, "keep"), Checksum: Checksum(rapid.Uint64().Draw(t, "checksum"))}
}

func genOperations(t *rapid.T) []*Operation {
	return rapid.SliceOfN(rapid.Custom(genOperation), 0, 30).Draw(t, "operations")
}

func genResult(t *rapid.T) Result {
	r := Result{RowsDropped: rapid.Bool().Draw(t, "dropped"), ChangedSettings: genSettings(t), Admission: Admission(rapid.IntRange(0, 2).Draw(t, "admission")), RetryAbove: rapid.Uint64().Draw(t, "retry")}
	if rapid.Bool().Draw(t, "failed") {
		r.Err = &Error{Code: rapid.IntRange(0, 1<<20).Draw(t, "code"), Message: rapid.String().Draw(t, "message"), Statement: rapid.IntRange(0, 99).Draw(t, "statement"), Hint: rapid.String().Draw(t, "hint")}
	}
	if state := LeaseState(rapid.IntRange(0, 4).Draw(t, "lease")); state != LeaseNone {
		r.Lease = LeaseResult{state, rapid.Uint64().Draw(t, "id"), rapid.Uint64().Draw(t, "base")}
	}
	for range rapid.IntRange(0, 3).Draw(t, "statements") {
		s := StatementResult{RowsAffected: rapid.Int64().Draw(t, "affected"), LastInsertID: rapid.Int64().Draw(t, "last"), TotalChanges: rapid.Int64().Draw(t, "total"), RowID: rapid.Int64().Draw(t, "row")}
		for range rapid.IntRange(0, 3).Draw(t, "sets") {
			rows := &Rows{}
			columns := rapid.IntRange(1, 3).Draw(t, "columns")
			for range columns {
				rows.Columns = append(rows.Columns, Column{rapid.String().Draw(t, "name"), rapid.String().Draw(t, "decltype")})
			}
			for range columns * rapid.IntRange(0, 4).Draw(t, "rows") {
				rows.Cells = append(rows.Cells, genValue(t))
			}
			s.AddRows(rows)
		}
		r.Statements = append(r.Statements, s)
	}
	return r
}

func genZone(t *rapid.T) *Zone {
	if !rapid.Bool().Draw(t, "zone") {
		return nil
	}
	z := &Zone{Name: rapid.String().Draw(t, "zone's name")}
	for range rapid.IntRange(0, 3).Draw(t, "offsets") {
		z.Offsets = append(z.Offsets, Offset{rapid.Int64().Draw(t, "from"), rapid.Int64().Draw(t, "seconds")})
	}
	return z
}

func genState(t *rapid.T) *State {
	s := &State{SQLIndex: rapid.Uint64().Draw(t, "sql"), Applied: rapid.Uint64().Draw(t, "applied"), Clock: rapid.Uint64().Draw(t, "clock")}
	for range rapid.IntRange(0, 3).Draw(t, "sessions") {
		session := Session[Result]{ID: rapid.Uint64().Draw(t, "id"), Sequence: rapid.Uint64().Draw(t, "sequence"), LastUsed: rapid.Uint64().Draw(t, "used"),
			Node: rapid.Uint64().Draw(t, "node"), Incarnation: rapid.Uint64().Draw(t, "incarnation")}
		for range rapid.IntRange(0, 3).Draw(t, "results") {
			session.Results = append(session.Results, genResult(t))
		}
		for range rapid.IntRange(0, 2).Draw(t, "earlier") {
			var results []Result
			for range rapid.IntRange(0, 2).Draw(t, "results of an earlier entry") {
				results = append(results, genResult(t))
			}
			session.Earlier = append(session.Earlier, results)
		}
		s.Sessions = append(s.Sessions, session)
	}
	s.Changed, s.LastWaiter, s.ContendedSince = rapid.Uint64().Draw(t, "changed"), rapid.Uint64().Draw(t, "last waiter"), rapid.Uint64().Draw(t, "contended")
	s.Term, s.History = rapid.Uint64().Draw(t, "term"), rapid.Uint64().Draw(t, "history")
	s.Zone = genZone(t)
	if id := rapid.Uint64().Draw(t, "lease"); id != 0 {
		s.Lease = HeldLease{id, rapid.Uint64().Draw(t, "session"), rapid.Uint64().Draw(t, "base"), rapid.Uint64().Draw(t, "ttl"), rapid.Bool().Draw(t, "idle")}
	}
	for range rapid.IntRange(0, 3).Draw(t, "waiters") {
		s.Waiters = append(s.Waiters, Waiter{rapid.Uint64().Draw(t, "number"), rapid.Uint64().Draw(t, "session"), rapid.Uint64().Draw(t, "sequence"), rapid.IntRange(0, 1<<20).Draw(t, "index"), *genOperation(t)})
	}
	return s
}

// sameState compares states; it compares operations as same does.
func sameState(got, want *State) error {
	a, b := *got, *want
	a.Waiters, b.Waiters = nil, nil
	if !reflect.DeepEqual(a, b) || len(got.Waiters) != len(want.Waiters) {
		return fmt.Errorf("%+v was decoded as %+v", want, got)
	}
	for i := range got.Waiters {
		a, b := got.Waiters[i], want.Waiters[i]
		if plain(a.Operation) != plain(b.Operation) {
			return fmt.Errorf("operation %d was decoded as\n%s, want\n%s", i, plain(a.Operation), plain(b.Operation))
		}
		if a.Operation, b.Operation = (Operation{}), (Operation{}); !reflect.DeepEqual(a, b) {
			return fmt.Errorf("waiter %d: %+v was decoded as %+v", i, b, a)
		}
	}
	return nil
}

func TestEntriesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := genOperations(t)
		session, sequence := rapid.Uint64().Draw(t, "session"), rapid.Uint64().Draw(t, "sequence")
		cmd := encode(session, sequence, ops)
		var d Decoder
		for range 2 { // the second time the decoder uses its memory again
			e, err := d.Decode(cmd)
			if err != nil {
				t.Fatal(err)
			}
			if err := same(e, session, sequence, ops); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestStatesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genState(t)
		b := AppendState(nil, s)
		got, err := DecodeState(b)
		if err != nil {
			t.Fatal(err)
		}
		clear(b) // the state must not refer to b
		if err := sameState(got, s); err != nil {
			t.Fatal(err)
		}
	})
}

// A batch decodes many entries, each with its own decoder, before the first one is applied.
func TestDecodersDoNotDisturbEachOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var decoders [8]Decoder
		var entries [8]*Entry
		var all [8][]*Operation
		for range rapid.IntRange(1, 3).Draw(t, "batches") {
			for i := range decoders {
				all[i] = genOperations(t)
				if rapid.Bool().Draw(t, "large") {
					all[i] = append(all[i], &Operation{Statements: []Statement{{SQL: strings.Repeat("compressed ", 1000), Args: []Argument{{Value: TextValue(fmt.Sprint("value ", i))}}}}})
				}
				e, err := decoders[i].Decode(encode(1, uint64(i), all[i]))
				if err != nil {
					t.Fatal(err)
				}
				entries[i] = e
			}
			for i := range decoders {
				if err := same(entries[i], 1, uint64(i), all[i]); err != nil {
					t.Fatal(i, err)
				}
			}
		}
	})
}

func TestSizeIsAnUpperBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := 64
		var encoded []*EncodedOperation
		for _, o := range genOperations(t) {
			e := EncodeOperation(o)
			n += e.Size()
			encoded = append(encoded, e)
		}
		if got := len(EncodeEntry(math.MaxUint64, math.MaxUint64, 0, encoded)); got > n {
			t.Fatalf("the entry has %d bytes, the sum of the sizes is %d", got, n)
		}
	})
}
