package protocol

import (
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
)

// The functions of this file encode and decode SessionRequests and SessionResponses in
// the format of protobuf. The messages of statements are written and read here, because
// package proto, which uses reflection, needs several microseconds for them: more than
// anything else that both sides do for a statement. Package proto does the others.

// requestField and responseField are the fields of SessionRequests and SessionResponses.
const requestField, responseField = 1, 1

// AppendRequest appends r to an encoded SessionRequests.
func AppendRequest(b []byte, r *apiv1.SessionRequest) ([]byte, error) {
	b, at := openMessage(b, requestField)
	b = appendUint(b, 1, r.Id)
	b = appendUint(b, 2, protowire.EncodeZigZag(r.TimeoutUs))
	b = appendUint(b, 3, uint64(r.Consistency))
	b = appendUint(b, 4, protowire.EncodeBool(r.NotDeferred))
	b = appendSeen(b, 5, r.Seen)
	if o := r.Origin; o != nil {
		var at int
		b, at = openMessage(b, 6)
		b = appendUint(b, 1, o.Session)
		b = appendUint(b, 2, o.Sequence)
		b = closeMessage(b, at)
	}
	b = appendUint(b, 7, r.Session)
	var err error
	switch q := r.Request.(type) {
	case nil:
	case *apiv1.SessionRequest_Exec:
		b, err = appendStatement(b, 11, q.Exec)
	case *apiv1.SessionRequest_Query:
		b, err = appendStatement(b, 12, q.Query)
	default:
		b, err = appendKind(b, r.ProtoReflect(), requestKinds)
	}
	return closeMessage(b, at), err
}

// AppendResponse appends r to an encoded SessionResponses.
func AppendResponse(b []byte, r *apiv1.SessionResponse) ([]byte, error) {
	b, at := openMessage(b, responseField)
	b = appendUint(b, 1, r.Id)
	var err error
	if r.Error != nil {
		if b, err = appendOther(b, 2, r.Error); err != nil {
			return nil, err
		}
	}
	b = appendState(b, 3, r.State)
	b = appendSeen(b, 4, r.Seen)
	b = appendUint(b, 6, r.Session)
	switch q := r.Response.(type) {
	case nil:
	case *apiv1.SessionResponse_Result:
		b = appendResult(b, 11, q.Result)
	case *apiv1.SessionResponse_Rows:
		b = appendRows(b, 12, q.Rows)
	default:
		b, err = appendKind(b, r.ProtoReflect(), responseKinds)
	}
	return closeMessage(b, at), err
}

func appendSeen(b []byte, field protowire.Number, s *apiv1.Seen) []byte {
	if s == nil {
		return b
	}
	b, at := openMessage(b, field)
	b = appendUint(b, 1, s.Sql)
	b = appendUint(b, 2, s.Kv)
	return closeMessage(b, at)
}

func appendStatement(b []byte, field protowire.Number, s *apiv1.Statement) (_ []byte, err error) {
	b, at := openMessage(b, field)
	if s != nil {
		b = appendString(b, 1, s.Sql)
		for _, a := range s.Args {
			if b, err = appendOther(b, 2, a); err != nil {
				return nil, err
			}
		}
		if s.RawSql != nil {
			b = protowire.AppendTag(b, 3, protowire.BytesType)
			b = protowire.AppendBytes(b, s.RawSql)
		}
		b = appendBytes(b, 4, s.Cells)
	}
	return closeMessage(b, at), nil
}

func appendState(b []byte, field protowire.Number, s *apiv1.State) []byte {
	if s == nil {
		return b
	}
	b, at := openMessage(b, field)
	b = appendUint(b, 1, uint64(s.Settings))
	for name, v := range s.Pragmas {
		var at int
		b, at = openMessage(b, 2)
		b = appendString(b, 1, name)
		b = appendUint(b, 2, protowire.EncodeZigZag(v))
		b = closeMessage(b, at)
	}
	b = appendUint(b, 3, protowire.EncodeZigZag(s.Changes))
	b = appendUint(b, 4, protowire.EncodeZigZag(s.TotalChanges))
	b = appendUint(b, 5, protowire.EncodeZigZag(s.LastInsertId))
	b = appendUint(b, 6, protowire.EncodeBool(s.InTransaction))
	b = appendUint(b, 7, protowire.EncodeBool(s.HasTemp))
	b = appendUint(b, 8, protowire.EncodeBool(s.SamePragmas))
	return closeMessage(b, at)
}

func appendResult(b []byte, field protowire.Number, r *apiv1.Result) []byte {
	b, at := openMessage(b, field)
	b = appendUint(b, 1, uint64(r.GetRowsAffected()))
	b = appendUint(b, 2, uint64(r.GetLastInsertId()))
	return closeMessage(b, at)
}

func appendRows(b []byte, field protowire.Number, r *apiv1.Rows) []byte {
	b, at := openMessage(b, field)
	for _, c := range r.GetColumns() {
		var at int
		b, at = openMessage(b, 1)
		b = appendString(b, 1, c.GetName())
		b = appendString(b, 2, c.GetType())
		b = closeMessage(b, at)
	}
	b = appendBytes(b, 2, r.GetCells())
	b = appendUint(b, 3, protowire.EncodeBool(r.GetEnd()))
	b = appendUint(b, 4, protowire.EncodeBool(r.GetLastSet()))
	b = appendUint(b, 5, protowire.EncodeBool(r.GetNoSet()))
	return closeMessage(b, at)
}

// requestKinds and responseKinds are the fields that have the request and the response.
var (
	requestKinds  = (*apiv1.SessionRequest)(nil).ProtoReflect().Descriptor().Oneofs().ByName("request")
	responseKinds = (*apiv1.SessionResponse)(nil).ProtoReflect().Descriptor().Oneofs().ByName("response")
)

// appendKind appends the field of kinds that m has.
func appendKind(b []byte, m protoreflect.Message, kinds protoreflect.OneofDescriptor) ([]byte, error) {
	field := m.WhichOneof(kinds)
	return appendOther(b, field.Number(), m.Get(field).Message().Interface())
}

// decodeKind decodes the field of kinds with this number into m. It ignores other fields.
func decodeKind(m protoreflect.Message, kinds protoreflect.OneofDescriptor, number protowire.Number, data []byte) error {
	field := kinds.Fields().ByNumber(number)
	if field == nil {
		return nil
	}
	return proto.UnmarshalOptions{Merge: true}.Unmarshal(data, m.Mutable(field).Message().Interface())
}

// appendOther appends a message that package proto encodes.
func appendOther(b []byte, field protowire.Number, m proto.Message) ([]byte, error) {
	b, at := openMessage(b, field)
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		return nil, err
	}
	return closeMessage(b, at), nil
}

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendBytes(b []byte, field protowire.Number, data []byte) []byte {
	if len(data) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), data)
}

// openMessage begins a message whose length is not known yet. It returns the place of
// the length.
func openMessage(b []byte, field protowire.Number) (_ []byte, at int) {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return append(b, 0), len(b)
}

// closeMessage ends the message that was begun at a place.
func closeMessage(b []byte, at int) []byte {
	size := len(b) - at - 1
	if size < 0x80 {
		b[at] = byte(size)
		return b
	}
	more := protowire.SizeVarint(uint64(size)) - 1
	var room [9]byte
	b = append(b, room[:more]...)
	copy(b[at+1+more:], b[at+1:at+1+size])
	protowire.AppendVarint(b[:at], uint64(size))
	return b
}

var errMessage = errors.New("hiqlite: a malformed message of a session")

// maxText bounds the SQL texts that a Decoder keeps, in bytes each, and maxTexts their
// number.
const maxText, maxTexts = 1 << 10, 64

// A Decoder decodes the messages of one stream. It remembers the last SQL texts, so that
// a text that comes again takes no memory.
type Decoder struct {
	texts map[string]string
}

// Requests calls f with each request of an encoded SessionRequests. The requests keep
// nothing of b.
func (d *Decoder) Requests(b []byte, f func(*apiv1.SessionRequest) error) error {
	return each(b, func(field protowire.Number, kind protowire.Type, _ uint64, data []byte) error {
		if field != requestField || kind != protowire.BytesType {
			return nil
		}
		r, err := d.request(data)
		if err != nil {
			return err
		}
		return f(r)
	})
}

// Responses calls f with each response of an encoded SessionResponses. The responses keep
// nothing of b.
func (d *Decoder) Responses(b []byte, f func(*apiv1.SessionResponse)) error {
	return each(b, func(field protowire.Number, kind protowire.Type, _ uint64, data []byte) error {
		if field != responseField || kind != protowire.BytesType {
			return nil
		}
		r, err := d.response(data)
		if err == nil {
			f(r)
		}
		return err
	})
}

// A statementRequest is a request with all that the request of a statement consists of, so
// that it takes one allocation.
type statementRequest struct {
	request   apiv1.SessionRequest
	seen      apiv1.Seen
	origin    apiv1.Origin
	exec      apiv1.SessionRequest_Exec
	query     apiv1.SessionRequest_Query
	statement apiv1.Statement
}

func (d *Decoder) request(b []byte) (*apiv1.SessionRequest, error) {
	all := new(statementRequest)
	r := &all.request
	return r, each(b, func(field protowire.Number, kind protowire.Type, v uint64, data []byte) error {
		switch {
		case kind == protowire.VarintType:
			switch field {
			case 1:
				r.Id = v
			case 2:
				r.TimeoutUs = protowire.DecodeZigZag(v)
			case 3:
				r.Consistency = apiv1.Consistency(int32(v))
			case 4:
				r.NotDeferred = v != 0
			case 7:
				r.Session = v
			}
			return nil
		case kind != protowire.BytesType:
			return nil
		}
		switch field {
		case 5:
			r.Seen = &all.seen
			return decodeSeen(r.Seen, data)
		case 6:
			r.Origin = &all.origin
			return decodeOrigin(r.Origin, data)
		case 11:
			if _, ok := r.Request.(*apiv1.SessionRequest_Exec); !ok {
				all.statement.Reset()
				all.exec.Exec, r.Request = &all.statement, &all.exec
			}
			return d.statement(&all.statement, data)
		case 12:
			if _, ok := r.Request.(*apiv1.SessionRequest_Query); !ok {
				all.statement.Reset()
				all.query.Query, r.Request = &all.statement, &all.query
			}
			return d.statement(&all.statement, data)
		}
		return decodeKind(r.ProtoReflect(), requestKinds, field, data)
	})
}

// A decodedResponse is a response with all that the response to a statement consists of.
type decodedResponse struct {
	response apiv1.SessionResponse
	state    apiv1.State
	seen     apiv1.Seen
	asResult apiv1.SessionResponse_Result
	result   apiv1.Result
}

func (d *Decoder) response(b []byte) (*apiv1.SessionResponse, error) {
	all := new(decodedResponse)
	r := &all.response
	return r, each(b, func(field protowire.Number, kind protowire.Type, v uint64, data []byte) error {
		switch {
		case kind == protowire.VarintType && field == 1:
			r.Id = v
			return nil
		case kind == protowire.VarintType && field == 6:
			r.Session = v
			return nil
		case kind != protowire.BytesType:
			return nil
		}
		switch field {
		case 2:
			if r.Error == nil {
				r.Error = new(apiv1.Error)
			}
			return proto.UnmarshalOptions{Merge: true}.Unmarshal(data, r.Error)
		case 3:
			r.State = &all.state
			return decodeState(r.State, data)
		case 4:
			r.Seen = &all.seen
			return decodeSeen(r.Seen, data)
		case 11:
			if _, ok := r.Response.(*apiv1.SessionResponse_Result); !ok {
				all.result.Reset()
				all.asResult.Result, r.Response = &all.result, &all.asResult
			}
			return decodeResult(&all.result, data)
		case 12:
			rows, ok := r.Response.(*apiv1.SessionResponse_Rows)
			if !ok {
				rows = &apiv1.SessionResponse_Rows{Rows: new(apiv1.Rows)}
				r.Response = rows
			}
			return decodeRows(rows.Rows, data)
		}
		return decodeKind(r.ProtoReflect(), responseKinds, field, data)
	})
}

func decodeSeen(s *apiv1.Seen, b []byte) error {
	return eachUint(b, func(field protowire.Number, v uint64) {
		switch field {
		case 1:
			s.Sql = v
		case 2:
			s.Kv = v
		}
	})
}

func decodeOrigin(o *apiv1.Origin, b []byte) error {
	return eachUint(b, func(field protowire.Number, v uint64) {
		switch field {
		case 1:
			o.Session = v
		case 2:
			o.Sequence = v
		}
	})
}

func decodeResult(r *apiv1.Result, b []byte) error {
	return eachUint(b, func(field protowire.Number, v uint64) {
		switch field {
		case 1:
			r.RowsAffected = int64(v)
		case 2:
			r.LastInsertId = int64(v)
		}
	})
}

func (d *Decoder) statement(s *apiv1.Statement, b []byte) error {
	return each(b, func(field protowire.Number, kind protowire.Type, _ uint64, data []byte) (err error) {
		if kind != protowire.BytesType {
			return nil
		}
		switch field {
		case 1:
			s.Sql, err = d.text(data)
		case 2:
			a := new(apiv1.Argument)
			s.Args = append(s.Args, a)
			err = proto.Unmarshal(data, a)
		case 3:
			s.RawSql = append([]byte{}, data...)
		case 4:
			s.Cells = append([]byte{}, data...)
		}
		return err
	})
}

// text returns a SQL text.
func (d *Decoder) text(data []byte) (string, error) {
	if text, ok := d.texts[string(data)]; ok {
		return text, nil
	}
	if !utf8.Valid(data) {
		return "", fmt.Errorf("%w: a text that is not valid UTF-8", errMessage)
	}
	text := string(data)
	if len(text) <= maxText {
		if d.texts == nil || len(d.texts) == maxTexts {
			d.texts = make(map[string]string, maxTexts)
		}
		d.texts[text] = text
	}
	return text, nil
}

func decodeState(s *apiv1.State, b []byte) error {
	return each(b, func(field protowire.Number, kind protowire.Type, v uint64, data []byte) error {
		switch {
		case kind == protowire.BytesType && field == 2:
			name, value, err := decodePragma(data)
			if err != nil {
				return err
			}
			if s.Pragmas == nil {
				s.Pragmas = map[string]int64{}
			}
			s.Pragmas[name] = value
		case kind != protowire.VarintType:
		case field == 1:
			s.Settings = uint32(v & math.MaxUint32)
		case field == 3:
			s.Changes = protowire.DecodeZigZag(v)
		case field == 4:
			s.TotalChanges = protowire.DecodeZigZag(v)
		case field == 5:
			s.LastInsertId = protowire.DecodeZigZag(v)
		case field == 6:
			s.InTransaction = v != 0
		case field == 7:
			s.HasTemp = v != 0
		case field == 8:
			s.SamePragmas = v != 0
		}
		return nil
	})
}

func decodePragma(b []byte) (name string, value int64, err error) {
	err = each(b, func(field protowire.Number, kind protowire.Type, v uint64, data []byte) (err error) {
		switch {
		case kind == protowire.BytesType && field == 1:
			name, err = validText(data)
		case kind == protowire.VarintType && field == 2:
			value = protowire.DecodeZigZag(v)
		}
		return err
	})
	return name, value, err
}

func decodeRows(r *apiv1.Rows, b []byte) error {
	return each(b, func(field protowire.Number, kind protowire.Type, v uint64, data []byte) error {
		switch {
		case kind == protowire.BytesType && field == 1:
			c := new(apiv1.Column)
			r.Columns = append(r.Columns, c)
			return decodeColumn(c, data)
		case kind == protowire.BytesType && field == 2:
			r.Cells = append([]byte{}, data...)
		case kind != protowire.VarintType:
		case field == 3:
			r.End = v != 0
		case field == 4:
			r.LastSet = v != 0
		case field == 5:
			r.NoSet = v != 0
		}
		return nil
	})
}

func decodeColumn(c *apiv1.Column, b []byte) error {
	return each(b, func(field protowire.Number, kind protowire.Type, _ uint64, data []byte) (err error) {
		switch {
		case kind != protowire.BytesType:
		case field == 1:
			c.Name, err = validText(data)
		case field == 2:
			c.Type, err = validText(data)
		}
		return err
	})
}

func validText(data []byte) (string, error) {
	if !utf8.Valid(data) {
		return "", fmt.Errorf("%w: a text that is not valid UTF-8", errMessage)
	}
	return string(data), nil
}

// each calls f with each field of a message: v is the value of a number, and data that of
// a text, of bytes or of a message.
func each(b []byte, f func(field protowire.Number, kind protowire.Type, v uint64, data []byte) error) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 || field > protowire.MaxValidNumber {
			return errMessage
		}
		b = b[n:]
		var v uint64
		var data []byte
		switch kind {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			data, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return errMessage
		}
		b = b[n:]
		if err := f(field, kind, v, data); err != nil {
			return err
		}
	}
	return nil
}

// eachUint is each for a message that has only numbers.
func eachUint(b []byte, f func(field protowire.Number, v uint64)) error {
	return each(b, func(field protowire.Number, kind protowire.Type, v uint64, _ []byte) error {
		if kind == protowire.VarintType {
			f(field, v)
		}
		return nil
	})
}
