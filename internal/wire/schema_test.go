package wire

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"pgregory.net/rapid"
)

// schema returns the messages of hiqlite.proto.
func schema(t *testing.T) protoreflect.MessageDescriptors {
	t.Helper()
	c := protocompile.Compiler{Resolver: &protocompile.SourceResolver{}}
	files, err := c.Compile(context.Background(), "hiqlite.proto")
	if err != nil {
		t.Fatal(err)
	}
	return files[0].Messages()
}

// A message is a message of the schema, whose fields are accessed by name.
type message struct{ protoreflect.Message }

func (m message) field(name string) protoreflect.Value {
	return m.Get(m.Descriptor().Fields().ByName(protoreflect.Name(name)))
}

func (m message) has(name string) bool {
	return m.Has(m.Descriptor().Fields().ByName(protoreflect.Name(name)))
}

func (m message) list(name string) (out []message) {
	list := m.field(name).List()
	for i := range list.Len() {
		out = append(out, message{list.Get(i).Message()})
	}
	return out
}

func (m message) sub(name string) message { return message{m.field(name).Message()} }
func (m message) bool(name string) bool   { return m.field(name).Bool() }
func (m message) uint(name string) uint64 { return m.field(name).Uint() }
func (m message) int(name string) int64   { return m.field(name).Int() }
func (m message) bytes(name string) []byte {
	return m.field(name).Bytes()
}

// parse decodes bytes with the schema. Every byte must belong to a field of the schema.
func parse(t require, desc protoreflect.MessageDescriptor, b []byte) message {
	m := dynamicpb.NewMessage(desc)
	if err := (proto.UnmarshalOptions{DiscardUnknown: false}).Unmarshal(b, m); err != nil {
		t.Fatalf("%s: %v", desc.Name(), err)
	}
	unknown(t, m)
	return message{m}
}

// unknown fails the test if m or a message in it has fields that are not in the schema.
func unknown(t require, m protoreflect.Message) {
	if len(m.GetUnknown()) > 0 {
		t.Fatalf("%s has fields that are not in the schema: %x", m.Descriptor().Name(), m.GetUnknown())
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				unknown(t, v.List().Get(i).Message())
			}
		default:
			unknown(t, v.Message())
		}
		return true
	})
}

type require interface{ Fatalf(string, ...any) }

func value(m message) Value {
	switch f := m.WhichOneof(m.Descriptor().Oneofs().ByName("value")); {
	case f == nil:
		return Value{}
	case f.Name() == "integer":
		return IntegerValue(m.int("integer"))
	case f.Name() == "real":
		return RealValue(m.field("real").Float())
	case f.Name() == "text":
		return Value{Kind: Text, Data: m.bytes("text")}
	default:
		return Value{Kind: Blob, Data: m.bytes("blob")}
	}
}

func zoneOf(m message) *Zone {
	if !m.has("zone") {
		return nil
	}
	z := &Zone{Name: string(m.sub("zone").bytes("name"))}
	for _, o := range m.sub("zone").list("offsets") {
		z.Offsets = append(z.Offsets, Offset{o.int("from"), o.int("seconds")})
	}
	return z
}

func operationOf(entry, m message) Operation {
	o := Operation{StampMS: m.int("stamp_ms"), Seed: seedOf(m), Settings: Settings(m.uint("settings")), LastInsertID: m.int("last_insert_id"),
		Changes: m.int("changes"), MaxSteps: m.uint("max_steps"), Vacuum: m.field("vacuum").Bool(), Lease: leaseOf(m), Zone: zoneOf(m), Origin: originOf(m)}
	texts := entry.field("texts").List()
	for _, s := range m.list("statements") {
		statement := Statement{SQL: string(texts.Get(int(m.uint("text_base") + s.uint("text"))).Bytes())}
		for _, a := range s.list("arguments") {
			statement.Args = append(statement.Args, Argument{Name: string(a.bytes("name")), Value: value(a)})
		}
		statement.LaterMS, statement.Skipped, statement.Fails = s.int("later_ms"), s.uint("skipped"), int(s.uint("fails"))
		if state := s.sub("state"); s.has("state") {
			statement.State = &ConnState{state.int("changes"), state.int("total_changes"), state.int("last_insert_id")}
		}
		statement.ChangedSettings = Settings(s.uint("changed_settings"))
		statement.DeferForeignKeys = s.bool("defer_foreign_keys")
		o.Statements = append(o.Statements, statement)
	}
	if m.has("temp") {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.sub("temp").Interface())
		if err != nil {
			panic(err)
		}
		o.Temp = append([]byte{}, b...)
	}
	return o
}

func originOf(m message) *Origin {
	if !m.has("origin") {
		return nil
	}
	o := m.sub("origin")
	return &Origin{o.uint("session"), o.uint("sequence"), o.bool("last")}
}

func seedOf(operation message) (s Seed) {
	copy(s[:], operation.bytes("seed"))
	return s
}

func leaseOf(operation message) *Lease {
	if !operation.has("lease") {
		return nil
	}
	m := operation.sub("lease")
	l := &Lease{Acquire: m.uint("acquire"), TTLMS: m.uint("ttl_ms"), InUse: m.bool("in_use"), Under: m.uint("under"), Transaction: m.bool("transaction"),
		Base: m.uint("base"), Keep: m.bool("keep"), Checksum: Checksum(m.uint("checksum"))}
	release := m.field("release").List()
	for i := range release.Len() {
		l.Release = append(l.Release, release.Get(i).Uint())
	}
	return l
}

func TestEntriesFollowTheSchema(t *testing.T) {
	messages := schema(t)
	rapid.Check(t, func(t *rapid.T) {
		ops := genOperations(t)
		cmd := encode(12, 34, ops)
		body := cmd[2:]
		if cmd[1]&flagZstd != 0 {
			var err error
			if body, err = decoder.DecodeAll(body, nil); err != nil {
				t.Fatal(err)
			}
		}
		entry := parse(t, messages.ByName("Entry"), body)
		got := &Entry{Session: entry.uint("session"), Sequence: entry.uint("sequence")}
		for _, m := range entry.list("operations") {
			got.Operations = append(got.Operations, operationOf(entry, m))
		}
		if err := same(got, 12, 34, ops); err != nil {
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
		if err := same(e, 12, 34, ops); err != nil {
			t.Fatal(err)
		}
	})
}

func resultOf(m message) Result {
	r := Result{RowsDropped: m.field("rows_dropped").Bool(), ChangedSettings: Settings(m.uint("changed_settings")), Admission: Admission(m.uint("admission")), RetryAbove: m.uint("retry_above")}
	if m.has("error") {
		e := message{m.field("error").Message()}
		r.Err = &Error{Code: int(e.uint("code")), Message: string(e.bytes("message")), Statement: int(e.uint("statement")), Hint: string(e.bytes("hint"))}
	}
	if l := m.sub("lease"); m.has("lease") {
		r.Lease = LeaseResult{LeaseState(l.uint("state")), l.uint("id"), l.uint("base")}
	}
	for _, s := range m.list("statements") {
		out := StatementResult{RowsAffected: s.int("rows_affected"), LastInsertID: s.int("last_insert_id"), TotalChanges: s.int("total_changes"), RowID: s.int("row")}
		for _, c := range s.list("columns") {
			if out.Rows == nil {
				out.Rows = &Rows{}
			}
			out.Rows.Columns = append(out.Rows.Columns, Column{string(c.bytes("name")), string(c.bytes("decltype"))})
		}
		for _, row := range s.list("rows") {
			for _, cell := range row.list("cells") {
				out.Rows.Cells = append(out.Rows.Cells, value(cell))
			}
		}
		for _, set := range s.list("more") {
			rows := &Rows{}
			for _, c := range set.list("columns") {
				rows.Columns = append(rows.Columns, Column{string(c.bytes("name")), string(c.bytes("decltype"))})
			}
			for _, row := range set.list("rows") {
				for _, cell := range row.list("cells") {
					rows.Cells = append(rows.Cells, value(cell))
				}
			}
			out.More = append(out.More, rows)
		}
		r.Statements = append(r.Statements, out)
	}
	return r
}

func TestStatesFollowTheSchema(t *testing.T) {
	messages := schema(t)
	rapid.Check(t, func(t *rapid.T) {
		want := genState(t)
		b := AppendState(nil, want)
		m := parse(t, messages.ByName("State"), b)
		got := &State{SQLIndex: m.uint("sql_index"), Applied: m.uint("applied"), Clock: m.uint("clock"), Changed: m.uint("changed"), LastWaiter: m.uint("last_waiter"), ContendedSince: m.uint("contended_since"),
			Term: m.uint("term"), History: m.uint("history"), Zone: zoneOf(m)}
		if l := m.sub("lease"); m.has("lease") {
			got.Lease = HeldLease{l.uint("id"), l.uint("session"), l.uint("base"), l.uint("ttl_ms"), l.bool("idle")}
		}
		for _, p := range m.list("waiters") {
			got.Waiters = append(got.Waiters, Waiter{p.uint("number"), p.uint("session"), p.uint("sequence"), int(p.uint("index")), operationOf(p, p.sub("operation"))})
		}
		for _, s := range m.list("sessions") {
			session := Session[Result]{ID: s.uint("id"), Sequence: s.uint("sequence"), LastUsed: s.uint("last_used"), Node: s.uint("node"), Incarnation: s.uint("incarnation")}
			for _, r := range s.list("results") {
				session.Results = append(session.Results, resultOf(r))
			}
			for _, earlier := range s.list("earlier") {
				var results []Result
				for _, r := range earlier.list("results") {
					results = append(results, resultOf(r))
				}
				session.Earlier = append(session.Earlier, results)
			}
			got.Sessions = append(got.Sessions, session)
		}
		var group []byte
		for i := range want.Sessions {
			group = AppendGroupedSession(group, &want.Sessions[i])
		}
		for i, s := range parse(t, messages.ByName("SessionGroup"), group).list("sessions") {
			if s.uint("id") != want.Sessions[i].ID || len(s.list("results")) != len(want.Sessions[i].Results) {
				t.Fatalf("session %d of a group is %v under the schema", i, s)
			}
		}
		// Compare the encodings, because TestStatesRoundTrip shows that they lose nothing.
		if !bytes.Equal(AppendState(nil, got), b) {
			t.Fatalf("%+v is %+v under the schema", want, got)
		}
		written, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeState(written)
		if err != nil || !bytes.Equal(AppendState(nil, back), b) {
			t.Fatalf("%+v, written by the library, was decoded as %+v, %v", want, back, err)
		}
	})
}

func TestOtherEntriesFollowTheSchema(t *testing.T) {
	desc := schema(t).ByName("Entry")
	if e := parse(t, desc, EncodeEntry(1, 1<<40, 1<<39, nil)[2:]); e.uint("sequence") != 1<<40 || e.uint("oldest_in_flight") != 1<<39 {
		t.Errorf("the entry is %v", e)
	}
	open := parse(t, desc, EncodeOpenSession(1<<63, 7, 1<<40)[2:]).sub("open_session")
	if open.uint("nonce") != 1<<63 || open.uint("node") != 7 || open.uint("incarnation") != 1<<40 {
		t.Errorf("the session is %v", open)
	}
	advance := message{parse(t, desc, EncodeClockAdvance(ClockAdvance{Expected: 4, Next: 1 << 40, Nonce: 1 << 63, Applied: 77, History: 1 << 62})[2:]).field("clock_advance").Message()}
	if advance.uint("expected") != 4 || advance.uint("next") != 1<<40 || advance.uint("nonce") != 1<<63 || advance.uint("applied") != 77 || advance.uint("history") != 1<<62 {
		t.Errorf("the clock advance is %v", advance)
	}
	var d Decoder
	// Entries that open a session or advance a clock are recognized even if all their fields are 0.
	if e, err := d.Decode(EncodeOpenSession(0, 0, 0)); err != nil || !e.OpenSession {
		t.Errorf("decoded %+v, %v", e, err)
	}
	if e, err := d.Decode(EncodeClockAdvance(ClockAdvance{})); err != nil || e.ClockAdvance == nil {
		t.Errorf("decoded %+v, %v", e, err)
	}
}

// Later builds may add fields. This build ignores them.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	extra := []byte{0xf8, 0x07, 5, 0xfa, 0x07, 2, 'h', 'i', 0xf9, 0x07, 1, 2, 3, 4, 5, 6, 7, 8, 0xfd, 0x07, 1, 2, 3, 4} // field 127, of every kind
	cmd := encode(1, 2, sample()[:3])
	var d Decoder
	e, err := d.Decode(append(cmd, extra...))
	if err != nil {
		t.Fatal(err)
	}
	if err := same(e, 1, 2, sample()[:3]); err != nil {
		t.Error(err)
	}
	if s, err := DecodeState(append(AppendState(nil, sampleState()), extra...)); err != nil || fmt.Sprint(len(s.Sessions)) != "2" {
		t.Errorf("decoded %+v, %v", s, err)
	}
}
