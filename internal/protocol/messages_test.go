package protocol

import (
	"math"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
)

var sampleRequests = []*apiv1.SessionRequest{
	{},
	{Session: 300, Id: 1, Request: &apiv1.SessionRequest_Open{Open: &apiv1.Open{BusyTimeoutUs: 7, Pragmas: []string{"a"}, Restore: &apiv1.State{Pragmas: map[string]int64{"x": -1}}}}},
	{Session: 1, Id: math.MaxUint64, TimeoutUs: -1, Consistency: apiv1.Consistency_CONSISTENCY_LINEARIZABLE, NotDeferred: true, Seen: &apiv1.Seen{Sql: 1 << 40}, Origin: &apiv1.Origin{Session: 5, Sequence: 6},
		Request: &apiv1.SessionRequest_Exec{Exec: &apiv1.Statement{Sql: "INSERT INTO t VALUES(?, ?)", Cells: []byte{1, 2, 3}}}},
	{Seen: &apiv1.Seen{}, Origin: &apiv1.Origin{}, Request: &apiv1.SessionRequest_Exec{Exec: &apiv1.Statement{}}},
	{Request: &apiv1.SessionRequest_Query{Query: &apiv1.Statement{RawSql: []byte{}, Args: []*apiv1.Argument{{}, {Name: "a", Value: &apiv1.Value{Kind: &apiv1.Value_RawText{RawText: []byte{0xff}}}}}}}},
	{Request: &apiv1.SessionRequest_Fetch{Fetch: &apiv1.Fetch{Query: 3, NextSet: true}}},
	{Request: &apiv1.SessionRequest_Batch{Batch: &apiv1.Batch{Statements: []*apiv1.Statement{{Sql: "a"}, {RawSql: []byte{0xff}}}}}},
	{Request: &apiv1.SessionRequest_Commit{Commit: &apiv1.Commit{}}},
	{Request: &apiv1.SessionRequest_CloseSession{CloseSession: &apiv1.CloseSession{}}},
}

var sampleResponses = []*apiv1.SessionResponse{
	{},
	{Session: 1, Id: 2, Seen: &apiv1.Seen{Sql: 3, Kv: 4}, Response: &apiv1.SessionResponse_Opened{Opened: &apiv1.Opened{Node: 1, Leader: "a:1"}}},
	{Session: 1, Id: 3, State: &apiv1.State{Settings: 9, Pragmas: map[string]int64{"cache_size": -2000}, Changes: -1, TotalChanges: 5, LastInsertId: math.MinInt64, InTransaction: true, HasTemp: true, SamePragmas: true},
		Response: &apiv1.SessionResponse_Result{Result: &apiv1.Result{RowsAffected: 1, LastInsertId: math.MinInt64}}},
	{State: &apiv1.State{}, Response: &apiv1.SessionResponse_Result{Result: &apiv1.Result{}}},
	{Response: &apiv1.SessionResponse_Rows{Rows: &apiv1.Rows{Columns: []*apiv1.Column{{Name: "a", Type: "TEXT"}, {}}, Cells: make([]byte, 70_000), End: true, LastSet: true}}},
	{Response: &apiv1.SessionResponse_Rows{Rows: &apiv1.Rows{NoSet: true}}},
	{Error: &apiv1.Error{Message: "no", Reasons: []apiv1.Reason{apiv1.Reason_REASON_CLOSED}, Sql: &apiv1.SQLError{Code: 1}}},
	{Response: &apiv1.SessionResponse_Closing{Closing: &apiv1.Closing{LastRequest: 7, Reason: "idle"}}},
	{Response: &apiv1.SessionResponse_Batch{Batch: &apiv1.ExecuteResponse{Results: []*apiv1.Result{{}, {RowsAffected: 2}}}}},
}

// encodeRequests and encodeResponses encode messages by hand.
func encodeRequests(t testing.TB, all []*apiv1.SessionRequest) (b []byte) {
	t.Helper()
	var err error
	for _, r := range all {
		if b, err = AppendRequest(b, r); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func encodeResponses(t testing.TB, all []*apiv1.SessionResponse) (b []byte) {
	t.Helper()
	var err error
	for _, r := range all {
		if b, err = AppendResponse(b, r); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// What is encoded here is what package proto decodes, and the reverse.
func TestMessages(t *testing.T) {
	requests, responses := &apiv1.SessionRequests{Requests: sampleRequests}, &apiv1.SessionResponses{Responses: sampleResponses}
	gotRequests, gotResponses := new(apiv1.SessionRequests), new(apiv1.SessionResponses)
	if err := proto.Unmarshal(encodeRequests(t, sampleRequests), gotRequests); err != nil || !proto.Equal(gotRequests, requests) {
		t.Errorf("%v, %v; want %v", gotRequests, err, requests)
	}
	if err := proto.Unmarshal(encodeResponses(t, sampleResponses), gotResponses); err != nil || !proto.Equal(gotResponses, responses) {
		t.Errorf("%v, %v; want %v", gotResponses, err, responses)
	}
	for _, m := range []proto.Message{requests, responses} {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		checkDecoded(t, b)
	}
}

// The messages that are encoded here are all fields that package proto knows of them.
func TestMessageFields(t *testing.T) {
	for _, x := range []struct {
		message proto.Message
		fields  int
	}{{&apiv1.SessionRequest{}, 21}, {&apiv1.SessionResponse{}, 11}, {&apiv1.Statement{}, 4}, {&apiv1.Seen{}, 2}, {&apiv1.Origin{}, 2}, {&apiv1.State{}, 8}, {&apiv1.Result{}, 2}, {&apiv1.Rows{}, 5}, {&apiv1.Column{}, 2}} {
		if d := x.message.ProtoReflect().Descriptor(); d.Fields().Len() != x.fields {
			t.Errorf("%s has %d fields: messages.go has to encode and decode the new ones", d.FullName(), d.Fields().Len())
		}
	}
}

// checkDecoded checks that the Decoder and package proto decode the same from b.
func checkDecoded(t *testing.T, b []byte) {
	t.Helper()
	var d Decoder
	input := slices.Clone(b)
	requests, responses := new(apiv1.SessionRequests), new(apiv1.SessionResponses)
	err := d.Requests(input, func(r *apiv1.SessionRequest) error {
		requests.Requests = append(requests.Requests, r)
		return nil
	})
	clear(input) // nothing may point into it
	compareDecoded(t, b, requests, err)
	input = slices.Clone(b)
	err = d.Responses(input, func(r *apiv1.SessionResponse) { responses.Responses = append(responses.Responses, r) })
	clear(input)
	compareDecoded(t, b, responses, err)
}

func compareDecoded(t *testing.T, b []byte, got proto.Message, err error) {
	t.Helper()
	want := got.ProtoReflect().New().Interface()
	wantErr := proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, want)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%x: the Decoder has %v, and package proto %v", b, err, wantErr)
	}
	discardUnknown(got.ProtoReflect())
	if err == nil && !proto.Equal(got, want) {
		t.Fatalf("%x: the Decoder returns %v, and package proto %v", b, got, want)
	}
}

// discardUnknown removes fields that the schema does not have.
func discardUnknown(m protoreflect.Message) {
	m.SetUnknown(nil)
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				discardUnknown(v.List().Get(i).Message())
			}
		default:
			discardUnknown(v.Message())
		}
		return true
	})
}

// FuzzMessages compares the Decoder with package proto, for arbitrary bytes.
func FuzzMessages(f *testing.F) {
	f.Add(encodeRequests(f, sampleRequests))
	f.Add(encodeResponses(f, sampleResponses))
	for _, r := range sampleRequests {
		f.Add(encodeRequests(f, []*apiv1.SessionRequest{r, r}))
	}
	for _, r := range sampleResponses[:4] {
		f.Add(encodeResponses(f, []*apiv1.SessionResponse{r}))
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkDecoded(t, b) })
}

// A text that comes again is the same string.
func TestRepeatedTexts(t *testing.T) {
	b := encodeRequests(t, sampleRequests[2:3])
	var d Decoder
	decode := func() { _ = d.Requests(b, func(*apiv1.SessionRequest) error { return nil }) }
	decode()
	if n := testing.AllocsPerRun(100, decode); n > 2 { // the request and its cells
		t.Errorf("a request of a statement takes %v allocations", n)
	}
}
