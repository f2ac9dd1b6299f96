package memory

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/hiqlite/hiqlite/internal/wire"
)

func newLocksShard(t rapid.TB) (*shard, *Locks) {
	s := newShard(t, shardKinds["locks"])
	return s, s.machine.(*Locks)
}

func lock(owner, id uint64, key string, ttl uint64) *wire.Command {
	return &wire.Command{Kind: wire.KindLockAcquire, Owner: owner, Waiter: id, Key: key, OwnerTTLMS: ttl}
}

func unlock(owner, id uint64, caughtUp bool) *wire.Command {
	return &wire.Command{Kind: wire.KindLockRelease, Owner: owner, Waiter: id, CaughtUp: caughtUp}
}

// A lockModel is a model of the lock machine. It has a list of waiters for each key, and
// the owners.
type lockModel struct {
	now, token, renewals, holderLostToken uint64
	seen                                  wire.Seen
	queues                                map[string][]*modelWaiter
	owners                                map[uint64]*modelOwner
}

type modelWaiter struct {
	owner, id, token uint64
	seen             wire.Seen
	holderLost       bool
}

type modelOwner struct {
	epoch, ttl        uint64
	time, end         uint64 // how long the owner stays without a renewal, and when that ends
	advances          int    // clock advances since the last renewal
	renewal           uint64
	node, incarnation uint64
}

// find returns the key of a waiter, and its position in the queue, or -1.
func (m *lockModel) find(owner, id uint64) (key string, at int) {
	for key, q := range m.queues {
		if at := slices.IndexFunc(q, func(p *modelWaiter) bool { return p.owner == owner && p.id == id }); at >= 0 {
			return key, at
		}
	}
	return "", -1
}

// ids returns the ids of an owner's waiters.
func (m *lockModel) ids(owner uint64) (ids []uint64) {
	for _, q := range m.queues {
		for _, p := range q {
			if p.owner == owner {
				ids = append(ids, p.id)
			}
		}
	}
	slices.Sort(ids)
	return ids
}

func (p *modelWaiter) outcome() wire.Outcome {
	if p.token == 0 {
		return wire.Outcome{Code: wire.Waits}
	}
	return wire.Outcome{Token: p.token, Seen: p.seen, HolderLost: p.holderLost}
}

// outcome returns the outcome for a waiter of the owner.
func (o *modelOwner) outcome(p *modelWaiter) wire.Outcome {
	out := p.outcome()
	out.Epoch = o.epoch
	return out
}

func (m *lockModel) grant(key string) {
	m.token++
	p := m.queues[key][0]
	p.token, p.seen, p.holderLost = m.token, m.seen, m.holderLostToken > 0
}

// remove removes a waiter. After a holder of any lock has expired, grants are marked
// holderLost until one of their holders has caught up.
func (m *lockModel) remove(owner, id uint64, expired, caughtUp bool) {
	key, at := m.find(owner, id)
	switch p := m.queues[key][at]; {
	case expired && p.token > 0:
		m.holderLostToken = m.token
	case caughtUp && p.holderLost && p.token > m.holderLostToken:
		m.holderLostToken = 0
	}
	m.queues[key] = slices.Delete(m.queues[key], at, at+1)
	if len(m.queues[key]) == 0 {
		delete(m.queues, key)
	} else if at == 0 {
		m.grant(key)
	}
}

// forgetIfEmpty removes an owner without waiters. If the owner has asked for more, it
// stays for a while.
func (m *lockModel) forgetIfEmpty(owner uint64, stays bool) {
	if len(m.ids(owner)) > 0 {
		return
	}
	if o := m.owners[owner]; stays {
		m.renewed(o)
		o.time = min(o.ttl, emptyOwnerTTL)
	} else {
		delete(m.owners, owner)
	}
}

// drop removes an owner and its waiters, as if the owner had expired.
func (m *lockModel) drop(owner uint64) {
	for _, id := range m.ids(owner) {
		m.remove(owner, id, true, false)
	}
	delete(m.owners, owner)
}

func (m *lockModel) renewed(o *modelOwner) {
	m.renewals++
	o.advances, o.renewal, o.time = 0, m.renewals, o.ttl
}

func (m *lockModel) advance(now uint64) {
	m.now = now
	due := map[uint64]modelOwner{}
	for id, o := range m.owners {
		o.advances++
		switch {
		case o.advances == 2:
			o.end = now + o.time
		case o.advances > 2 && o.end <= now:
			due[id] = *o
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(due), func(a, b uint64) int {
		return cmp.Or(cmp.Compare(due[a].end, due[b].end), cmp.Compare(due[a].renewal, due[b].renewal))
	}) {
		m.drop(id)
	}
}

// expireNode drops the owners whose last command came through an earlier incarnation of
// a node.
func (m *lockModel) expireNode(node uint64, earlier func(incarnation uint64) bool) {
	for _, id := range slices.Sorted(maps.Keys(m.owners)) {
		if o := m.owners[id]; o != nil && o.node == node && earlier(o.incarnation) {
			m.drop(id)
		}
	}
}

func (m *lockModel) apply(c *wire.Command, node, incarnation uint64) wire.Outcome {
	m.seen = wire.Seen{SQL: max(m.seen.SQL, c.Seen.SQL), KV: max(m.seen.KV, c.Seen.KV)}
	o := m.owners[c.Owner]
	key, at := m.find(c.Owner, c.Waiter)
	switch {
	case c.Kind == wire.KindLockLeave:
		if node != 0 {
			m.expireNode(node, func(i uint64) bool { return i <= incarnation })
		}
		return wire.Outcome{}
	case c.Owner == 0:
	case c.Kind == wire.KindLockAcquire, c.Kind == wire.KindLockTry:
		if at >= 0 {
			return o.outcome(m.queues[key][at])
		}
		if o == nil && c.OwnerExists {
			return wire.Outcome{Code: wire.Missing}
		}
		if q := m.queues[c.Key]; c.Kind == wire.KindLockTry && len(q) > 0 {
			return wire.Outcome{Code: wire.Held, Token: q[0].token}
		}
		if o == nil {
			o = &modelOwner{epoch: m.renewals + 1}
			m.owners[c.Owner] = o
		}
		o.ttl, o.node, o.incarnation = c.OwnerTTLMS, node, incarnation
		m.renewed(o)
		p := &modelWaiter{owner: c.Owner, id: c.Waiter}
		m.queues[c.Key] = append(m.queues[c.Key], p)
		if len(m.queues[c.Key]) == 1 {
			m.grant(c.Key)
		}
		return o.outcome(p)
	case c.Kind == wire.KindLockRelease:
		if at < 0 {
			return wire.Outcome{Code: wire.Missing}
		}
		m.remove(c.Owner, c.Waiter, false, c.CaughtUp)
		m.forgetIfEmpty(c.Owner, c.OwnerStays)
		return wire.Outcome{}
	case c.Kind == wire.KindLockRenew:
		if o == nil {
			return wire.Outcome{Code: wire.Missing}
		}
		for _, id := range m.ids(c.Owner) {
			if id <= c.LastWaiter && !slices.Contains(c.Waiters, id) {
				m.remove(c.Owner, id, false, false)
			}
		}
		m.renewed(o)
		m.forgetIfEmpty(c.Owner, len(c.Waiters) > 0)
		return wire.Outcome{Epoch: o.epoch}
	}
	return wire.Outcome{Code: wire.UnknownCommand}
}

// The lock machine does the same as a model of lists: each key has one holder, waiters are
// served in the order in which they came, tokens grow, and owners have a TTL.
func TestLocksBehaveLikeLists(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, locks := newLocksShard(t)
		m := &lockModel{queues: map[string][]*modelWaiter{}, owners: map[uint64]*modelOwner{}}
		type proposer struct{ session, seq, node, incarnation uint64 }
		all := []*proposer{{session: s.session}}
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				p := &proposer{node: rapid.Uint64Range(0, 2).Draw(t, "node"), incarnation: rapid.Uint64Range(1, 5).Draw(t, "incarnation")}
				p.session = s.open(1000+s.index, p.node, p.incarnation)
				if p.node != 0 {
					m.expireNode(p.node, func(i uint64) bool { return i < p.incarnation })
					all = slices.DeleteFunc(all, func(q *proposer) bool { return q.node == p.node && q.incarnation < p.incarnation })
				}
				all = append(all, p)
			case 1, 2, 3:
				step := rapid.SampledFrom([]uint64{1, 50, 100, 1000}).Draw(t, "advance")
				s.advance(step)
				m.advance(m.now + step)
			default:
				p := all[rapid.IntRange(0, len(all)-1).Draw(t, "proposer")]
				c := lockCommand(t)
				want := m.apply(c, p.node, p.incarnation)
				p.seq++
				got := s.doAs(p.session, p.seq, c)[0]
				if got != want {
					t.Fatalf("the outcome of %+v is\n%+v, want\n%+v", c, got, want)
				}
			}
			queues := map[string][]*modelWaiter{}
			for key, q := range locks.queues {
				last := uint64(0)
				for i, p := range q.waiters {
					queues[key] = append(queues[key], &modelWaiter{p.owner, p.id, p.token, p.seen, p.holderLost})
					if (p.token > 0) != (i == 0) || p.token > locks.lastToken || p.token > 0 && p.token <= last {
						t.Fatalf("waiter %d of %q is %+v", i, key, p)
					}
				}
			}
			if a, b := queueText(queues), queueText(m.queues); a != b {
				t.Fatalf("the queues are\n%s, want\n%s", a, b)
			}
			if a, b := slices.Sorted(maps.Keys(locks.owners)), slices.Sorted(maps.Keys(m.owners)); !slices.Equal(a, b) {
				t.Fatalf("the owners are %v, want %v", a, b)
			}
		}
	})
}

func queueText(queues map[string][]*modelWaiter) (out string) {
	for _, key := range slices.Sorted(maps.Keys(queues)) {
		out += fmt.Sprintf("%q:", key)
		for _, p := range queues[key] {
			out += fmt.Sprintf(" %+v", *p)
		}
		out += "\n"
	}
	return out
}

// The fencing tokens of all keys grow, also after restarts, and no token is used twice.
func TestTokensGrow(t *testing.T) {
	s, _ := newLocksShard(t)
	last := uint64(0)
	for i := range uint64(20) {
		o := s.do(lock(1+i%3, i, fmt.Sprint("key", i%2), 1000), unlock(1+i%3, i, i%2 == 0))[0]
		if o.Code != wire.Done || o.Token <= last {
			t.Fatalf("the outcome is %+v after token %d", o, last)
		}
		last = o.Token
		if b := s.snapshot(); i%3 == 0 {
			s.restart()
			s.restore(b)
		}
	}
}

// A command that is sent again, because its outcome was lost, makes no second waiter. Its
// outcome is the present one.
func TestRepeatedCommandsMakeOneWaiter(t *testing.T) {
	s, locks := newLocksShard(t)
	a := lock(1, 1, "x", 1000)
	a.Seen = wire.Seen{SQL: 40, KV: 4}
	first := s.do(a)[0]
	if again := s.do(a)[0]; again != first || first.Seen != a.Seen {
		t.Errorf("the outcomes are %+v, then %+v", first, again)
	}
	s.do(lock(2, 1, "x", 1000))
	if o := s.do(lock(2, 1, "x", 1000))[0]; o.Code != wire.Waits {
		t.Errorf("the outcome of a repeated command that waits is %+v", o)
	}
	try := lock(3, 1, "x", 1000)
	try.Kind = wire.KindLockTry
	if o := s.do(try)[0]; o.Code != wire.Held || o.Token != first.Token || locks.owners[3] != nil {
		t.Errorf("the outcome of a try is %+v", o)
	}
	if n := len(locks.queues["x"].waiters); n != 2 {
		t.Errorf("there are %d waiters, want 2", n)
	}
}

func TestTheQueueOfALockIsBounded(t *testing.T) {
	s, _ := newLocksShard(t)
	for i := 0; i < maxLockWaiters; i += 1000 {
		var all []*wire.Command
		for j := range 1000 {
			all = append(all, lock(uint64(1+i+j), 1, "x", 1000))
		}
		s.do(all...)
	}
	if o := s.do(lock(1<<40, 1, "x", 1000))[0]; o.Code != wire.Full {
		t.Errorf("the outcome with a full queue is %+v", o)
	}
	if o := s.do(unlock(7, 1, false), lock(1<<40, 1, "x", 1000))[1]; o.Code != wire.Waits {
		t.Errorf("the outcome after a waiter has left is %+v", o)
	}
}

// A renewal releases the waiters that it does not name, except those that the owner has
// asked for after LastWaiter.
func TestRenewalsReleaseTheWaitersThatTheyDoNotName(t *testing.T) {
	s, locks := newLocksShard(t)
	s.do(lock(1, 1, "a", 1000), lock(1, 2, "b", 1000), lock(1, 3, "c", 1000), lock(2, 1, "b", 1000))
	s.do(&wire.Command{Kind: wire.KindLockRenew, Owner: 1, LastWaiter: 2, Waiters: []uint64{1, 9}})
	if got := slices.Sorted(maps.Keys(locks.owners[1].waiters)); !slices.Equal(got, []uint64{1, 3}) {
		t.Errorf("the owner has the waiters %v", got)
	}
	if p := locks.queues["b"].waiters; len(p) != 1 || p[0].owner != 2 || p[0].token == 0 || p[0].holderLost {
		t.Errorf("the queue of the released waiter is %+v", p)
	}
	if o := s.do(&wire.Command{Kind: wire.KindLockRenew, Owner: 1, LastWaiter: 3})[0]; o.Code != wire.Done || locks.owners[1] != nil {
		t.Errorf("the outcome of a renewal without waiters is %+v, and the owner is %+v", o, locks.owners[1])
	}
	if o := s.do(&wire.Command{Kind: wire.KindLockRenew, Owner: 1, LastWaiter: 3})[0]; o.Code != wire.Missing {
		t.Errorf("the outcome of a renewal of an unknown owner is %+v", o)
	}
}

// The TTL of an owner counts from its last renewal. If the owner was forgotten and comes
// again with the same id, the old timer does not end it.
func TestOwnersThatComeAgainHaveTheirWholeTTL(t *testing.T) {
	s, locks := newLocksShard(t)
	s.do(lock(1, 1, "x", 1000))
	s.advance(1, 1, 900) // 900 ms of the TTL, which begins with the second advance
	s.do(unlock(1, 1, true), lock(1, 2, "y", 1000))
	s.advance(100)
	if locks.owners[1] == nil {
		t.Fatal("the old timer has ended the new owner after 100 ms")
	}
	s.advance(1, 999)
	if locks.owners[1] == nil {
		t.Fatal("the owner expired too early")
	}
	s.advance(1)
	if locks.owners[1] != nil {
		t.Error("the owner did not expire")
	}
}

// An owner that has expired is not created again by a command that assumes that the owner
// exists.
func TestExpiredOwnersAreNotCreatedAgain(t *testing.T) {
	s, locks := newLocksShard(t)
	s.do(lock(1, 1, "x", 1000), lock(2, 1, "x", 1<<40))
	s.advance(1, 1, 1000)
	if locks.owners[1] != nil {
		t.Fatal("the owner has not expired")
	}
	joins := lock(1, 2, "y", 1000)
	joins.OwnerExists = true
	for i, o := range s.do(joins, &wire.Command{Kind: wire.KindLockRenew, Owner: 1, LastWaiter: 2, Waiters: []uint64{1, 2}}) {
		if o.Code != wire.Missing {
			t.Errorf("the outcome of command %d is %+v", i, o)
		}
	}
}

// A grant says whether an earlier holder was lost, because the next holder may then not
// see what it wrote. See wire.Outcome.
func TestGrantsSayWhetherAHolderWasLost(t *testing.T) {
	expire := func(s *shard) {
		s.do(&wire.Command{Kind: wire.KindLockRenew, Owner: 2, LastWaiter: 0}, &wire.Command{Kind: wire.KindLockRenew, Owner: 3, LastWaiter: 0})
		s.advance(1, 1, 1000)
		s.do(&wire.Command{Kind: wire.KindLockRenew, Owner: 2, LastWaiter: 0}, &wire.Command{Kind: wire.KindLockRenew, Owner: 3, LastWaiter: 0})
	}
	for name, test := range map[string]struct {
		end  func(s *shard)
		want bool
	}{
		"released":          {func(s *shard) { s.do(unlock(1, 1, true)) }, false},
		"not caught up":     {func(s *shard) { s.do(unlock(1, 1, false)) }, false},
		"not renewed":       {func(s *shard) { s.do(&wire.Command{Kind: wire.KindLockRenew, Owner: 1, LastWaiter: 1}) }, false},
		"expired":           {func(s *shard) { s.advance(1, 1, 999); expire(s) }, true},
		"a new incarnation": {func(s *shard) { s.open(2, 4, 8) }, true},
	} {
		for _, waits := range []bool{true, false} {
			s, locks := newLocksShard(t)
			first := s.open(1, 4, 7)
			s.doAs(first, 1, lock(1, 1, "x", 1000))
			if waits {
				s.do(lock(2, 1, "x", 1<<40), lock(3, 1, "x", 1<<40))
			}
			test.end(s)
			if !waits {
				s.do(lock(2, 1, "x", 1<<40), lock(3, 1, "x", 1<<40))
			}
			p := locks.queues["x"].waiters
			if p[0].owner != 2 || p[0].holderLost != test.want {
				t.Errorf("%s, others wait: %v: the next holder is %+v", name, waits, p[0])
			}
			// If a holder releases the lock before its node has caught up, the next grant
			// is still marked.
			s.restore(s.snapshot())
			s.do(unlock(2, 1, false))
			if p := locks.queues["x"].waiters; p[0].owner != 3 || p[0].holderLost != test.want {
				t.Errorf("%s, others wait: %v: the holder after the next is %+v", name, waits, p[0])
			}
			s.do(lock(4, 1, "x", 1000), unlock(3, 1, true))
			if p := locks.queues["x"].waiters; p[0].owner != 4 || p[0].holderLost {
				t.Errorf("%s, others wait: %v: the holder after one that caught up is %+v", name, waits, p[0])
			}
		}
	}
}

// A listener is notified of each change of its waiter, also by a restore, until it calls
// done.
func TestListenersAreNotifiedOfChanges(t *testing.T) {
	s, locks := newLocksShard(t)
	s.do(lock(1, 1, "x", 1000))
	now, changed, done := locks.WatchWaiter(2, 1)
	expect := func(what string, notified bool, want WaiterState) {
		t.Helper()
		select {
		case <-changed:
			if !notified {
				t.Errorf("%s: there was a notification", what)
			}
		default:
			if notified {
				t.Errorf("%s: there was no notification", what)
			}
		}
		if got := now(); got != want {
			t.Errorf("%s: the state is %+v, want %+v", what, got, want)
		}
	}
	expect("at first", false, WaiterState{})
	s.do(lock(2, 1, "x", 1000))
	expect("in the queue", false, WaiterState{wire.Outcome{Code: wire.Waits}, true})
	s.do(unlock(1, 1, true))
	expect("granted", true, WaiterState{wire.Outcome{Token: 2}, true})
	s.restore(s.snapshot())
	expect("restored", true, WaiterState{wire.Outcome{Token: 2}, true})
	s.advance(1, 1, 1000)
	expect("expired", true, WaiterState{})
	done()
	s.do(lock(2, 1, "x", 1000))
	expect("done", false, WaiterState{wire.Outcome{Token: 3, HolderLost: true}, true})
	if len(locks.listening) != 0 {
		t.Errorf("there are %d listeners after done", len(locks.listening))
	}
}

// An owner belongs to the incarnation of the node through which its last waiter came, and
// is dropped when a later incarnation opens a session. The test also uses the highest
// possible incarnation.
func TestOwnersEndWithTheirIncarnation(t *testing.T) {
	s, locks := newLocksShard(t)
	three, four := s.open(1, 3, 1), s.open(2, 4, 1)
	s.doAs(three, 1, lock(1, 1, "a", 1000), lock(2, 1, "b", 1000))
	s.doAs(four, 1, lock(1, 2, "c", 1000))
	s.do(lock(3, 1, "d", 1000)) // a session without a node
	s.open(3, 3, 2)
	if got := slices.Sorted(maps.Keys(locks.owners)); !slices.Equal(got, []uint64{1, 3}) {
		t.Errorf("the remaining owners are %v", got)
	}
	s.do(&wire.Command{Kind: wire.KindLockLeave})
	s.open(4, 0, math.MaxUint64)
	if got := slices.Sorted(maps.Keys(locks.owners)); !slices.Equal(got, []uint64{1, 3}) {
		t.Errorf("after commands without a node the remaining owners are %v", got)
	}
	last := s.open(5, 5, math.MaxUint64)
	s.doAs(last, 1, lock(5, 1, "e", 1000))
	s.doAs(last, 2, &wire.Command{Kind: wire.KindLockLeave})
	if got := slices.Sorted(maps.Keys(locks.owners)); slices.Contains(got, 5) {
		t.Errorf("after the last incarnation has left, the remaining owners are %v", got)
	}
	s.advance(1, 1, 1000)
	if len(locks.owners) != 0 || len(locks.queues) != 0 || locks.Size() != 0 {
		t.Errorf("after all TTLs there are the owners %v and the queues %v", locks.owners, locks.queues)
	}
}

// An owner that has released all its locks and has asked for more stays for emptyOwnerTTL,
// because its commands may still be on their way.
func TestOwnersWithoutWaitersExpire(t *testing.T) {
	const hour = 3_600_000
	for name, last := range map[string]*wire.Command{
		"by a release": wire.LockRelease{Owner: 1, Waiter: 1, CaughtUp: true, OwnerStays: true}.Command(),
		"by a renewal": wire.LockRenew{Owner: 1, LastWaiter: 1, Waiters: []uint64{9}}.Command(),
	} {
		s, locks := newLocksShard(t)
		epoch := s.do(lock(1, 1, "a", hour))[0].Epoch
		s.do(last)
		join := lock(1, 9, "b", hour)
		join.OwnerExists = true
		if o := s.do(join)[0]; o.Code != wire.Done || o.Epoch != epoch {
			t.Errorf("%s: the outcome of the command that was on its way is %+v", name, o)
		}
		last = wire.LockRelease{Owner: 1, Waiter: 9, CaughtUp: true, OwnerStays: true}.Command()
		s.do(last)
		for range 3 {
			s.advance(emptyOwnerTTL)
		}
		if len(locks.owners) > 0 {
			t.Errorf("%s: an owner without waiters did not expire", name)
		}
	}
}
