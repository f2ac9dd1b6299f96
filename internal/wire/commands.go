package wire

// The types in this file are the commands, each with its fields. A proposer converts one
// to a Command before encoding it, and a machine converts the decoded Command back. Its
// strings and slices then point into the entry.

// A KVPut writes an entry. Its kind says under which condition, and what the
// outcome says about the former entry.
type KVPut struct {
	// Kind is KindKVPut, KindKVPutIfAbsent (only if there is no entry),
	// KindKVReplace (the outcome has the former value) or KindKVCompareAndSwap (only
	// if the entry has Version).
	Kind        CommandKind
	Bucket, Key string
	Value       []byte
	TTLMS       uint64 // 0: the entry does not expire
	Version     uint64 // 0: only if there is no entry
}

// Command returns p as a Command.
func (p KVPut) Command() *Command {
	return &Command{Kind: p.Kind, Bucket: p.Bucket, Key: p.Key, Value: p.Value, TTLMS: p.TTLMS, Version: p.Version}
}

// KVPut returns c as a KVPut.
func (c *Command) KVPut() KVPut {
	return KVPut{Kind: c.Kind, Bucket: c.Bucket, Key: c.Key, Value: c.Value, TTLMS: c.TTLMS, Version: c.Version}
}

// A KVDelete removes an entry.
type KVDelete struct {
	Bucket, Key string
	ReturnValue bool // the outcome has the value
}

// Command returns d as a Command.
func (d KVDelete) Command() *Command {
	kind := KindKVDelete
	if d.ReturnValue {
		kind = KindKVGetRemove
	}
	return &Command{Kind: kind, Bucket: d.Bucket, Key: d.Key}
}

// KVDelete returns c as a KVDelete.
func (c *Command) KVDelete() KVDelete {
	return KVDelete{Bucket: c.Bucket, Key: c.Key, ReturnValue: c.Kind == KindKVGetRemove}
}

// A KVClear removes the entries and counters of a bucket.
type KVClear struct{ Bucket string }

// Command returns x as a Command.
func (x KVClear) Command() *Command { return &Command{Kind: KindKVClear, Bucket: x.Bucket} }

// KVClear returns c as a KVClear.
func (c *Command) KVClear() KVClear { return KVClear{Bucket: c.Bucket} }

// A KVClearAll removes the entries and counters of all buckets.
type KVClearAll struct{}

// Command returns x as a Command.
func (KVClearAll) Command() *Command { return &Command{Kind: KindKVClearAll} }

// A KVSetLimits sets the limits of a bucket.
type KVSetLimits struct {
	Bucket     string
	MaxEntries uint64 // 0: unlimited
	MaxBytes   uint64 // of keys and values; 0: unlimited
	Override   bool   // also if the bucket has other limits
}

// Command returns s as a Command.
func (s KVSetLimits) Command() *Command {
	return &Command{Kind: KindKVSetLimits, Bucket: s.Bucket, MaxEntries: s.MaxEntries, MaxBytes: s.MaxBytes, Override: s.Override}
}

// KVSetLimits returns c as a KVSetLimits.
func (c *Command) KVSetLimits() KVSetLimits {
	return KVSetLimits{Bucket: c.Bucket, MaxEntries: c.MaxEntries, MaxBytes: c.MaxBytes, Override: c.Override}
}

// A CounterAdd adds to a counter, which begins at 0.
type CounterAdd struct {
	Bucket, Key string
	Delta       int64
}

// Command returns a as a Command.
func (a CounterAdd) Command() *Command {
	return &Command{Kind: KindCounterAdd, Bucket: a.Bucket, Key: a.Key, Delta: a.Delta}
}

// CounterAdd returns c as a CounterAdd.
func (c *Command) CounterAdd() CounterAdd {
	return CounterAdd{Bucket: c.Bucket, Key: c.Key, Delta: c.Delta}
}

// A CounterSet sets a counter.
type CounterSet struct {
	Bucket, Key string
	Counter     int64
}

// Command returns s as a Command.
func (s CounterSet) Command() *Command {
	return &Command{Kind: KindCounterSet, Bucket: s.Bucket, Key: s.Key, Counter: s.Counter}
}

// CounterSet returns c as a CounterSet.
func (c *Command) CounterSet() CounterSet {
	return CounterSet{Bucket: c.Bucket, Key: c.Key, Counter: c.Counter}
}

// A CounterDelete removes a counter.
type CounterDelete struct{ Bucket, Key string }

// Command returns d as a Command.
func (d CounterDelete) Command() *Command {
	return &Command{Kind: KindCounterDelete, Bucket: d.Bucket, Key: d.Key}
}

// CounterDelete returns c as a CounterDelete.
func (c *Command) CounterDelete() CounterDelete {
	return CounterDelete{Bucket: c.Bucket, Key: c.Key}
}

// A LockAcquire asks for a lock: it puts a waiter of the owner into the lock's
// queue, whose first waiter has the lock. It renews the owner.
type LockAcquire struct {
	Key         string
	Owner       uint64 // an id that the proposer has chosen at random; not 0
	OwnerTTLMS  uint64 // the owner expires if it is not renewed for so long
	OwnerExists bool   // only if the owner exists: the proposer believes that it has waiters
	Waiter      uint64 // an id among the owner's, chosen by the proposer
	Try         bool   // only if nobody has the lock
}

// Command returns a as a Command.
func (a LockAcquire) Command() *Command {
	kind := KindLockAcquire
	if a.Try {
		kind = KindLockTry
	}
	return &Command{Kind: kind, Key: a.Key, Owner: a.Owner, OwnerTTLMS: a.OwnerTTLMS, OwnerExists: a.OwnerExists, Waiter: a.Waiter}
}

// LockAcquire returns c as a LockAcquire.
func (c *Command) LockAcquire() LockAcquire {
	return LockAcquire{Key: c.Key, Owner: c.Owner, OwnerTTLMS: c.OwnerTTLMS, OwnerExists: c.OwnerExists, Waiter: c.Waiter, Try: c.Kind == KindLockTry}
}

// A LockRelease removes a waiter from the queue of its lock, which releases the
// lock if the waiter has it.
type LockRelease struct {
	Owner, Waiter uint64
	CaughtUp      bool // the waiter held the lock, and its node had applied what earlier holders wrote
	OwnerStays    bool // the owner has, or is about to have, other waiters: keep it for a while
}

// Command returns r as a Command.
func (r LockRelease) Command() *Command {
	return &Command{Kind: KindLockRelease, Owner: r.Owner, Waiter: r.Waiter, CaughtUp: r.CaughtUp, OwnerStays: r.OwnerStays}
}

// LockRelease returns c as a LockRelease.
func (c *Command) LockRelease() LockRelease {
	return LockRelease{Owner: c.Owner, Waiter: c.Waiter, CaughtUp: c.CaughtUp, OwnerStays: c.OwnerStays}
}

// A LockRenew renews an owner. It also releases the owner's waiters up to
// LastWaiter that are not in Waiters, because their releases may have been lost.
type LockRenew struct {
	Owner      uint64
	Waiters    []uint64
	LastWaiter uint64
}

// Command returns r as a Command.
func (r LockRenew) Command() *Command {
	return &Command{Kind: KindLockRenew, Owner: r.Owner, Waiters: r.Waiters, LastWaiter: r.LastWaiter}
}

// LockRenew returns c as a LockRenew.
func (c *Command) LockRenew() LockRenew {
	return LockRenew{Owner: c.Owner, Waiters: c.Waiters, LastWaiter: c.LastWaiter}
}

// A LockLeave removes all owners that were renewed through the proposing node.
type LockLeave struct{}

// Command returns x as a Command.
func (LockLeave) Command() *Command { return &Command{Kind: KindLockLeave} }

// A Notify publishes a message.
type Notify struct {
	Channel string
	Payload []byte
	TimeMS  int64 // the sender's clock, Unix milliseconds
}

// Command returns n as a Command.
func (n Notify) Command() *Command {
	return &Command{Kind: KindNotify, Channel: n.Channel, Payload: n.Payload, TimeMS: n.TimeMS}
}

// Notify returns c as a Notify.
func (c *Command) Notify() Notify {
	return Notify{Channel: c.Channel, Payload: c.Payload, TimeMS: c.TimeMS}
}
