package memory

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// maxLockPlaces bounds the queue for one lock, the holder included.
const maxLockPlaces = 10_000

// Locks is the replica of the lock shard. Whoever wants locks is an owner, who
// renews himself within his time to live; for each lock that he has or waits for
// he has a place, in the queue of its key. The first in a queue has the lock.
type Locks struct {
	memory
	lockState
	restoring *lockState
	waiters   map[placeID]chan struct{} // on this node
}

// lockState is what the replicas share.
type lockState struct {
	queues map[string]*queue
	owners map[uint64]*owner
	renews timers[renewal]

	token    uint64 // the last one given
	renewals uint64 // counts those of all owners: a timer of one who is gone ends nobody who comes after him under his id
	// unsure is the last token that was given when somebody who had a lock fell
	// silent; 0: nobody did. What he had written through SQL he could not say, so
	// whoever gets a lock from then on must ask (see wire.Outcome.Expired), until
	// one of those has released his: by that all know.
	unsure uint64
}

func newLockState() lockState {
	return lockState{queues: map[string]*queue{}, owners: map[uint64]*owner{}}
}

// NewLocks returns an empty replica.
func NewLocks(cfg Config) *Locks {
	l := &Locks{lockState: newLockState(), waiters: map[placeID]chan struct{}{}}
	l.start(cfg, l)
	return l
}

type queue struct {
	key    string
	places []place // the first one holds
}

type place struct {
	placeID
	token  uint64    // 0: waits
	seen   wire.Seen // see wire.Outcome; of a grant
	unsure bool      // see Locks; of a grant
}

// A placeID names a place, for ever.
type placeID struct{ owner, id uint64 }

type owner struct {
	id                uint64
	made              uint64 // his first renewal: tells him from those who had his id before
	ttl               uint64
	renewal           uint64 // the last one
	places            map[uint64]*queue
	node, incarnation uint64 // through which he came
}

// renewal names an owner and a renewal: later ones outlive it.
type renewal struct{ owner, renewal uint64 }

func (l *Locks) apply(c *wire.Command, session *wire.Session[wire.Outcome]) wire.Outcome {
	if c.Kind == wire.LockLeave {
		l.end(session.Node, session.Incarnation)
		return wire.Outcome{}
	}
	if c.Owner == 0 {
		return wire.Outcome{Code: wire.Foreign}
	}
	switch c.Kind {
	case wire.LockAcquire, wire.LockTry:
		return l.acquire(c, session)
	case wire.LockRelease:
		return l.release(c)
	case wire.LockRenew:
		return l.renew(c)
	}
	return wire.Outcome{Code: wire.Foreign}
}

func (l *Locks) acquire(c *wire.Command, session *wire.Session[wire.Outcome]) wire.Outcome {
	o := l.owners[c.Owner]
	if o == nil {
		if c.Force { // he has more than this, he thinks: all of that is gone
			return wire.Outcome{Code: wire.Missing}
		}
		o = &owner{id: c.Owner, made: l.renewals + 1, places: map[uint64]*queue{}}
	}
	if q := o.places[c.ID]; q != nil {
		return o.answer(q.at(placeID{c.Owner, c.ID}))
	}
	q := l.queues[c.Key]
	switch {
	case q == nil:
		q = &queue{key: strings.Clone(c.Key)}
		l.queues[q.key] = q
	case c.Kind == wire.LockTry:
		return wire.Outcome{Code: wire.Held, Index: q.places[0].token}
	case len(q.places) >= maxLockPlaces:
		return wire.Outcome{Code: wire.Full}
	}
	l.owners[o.id] = o
	o.node, o.incarnation = session.Node, session.Incarnation
	o.ttl = c.TTLMS
	l.renewed(o, o.ttl)
	q.places = append(q.places, place{placeID: placeID{o.id, c.ID}})
	o.places[c.ID] = q
	if len(q.places) == 1 {
		l.grant(q)
	}
	return o.answer(&q.places[len(q.places)-1])
}

// answer is what an owner is told who asks for a place.
func (o *owner) answer(p *place) wire.Outcome {
	out := p.outcome()
	out.Number = int64(o.made)
	return out
}

func (q *queue) at(id placeID) *place {
	for i := range q.places {
		if q.places[i].placeID == id {
			return &q.places[i]
		}
	}
	return nil
}

func (p *place) outcome() wire.Outcome {
	if p.token == 0 {
		return wire.Outcome{Code: wire.Waits}
	}
	return wire.Outcome{Index: p.token, Seen: p.seen, Expired: p.unsure}
}

// grant gives the lock to the first in the queue.
func (l *Locks) grant(q *queue) {
	l.token++
	p := &q.places[0]
	p.token, p.seen, p.unsure = l.token, l.seen, l.unsure > 0
	l.wake(p.placeID)
}

// renewed keeps an owner for ttl.
func (l *Locks) renewed(o *owner, ttl uint64) {
	l.renewals++
	o.renewal = l.renewals
	l.renews.start(ttl, renewal{o.id, o.renewal})
}

func (l *Locks) release(c *wire.Command) wire.Outcome {
	o := l.owners[c.Owner]
	if o == nil || o.places[c.ID] == nil {
		return wire.Outcome{Code: wire.Missing}
	}
	how := given
	if c.Force {
		how = used
	}
	l.leave(o, c.ID, how)
	l.settle(o, len(c.IDs) > 0)
	return wire.Outcome{}
}

// An ending says how a place ended.
type ending int

const (
	given ending = iota // released, maybe before its grant was made use of
	used                // released after that: its node had caught up with what was written under the lock before
	silent
)

// leave takes a place out of its queue, whose next gets the lock if it had it.
func (l *Locks) leave(o *owner, id uint64, how ending) {
	q := o.places[id]
	delete(o.places, id)
	l.wake(placeID{o.id, id})
	at := slices.IndexFunc(q.places, func(p place) bool { return p.placeID == placeID{o.id, id} })
	switch p := &q.places[at]; {
	case how == silent && p.token > 0:
		l.unsure = l.token
	case how == used && p.unsure && p.token > l.unsure:
		l.unsure = 0
	}
	q.places = slices.Delete(q.places, at, at+1)
	switch {
	case len(q.places) == 0:
		delete(l.queues, q.key)
	case at == 0:
		l.grant(q)
	}
}

// linger is for how long, in milliseconds, an owner stays who has nothing, and
// has asked for more: it may be on its way.
const linger = 1000

// settle forgets an owner who has nothing, at once or, if he has asked for more,
// after a while.
func (l *Locks) settle(o *owner, asked bool) {
	switch {
	case len(o.places) > 0:
	case asked:
		l.renewed(o, min(o.ttl, linger))
	default:
		delete(l.owners, o.id)
	}
}

// renew keeps what an owner says that he has, and gives up what he has not any
// more: a release may have been lost on its way.
func (l *Locks) renew(c *wire.Command) wire.Outcome {
	o := l.owners[c.Owner]
	if o == nil {
		return wire.Outcome{Code: wire.Missing}
	}
	has := make(map[uint64]bool, len(c.IDs))
	for _, id := range c.IDs {
		has[id] = true
	}
	for _, id := range slices.Sorted(maps.Keys(o.places)) {
		if id <= c.ID && !has[id] {
			l.leave(o, id, given)
		}
	}
	l.renewed(o, o.ttl)
	l.settle(o, len(c.IDs) > 0)
	return wire.Outcome{Number: int64(o.made)}
}

// drop ends all that an owner has.
func (l *Locks) drop(o *owner) {
	for _, id := range slices.Sorted(maps.Keys(o.places)) {
		l.leave(o, id, silent)
	}
	l.settle(o, false)
}

// tick drops the owners who were silent for their time to live.
func (l *Locks) tick(now uint64) {
	for _, t := range l.renews.tick(now) {
		if o := l.owners[t.of.owner]; o != nil && o.renewal == t.of.renewal {
			l.drop(o)
		}
	}
	l.renews.prune(len(l.owners), func(r renewal) bool {
		o := l.owners[r.owner]
		return o == nil || o.renewal != r.renewal
	})
}

// opened drops the owners of a node's earlier incarnations: their process is
// gone.
func (l *Locks) opened(node, incarnation uint64) {
	if incarnation > 0 {
		l.end(node, incarnation-1)
	}
}

// end drops the owners of a node's incarnations up to one.
func (l *Locks) end(node, incarnation uint64) {
	if node == 0 { // of no node
		return
	}
	for _, id := range slices.Sorted(maps.Keys(l.owners)) {
		if o := l.owners[id]; o != nil && o.node == node && o.incarnation <= incarnation {
			l.drop(o)
		}
	}
}

func (l *Locks) next() (atOnce bool, end uint64, any bool) { return l.renews.next() }

// Size returns about how many bytes of memory the replica takes.
func (l *Locks) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	const each = 200
	return int64(each * (len(l.queues) + len(l.owners)))
}

// Owned reports whether somebody who came through a node has or wants a lock.
func (l *Locks) Owned(node uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.owners {
		if o.node == node {
			return true
		}
	}
	return false
}

// Queue returns how many wait for the lock of key or hold it.
func (l *Locks) Queue(key string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.queues[key]; q != nil {
		return len(q.places)
	}
	return 0
}

// A Place says where somebody who wants a lock stands.
type Place struct {
	wire.Outcome      // Waits or Done
	There        bool // there is such a place
}

// Place returns where a place stands on this node, now, and a channel that gets
// a value when that may have changed: one who waits asks again then, and calls
// done in the end.
func (l *Locks) Place(owner, id uint64) (now func() Place, changed <-chan struct{}, done func()) {
	p := placeID{owner, id}
	c := make(chan struct{}, 1)
	l.mu.Lock()
	l.waiters[p] = c
	l.mu.Unlock()
	now = func() Place {
		l.mu.Lock()
		defer l.mu.Unlock()
		o := l.owners[owner]
		if o == nil || o.places[id] == nil {
			return Place{}
		}
		return Place{o.places[id].at(p).outcome(), true}
	}
	done = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiters, p)
	}
	return now, c, done
}

// wake tells one who waits here to ask again. The caller holds mu.
func (l *Locks) wake(p placeID) {
	if c := l.waiters[p]; c != nil {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (l *Locks) freeze() iter.Seq[*wire.Record] {
	records := []*wire.Record{{Kind: wire.RecordOwner, Version: l.token, ID: l.renewals, Unsure: l.unsure}} // no owner has this id
	for _, id := range slices.Sorted(maps.Keys(l.owners)) {
		o := l.owners[id]
		records = append(records, &wire.Record{Kind: wire.RecordOwner, Owner: id, Version: o.made, TTLMS: o.ttl, ID: o.renewal, Node: o.node, Incarnation: o.incarnation})
	}
	for _, key := range slices.SortedFunc(maps.Keys(l.queues), cmp.Compare[string]) {
		for _, p := range l.queues[key].places {
			records = append(records, &wire.Record{Kind: wire.RecordPlace, Key: key, Owner: p.owner, ID: p.id, Version: p.token, Seen: p.seen, Expired: p.unsure})
		}
	}
	renews, phases := l.renews.all()
	for n, t := range renews {
		records = append(records, &wire.Record{Kind: wire.RecordRenewal, Owner: t.of.owner, ID: t.of.renewal, Ticks: t.end, Phase: uint8(phases[n])})
	}
	return slices.Values(records)
}

func (l *Locks) begin() {
	s := newLockState()
	l.restoring = &s
}

func (l *Locks) restore(r *wire.Record) error { return l.restoring.restore(r) }

func (l *lockState) restore(r *wire.Record) error {
	switch r.Kind {
	case wire.RecordOwner:
		if r.Owner == 0 {
			l.token, l.renewals, l.unsure = r.Version, r.ID, r.Unsure
		} else {
			l.owners[r.Owner] = &owner{id: r.Owner, made: r.Version, ttl: r.TTLMS, renewal: r.ID, places: map[uint64]*queue{}, node: r.Node, incarnation: r.Incarnation}
		}
	case wire.RecordPlace:
		o, q := l.owners[r.Owner], l.queues[r.Key]
		if o == nil {
			return fmt.Errorf("a place in the queue for %q of nobody", r.Key)
		}
		if q == nil {
			q = &queue{key: r.Key}
			l.queues[r.Key] = q
		}
		q.places = append(q.places, place{placeID{r.Owner, r.ID}, r.Version, r.Seen, r.Expired})
		o.places[r.ID] = q
	case wire.RecordRenewal:
		l.renews.restore(r.Ticks, phase(r.Phase), renewal{r.Owner, r.ID})
	default:
		return fmt.Errorf("a record of kind %d", r.Kind)
	}
	return nil
}

func (l *Locks) restored() error {
	l.lockState, l.restoring = *l.restoring, nil
	for p := range l.waiters { // all may have changed
		l.wake(p)
	}
	return nil
}
