package wire

import "google.golang.org/protobuf/encoding/protowire"

// A CommandKind says what a Command asks for. Each in-memory shard accepts its
// own kinds only.
type CommandKind uint8

// The kinds of commands. Each has a type of the same name below.
const (
	KindKVPut            CommandKind = 1 // see KVPut
	KindKVPutIfAbsent    CommandKind = 2 // see KVPut
	KindKVReplace        CommandKind = 3 // see KVPut
	KindKVCompareAndSwap CommandKind = 4 // see KVPut
	KindKVDelete         CommandKind = 5 // see KVDelete
	KindKVGetRemove      CommandKind = 6 // see KVDelete
	KindKVClear          CommandKind = 7
	KindKVClearAll       CommandKind = 8
	KindKVSetLimits      CommandKind = 9
	KindCounterAdd       CommandKind = 10
	KindCounterSet       CommandKind = 11
	KindCounterDelete    CommandKind = 12

	KindLockAcquire CommandKind = 20 // see LockAcquire
	KindLockTry     CommandKind = 21 // see LockAcquire
	KindLockRelease CommandKind = 22
	KindLockRenew   CommandKind = 23
	KindLockLeave   CommandKind = 24

	KindNotify CommandKind = 30
)

// Seen says what a node has applied of the shards to which other shards' events
// refer: the indexes of the last entries of the SQL shard and of the kv shard.
type Seen struct{ SQL, KV uint64 }

// Max returns, for each shard, the higher of the two indexes.
func (s Seen) Max(o Seen) Seen { return Seen{max(s.SQL, o.SQL), max(s.KV, o.KV)} }

// A Command is what one caller asks of an in-memory shard, in the form in which it
// is encoded. A field has one meaning, whatever the kind is; which fields a kind
// has is said by the types of commands.go, which callers and machines use instead
// of these fields.
type Command struct {
	Kind CommandKind
	Seen Seen // what the proposer had applied

	Origin *Origin // of a remote client's command; nil: none

	Key         string // of an entry, a counter or a lock
	Bucket      string
	Value       []byte
	TTLMS       uint64 // of an entry
	Version     uint64
	Delta       int64
	Counter     int64
	MaxEntries  uint64
	MaxBytes    uint64
	Override    bool
	Owner       uint64
	OwnerTTLMS  uint64
	OwnerExists bool
	Waiter      uint64
	CaughtUp    bool
	OwnerStays  bool
	Waiters     []uint64
	LastWaiter  uint64
	Channel     string
	Payload     []byte
	TimeMS      int64
}

// An OutcomeCode says whether a Command was carried out.
type OutcomeCode uint8

// The codes. With all but Done and Waits the command has changed nothing.
const (
	Done           OutcomeCode = iota
	Missing                    // there is no such entry, counter, waiter or owner
	Present                    // there is such an entry already
	Changed                    // the entry has another version
	Overflow                   // the counter would not fit into 64 bits
	TooLarge                   // the entry is larger than its bucket may be
	Differs                    // the bucket has other limits
	Waits                      // the waiter is in the queue of the lock
	Held                       // another owner has the lock
	Full                       // the queue of the lock has reached its bound
	UnknownCommand             // the shard has no such command
)

// An Outcome is what became of a Command. A field has one meaning; those that do
// not belong to the command's kind are zero.
type Outcome struct {
	Code      OutcomeCode
	Admission Admission // of the command's Origin; if it is not Admitted, nothing else is set

	// Of commands that change or compare entries and counters.
	Version      uint64 // the entry's: the new one, that which was removed, or that which was in the way
	Existed      bool   // there was such an entry or counter before
	Value        string // the one that was replaced or removed
	ValueDropped bool   // the value is not here: it was too large to be kept for a repeated entry
	Counter      int64  // the value of the counter

	// Of KVSetLimits: the limits that are set now. MaxBytes also with TooLarge.
	MaxEntries, MaxBytes uint64

	// Of lock commands.
	Token      uint64 // the fencing token of the grant; with Held: of the one who has the lock
	Epoch      uint64 // distinguishes the owner from earlier and later owners with the same id
	Seen       Seen   // what a node must have applied before it uses the grant
	HolderLost bool   // an earlier holder expired, and could not say what it had written: Seen may be too low

	// Of Notify.
	Index uint64 // the message's
}

// EncodeCommand encodes c, to be combined with others into an entry.
func EncodeCommand(c *Command) []byte {
	b := make([]byte, 0, 64+len(c.Bucket)+len(c.Key)+len(c.Value)+len(c.Channel)+len(c.Payload)+10*len(c.Waiters))
	b = appendUint(b, 1, uint64(c.Kind))
	b = appendUint(b, 2, c.Seen.SQL)
	b = appendUint(b, 3, c.Seen.KV)
	b = appendString(b, 4, c.Key)
	b = appendString(b, 5, c.Bucket)
	b = appendBytes(b, 6, c.Value)
	b = appendUint(b, 7, c.TTLMS)
	b = appendUint(b, 8, c.Version)
	b = appendInt(b, 9, c.Delta)
	b = appendInt(b, 10, c.Counter)
	if c.Owner != 0 {
		b = appendFixed(b, 11, c.Owner)
	}
	b = appendUint(b, 12, c.Waiter)
	for _, id := range c.Waiters {
		b = protowire.AppendTag(b, 13, protowire.VarintType)
		b = protowire.AppendVarint(b, id)
	}
	b = appendString(b, 14, c.Channel)
	b = appendBytes(b, 15, c.Payload)
	b = appendInt(b, 16, c.TimeMS)
	b = appendUint(b, 17, c.MaxEntries)
	b = appendUint(b, 18, c.MaxBytes)
	b = appendBool(b, 19, c.Override)
	b = appendUint(b, 20, c.OwnerTTLMS)
	b = appendBool(b, 21, c.OwnerExists)
	b = appendBool(b, 22, c.CaughtUp)
	b = appendBool(b, 23, c.OwnerStays)
	b = appendUint(b, 24, c.LastWaiter)
	return appendOrigin(b, 25, c.Origin)
}

// EncodeCommands encodes an entry of commands that their callers have encoded. oldest is
// Entry.Oldest.
func EncodeCommands(session, sequence, oldest uint64, commands [][]byte) []byte {
	size := 64
	for _, c := range commands {
		size += len(c) + 6
	}
	b := appendEntryHead(make([]byte, 0, size), session, sequence, oldest)
	for _, c := range commands {
		b = protowire.AppendTag(b, 8, protowire.BytesType)
		b = protowire.AppendBytes(b, c)
	}
	return compress(b)
}

// field decodes one field. Strings and byte slices point into data.
func (c *Command) field(f protowire.Number, n uint64, data []byte) error {
	switch f {
	case 1:
		if n <= 0xff { // otherwise a later version wrote it; this one has no such kind
			c.Kind = CommandKind(n)
		}
	case 2:
		c.Seen.SQL = n
	case 3:
		c.Seen.KV = n
	case 4:
		c.Key = stringOf(data)
	case 5:
		c.Bucket = stringOf(data)
	case 6:
		c.Value = data
	case 7:
		c.TTLMS = n
	case 8:
		c.Version = n
	case 9:
		c.Delta = protowire.DecodeZigZag(n)
	case 10:
		c.Counter = protowire.DecodeZigZag(n)
	case 11:
		c.Owner = n
	case 12:
		c.Waiter = n
	case 13:
		c.Waiters = append(c.Waiters, n)
	case 14:
		c.Channel = stringOf(data)
	case 15:
		c.Payload = data
	case 16:
		c.TimeMS = protowire.DecodeZigZag(n)
	case 17:
		c.MaxEntries = n
	case 18:
		c.MaxBytes = n
	case 19:
		c.Override = n != 0
	case 20:
		c.OwnerTTLMS = n
	case 21:
		c.OwnerExists = n != 0
	case 22:
		c.CaughtUp = n != 0
	case 23:
		c.OwnerStays = n != 0
	case 24:
		c.LastWaiter = n
	case 25:
		var err error
		c.Origin, err = decodeOrigin(data)
		return err
	}
	return nil
}

func appendOutcome(b []byte, o *Outcome) []byte {
	b = appendUint(b, 1, uint64(o.Code))
	b = appendUint(b, 2, o.Version)
	b = appendBool(b, 3, o.Existed)
	b = appendString(b, 4, o.Value)
	b = appendBool(b, 5, o.ValueDropped)
	b = appendInt(b, 6, o.Counter)
	b = appendUint(b, 7, o.Token)
	b = appendUint(b, 8, o.Epoch)
	b = appendUint(b, 9, o.Seen.SQL)
	b = appendUint(b, 10, o.Seen.KV)
	b = appendBool(b, 11, o.HolderLost)
	b = appendUint(b, 12, o.Index)
	b = appendUint(b, 13, o.MaxEntries)
	b = appendUint(b, 14, o.MaxBytes)
	return appendUint(b, 15, uint64(o.Admission))
}

func decodeOutcome(b []byte) (*Outcome, error) {
	o := new(Outcome)
	return o, fields(b, func(f protowire.Number, n uint64, data []byte) error {
		switch f {
		case 1:
			o.Code = OutcomeCode(n)
		case 2:
			o.Version = n
		case 3:
			o.Existed = n != 0
		case 4:
			o.Value = string(data)
		case 5:
			o.ValueDropped = n != 0
		case 6:
			o.Counter = protowire.DecodeZigZag(n)
		case 7:
			o.Token = n
		case 8:
			o.Epoch = n
		case 9:
			o.Seen.SQL = n
		case 10:
			o.Seen.KV = n
		case 11:
			o.HolderLost = n != 0
		case 12:
			o.Index = n
		case 13:
			o.MaxEntries = n
		case 14:
			o.MaxBytes = n
		case 15:
			o.Admission = Admission(n)
		}
		return nil
	})
}
