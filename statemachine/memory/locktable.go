package memory

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/hiqlite/hiqlite/internal/invariants"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// maxLockWaiters bounds the queue for one lock, the holder included.
const maxLockWaiters = 10_000

// emptyOwnerTTL is how long, in milliseconds, an owner is kept that has nothing,
// but has asked for more: the command may still be on its way.
const emptyOwnerTTL = 1000

// A lockTable is the replicated state of the lock shard. Whoever wants locks is an
// owner, which has to renew itself within its time to live. For each lock that it
// holds or waits for, the owner has a waiter in the queue of the lock's key. The
// first waiter of a queue holds the lock.
//
// The states of a waiter:
//
//	waits  it is not the first in its queue, and has no token
//	holds  it is the first in its queue, and has a fencing token. Tokens grow
//	       with every grant of any lock
//	gone   it was released; its owner renewed itself without naming it; or the
//	       owner expired: it was not renewed in time, or its process has ended
//
// A holder that expires cannot say which entries of the SQL and kv shards have its
// writes. So later grants, of any lock, are marked holderLost: their holders must ask the
// leaders for the ends of those logs instead of relying on seen. This lasts until the
// holder of a marked grant has caught up: its release names indexes that include the lost
// writes, and every later grant carries at least these.
type lockTable struct {
	queues      map[string]*lockQueue // by key; none is empty
	owners      map[uint64]*lockOwner // by id
	ownerTimers timers[renewalID]     // when owners expire; outdated ones name an earlier renewal

	lastToken uint64 // the last fencing token that was given; never decreases
	// renewals counts the renewals of all owners. An owner that takes the id of an
	// earlier one is not ended by that one's timers.
	renewals uint64
	// holderLostToken is lastToken as of the last time a holder expired; 0 if a holder
	// has caught up since, so that grants are not marked holderLost. At most lastToken.
	holderLostToken uint64

	// seen is what all commands have named up to now; a grant carries it.
	seen *wire.Seen
	// changed is called when a waiter has been granted its lock or is gone.
	changed func(waiterID)
}

func newLockTable(seen *wire.Seen, changed func(waiterID)) lockTable {
	return lockTable{queues: map[string]*lockQueue{}, owners: map[uint64]*lockOwner{}, seen: seen, changed: changed}
}

// A lockQueue has the waiters for the lock of one key, in the order of their
// commands. The first one, and no other, has a token.
type lockQueue struct {
	key     string
	waiters []lockWaiter
}

type lockWaiter struct {
	waiterID
	token      uint64    // fencing token; 0: it waits
	seen       wire.Seen // with a token: what commands had named at the grant
	holderLost bool      // with a token: an earlier holder expired, see lockTable
}

// A waiterID names a waiter. It is never used again.
type waiterID struct{ owner, id uint64 }

type lockOwner struct {
	id                uint64
	epoch             uint64 // its first renewal: distinguishes it from earlier owners with its id
	ttl               uint64 // milliseconds
	lastRenewal       uint64 // the number of its last renewal
	waiters           map[uint64]*lockQueue
	node, incarnation uint64 // through which its last waiter came
}

// A renewalID names one renewal of an owner. Its timer ends the owner only if there
// was no later one.
type renewalID struct{ owner, renewal uint64 }

// apply applies a command that came through a session.
func (t *lockTable) apply(c *wire.Command, session *wire.Session[wire.Outcome]) wire.Outcome {
	if c.Kind == wire.KindLockLeave {
		t.expireNode(session.Node, session.Incarnation)
		return wire.Outcome{}
	}
	if c.Owner == 0 {
		return wire.Outcome{Code: wire.UnknownCommand}
	}
	switch c.Kind {
	case wire.KindLockAcquire, wire.KindLockTry:
		return t.acquire(c.LockAcquire(), session)
	case wire.KindLockRelease:
		return t.release(c.LockRelease())
	case wire.KindLockRenew:
		return t.renew(c.LockRenew())
	}
	return wire.Outcome{Code: wire.UnknownCommand}
}

func (t *lockTable) acquire(c wire.LockAcquire, session *wire.Session[wire.Outcome]) wire.Outcome {
	o := t.owners[c.Owner]
	if o == nil {
		if c.OwnerExists { // the proposer believes that the owner has other locks: they are lost
			return wire.Outcome{Code: wire.Missing}
		}
		o = &lockOwner{id: c.Owner, epoch: t.renewals + 1, waiters: map[uint64]*lockQueue{}}
	}
	if q := o.waiters[c.Waiter]; q != nil { // the command was sent again
		return o.outcomeOf(q.find(waiterID{c.Owner, c.Waiter}))
	}
	q := t.queues[c.Key]
	switch {
	case q == nil:
		q = &lockQueue{key: strings.Clone(c.Key)}
		t.queues[q.key] = q
	case c.Try:
		return wire.Outcome{Code: wire.Held, Token: q.waiters[0].token}
	case len(q.waiters) >= maxLockWaiters:
		return wire.Outcome{Code: wire.Full}
	}
	t.owners[o.id] = o
	o.node, o.incarnation = session.Node, session.Incarnation
	o.ttl = c.OwnerTTLMS
	t.keepFor(o, o.ttl)
	q.waiters = append(q.waiters, lockWaiter{waiterID: waiterID{o.id, c.Waiter}})
	o.waiters[c.Waiter] = q
	if len(q.waiters) == 1 {
		t.grant(q)
	}
	return o.outcomeOf(&q.waiters[len(q.waiters)-1])
}

// outcomeOf returns the outcome of a command that asked for a waiter.
func (o *lockOwner) outcomeOf(w *lockWaiter) wire.Outcome {
	out := w.outcome()
	out.Epoch = o.epoch
	return out
}

func (q *lockQueue) find(id waiterID) *lockWaiter {
	for i := range q.waiters {
		if q.waiters[i].waiterID == id {
			return &q.waiters[i]
		}
	}
	return nil
}

func (w *lockWaiter) outcome() wire.Outcome {
	if w.token == 0 {
		return wire.Outcome{Code: wire.Waits}
	}
	return wire.Outcome{Token: w.token, Seen: w.seen, HolderLost: w.holderLost}
}

// grant gives the lock to the first waiter of the queue.
func (t *lockTable) grant(q *lockQueue) {
	t.lastToken++
	w := &q.waiters[0]
	w.token, w.seen, w.holderLost = t.lastToken, *t.seen, t.holderLostToken > 0
	t.changed(w.waiterID)
}

// keepFor renews an owner: it does not expire within ttl milliseconds.
func (t *lockTable) keepFor(o *lockOwner, ttl uint64) {
	t.renewals++
	o.lastRenewal = t.renewals
	t.ownerTimers.start(ttl, renewalID{o.id, o.lastRenewal})
}

func (t *lockTable) release(c wire.LockRelease) wire.Outcome {
	o := t.owners[c.Owner]
	if o == nil || o.waiters[c.Waiter] == nil {
		return wire.Outcome{Code: wire.Missing}
	}
	reason := released
	if c.CaughtUp {
		reason = releasedCaughtUp
	}
	t.remove(o, c.Waiter, reason)
	t.forgetIfEmpty(o, c.OwnerStays)
	return wire.Outcome{}
}

// A removal says why a waiter is gone.
type removal int

const (
	released         removal = iota // the owner released it
	releasedCaughtUp                // the same, and its node had applied what earlier holders wrote
	expired                         // the owner was not renewed in time, or its process has ended
)

// remove removes a waiter. If it held the lock, the next one in its queue gets it.
func (t *lockTable) remove(o *lockOwner, id uint64, reason removal) {
	q := o.waiters[id]
	delete(o.waiters, id)
	t.changed(waiterID{o.id, id})
	at := slices.IndexFunc(q.waiters, func(w lockWaiter) bool { return w.waiterID == waiterID{o.id, id} })
	switch w := &q.waiters[at]; {
	case reason == expired && w.token > 0:
		t.holderLostToken = t.lastToken
	case reason == releasedCaughtUp && w.holderLost && w.token > t.holderLostToken:
		t.holderLostToken = 0
	}
	q.waiters = slices.Delete(q.waiters, at, at+1)
	switch {
	case len(q.waiters) == 0:
		delete(t.queues, q.key)
	case at == 0:
		t.grant(q)
	}
}

// forgetIfEmpty removes an owner without waiters: at once or, if it has asked for
// more, after a while.
func (t *lockTable) forgetIfEmpty(o *lockOwner, asked bool) {
	switch {
	case len(o.waiters) > 0:
	case asked:
		t.keepFor(o, min(o.ttl, emptyOwnerTTL))
	default:
		delete(t.owners, o.id)
	}
}

// renew keeps an owner and the waiters that it names. The command also names the
// last waiter that the owner has asked for: earlier ones that it does not name are
// released, since a release may have been lost.
func (t *lockTable) renew(c wire.LockRenew) wire.Outcome {
	o := t.owners[c.Owner]
	if o == nil {
		return wire.Outcome{Code: wire.Missing}
	}
	named := make(map[uint64]bool, len(c.Waiters))
	for _, id := range c.Waiters {
		named[id] = true
	}
	for _, id := range slices.Sorted(maps.Keys(o.waiters)) {
		if id <= c.LastWaiter && !named[id] {
			t.remove(o, id, released)
		}
	}
	t.keepFor(o, o.ttl)
	t.forgetIfEmpty(o, len(c.Waiters) > 0)
	return wire.Outcome{Epoch: o.epoch}
}

// expire removes an owner with all of its waiters.
func (t *lockTable) expire(o *lockOwner) {
	for _, id := range slices.Sorted(maps.Keys(o.waiters)) {
		t.remove(o, id, expired)
	}
	t.forgetIfEmpty(o, false)
}

// advance moves the clock, and expires the owners that were silent for their time
// to live.
func (t *lockTable) advance(now uint64) {
	for _, timer := range t.ownerTimers.advance(now) {
		if o := t.owners[timer.payload.owner]; o != nil && o.lastRenewal == timer.payload.renewal {
			t.expire(o)
		}
	}
	t.ownerTimers.prune(len(t.owners), func(r renewalID) bool {
		o := t.owners[r.owner]
		return o == nil || o.lastRenewal != r.renewal
	})
}

// expireNode expires the owners that came through a node's incarnations up to this
// one, whose processes have ended.
func (t *lockTable) expireNode(node, incarnation uint64) {
	if node == 0 { // the owner did not come through a node
		return
	}
	for _, id := range slices.Sorted(maps.Keys(t.owners)) {
		if o := t.owners[id]; o != nil && o.node == node && o.incarnation <= incarnation {
			t.expire(o)
		}
	}
}

// records returns the table as the records of a snapshot.
func (t *lockTable) records() iter.Seq[wire.Record] {
	records := []wire.Record{&wire.LocksRecord{LastToken: t.lastToken, LastRenewal: t.renewals, HolderLostToken: t.holderLostToken}}
	for _, id := range slices.Sorted(maps.Keys(t.owners)) {
		o := t.owners[id]
		records = append(records, &wire.LockOwnerRecord{Owner: id, Epoch: o.epoch, TTLMS: o.ttl, Renewal: o.lastRenewal, Node: o.node, Incarnation: o.incarnation})
	}
	for _, key := range slices.SortedFunc(maps.Keys(t.queues), cmp.Compare[string]) {
		for _, w := range t.queues[key].waiters {
			records = append(records, &wire.LockWaiterRecord{Key: key, Owner: w.owner, Waiter: w.id, Token: w.token, Seen: w.seen, HolderLost: w.holderLost})
		}
	}
	renewals, phases := t.ownerTimers.all()
	for n, x := range renewals {
		records = append(records, &wire.LockRenewalRecord{Owner: x.payload.owner, Renewal: x.payload.renewal, Timer: wire.Timer{End: x.end, Phase: uint8(phases[n])}})
	}
	return slices.Values(records)
}

// restore adds a record of a snapshot to a table that began empty.
func (t *lockTable) restore(r wire.Record) error {
	switch r := r.(type) {
	case *wire.LocksRecord:
		t.lastToken, t.renewals, t.holderLostToken = r.LastToken, r.LastRenewal, r.HolderLostToken
	case *wire.LockOwnerRecord:
		t.owners[r.Owner] = &lockOwner{id: r.Owner, epoch: r.Epoch, ttl: r.TTLMS, lastRenewal: r.Renewal, waiters: map[uint64]*lockQueue{}, node: r.Node, incarnation: r.Incarnation}
	case *wire.LockWaiterRecord:
		o, q := t.owners[r.Owner], t.queues[r.Key]
		if o == nil {
			return fmt.Errorf("the snapshot has a waiter for %q of owner %d, but no such owner", r.Key, r.Owner)
		}
		if q == nil {
			q = &lockQueue{key: r.Key}
			t.queues[r.Key] = q
		}
		q.waiters = append(q.waiters, lockWaiter{waiterID{r.Owner, r.Waiter}, r.Token, r.Seen, r.HolderLost})
		o.waiters[r.Waiter] = q
	case *wire.LockRenewalRecord:
		t.ownerTimers.restore(r.Timer.End, phase(r.Timer.Phase), renewalID{r.Owner, r.Renewal})
	default:
		return fmt.Errorf("a %T in a snapshot of the lock shard", r)
	}
	return nil
}

// checkInvariants panics if an invariant of the fields does not hold, in test builds. Large
// tables are checked now and then.
func (t *lockTable) checkInvariants() {
	if !invariants.Enabled || len(t.owners) > 256 && t.renewals%256 > 0 {
		return
	}
	if err := t.validate(); err != nil {
		panic(fmt.Sprintf("hiqlite: the locks are inconsistent: %v", err))
	}
}

// validate returns an error if an invariant of the fields does not hold.
func (t *lockTable) validate() error {
	if t.holderLostToken > t.lastToken {
		return fmt.Errorf("a holder expired at token %d, but the last one is %d", t.holderLostToken, t.lastToken)
	}
	waiters := 0
	for key, q := range t.queues {
		if q.key != key || len(q.waiters) == 0 || len(q.waiters) > maxLockWaiters {
			return fmt.Errorf("the queue for %q is that for %q, with %d waiters", key, q.key, len(q.waiters))
		}
		for i, w := range q.waiters {
			if (w.token > 0) != (i == 0) || w.token > t.lastToken {
				return fmt.Errorf("waiter %d for %q has token %d of %d", i, key, w.token, t.lastToken)
			}
			if o := t.owners[w.owner]; o == nil || o.waiters[w.id] != q {
				return fmt.Errorf("owner %d does not know its waiter %d for %q", w.owner, w.id, key)
			}
		}
		waiters += len(q.waiters)
	}
	for id, o := range t.owners {
		if o.id != id || o.epoch > o.lastRenewal || o.lastRenewal > t.renewals {
			return fmt.Errorf("owner %d is owner %d, of epoch %d and renewal %d of %d", id, o.id, o.epoch, o.lastRenewal, t.renewals)
		}
		waiters -= len(o.waiters)
	}
	if waiters != 0 {
		return fmt.Errorf("the queues have %d waiters more than the owners", waiters)
	}
	return nil
}
