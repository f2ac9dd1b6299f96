package wire

import "google.golang.org/protobuf/encoding/protowire"

// A LocksRecord is the first record of the lock shard itself. The owners follow it, the
// waiters, and then the timers of owners.
type LocksRecord struct {
	LastToken       uint64 // the last fencing token that was given
	LastRenewal     uint64 // the number of the last renewal of any owner
	HolderLostToken uint64 // LastToken as of the last time a holder expired; 0: a holder has caught up since
}

func (*LocksRecord) number() protowire.Number { return 9 }

func (r *LocksRecord) appendFields(b []byte) []byte {
	b = appendUint(b, 1, r.LastToken)
	b = appendUint(b, 2, r.LastRenewal)
	return appendUint(b, 3, r.HolderLostToken)
}

func (r *LocksRecord) field(f protowire.Number, n uint64, _ []byte) error {
	switch f {
	case 1:
		r.LastToken = n
	case 2:
		r.LastRenewal = n
	case 3:
		r.HolderLostToken = n
	}
	return nil
}

// A LockOwnerRecord has an owner of locks.
type LockOwnerRecord struct {
	Owner             uint64
	Epoch             uint64 // the number of the owner's first renewal
	Renewal           uint64 // the number of the owner's last renewal
	TTLMS             uint64 // the owner expires if it is not renewed for so long
	Node, Incarnation uint64 // through which the last command for a waiter of the owner came
}

func (*LockOwnerRecord) number() protowire.Number { return 10 }

func (r *LockOwnerRecord) appendFields(b []byte) []byte {
	b = appendFixed(b, 1, r.Owner)
	b = appendUint(b, 2, r.Epoch)
	b = appendUint(b, 3, r.Renewal)
	b = appendUint(b, 4, r.TTLMS)
	b = appendUint(b, 5, r.Node)
	return appendUint(b, 6, r.Incarnation)
}

func (r *LockOwnerRecord) field(f protowire.Number, n uint64, _ []byte) error {
	switch f {
	case 1:
		r.Owner = n
	case 2:
		r.Epoch = n
	case 3:
		r.Renewal = n
	case 4:
		r.TTLMS = n
	case 5:
		r.Node = n
	case 6:
		r.Incarnation = n
	}
	return nil
}

// A LockWaiterRecord has a waiter. The waiters for one lock are in the order of its queue.
type LockWaiterRecord struct {
	Key           string // of the lock
	Owner, Waiter uint64
	Token         uint64 // the fencing token of its grant; 0: it waits
	Seen          Seen   // of its grant, see Outcome
	HolderLost    bool   // of its grant, see Outcome
}

func (*LockWaiterRecord) number() protowire.Number { return 11 }

func (r *LockWaiterRecord) appendFields(b []byte) []byte {
	b = appendString(b, 1, r.Key)
	b = appendFixed(b, 2, r.Owner)
	b = appendUint(b, 3, r.Waiter)
	b = appendUint(b, 4, r.Token)
	b = appendUint(b, 5, r.Seen.SQL)
	b = appendUint(b, 6, r.Seen.KV)
	return appendBool(b, 7, r.HolderLost)
}

func (r *LockWaiterRecord) field(f protowire.Number, n uint64, data []byte) error {
	switch f {
	case 1:
		r.Key = string(data)
	case 2:
		r.Owner = n
	case 3:
		r.Waiter = n
	case 4:
		r.Token = n
	case 5:
		r.Seen.SQL = n
	case 6:
		r.Seen.KV = n
	case 7:
		r.HolderLost = n != 0
	}
	return nil
}

// A LockRenewalRecord has the timer that a renewal of an owner has started.
type LockRenewalRecord struct {
	Owner   uint64
	Renewal uint64 // the number of the renewal
	Timer   Timer
}

func (*LockRenewalRecord) number() protowire.Number { return 12 }

func (r *LockRenewalRecord) appendFields(b []byte) []byte {
	b = appendFixed(b, 1, r.Owner)
	b = appendUint(b, 2, r.Renewal)
	return r.Timer.append(b, 3)
}

func (r *LockRenewalRecord) field(f protowire.Number, n uint64, data []byte) error {
	switch f {
	case 1:
		r.Owner = n
	case 2:
		r.Renewal = n
	case 3:
		return fields(data, r.Timer.field)
	}
	return nil
}
