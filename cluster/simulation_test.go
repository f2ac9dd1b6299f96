//lint:file-ignore SA1019 the simulated Raft answers through CompletedC, which is the channel that AppliedC returns

package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lni/dragonboat/v4"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/statemachine"
)

var firstSeed = flag.Uint64("seed", 0, "seed of the first simulation of a combiner; 0: a random one")

// A simulation is a combiner in a bubble of testing/synctest, with a Raft that is far away
// and loses, delays and repeats entries, and a machine with the sessions of all machines.
type simulation struct {
	t *testing.T
	c *Combiner[string, string]

	mu       sync.Mutex
	random   *rand.Rand
	faults   bool
	leader   Leader
	changed  chan struct{}
	done     chan struct{}
	network  []delivery // in the order in which they will be applied
	lastAt   time.Time  // when the last delivery that was not kept back will be applied
	sessions statemachine.Sessions[string]
	index    uint64
	applied  []string // operations, in order
	deaf     bool     // this node's machine gets snapshots: the combiner is told of no entry

	several, repeated, early int // entries in flight with others; copies that were answered with kept results; entries that came too early
	ended                    int // sessions that the machine has dropped
}

// A delivery is an entry that will be applied at a time.
type delivery struct {
	at  time.Time
	cmd []byte
}

func (s *simulation) Leader() Leader {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leader
}

func (s *simulation) LeaderChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *simulation) Done() <-chan struct{} { return s.done }

// happens reports whether something happens that has this probability while there are
// faults. The caller holds mu.
func (s *simulation) happens(probability float64) bool {
	return s.faults && s.random.Float64() < probability
}

// until returns a random time that is less than d from now. The caller holds mu.
func (s *simulation) until(d time.Duration) time.Time {
	return time.Now().Add(time.Duration(s.random.Int64N(int64(d))))
}

func (s *simulation) Propose(cmd []byte, _ time.Duration) (*dragonboat.RequestState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.happens(0.02) {
		return nil, dragonboat.ErrSystemBusy
	}
	rs := &dragonboat.RequestState{CompletedC: make(chan dragonboat.RequestResult, 1)}
	if s.leader.Node == 0 || s.happens(0.04) {
		dropped := result(s.t, (*dragonboat.RequestResult).Dropped)
		time.AfterFunc(time.Until(s.until(20*time.Millisecond)), func() { rs.CompletedC <- dropped })
		return rs, nil
	}
	if s.happens(0.06) {
		return rs, nil // lost
	}
	cmd = slices.Clone(cmd)
	for again := true; again; again = s.happens(0.04) {
		at := time.Now().Add(100*time.Millisecond + time.Duration(s.random.Int64N(int64(5*time.Millisecond))))
		if s.happens(0.06) {
			at = s.until(3 * time.Second) // kept back by a node that was stopped
		} else {
			if at.Before(s.lastAt) {
				at = s.lastAt
			}
			s.lastAt = at
		}
		s.network = append(s.network, delivery{at, cmd})
	}
	return rs, nil
}

// deliver applies what has arrived. It returns false when nothing is on its way.
func (s *simulation) deliver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var late []delivery
	for _, d := range s.network {
		if d.at.After(time.Now()) {
			late = append(late, d)
			continue
		}
		s.apply(d.cmd)
	}
	s.network = late
	return len(late) > 0
}

// apply applies an entry, as machines do. The caller holds mu.
func (s *simulation) apply(cmd []byte) {
	s.index++
	e := decode(s.t, cmd)
	if e.Nonce != 0 {
		s.sessions.Open(s.index, 0, 0, 0)
		s.c.SessionOpened(e.Nonce, s.index)
		return
	}
	session, verdict := s.sessions.Admit(e.Session, e.Sequence, e.Oldest, 0)
	n := statemachine.Notification[string]{Verdict: verdict, Session: e.Session, Sequence: e.Sequence}
	switch verdict {
	case statemachine.Apply:
		for _, op := range e.Ops {
			s.applied = append(s.applied, op)
			n.Results = append(n.Results, fmt.Sprint(op, " was ", len(s.applied)))
		}
		session.Results = n.Results
		if e.Oldest != 0 {
			s.several++
		}
	case statemachine.Repeat:
		n.Results = session.ResultsOf(e.Sequence)
		s.repeated++
	case statemachine.Early:
		s.early++
	}
	if !s.deaf {
		n.Deliver(combinerListener{s.c})
	}
}

// disturb makes what happens now and then happen, and returns how long to wait for the
// next.
func (s *simulation) disturb() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.random.IntN(8) {
	case 0, 1: // the leader changes, and may lose what it has got
		if s.random.IntN(2) == 0 {
			s.network = nil
		}
		if s.leader.Node != 0 {
			s.leader.Node = 0
		} else {
			s.leader = Leader{1 + s.random.Uint64N(3), s.leader.Term + 1}
		}
		close(s.changed)
		s.changed = make(chan struct{})
	case 2:
		s.deaf = !s.deaf
	case 3:
		if s.random.IntN(8) == 0 { // the machine ends the session
			s.ended++
			s.sessions.Load(nil)
		}
	case 4:
		s.c.Hold(time.Duration(s.random.Int64N(int64(100 * time.Millisecond))))
	}
	if s.leader.Node == 0 {
		return 200 * time.Millisecond
	}
	return time.Duration(s.random.Int64N(int64(2 * time.Second)))
}

// A write is an operation of a simulated caller, and what the caller learned.
type write struct {
	op      string
	result  string
	err     error
	patient bool // the caller waited until long after the last fault
}

// longPatience is how long a caller waits that wants to know the outcome.
const longPatience = 5 * time.Minute

// call calls Do again and again until end, with contexts that end at random times.
func (s *simulation) call(caller int, end time.Time) (writes []write) {
	for n := 0; time.Now().Before(end); n++ {
		s.mu.Lock()
		timeout := time.Until(s.until(4 * time.Second))
		pause := time.Until(s.until(60 * time.Millisecond))
		patient, atOnce := s.random.IntN(2) == 0, s.random.IntN(2) == 0
		s.mu.Unlock()
		if patient {
			timeout = longPatience
		}
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		op := fmt.Sprintf("%d/%06d", caller, n)
		result, err := s.c.Do(ctx, op)
		cancel()
		writes = append(writes, write{op, result, err, patient})
		if !atOnce {
			time.Sleep(pause) // in the bubble
		}
	}
	return writes
}

// check compares what the callers learned with what was applied.
func (s *simulation) check(all [][]write) {
	at := map[string]int{}
	for i, op := range s.applied {
		if at[op] != 0 {
			s.t.Errorf("%s was applied twice", op)
		}
		at[op] = i + 1
	}
	for _, writes := range all {
		last := 0
		for _, w := range writes {
			where := at[w.op]
			switch unknown := errors.Is(w.err, ErrOutcomeUnknown); {
			case w.err == nil && (where == 0 || w.result != fmt.Sprint(w.op, " was ", where)):
				s.t.Errorf("%s was applied as %d, and its result is %q", w.op, where, w.result)
			case w.err != nil && !unknown && where != 0:
				s.t.Errorf("%s was applied as %d, and its error is %v", w.op, where, w.err)
			case errors.Is(w.err, context.DeadlineExceeded) && w.patient:
				s.t.Errorf("%s was never answered: %v", w.op, w.err)
			case unknown && !errors.Is(w.err, context.DeadlineExceeded) && s.ended == 0:
				s.t.Errorf("the outcome of %s is unknown although its caller waited: %v", w.op, w.err)
			}
			if where != 0 && where < last {
				s.t.Errorf("%s was applied as %d, before an earlier one of its caller", w.op, where)
			}
			last = max(last, where)
		}
	}
}

// Whatever happens to the entries of a combiner on their way, each operation is applied at
// most once, those of one caller in their order, and the callers learn nothing wrong. Nobody
// who waits learns that an outcome is unknown, unless the machine has ended the session.
func TestSimulatedNetwork(t *testing.T) {
	first := *firstSeed
	if first == 0 {
		first = rand.Uint64N(1 << 40)
	}
	var several, repeated, early int
	for seed := first; seed < first+uint64(testrun.Rounds(30, 300)); seed++ {
		synctest.Test(t, func(t *testing.T) {
			s := &simulation{t: t, random: rand.New(rand.NewPCG(seed, 0)), faults: true, leader: Leader{1, 1}, changed: make(chan struct{}), done: make(chan struct{})}
			s.sessions.Load(nil)
			s.c = newCombiner[string, string](s, textCodec{}, CombinerConfig{MaxEntryBytes: 200, LongRound: []time.Duration{0, -1}[seed%2]})
			stop := make(chan struct{})
			var background, callers sync.WaitGroup
			background.Go(func() {
				for moving, stopped := true, false; moving || !stopped; {
					time.Sleep(time.Millisecond) // in the bubble
					moving = s.deliver()
					select {
					case <-stop:
						stopped = true
					default:
					}
				}
			})
			all := make([][]write, 12)
			end := time.Now().Add(20 * time.Second)
			for i := range all {
				callers.Go(func() { all[i] = s.call(i, end) })
			}
			for time.Now().Before(end) {
				time.Sleep(s.disturb()) // in the bubble
			}
			s.mu.Lock()
			s.faults, s.deaf, s.leader = false, false, Leader{1, s.leader.Term + 1}
			close(s.changed)
			s.changed = make(chan struct{})
			s.mu.Unlock()
			callers.Wait()
			s.c.Close()
			close(stop)
			background.Wait()
			s.check(all)
			several, repeated, early = several+s.several, repeated+s.repeated, early+s.early
			if t.Failed() {
				t.Logf("applied: %s", strings.Join(s.applied, " "))
			}
		})
		if t.Failed() {
			t.Fatalf("repeat it with go test -run %s ./cluster -seed %d", t.Name(), seed)
		}
	}
	t.Logf("%d entries were in flight with others, %d copies were answered, %d entries came too early", several, repeated, early)
	if several == 0 || repeated == 0 || early == 0 {
		t.Error("the simulation did not test what it is for")
	}
}
