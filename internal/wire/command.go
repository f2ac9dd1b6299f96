package wire

import "google.golang.org/protobuf/encoding/protowire"

// A CommandKind says what a Command asks for. Each in-memory shard knows its
// own ones.
type CommandKind uint8

// The kinds.
const (
	KVPut            CommandKind = 1
	KVPutIfAbsent    CommandKind = 2
	KVReplace        CommandKind = 3
	KVCompareAndSwap CommandKind = 4
	KVDelete         CommandKind = 5
	KVGetRemove      CommandKind = 6
	KVClear          CommandKind = 7
	KVClearAll       CommandKind = 8
	KVLimits         CommandKind = 9
	CounterAdd       CommandKind = 10
	CounterSet       CommandKind = 11
	CounterDelete    CommandKind = 12

	LockAcquire CommandKind = 20
	LockTry     CommandKind = 21
	LockRelease CommandKind = 22
	LockRenew   CommandKind = 23
	LockLeave   CommandKind = 24

	Notify CommandKind = 30
)

// Seen is how far a node has come with the shards that hold what others tell of:
// the indexes of the last entries that it has applied.
type Seen struct{ SQL, KV uint64 }

// Max returns what has seen all that either has.
func (s Seen) Max(o Seen) Seen { return Seen{max(s.SQL, o.SQL), max(s.KV, o.KV)} }

// A Command is what one caller asks of an in-memory shard. Which fields it has
// depends on its kind; hiqlite.proto says what they mean.
type Command struct {
	Kind       CommandKind
	Seen       Seen // what the proposer had applied
	Name, Key  string
	Value      []byte
	TTLMS      uint64
	Version    uint64
	Number     int64
	Owner, ID  uint64
	IDs        []uint64
	MaxEntries uint64
	MaxBytes   uint64
	Force      bool
}

// An OutcomeCode says what became of a Command.
type OutcomeCode uint8

// The codes. All but Done and Waits mean that nothing was changed.
const (
	Done     OutcomeCode = iota
	Missing              // there is no such entry, counter, place or owner
	Present              // there is one already
	Changed              // the entry has another version
	Overflow             // the counter would be beyond 64 bits
	TooLarge             // the entry is larger than its bucket may be
	Differs              // the bucket has other limits
	Waits                // has a place in the queue for the lock
	Held                 // somebody else has the lock
	Full                 // the queue for the lock is as long as it may be
	Foreign              // not a command of this shard
)

// An Outcome is what a Command came to.
type Outcome struct {
	Code    OutcomeCode
	Had     bool   // there was a value
	Dropped bool   // the value was too large to be kept for a repeated entry
	Expired bool   // of a lock: somebody did not release one, and so could not say what he had written
	Index   uint64 // version, fencing token or index of the message
	Number  int64  // of a counter; of a lock: tells the owner from others of the same id, before and after him
	Seen    Seen   // of a lock: what has to be applied before it is used
	Value   string // that was replaced or removed
}

// EncodeCommand encodes c, to be combined with others into an entry.
func EncodeCommand(c *Command) []byte {
	b := make([]byte, 0, 48+len(c.Name)+len(c.Key)+len(c.Value)+10*len(c.IDs))
	b = appendUint(b, 1, uint64(c.Kind))
	b = appendUint(b, 2, c.Seen.SQL)
	b = appendString(b, 3, c.Name)
	b = appendString(b, 4, c.Key)
	if len(c.Value) > 0 {
		b = protowire.AppendTag(b, 5, protowire.BytesType)
		b = protowire.AppendBytes(b, c.Value)
	}
	b = appendUint(b, 6, c.TTLMS)
	b = appendUint(b, 7, c.Version)
	b = appendInt(b, 8, c.Number)
	if c.Owner != 0 {
		b = appendFixed(b, 9, c.Owner)
	}
	b = appendUint(b, 10, c.ID)
	for _, id := range c.IDs {
		b = protowire.AppendTag(b, 11, protowire.VarintType)
		b = protowire.AppendVarint(b, id)
	}
	b = appendUint(b, 12, c.MaxEntries)
	b = appendUint(b, 13, c.MaxBytes)
	b = appendBool(b, 14, c.Force)
	return appendUint(b, 15, c.Seen.KV)
}

// EncodeCommands encodes an entry of commands that their callers have encoded.
func EncodeCommands(session, sequence uint64, commands [][]byte) []byte {
	size := 64
	for _, c := range commands {
		size += len(c) + 6
	}
	b := make([]byte, 2, size)
	b[0] = FormatVersion
	b = appendUint(b, 1, session)
	b = appendUint(b, 2, sequence)
	for _, c := range commands {
		b = protowire.AppendTag(b, 8, protowire.BytesType)
		b = protowire.AppendBytes(b, c)
	}
	return seal(b)
}

// field reads a field. Texts and values point into data.
func (c *Command) field(f protowire.Number, n uint64, data []byte) error {
	switch f {
	case 1:
		if n <= 0xff {
			c.Kind = CommandKind(n)
		}
	case 2:
		c.Seen.SQL = n
	case 3:
		c.Name = view(data)
	case 4:
		c.Key = view(data)
	case 5:
		c.Value = data
	case 6:
		c.TTLMS = n
	case 7:
		c.Version = n
	case 8:
		c.Number = protowire.DecodeZigZag(n)
	case 9:
		c.Owner = n
	case 10:
		c.ID = n
	case 11:
		c.IDs = append(c.IDs, n)
	case 12:
		c.MaxEntries = n
	case 13:
		c.MaxBytes = n
	case 14:
		c.Force = n != 0
	case 15:
		c.Seen.KV = n
	}
	return nil
}

func appendOutcome(b []byte, o *Outcome) []byte {
	b = appendUint(b, 1, uint64(o.Code))
	b = appendUint(b, 2, o.Index)
	b = appendInt(b, 3, o.Number)
	b = appendUint(b, 4, o.Seen.SQL)
	b = appendBool(b, 5, o.Dropped)
	b = appendBool(b, 6, o.Had)
	b = appendString(b, 7, o.Value)
	b = appendBool(b, 8, o.Expired)
	return appendUint(b, 9, o.Seen.KV)
}

func decodeOutcome(b []byte) (*Outcome, error) {
	o := new(Outcome)
	return o, fields(b, func(f protowire.Number, n uint64, data []byte) error {
		switch f {
		case 1:
			o.Code = OutcomeCode(n)
		case 2:
			o.Index = n
		case 3:
			o.Number = protowire.DecodeZigZag(n)
		case 4:
			o.Seen.SQL = n
		case 5:
			o.Dropped = n != 0
		case 6:
			o.Had = n != 0
		case 7:
			o.Value = string(data)
		case 8:
			o.Expired = n != 0
		case 9:
			o.Seen.KV = n
		}
		return nil
	})
}
