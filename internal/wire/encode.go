package wire

import (
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
)

// compressFrom is the size, in bytes, from which an entry is compressed.
const compressFrom = 4 << 10

// MaxEntrySize bounds an entry before compression, in bytes, and so also an operation or
// a command, which has to fit into one entry. Raft copies an entry several times, and
// sends many of them to a follower that lags. Proposers enforce the bound. The decoder
// accepts more, see maxDecodedSize.
const MaxEntrySize = 8 << 20

const flagZstd = 1

var encoder, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithEncoderCRC(false))

// An EncodedOperation is an operation that its caller has encoded, so that it can be
// combined with others into an entry. Its texts are separate from its body, because
// an entry has each text once.
type EncodedOperation struct {
	Texts  []string
	Body   []byte
	Vacuum bool
	Remote bool // it is a remote client's: it has an Origin
}

// Size returns about how many bytes the operation adds to an entry.
func (o *EncodedOperation) Size() int {
	n := len(o.Body) + 16
	for _, t := range o.Texts {
		n += len(t) + 4
	}
	return n
}

// EncodeOperation encodes op.
func EncodeOperation(op *Operation) *EncodedOperation {
	e := &EncodedOperation{Vacuum: op.Vacuum, Remote: op.Origin != nil, Body: appendHead(make([]byte, 0, 64), op)}
	for i := range op.Statements {
		s := &op.Statements[i]
		// In a batch, statements with the same text mostly follow each other.
		n := len(e.Texts) - 1
		if n < 0 || e.Texts[n] != s.SQL {
			e.Texts = append(e.Texts, s.SQL)
			n++
		}
		e.Body = appendStatement(e.Body, s, n)
	}
	return e
}

// appendHead appends the fields of an operation except its statements.
func appendHead(b []byte, op *Operation) []byte {
	b = appendInt(b, 2, op.StampMS)
	if op.Seed != (Seed{}) {
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendBytes(b, op.Seed[:])
	}
	b = appendInt(b, 5, op.LastInsertID)
	b = appendInt(b, 6, op.Changes)
	b = appendUint(b, 7, op.MaxSteps)
	b = appendBool(b, 8, op.Vacuum)
	if l := op.Lease; l != nil {
		var at int
		b, at = openMessage(b, 10)
		b = closeMessage(appendLease(b, l), at)
	}
	b = appendUint(b, 11, uint64(op.Settings))
	b = appendFunctions(b, 12, op.Functions)
	if op.Temp != nil {
		b = protowire.AppendTag(b, 13, protowire.BytesType)
		b = protowire.AppendBytes(b, op.Temp)
	}
	b = appendZone(b, 14, op.Zone)
	return appendOrigin(b, 15, op.Origin)
}

func appendFunctions(b []byte, field protowire.Number, functions []Function) []byte {
	for _, f := range functions {
		var at int
		b, at = openMessage(b, field)
		b = appendString(b, 1, f.Name)
		b = appendUint(b, 2, f.Version)
		b = appendBool(b, 3, f.Collation)
		b = closeMessage(b, at)
	}
	return b
}

func appendLease(b []byte, l *Lease) []byte {
	if l.Acquire != 0 {
		b = appendFixed(b, 1, l.Acquire)
	}
	b = appendUint(b, 2, l.TTLMS)
	for _, id := range l.Release {
		b = appendFixed(b, 3, id)
	}
	b = appendBool(b, 4, l.InUse)
	if l.Under != 0 {
		b = appendFixed(b, 5, l.Under)
	}
	b = appendBool(b, 6, l.Transaction)
	b = appendUint(b, 7, l.Base)
	b = appendBool(b, 8, l.Keep)
	if l.Checksum != 0 {
		b = appendFixed(b, 9, uint64(l.Checksum))
	}
	return b
}

// appendStatement appends a statement whose text has the number text.
func appendStatement(b []byte, s *Statement, text int) []byte {
	b, at := openMessage(b, 9)
	b = appendUint(b, 1, uint64(text))
	for i := range s.Args {
		var arg int
		b, arg = openMessage(b, 2)
		b = appendValue(b, s.Args[i].Value)
		b = appendString(b, 5, s.Args[i].Name)
		b = closeMessage(b, arg)
	}
	b = appendInt(b, 3, s.LaterMS)
	b = appendUint(b, 4, s.Skipped)
	b = appendUint(b, 5, uint64(s.Fails))
	if s.State != nil {
		var state int
		b, state = openMessage(b, 6)
		b = appendInt(b, 1, s.State.Changes)
		b = appendInt(b, 2, s.State.TotalChanges)
		b = appendInt(b, 3, s.State.LastInsertID)
		b = closeMessage(b, state)
	}
	b = appendUint(b, 7, uint64(s.ChangedSettings))
	b = appendBool(b, 8, s.DeferForeignKeys)
	return closeMessage(b, at)
}

// EncodeEntry encodes an entry of operations that their callers have encoded. oldest is
// Entry.Oldest.
func EncodeEntry(session, sequence, oldest uint64, ops []*EncodedOperation) []byte {
	size := 64
	for _, o := range ops {
		size += o.Size()
	}
	b := appendEntryHead(make([]byte, 0, size), session, sequence, oldest)
	bases := make([]int, len(ops))
	single := make(map[string]int, 8)
	n := 0
	for i, o := range ops {
		if len(o.Texts) == 1 {
			if base, ok := single[o.Texts[0]]; ok {
				bases[i] = base
				continue
			}
			single[o.Texts[0]] = n
		}
		bases[i] = n
		for _, t := range o.Texts {
			b = appendBytesAlways(b, 5, t)
			n++
		}
	}
	for i, o := range ops {
		b = protowire.AppendTag(b, 6, protowire.BytesType)
		length := len(o.Body)
		if bases[i] > 0 {
			length += protowire.SizeTag(1) + protowire.SizeVarint(uint64(bases[i]))
		}
		b = protowire.AppendVarint(b, uint64(length))
		b = appendUint(b, 1, uint64(bases[i]))
		b = append(b, o.Body...)
	}
	return compress(b)
}

// appendEntryHead appends the version, the flags and the numbers of an entry.
func appendEntryHead(b []byte, session, sequence, oldest uint64) []byte {
	version := byte(plainVersion)
	if oldest != 0 {
		version = windowVersion
	}
	b = append(b, version, 0)
	b = appendUint(b, 1, session)
	b = appendUint(b, 2, sequence)
	return appendUint(b, 10, oldest)
}

// EncodeOpenSession encodes the entry that opens a session of a node's
// incarnation. If node is 0, the session belongs to no node.
func EncodeOpenSession(nonce, node, incarnation uint64) []byte {
	b := []byte{plainVersion, 0}
	b, at := openMessage(b, 3)
	b = appendFixed(b, 1, nonce)
	b = appendUint(b, 2, node)
	b = appendUint(b, 3, incarnation)
	return closeMessage(b, at)
}

// EncodeClockAdvance encodes the entry that moves the shard's clock.
func EncodeClockAdvance(t ClockAdvance) []byte {
	b := []byte{plainVersion, 0}
	b, at := openMessage(b, 4)
	b = appendUint(b, 1, t.Expected)
	b = appendUint(b, 2, t.Next)
	if t.Nonce != 0 {
		b = appendFixed(b, 3, t.Nonce)
	}
	if t.Applied != 0 {
		b = appendUint(b, 4, t.Applied)
		b = appendFixed(b, 5, t.History)
	}
	return closeMessage(b, at)
}

// EncodeHold encodes the entry that asks proposers to wait for ms milliseconds or
// until another node leads.
func EncodeHold(ms uint64) []byte { return appendUint([]byte{plainVersion, 0}, 7, ms) }

// compress compresses an entry, except the two bytes of its frame, if that saves at
// least a tenth of its size.
func compress(b []byte) []byte {
	if len(b) < compressFrom {
		return b
	}
	z := encoder.EncodeAll(b[2:], append(make([]byte, 0, len(b)/2), b[0], flagZstd))
	if len(z) > len(b)*9/10 {
		return b
	}
	return z
}

// AppendResult appends the encoding of r to b.
func AppendResult(b []byte, r *Result) []byte {
	for i := range r.Statements {
		s := &r.Statements[i]
		var at int
		b, at = openMessage(b, 1)
		b = appendInt(b, 1, s.RowsAffected)
		b = appendInt(b, 2, s.LastInsertID)
		if s.Rows != nil {
			b = appendRows(b, s.Rows, 3, 4)
		}
		b = appendInt(b, 5, s.TotalChanges)
		b = appendInt(b, 6, s.RowID)
		for _, rows := range s.More {
			var set int
			b, set = openMessage(b, 7)
			b = appendRows(b, rows, 1, 2)
			b = closeMessage(b, set)
		}
		b = closeMessage(b, at)
	}
	if e := r.Err; e != nil {
		var at int
		b, at = openMessage(b, 2)
		b = appendUint(b, 1, uint64(e.Code))
		b = appendString(b, 2, e.Message)
		b = appendUint(b, 3, uint64(e.Statement))
		b = appendString(b, 4, e.Hint)
		b = closeMessage(b, at)
	}
	b = appendBool(b, 3, r.RowsDropped)
	if l := r.Lease; l != (LeaseResult{}) {
		var at int
		b, at = openMessage(b, 5)
		b = appendUint(b, 1, uint64(l.State))
		b = appendFixed(b, 2, l.ID)
		b = appendUint(b, 3, l.Base)
		b = closeMessage(b, at)
	}
	b = appendUint(b, 6, uint64(r.ChangedSettings))
	b = appendUint(b, 7, uint64(r.Admission))
	return appendUint(b, 8, r.RetryAbove)
}

// appendRows appends rows. columnField and rowField are the numbers of the fields for
// columns and rows.
func appendRows(b []byte, rows *Rows, columnField, rowField protowire.Number) []byte {
	for _, c := range rows.Columns {
		var at int
		b, at = openMessage(b, columnField)
		b = appendString(b, 1, c.Name)
		b = appendString(b, 2, c.DeclType)
		b = closeMessage(b, at)
	}
	width := len(rows.Columns)
	for i := 0; i < rows.Len(); i++ {
		var at int
		b, at = openMessage(b, rowField)
		for _, v := range rows.Cells[i*width : (i+1)*width] {
			var cell int
			b, cell = openMessage(b, 1)
			b = appendValue(b, v)
			b = closeMessage(b, cell)
		}
		b = closeMessage(b, at)
	}
	return b
}

// AppendWaiter appends the encoding of p to b.
func AppendWaiter(b []byte, p *Waiter) []byte {
	b = appendUint(b, 1, p.Session)
	b = appendUint(b, 2, p.Sequence)
	op := EncodeOperation(&p.Operation)
	for _, text := range op.Texts {
		b = appendBytesAlways(b, 5, text)
	}
	b = protowire.AppendTag(b, 6, protowire.BytesType)
	b = protowire.AppendBytes(b, op.Body)
	b = appendUint(b, 8, p.Number)
	return appendUint(b, 9, uint64(p.Index))
}

// AppendState appends the encoding of s to b.
func AppendState(b []byte, s *State) []byte {
	b = appendUint(b, 1, s.SQLIndex)
	b = appendUint(b, 2, s.Applied)
	b = appendUint(b, 3, s.Clock)
	for i := range s.Sessions {
		var at int
		b, at = openMessage(b, 4)
		b = AppendSession(b, &s.Sessions[i])
		b = closeMessage(b, at)
	}
	b = appendUint(b, 5, s.Changed)
	if l := s.Lease; l.ID != 0 {
		var at int
		b, at = openMessage(b, 6)
		b = appendFixed(b, 1, l.ID)
		b = appendUint(b, 2, l.Session)
		b = appendUint(b, 3, l.Base)
		b = appendUint(b, 4, l.TTLMS)
		b = appendBool(b, 5, l.Idle)
		b = closeMessage(b, at)
	}
	for i := range s.Waiters {
		var at int
		b, at = openMessage(b, 7)
		b = AppendWaiter(b, &s.Waiters[i])
		b = closeMessage(b, at)
	}
	b = appendUint(b, 8, s.LastWaiter)
	b = appendUint(b, 9, s.ContendedSince)
	b = appendFunctions(b, 10, s.Functions)
	b = appendUint(b, 11, s.Term)
	if s.History != 0 {
		b = appendFixed(b, 12, s.History)
	}
	return appendZone(b, 30, s.Zone)
}

func appendValue(b []byte, v Value) []byte {
	switch v.Kind {
	case Integer:
		b = protowire.AppendTag(b, 1, protowire.VarintType)
		b = protowire.AppendVarint(b, protowire.EncodeZigZag(int64(v.Num)))
	case Real:
		b = protowire.AppendTag(b, 2, protowire.Fixed64Type)
		b = protowire.AppendFixed64(b, v.Num)
	case Text:
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendBytes(b, v.Data)
	case Blob:
		b = protowire.AppendTag(b, 4, protowire.BytesType)
		b = protowire.AppendBytes(b, v.Data)
	}
	return b
}

func appendUint(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, n)
}

func appendInt(b []byte, field protowire.Number, n int64) []byte {
	return appendUint(b, field, protowire.EncodeZigZag(n))
}

func appendFixed(b []byte, field protowire.Number, n uint64) []byte {
	b = protowire.AppendTag(b, field, protowire.Fixed64Type)
	return protowire.AppendFixed64(b, n)
}

func appendBool(b []byte, field protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendUint(b, field, 1)
}

func appendBytes(b []byte, field protowire.Number, data []byte) []byte {
	if len(data) == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, data)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return appendBytesAlways(b, field, s)
}

func appendBytesAlways(b []byte, field protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, s)
}

// openMessage begins a nested message of unknown length. It leaves one byte for the
// length, which closeMessage fills in. If the length needs more bytes, closeMessage
// moves the message.
func openMessage(b []byte, field protowire.Number) ([]byte, int) {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return append(b, 0), len(b) + 1
}

func closeMessage(b []byte, at int) []byte {
	n := len(b) - at
	if n < 0x80 {
		b[at-1] = byte(n)
		return b
	}
	extra := protowire.SizeVarint(uint64(n)) - 1
	for range extra {
		b = append(b, 0)
	}
	copy(b[at+extra:], b[at:at+n])
	protowire.AppendVarint(b[:at-1], uint64(n))
	return b
}
