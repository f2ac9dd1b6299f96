package wire

import (
	"bytes"
	"errors"
	"fmt"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
)

// maxDecodedSize bounds what an entry decompresses to, in bytes. Only a damaged entry
// exceeds it. It is higher than MaxEntrySize, so that a later version can raise that.
const maxDecodedSize = 4 * MaxEntrySize

// Several decoders, so that replicas in one process do not wait for each other.
var decoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(4), zstd.WithDecoderMaxMemory(maxDecodedSize))

var errMalformed = errors.New("hiqlite: malformed entry")

// A Decoder decodes entries one after the other and reuses its memory. What Decode
// returns is valid until the next call.
type Decoder struct {
	entry      Entry
	texts      []string
	statements []Statement
	args       []Argument
	advance    ClockAdvance
	buf        []byte
}

// Decode decodes an entry. Texts and blobs point into cmd or the decoder.
func (d *Decoder) Decode(cmd []byte) (*Entry, error) {
	if len(cmd) < 2 {
		return nil, errMalformed
	}
	if cmd[0] > FormatVersion {
		return nil, ErrNewerFormat
	}
	if cmd[0] == 0 || cmd[1]&^flagZstd != 0 {
		return nil, fmt.Errorf("%w: frame %x", errMalformed, cmd[:2])
	}
	body := cmd[2:]
	if cmd[1]&flagZstd != 0 {
		var err error
		if d.buf, err = decoder.DecodeAll(body, d.buf[:0]); err != nil {
			return nil, fmt.Errorf("%w: %w", errMalformed, err)
		}
		body = d.buf
	}
	d.entry = Entry{Operations: d.entry.Operations[:0], Commands: d.entry.Commands[:0]}
	d.texts, d.statements, d.args = d.texts[:0], d.statements[:0], d.args[:0]
	// The slices of an operation are parts of the decoder's slices, which must not
	// move while an entry is decoded. So their sizes are counted first.
	if err := d.reserve(body); err != nil {
		return nil, err
	}
	err := fields(body, func(f protowire.Number, n uint64, data []byte) error {
		switch f {
		case 1:
			d.entry.Session = n
		case 2:
			d.entry.Sequence = n
		case 3:
			d.entry.OpenSession = true
			return fields(data, func(f protowire.Number, n uint64, _ []byte) error {
				switch f {
				case 1:
					d.entry.Nonce = n
				case 2:
					d.entry.Node = n
				case 3:
					d.entry.Incarnation = n
				}
				return nil
			})
		case 4:
			d.advance = ClockAdvance{}
			d.entry.ClockAdvance = &d.advance
			return fields(data, func(f protowire.Number, n uint64, _ []byte) error {
				switch f {
				case 1:
					d.advance.Expected = n
				case 2:
					d.advance.Next = n
				case 3:
					d.advance.Nonce = n
				case 4:
					d.advance.Applied = n
				case 5:
					d.advance.History = n
				}
				return nil
			})
		case 5:
			d.texts = append(d.texts, stringOf(data))
		case 6:
			return d.operation(data)
		case 7:
			d.entry.HoldMS = n
		case 8:
			d.entry.Commands = append(d.entry.Commands, Command{})
			return fields(data, d.entry.Commands[len(d.entry.Commands)-1].field)
		case 10:
			if cmd[0] >= windowVersion { // older builds ignore the field in an entry of an older version
				d.entry.Oldest = n
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &d.entry, nil
}

// Size returns about how many bytes the decoder holds.
func (d *Decoder) Size() int {
	return cap(d.buf) + cap(d.statements)*int(unsafe.Sizeof(Statement{})) + cap(d.args)*int(unsafe.Sizeof(Argument{})) + cap(d.entry.Commands)*int(unsafe.Sizeof(Command{}))
}

// reserve makes room for the statements, arguments and commands of an entry.
func (d *Decoder) reserve(body []byte) error {
	statements, args, commands := 0, 0, 0
	err := fields(body, func(f protowire.Number, _ uint64, data []byte) error {
		switch f {
		case 6:
			return count(data, 9, func(statement []byte) error {
				statements++
				return count(statement, 2, func([]byte) error { args++; return nil })
			})
		case 8:
			commands++
		}
		return nil
	})
	if cap(d.statements) < statements {
		d.statements = make([]Statement, 0, statements)
	}
	if cap(d.entry.Commands) < commands {
		d.entry.Commands = make([]Command, 0, commands)
	}
	if cap(d.args) < args {
		d.args = make([]Argument, 0, args)
	}
	return err
}

// count calls f for each field of a message that has this number.
func count(b []byte, number protowire.Number, f func([]byte) error) error {
	for len(b) > 0 {
		field, _, data, rest, err := next(b)
		if err == nil && field == number {
			err = f(data)
		}
		if err != nil {
			return err
		}
		b = rest
	}
	return nil
}

func (d *Decoder) operation(b []byte) error {
	var op Operation
	first := len(d.statements)
	base := uint64(0)
	err := fields(b, func(f protowire.Number, n uint64, data []byte) error {
		switch f {
		case 1:
			base = n
		case 2:
			op.StampMS = protowire.DecodeZigZag(n)
		case 3:
			if len(data) != len(op.Seed) {
				return fmt.Errorf("%w: a seed of %d bytes", errMalformed, len(data))
			}
			op.Seed = Seed(data)
		case 5:
			op.LastInsertID = protowire.DecodeZigZag(n)
		case 6:
			op.Changes = protowire.DecodeZigZag(n)
		case 7:
			op.MaxSteps = n
		case 8:
			op.Vacuum = n != 0
		case 9:
			return d.statement(data, base)
		case 10:
			op.Lease = new(Lease)
			return fields(data, op.Lease.field)
		case 11:
			return settings(n, &op.Settings)
		case 12:
			op.Functions = append(op.Functions, Function{})
			return fields(data, op.Functions[len(op.Functions)-1].field)
		case 13:
			op.Temp = data
			if data == nil {
				op.Temp = []byte{}
			}
		case 14:
			var err error
			op.Zone, err = decodeZone(data)
			return err
		case 15:
			var err error
			op.Origin, err = decodeOrigin(data)
			return err
		}
		return nil
	})
	op.Statements = d.statements[first:len(d.statements):len(d.statements)]
	d.entry.Operations = append(d.entry.Operations, op)
	return err
}

func (l *Lease) field(f protowire.Number, n uint64, _ []byte) error {
	switch f {
	case 1:
		l.Acquire = n
	case 2:
		l.TTLMS = n
	case 3:
		l.Release = append(l.Release, n)
	case 4:
		l.InUse = n != 0
	case 5:
		l.Under = n
	case 6:
		l.Transaction = n != 0
	case 7:
		l.Base = n
	case 8:
		l.Keep = n != 0
	case 9:
		l.Checksum = Checksum(n)
	}
	return nil
}

// statement decodes one statement of an operation. It and argument do not use fields,
// so that they allocate nothing for each statement and argument: large transactions
// consist of little else.
func (d *Decoder) statement(b []byte, base uint64) error {
	first := len(d.args)
	text := base
	d.statements = append(d.statements, Statement{})
	s := &d.statements[len(d.statements)-1]
	for len(b) > 0 {
		f, n, data, rest, err := next(b)
		if err != nil {
			return err
		}
		b = rest
		switch f {
		case 1:
			text = base + n
		case 2:
			d.args = append(d.args, Argument{})
			if err := argument(data, &d.args[len(d.args)-1]); err != nil {
				return err
			}
		case 3:
			s.LaterMS = protowire.DecodeZigZag(n)
		case 4:
			s.Skipped = n
		case 5:
			s.Fails = int(n)
		case 6:
			s.State = new(ConnState)
			if err := fields(data, s.State.field); err != nil {
				return err
			}
		case 7:
			if err := settings(n, &s.ChangedSettings); err != nil {
				return err
			}
		case 8:
			s.DeferForeignKeys = n != 0
		}
	}
	if text >= uint64(len(d.texts)) {
		return fmt.Errorf("%w: statement text %d of %d", errMalformed, text, len(d.texts))
	}
	s.SQL, s.Args = d.texts[text], d.args[first:len(d.args):len(d.args)]
	return nil
}

func (s *ConnState) field(f protowire.Number, n uint64, _ []byte) error {
	switch f {
	case 1:
		s.Changes = protowire.DecodeZigZag(n)
	case 2:
		s.TotalChanges = protowire.DecodeZigZag(n)
	case 3:
		s.LastInsertID = protowire.DecodeZigZag(n)
	}
	return nil
}

func argument(b []byte, a *Argument) error {
	for len(b) > 0 {
		f, n, data, rest, err := next(b)
		if err != nil {
			return err
		}
		b = rest
		switch f {
		case 1:
			a.Value = IntegerValue(protowire.DecodeZigZag(n))
		case 2:
			a.Value = Value{Kind: Real, Num: n}
		case 3:
			a.Value = Value{Kind: Text, Data: data}
		case 4:
			a.Value = Value{Kind: Blob, Data: data}
		case 5:
			a.Name = stringOf(data)
		}
	}
	return nil
}

// DecodeState decodes what AppendState wrote, keeping nothing of b.
func DecodeState(b []byte) (*State, error) {
	s := new(State)
	err := fields(b, func(f protowire.Number, n uint64, data []byte) error {
		switch f {
		case 1:
			s.SQLIndex = n
		case 2:
			s.Applied = n
		case 3:
			s.Clock = n
		case 4:
			session, err := DecodeSession(data)
			if err != nil {
				return err
			}
			s.Sessions = append(s.Sessions, *session)
		case 5:
			s.Changed = n
		case 6:
			return fields(data, s.Lease.field)
		case 7:
			waiter, err := DecodeWaiter(data)
			if err != nil {
				return err
			}
			s.Waiters = append(s.Waiters, *waiter)
		case 8:
			s.LastWaiter = n
		case 9:
			s.ContendedSince = n
		case 10:
			s.Functions = append(s.Functions, Function{})
			return fields(bytes.Clone(data), s.Functions[len(s.Functions)-1].field)
		case 11:
			s.Term = n
		case 12:
			s.History = n
		case 30:
			var err error
			s.Zone, err = decodeZone(data)
			return err
		}
		return nil
	})
	return s, err
}

func (f *Function) field(field protowire.Number, n uint64, data []byte) error {
	switch field {
	case 1:
		f.Name = stringOf(data)
	case 2:
		f.Version = n
	case 3:
		f.Collation = n != 0
	}
	return nil
}

func (l *HeldLease) field(f protowire.Number, n uint64, _ []byte) error {
	switch f {
	case 1:
		l.ID = n
	case 2:
		l.Session = n
	case 3:
		l.Base = n
	case 4:
		l.TTLMS = n
	case 5:
		l.Idle = n != 0
	}
	return nil
}

// DecodeWaiter decodes what AppendWaiter wrote, keeping nothing of b.
func DecodeWaiter(b []byte) (*Waiter, error) {
	p := new(Waiter)
	b = append([]byte{plainVersion, 0}, b...)
	var d Decoder
	e, err := d.Decode(b)
	if err != nil {
		return nil, err
	}
	if len(e.Operations) != 1 {
		return nil, errMalformed
	}
	p.Session, p.Sequence, p.Operation = e.Session, e.Sequence, e.Operations[0]
	err = fields(b[2:], func(f protowire.Number, n uint64, _ []byte) error {
		switch f {
		case 8:
			p.Number = n
		case 9:
			p.Index = int(n)
		}
		return nil
	})
	return p, err
}

// DecodeResult decodes what AppendResult wrote, keeping nothing of b.
func DecodeResult(b []byte) (*Result, error) {
	r := new(Result)
	err := fields(b, func(f protowire.Number, n uint64, data []byte) error {
		switch f {
		case 1:
			s, err := statementResult(data)
			r.Statements = append(r.Statements, s)
			return err
		case 2:
			r.Err = new(Error)
			return fields(data, func(f protowire.Number, n uint64, data []byte) error {
				switch f {
				case 1:
					r.Err.Code = int(n)
				case 2:
					r.Err.Message = string(data)
				case 3:
					r.Err.Statement = int(n)
				case 4:
					r.Err.Hint = string(data)
				}
				return nil
			})
		case 3:
			r.RowsDropped = n != 0
		case 5:
			return fields(data, func(f protowire.Number, n uint64, _ []byte) error {
				switch f {
				case 1:
					r.Lease.State = LeaseState(n)
				case 2:
					r.Lease.ID = n
				case 3:
					r.Lease.Base = n
				}
				return nil
			})
		case 6:
			return settings(n, &r.ChangedSettings)
		case 7:
			r.Admission = Admission(n)
		case 8:
			r.RetryAbove = n
		}
		return nil
	})
	return r, err
}
