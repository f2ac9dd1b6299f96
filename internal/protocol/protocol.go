// Package protocol has what the server and the client of the API share beyond the
// generated messages: how cells, arguments, states and errors are converted.
package protocol

import (
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
	"unicode/utf8"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/connapi"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

const (
	// ChunkBytes is the size from which a server sends the cells that it has, instead
	// of adding another row.
	ChunkBytes = 64 << 10
	// LinkBytes bounds the requests or responses of sessions that wait to be sent
	// together, unless there is a single one.
	LinkBytes = 1 << 20
	// MaxMessage bounds a message of the API, in bytes. The largest operation has 8
	// MiB, and one row of a query can be larger than a chunk.
	MaxMessage = 64 << 20
)

// AppendCell appends a cell to the cells of Rows. v is a value of a connection of
// connapi.
func AppendCell(b []byte, v driver.Value) []byte {
	switch v := v.(type) {
	case int64:
		return binary.AppendVarint(append(b, byte(wire.Integer)), v)
	case float64:
		return binary.LittleEndian.AppendUint64(append(b, byte(wire.Real)), math.Float64bits(v))
	case string:
		return append(binary.AppendUvarint(append(b, byte(wire.Text)), uint64(len(v))), v...)
	case []byte:
		return append(binary.AppendUvarint(append(b, byte(wire.Blob)), uint64(len(v))), v...)
	}
	return append(b, byte(wire.Null))
}

var errCells = errors.New("hiqlite: malformed cells")

// NextCell decodes the first cell of b, and returns the rest of b. The value points
// into b.
func NextCell(b []byte) (v wire.Value, rest []byte, err error) {
	if len(b) == 0 {
		return v, nil, errCells
	}
	v.Kind, b = wire.Kind(b[0]), b[1:]
	switch v.Kind {
	case wire.Null:
		return v, b, nil
	case wire.Integer:
		n, used := binary.Varint(b)
		if used <= 0 {
			return v, nil, errCells
		}
		v.Num = uint64(n)
		return v, b[used:], nil
	case wire.Real:
		if len(b) < 8 {
			return v, nil, errCells
		}
		v.Num = binary.LittleEndian.Uint64(b)
		return v, b[8:], nil
	case wire.Text, wire.Blob:
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) {
			return v, nil, errCells
		}
		end := used + int(n)
		v.Data = b[used:end:end]
		return v, b[end:], nil
	}
	return v, nil, errCells
}

// arguments encodes arguments that have names.
func arguments(args []wire.Argument) []*apiv1.Argument {
	out := make([]*apiv1.Argument, len(args))
	for i := range args {
		out[i] = &apiv1.Argument{Name: args[i].Name, Value: value(&args[i].Value)}
	}
	return out
}

// ExecRequest returns the request to execute a statement.
func ExecRequest(sql string, args []wire.Argument) *apiv1.SessionRequest {
	all := newStatementRequest(sql, args)
	all.exec.Exec, all.request.Request = &all.statement, &all.exec
	return &all.request
}

// QueryRequest returns the request to execute a statement and return its rows.
func QueryRequest(sql string, args []wire.Argument) *apiv1.SessionRequest {
	all := newStatementRequest(sql, args)
	all.query.Query, all.request.Request = &all.statement, &all.query
	return &all.request
}

func newStatementRequest(sql string, args []wire.Argument) *statementRequest {
	all := new(statementRequest)
	all.request.Seen = &all.seen
	setStatement(&all.statement, sql, args)
	return all
}

// Statement encodes a statement.
func Statement(sql string, args []wire.Argument) *apiv1.Statement {
	s := new(apiv1.Statement)
	setStatement(s, sql, args)
	return s
}

func setStatement(s *apiv1.Statement, sql string, args []wire.Argument) {
	if slices.ContainsFunc(args, func(a wire.Argument) bool { return a.Name != "" }) {
		s.Args = arguments(args)
	} else if len(args) > 0 {
		s.Cells = make([]byte, 0, 16*len(args))
		for i := range args {
			s.Cells = appendWireCell(s.Cells, &args[i].Value)
		}
	}
	if utf8.ValidString(sql) {
		s.Sql = sql
	} else {
		s.RawSql = []byte(sql)
	}
}

// appendWireCell is AppendCell for a value of the log.
func appendWireCell(b []byte, v *wire.Value) []byte {
	b = append(b, byte(v.Kind))
	switch v.Kind {
	case wire.Integer:
		return binary.AppendVarint(b, v.Int())
	case wire.Real:
		return binary.LittleEndian.AppendUint64(b, v.Num)
	case wire.Text, wire.Blob:
		return append(binary.AppendUvarint(b, uint64(len(v.Data))), v.Data...)
	}
	return b
}

// SQL returns the text of a Statement or a Prepare.
func SQL(s interface {
	GetSql() string
	GetRawSql() []byte
}) string {
	if raw := s.GetRawSql(); raw != nil {
		return string(raw)
	}
	return s.GetSql()
}

func value(v *wire.Value) *apiv1.Value {
	switch v.Kind {
	case wire.Integer:
		return &apiv1.Value{Kind: &apiv1.Value_Integer{Integer: v.Int()}}
	case wire.Real:
		return &apiv1.Value{Kind: &apiv1.Value_Real{Real: v.Float()}}
	case wire.Text:
		if !utf8.Valid(v.Data) {
			return &apiv1.Value{Kind: &apiv1.Value_RawText{RawText: v.Data}}
		}
		return &apiv1.Value{Kind: &apiv1.Value_Text{Text: string(v.Data)}}
	case wire.Blob:
		return &apiv1.Value{Kind: &apiv1.Value_Blob{Blob: v.Data}}
	}
	return nil
}

// Arguments decodes the arguments of a statement.
func Arguments(s *apiv1.Statement) ([]driver.NamedValue, error) {
	cells := s.GetCells()
	if len(cells) == 0 {
		return namedArguments(s.GetArgs()), nil
	}
	if len(s.GetArgs()) > 0 {
		return nil, fmt.Errorf("%w: a statement has both args and cells", errCells)
	}
	out := make([]driver.NamedValue, 0, 4)
	for len(cells) > 0 {
		v, rest, err := NextCell(cells)
		if err != nil {
			return nil, err
		}
		out = append(out, driver.NamedValue{Ordinal: len(out) + 1, Value: driverValue(&v)})
		cells = rest
	}
	return out, nil
}

func driverValue(v *wire.Value) driver.Value {
	switch v.Kind {
	case wire.Integer:
		return v.Int()
	case wire.Real:
		return v.Float()
	case wire.Text:
		return string(v.Data)
	case wire.Blob:
		return append([]byte{}, v.Data...) // not nil, which would be NULL
	}
	return nil
}

func namedArguments(args []*apiv1.Argument) []driver.NamedValue {
	out := make([]driver.NamedValue, len(args))
	for i, a := range args {
		out[i] = driver.NamedValue{Ordinal: i + 1, Name: a.GetName()}
		switch v := a.GetValue().GetKind().(type) {
		case *apiv1.Value_Integer:
			out[i].Value = v.Integer
		case *apiv1.Value_Real:
			out[i].Value = v.Real
		case *apiv1.Value_Text:
			out[i].Value = v.Text
		case *apiv1.Value_RawText:
			out[i].Value = string(v.RawText)
		case *apiv1.Value_Blob:
			out[i].Value = append([]byte{}, v.Blob...) // not nil, which would be NULL
		}
	}
	return out
}

// APIValue encodes a value of a connection of connapi.
func APIValue(v driver.Value) *apiv1.Value {
	switch v := v.(type) {
	case int64:
		return &apiv1.Value{Kind: &apiv1.Value_Integer{Integer: v}}
	case float64:
		return &apiv1.Value{Kind: &apiv1.Value_Real{Real: v}}
	case string:
		if !utf8.ValidString(v) {
			return &apiv1.Value{Kind: &apiv1.Value_RawText{RawText: []byte(v)}}
		}
		return &apiv1.Value{Kind: &apiv1.Value_Text{Text: v}}
	case []byte:
		return &apiv1.Value{Kind: &apiv1.Value_Blob{Blob: v}}
	}
	return &apiv1.Value{}
}

// NextState encodes the state of a connection whose last state the other side knows.
func NextState(s, last connapi.State) *apiv1.State {
	if maps.Equal(s.Pragmas, last.Pragmas) {
		s.Pragmas = nil
		out := State(s)
		out.SamePragmas = true
		return out
	}
	return State(s)
}

// State encodes the state of a connection.
func State(s connapi.State) *apiv1.State {
	return &apiv1.State{
		Settings: uint32(s.Settings), Pragmas: s.Pragmas, Changes: s.Counters.Changes, TotalChanges: s.Counters.TotalChanges,
		LastInsertId: s.Counters.LastInsertID, InTransaction: s.InTransaction, HasTemp: s.HasTemp,
	}
}

// ConnState decodes the state of a connection after one whose state was last.
func ConnState(s *apiv1.State, last connapi.State) connapi.State {
	pragmas := s.GetPragmas()
	if s.GetSamePragmas() {
		pragmas = last.Pragmas
	}
	return connapi.State{
		Settings: wire.Settings(s.GetSettings()), Pragmas: pragmas,
		Counters:      wire.ConnState{Changes: s.GetChanges(), TotalChanges: s.GetTotalChanges(), LastInsertID: s.GetLastInsertId()},
		InTransaction: s.GetInTransaction(), HasTemp: s.GetHasTemp(),
	}
}

// SameState reports whether two states are equal.
func SameState(a, b connapi.State) bool {
	return a.Settings == b.Settings && a.Counters == b.Counters && a.InTransaction == b.InTransaction &&
		a.HasTemp == b.HasTemp && maps.Equal(a.Pragmas, b.Pragmas)
}

// Open encodes the configuration of a connection.
func Open(cfg connapi.Config) *apiv1.Open {
	out := &apiv1.Open{
		BusyTimeoutUs: cfg.BusyTimeout.Microseconds(), TxTimeoutUs: cfg.TxTimeout.Microseconds(),
		Deferred: cfg.Deferred, ForeignKeysOff: cfg.ForeignKeysOff, QueryOnly: cfg.QueryOnly, Pragmas: cfg.Pragmas,
	}
	if cfg.Linearizable {
		out.Consistency = apiv1.Consistency_CONSISTENCY_LINEARIZABLE
	}
	if cfg.Restore != nil {
		out.Restore = State(*cfg.Restore)
	}
	return out
}

// ConnConfig decodes the configuration of a connection.
func ConnConfig(o *apiv1.Open) connapi.Config {
	cfg := connapi.Config{
		Linearizable: o.GetConsistency() == apiv1.Consistency_CONSISTENCY_LINEARIZABLE,
		BusyTimeout:  Duration(o.GetBusyTimeoutUs()), TxTimeout: Duration(o.GetTxTimeoutUs()),
		Deferred: o.GetDeferred(), ForeignKeysOff: o.GetForeignKeysOff(), QueryOnly: o.GetQueryOnly(), Pragmas: o.GetPragmas(),
	}
	if o.GetRestore() != nil {
		s := ConnState(o.GetRestore(), connapi.State{})
		cfg.Restore = &s
	}
	return cfg
}

// Duration converts a number of microseconds. Of one that is too large for a
// time.Duration it returns the longest.
func Duration(us int64) time.Duration {
	if us > int64(math.MaxInt64/time.Microsecond) {
		return math.MaxInt64
	}
	return time.Duration(us) * time.Microsecond
}

// Name encodes a bucket, key or channel: as text, or as raw bytes if it is not valid
// UTF-8.
func Name(s string) (text string, raw []byte) {
	if utf8.ValidString(s) {
		return s, nil
	}
	return "", []byte(s)
}

// NameOf decodes what Name has encoded.
func NameOf(text string, raw []byte) string {
	if raw != nil {
		return string(raw)
	}
	return text
}

var kinds = map[sqlite.Kind]apiv1.Prepared_Kind{
	sqlite.Empty: apiv1.Prepared_KIND_EMPTY, sqlite.Read: apiv1.Prepared_KIND_READ, sqlite.Write: apiv1.Prepared_KIND_WRITE,
	sqlite.ConnPragma: apiv1.Prepared_KIND_CONNECTION, sqlite.Transaction: apiv1.Prepared_KIND_TRANSACTION, sqlite.Vacuum: apiv1.Prepared_KIND_VACUUM,
}

// PreparedKind encodes the kind of a text.
func PreparedKind(k sqlite.Kind) apiv1.Prepared_Kind { return kinds[k] }

// Kind decodes the kind of a text. One that this build does not know counts as a write.
func Kind(k apiv1.Prepared_Kind) sqlite.Kind {
	for kind, encoded := range kinds {
		if encoded == k {
			return kind
		}
	}
	return sqlite.Write
}

// Seen encodes how far a client or server has seen.
func Seen(s wire.Seen) *apiv1.Seen { return &apiv1.Seen{Sql: s.SQL, Kv: s.KV} }

// SetSeen says in a request how far its client has seen.
func SetSeen(r *apiv1.SessionRequest, s wire.Seen) {
	if r.Seen == nil {
		r.Seen = new(apiv1.Seen)
	}
	r.Seen.Sql, r.Seen.Kv = s.SQL, s.KV
}

// WireSeen decodes what Seen has encoded.
func WireSeen(s *apiv1.Seen) wire.Seen { return wire.Seen{SQL: s.GetSql(), KV: s.GetKv()} }

// Origin encodes an origin; nil: none.
func Origin(o *wire.Origin) *apiv1.Origin {
	if o == nil {
		return nil
	}
	return &apiv1.Origin{Session: o.Session, Sequence: o.Sequence}
}

// WireOrigin decodes what Origin has encoded.
func WireOrigin(o *apiv1.Origin) *wire.Origin {
	if o == nil {
		return nil
	}
	return &wire.Origin{Session: o.Session, Sequence: o.Sequence}
}

// RowWidthError says that a chunk of cells does not hold whole rows.
func RowWidthError(width int) error {
	return fmt.Errorf("%w: they are not rows of %d columns", errCells, width)
}
