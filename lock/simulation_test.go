package lock

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

var (
	firstSeed = flag.Uint64("seed", 0, "seed of the first simulation; 0: a random one")
	seeds     = flag.Uint64("seeds", 40, "number of simulations, each with the next seed")
)

// A simulation is a cluster in a bubble of testing/synctest: the machine of the
// lock shard, its clock, and nodes whose commands and outcomes are delayed.
type simulation struct {
	mu       sync.Mutex // held while an entry is applied
	random   *rand.Rand
	locks    *memory.Locks
	index    uint64
	session  uint64 // the session that was opened last
	outcomes []wire.Outcome
}

func (s *simulation) Applied(_, _ uint64, outcomes []wire.Outcome) { s.outcomes = outcomes }
func (s *simulation) SessionOpened(_, session uint64)              { s.session = session }
func (*simulation) SessionUnknown(uint64, uint64)                  { panic("an unknown session") }
func (*simulation) Held(uint64)                                    {}
func (*simulation) Failed(err error)                               { panic(err) }

// apply applies an entry. The caller holds mu.
func (s *simulation) apply(entry []byte) {
	s.index++
	if _, err := s.locks.Update([]sm.Entry{{Index: s.index, Cmd: entry}}); err != nil {
		panic(err)
	}
}

// below returns a random duration of less than ms milliseconds.
func (s *simulation) below(ms int64) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(s.random.Int64N(ms)) * time.Millisecond
}

// advanceClock moves the shard's clock until ctx ends.
func (s *simulation) advanceClock(ctx context.Context) {
	for at, now := time.Now(), uint64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
		step := uint64(time.Since(at).Milliseconds())
		at = time.Now()
		s.mu.Lock()
		s.apply(wire.EncodeClockAdvance(wire.ClockAdvance{Expected: now, Next: now + step, Nonce: 1}))
		s.mu.Unlock()
		now += step
	}
}

// A simulatedNode applies its commands in the order in which they are sent.
type simulatedNode struct {
	*simulation
	session uint64
	queue   chan *simulatedCommand
	// Some commands are delayed by up to slow, and some outcomes by up to slowOutcomes,
	// in addition to the usual delay.
	slow, slowOutcomes time.Duration
}

type simulatedCommand struct {
	encoded []byte
	outcome chan wire.Outcome // capacity 1
}

func (n *simulatedNode) run() {
	sequence := uint64(0)
	for c := range n.queue {
		time.Sleep(n.delay(n.slow)) // the command is on its way
		sequence++
		n.mu.Lock()
		n.apply(wire.EncodeCommands(n.session, sequence, 0, [][]byte{c.encoded}))
		o := n.outcomes[0]
		n.mu.Unlock()
		time.AfterFunc(n.delay(n.slowOutcomes), func() { c.outcome <- o })
	}
}

func (n *simulatedNode) delay(slow time.Duration) time.Duration {
	d := n.below(20)
	if slow > 0 && n.below(50) == 0 {
		d += n.below(slow.Milliseconds())
	}
	return d
}

func (n *simulatedNode) Do(ctx context.Context, c *wire.Command) (wire.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return wire.Outcome{}, err
	}
	sent := &simulatedCommand{wire.EncodeCommand(c), make(chan wire.Outcome, 1)}
	n.queue <- sent
	select {
	case o := <-sent.outcome:
		return o, nil
	case <-ctx.Done():
		return wire.Outcome{}, fmt.Errorf("%w: %w", hiqlite.ErrOutcomeUnknown, ctx.Err())
	}
}

func (n *simulatedNode) Await(ctx context.Context, owner, id uint64) (wire.Outcome, bool, error) {
	now, changed, done := n.locks.WatchWaiter(owner, id)
	defer done()
	for {
		p := now()
		if !p.Exists || p.Code != wire.Waits {
			return p.Outcome, p.Exists, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return wire.Outcome{}, false, ctx.Err()
		}
	}
}

func (*simulatedNode) CatchUp(context.Context, wire.Outcome) error { return nil }
func (n *simulatedNode) QueueLen(key string) int                   { return n.locks.Queue(key) }
func (*simulatedNode) OnClose(func()) func()                       { return func() {} }

// Nine programs on three nodes compete for three locks for two minutes of the
// bubble's clock. Commands and outcomes are delayed by up to 20 ms and now and then
// by seconds, and callers cancel. No two programs ever believe at the same time
// that they hold a lock; no lock is lost unless something was slow; and the
// machine is empty in the end.
func TestSimulation(t *testing.T) {
	first := *firstSeed
	if first == 0 {
		first = rand.Uint64()>>1 + 1
	}
	t.Logf("-seed %d", first)
	for seed := first; seed < first+*seeds; seed++ {
		synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
	}
}

func simulate(t *testing.T, seed uint64) {
	const ttl = DefaultTTL
	s := &simulation{random: rand.New(rand.NewPCG(seed, 0))}
	s.locks = memory.NewLocks(memory.Config{Listener: s})
	ctx, stop := context.WithCancel(t.Context())
	go s.advanceClock(ctx)
	var slow, slowOutcomes time.Duration
	switch seed % 3 {
	case 1:
		slow = ttl * 3 / 2
	case 2:
		slow, slowOutcomes = ttl*3/2, ttl*3/2
	}

	var mu sync.Mutex
	holders := map[string]*Held{}
	var programs sync.WaitGroup
	var nodes []*simulatedNode
	end := time.Now().Add(2 * time.Minute)
	for id := range uint64(3) {
		s.mu.Lock()
		s.apply(wire.EncodeOpenSession(id+1, id+1, 1))
		n := &simulatedNode{s, s.session, make(chan *simulatedCommand, 1000), slow, slowOutcomes}
		s.mu.Unlock()
		nodes = append(nodes, n)
		go n.run()
		l := &Locker{lock: n, ttl: ttl}
		for i := range 3 {
			acquire := l.Lock
			switch i {
			case 1:
				acquire = (&Locker{lock: n, ttl: ttl}).Lock
			case 2:
				acquire = l.TryLock
			}
			programs.Go(func() {
				for time.Now().Before(end) {
					key := s.below(3).String()
					ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond+s.below(20_000))
					h, err := acquire(ctx, key)
					cancel()
					if err != nil {
						if !errors.Is(err, ErrHeld) && !errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("seed %d: %v", seed, err)
						}
						time.Sleep(s.below(20)) // before it tries again
						continue
					}
					mu.Lock()
					if other := holders[key]; other != nil && other.ctx.Err() == nil {
						t.Errorf("seed %d: two holders, with the tokens %d and %d", seed, other.token, h.token)
					}
					holders[key] = h
					mu.Unlock()
					time.Sleep(s.below([]int64{100, 1500, 15_000}[s.below(3)/time.Millisecond])) // work under the lock
					mu.Lock()
					if holders[key] == h {
						delete(holders, key)
					}
					mu.Unlock()
					if err := h.Unlock(context.Background()); err != nil && slow == 0 {
						t.Errorf("seed %d: Unlock returned %v", seed, err)
					}
					time.Sleep(s.below(100)) // other work
				}
			})
		}
	}
	programs.Wait()
	time.Sleep(5 * ttl) // until all TTLs have passed
	if left := s.locks.Size(); left > 0 {
		t.Errorf("seed %d: %d bytes are left in the machine", seed, left)
	}
	stop()
	for _, n := range nodes {
		close(n.queue)
	}
	synctest.Wait()
}
