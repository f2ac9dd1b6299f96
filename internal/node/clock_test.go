package node

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	sm "github.com/lni/dragonboat/v4/statemachine"
	"pgregory.net/rapid"

	"github.com/hiqlite/hiqlite/internal/wire"
	"github.com/hiqlite/hiqlite/statemachine"
	"github.com/hiqlite/hiqlite/statemachine/memory"
)

// clockStart is when the clocks of these tests begin.
var clockStart = time.Now()

func after(ms int64) time.Time { return clockStart.Add(time.Duration(ms) * time.Millisecond) }

func runs(now, wait uint64) statemachine.Clock {
	return statemachine.Clock{Now: now, Runs: true, Wait: wait}
}

// A clockCheck is one call of shardClock.next, and what it has to propose.
type clockCheck struct {
	atMS  int64
	clock statemachine.Clock
	leads bool
	// byOther: an advance of another node has moved the clock to its present value.
	byOther bool
	want    *wire.ClockAdvance // without its nonce; nil: nothing
}

func TestWhenAClockIsAdvanced(t *testing.T) {
	still := func(now uint64) statemachine.Clock { return statemachine.Clock{Now: now} }
	advance := func(expected, next uint64) *wire.ClockAdvance {
		return &wire.ClockAdvance{Expected: expected, Next: next}
	}
	for name, checks := range map[string][]clockCheck{
		"the clock of an idle machine stands still": {
			{atMS: 0, clock: still(0), leads: true},
			{atMS: 5000, clock: still(0), leads: true},
		},
		"the time before the machine measures something does not count": {
			{atMS: 0, clock: still(0), leads: true},
			{atMS: 5000, clock: still(0), leads: true},
			{atMS: 5100, clock: runs(0, 0), leads: true, want: advance(0, 100)},
		},
		"a follower proposes nothing": {
			{atMS: 0, clock: runs(0, 0)},
			{atMS: 5000, clock: runs(0, 0)},
		},
		"a new leader counts the time since it saw the clock": {
			{atMS: 0, clock: runs(0, 0)},
			{atMS: 700, clock: runs(0, 0), leads: true, want: advance(0, 700)},
		},
		"the leader waits as long as the machine allows": {
			{atMS: 0, clock: runs(0, 1000), leads: true},
			{atMS: 999, clock: runs(0, 1000), leads: true},
			{atMS: 1000, clock: runs(0, 1000), leads: true, want: advance(0, 1000)},
		},
		"after its own advance, a node counts the time since it proposed that": {
			{atMS: 0, clock: runs(0, 0), leads: true},
			{atMS: 100, clock: runs(0, 0), leads: true, want: advance(0, 100)},
			{atMS: 180, clock: runs(0, 0), leads: true},
			{atMS: 250, clock: runs(100, 0), leads: true, want: advance(100, 250)},
		},
		"after the advance of another node, a node counts the time since it saw that": {
			{atMS: 0, clock: runs(0, 0), leads: true},
			{atMS: 100, clock: runs(0, 0), leads: true, want: advance(0, 100)},
			{atMS: 250, clock: runs(90, 0), leads: true, byOther: true},
			{atMS: 300, clock: runs(90, 0), leads: true, byOther: true, want: advance(90, 140)},
		},
		"an advance is proposed again only when the last one is taken for lost": {
			{atMS: 0, clock: runs(0, 0), leads: true},
			{atMS: 100, clock: runs(0, 0), leads: true, want: advance(0, 100)},
			{atMS: 599, clock: runs(0, 0), leads: true},
			{atMS: 600, clock: runs(0, 0), leads: true, want: advance(0, 600)},
			{atMS: 1000, clock: runs(0, 0), leads: true},
			{atMS: 1100, clock: runs(0, 0), leads: true, want: advance(0, 1100)},
		},
		"the first of two advances is applied although it was taken for lost": {
			{atMS: 0, clock: runs(0, 0), leads: true},
			{atMS: 100, clock: runs(0, 0), leads: true, want: advance(0, 100)},
			{atMS: 600, clock: runs(0, 0), leads: true, want: advance(0, 600)},
			{atMS: 650, clock: runs(100, 0), leads: true},
			{atMS: 700, clock: runs(100, 0), leads: true, want: advance(100, 150)},
		},
		"a node counts the time for which it did not lead when it leads again": {
			{atMS: 0, clock: runs(0, 0), leads: true},
			{atMS: 100, clock: runs(0, 0), leads: true, want: advance(0, 100)},
			{atMS: 150, clock: runs(100, 0)},
			{atMS: 900, clock: runs(100, 0), leads: true, want: advance(100, 900)},
		},
	} {
		var s shardClock
		nonces := map[uint64]uint64{} // of the advances proposed, by the values to which they move the clock
		for i, check := range checks {
			if !check.byOther {
				check.clock.Nonce = nonces[check.clock.Now]
			}
			got, due := s.next(check.clock, after(check.atMS), check.leads)
			if due {
				nonces[got.Next] = got.Nonce
				got.Nonce = 0
			}
			if due != (check.want != nil) || due && got != *check.want {
				t.Errorf("%s: check %d proposes %v, %v, want %v", name, i, got, due, check.want)
			}
		}
	}
}

// An advance that is bounded by maxStep leaves out the rest of the time, and the next
// advance does not include it either.
func TestAStepIsBounded(t *testing.T) {
	s := shardClock{maxStep: func(statemachine.Clock) uint64 { return 200 }}
	s.next(runs(0, 0), after(0), true)
	first, due := s.next(runs(0, 0), after(5000), true)
	if !due || first.Next != 200 {
		t.Errorf("it proposes %v, %v", first, due)
	}
	c := runs(200, 0)
	c.Nonce = first.Nonce
	if second, due := s.next(c, after(5150), true); !due || second.Expected != 200 || second.Next != 350 {
		t.Errorf("then it proposes %v, %v", second, due)
	}
}

// Parts of milliseconds are lost, not gained.
func TestStepsAreRoundedDown(t *testing.T) {
	var s shardClock
	now := clockStart
	s.next(runs(0, 0), now, true)
	c := runs(0, 0)
	for range 1000 {
		now = now.Add(1900 * time.Microsecond)
		if advance, due := s.next(c, now, true); due {
			c.Now, c.Nonce = advance.Next, advance.Nonce
		}
	}
	if passed := uint64(now.Sub(clockStart).Milliseconds()); c.Now == 0 || c.Now > passed {
		t.Errorf("it counted %d ms of %d", c.Now, passed)
	}
}

// A node may see the clock at the value of an advance of its own that was lost. It must
// not take the other node's advance for its own: the time since its own was proposed has
// been counted already.
func TestTheAdvanceOfAnotherNodeIsNotTakenForALostOne(t *testing.T) {
	var a, b shardClock
	b.next(runs(0, 0), after(0), true)
	a.next(runs(0, 0), after(0), false)
	lost, _ := b.next(runs(0, 0), after(100), true)
	// From here on a leads. It has seen the clock only since 300.
	a = shardClock{}
	a.next(runs(0, 0), after(300), true)
	applied, due := a.next(runs(0, 0), after(400), true)
	if !due || applied.Expected != lost.Expected || applied.Next != lost.Next {
		t.Fatalf("the advances are %v and %v", lost, applied)
	}
	// b leads again. At 400 a had counted the time before.
	c := runs(100, 0)
	c.Nonce = applied.Nonce
	advance, due := b.next(c, after(450), true)
	if due && advance.Next-advance.Expected > 50 {
		t.Errorf("at 450 b advances the clock by %d ms, although a had counted all time before 400", advance.Next-advance.Expected)
	}
}

// A clockNode is a node of the simulation: its machine, its shardClock, and the state of
// its loop in runClocks. The loop may pause between two phases:
//
//	phase  what step does
//	0      reads the clock of the machine
//	1      reads the time
//	2      decides whether to propose an advance; if not, goes to phase 0
//	3      proposes the advance, and goes to phase 0
type clockNode struct {
	kv    *memory.KV
	clock shardClock
	seen  int // entries applied

	phase    int // what step does next
	read     statemachine.Clock
	now      int64
	proposal wire.ClockAdvance
}

// A clockWorld is a log and the nodes that propose to it and apply it.
type clockWorld struct {
	t        *rapid.T
	ms       int64 // real time
	log      []sm.Entry
	first    *memory.KV // applies at once
	nodes    []*clockNode
	inFlight []measured // proposed, and not yet in the log or lost
	counted  int64      // the moment until which the advances in the log count
	seq      uint64
	waiting  map[string]expiringKey // the keys that have not expired
}

// An expiringKey is a key of the kv machine with a time to live.
type expiringKey struct{ loggedAt, ttl int64 } // the moment when it came into the log; milliseconds

// measured is a clock advance with the moment until which it counts.
type measured struct {
	wire.ClockAdvance
	until int64
}

type nobody struct{ t *rapid.T }

func (nobody) Applied(_, _ uint64, _ []wire.Outcome) {}
func (nobody) SessionOpened(_, _ uint64)             {}
func (nobody) SessionUnknown(_, _ uint64)            {}
func (nobody) Held(uint64)                           {}
func (n nobody) Failed(err error)                    { panic(err) }

func newClockWorld(t *rapid.T) *clockWorld {
	w := &clockWorld{t: t, first: memory.NewKV(memory.Config{Listener: nobody{t}}), waiting: map[string]expiringKey{}}
	for range 3 {
		w.nodes = append(w.nodes, &clockNode{kv: memory.NewKV(memory.Config{Listener: nobody{t}})})
	}
	w.append(wire.EncodeOpenSession(1, 0, 0))
	return w
}

// append puts an entry into the log, and fails if it ends a duration early.
func (w *clockWorld) append(cmd []byte) {
	w.log = append(w.log, sm.Entry{Index: uint64(len(w.log)) + 1, Cmd: cmd})
	if _, err := w.first.Update(slices.Clone(w.log[len(w.log)-1:])); err != nil {
		w.t.Fatal(err)
	}
	for key, x := range w.waiting {
		if _, _, ok := w.first.Get("b", key); ok {
			continue
		}
		delete(w.waiting, key)
		if passed := w.ms - x.loggedAt; passed < x.ttl {
			w.t.Fatalf("%s ended after %d ms, its time to live is %d", key, passed, x.ttl)
		}
	}
}

// put writes a key with a time to live, which is the duration to be measured.
func (w *clockWorld) put(ttl int64) {
	w.seq++
	key := fmt.Sprint("k", w.seq)
	w.waiting[key] = expiringKey{w.ms, ttl}
	w.append(wire.EncodeCommands(1, w.seq, 0, [][]byte{wire.EncodeCommand(&wire.Command{Kind: wire.KindKVPut, Bucket: "b", Key: key, TTLMS: uint64(ttl)})}))
}

// catchUp makes a node apply this many of the next entries.
func (w *clockWorld) catchUp(n *clockNode, entries int) {
	to := min(len(w.log), n.seen+entries)
	if _, err := n.kv.Update(slices.Clone(w.log[n.seen:to])); err != nil {
		w.t.Fatal(err)
	}
	n.seen = to
}

// step takes one step of a node's loop in runClocks: read the clock, read the time,
// decide, propose.
func (w *clockWorld) step(n *clockNode, leads bool) {
	switch n.phase {
	case 0:
		n.read = n.kv.Clock()
	case 1:
		n.now = w.ms
	case 2:
		var due bool
		if n.proposal, due = n.clock.next(n.read, after(n.now), leads); !due {
			n.phase = -1
		}
	case 3:
		w.inFlight = append(w.inFlight, measured{n.proposal, n.now})
		n.phase = -1
	}
	n.phase++
}

// arrive removes a clock advance from those in flight and puts it into the log, unless it
// is lost. It fails if the advance counts time that was counted before.
func (w *clockWorld) arrive(i int, lost bool) {
	advance := w.inFlight[i]
	w.inFlight = slices.Delete(w.inFlight, i, i+1)
	if lost {
		return
	}
	if w.first.Clock().Now == advance.Expected {
		if step := int64(advance.Next - advance.Expected); advance.until-step < w.counted {
			w.t.Fatalf("an advance counts from %d to %d, but the time before %d has been counted", advance.until-step, advance.until, w.counted)
		}
		w.counted = advance.until
	}
	w.append(wire.EncodeClockAdvance(advance.ClockAdvance))
}

// takeSnapshot replaces the state of a node by a snapshot of another one.
func (w *clockWorld) takeSnapshot(n, from *clockNode) {
	prepared, err := from.kv.PrepareSnapshot()
	if err != nil {
		w.t.Fatal(err)
	}
	var b bytes.Buffer
	if err := from.kv.SaveSnapshot(prepared, &b, nil, nil); err != nil {
		w.t.Fatal(err)
	}
	if err := n.kv.RecoverFromSnapshot(&b, nil, nil); err != nil {
		w.t.Fatal(err, n.kv.Err())
	}
	n.seen = from.seen
}

// No duration ends early, in real time from its entry in the log: whoever leads or
// believes so, wherever nodes pause, and whichever clock advances are late, lost or
// overtaken. If none is lost, each duration ends in time.
func TestNoDurationEndsEarly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newClockWorld(t)
		// There are only a few lengths of pauses, so that different nodes often propose
		// the same values of the clock.
		pause := func() {
			w.ms += rapid.SampledFrom([]int64{0, 50, 50, 50, 100, 100, 100, 150, 600, 15_000}).Draw(t, "pause")
		}
		node := func() *clockNode { return w.nodes[rapid.IntRange(0, len(w.nodes)-1).Draw(t, "node")] }
		leader := node()
		for range rapid.IntRange(1, 150).Draw(t, "events") {
			switch rapid.IntRange(0, 13).Draw(t, "event") {
			case 0, 1:
				w.put(rapid.SampledFrom([]int64{50, 200, 400, 1000}).Draw(t, "ttl"))
			case 2:
				leader = node()
			case 3:
				pause()
			case 4: // any node takes one step, and may believe that it leads
				w.step(node(), rapid.Bool().Draw(t, "leads"))
			case 5:
				w.catchUp(node(), rapid.IntRange(1, 3).Draw(t, "entries"))
			case 6:
				n, from := node(), node()
				if rapid.IntRange(0, 3).Draw(t, "restart") == 0 { // without its state
					*n = clockNode{kv: memory.NewKV(memory.Config{Listener: nobody{t}})}
				}
				if n.seen < from.seen {
					w.takeSnapshot(n, from)
				}
			case 7, 8:
				if len(w.inFlight) > 0 {
					w.arrive(rapid.IntRange(0, len(w.inFlight)-1).Draw(t, "which"), rapid.Bool().Draw(t, "lost"))
				}
			default: // all nodes run one round of their loops, and may differ about who leads
				pause()
				n := leader
				if rapid.IntRange(0, 2).Draw(t, "another") == 0 {
					n = node()
				}
				for _, other := range w.nodes {
					w.round(other, other == n, rapid.IntRange(0, 2).Draw(t, "catches up") > 0)
				}
				if len(w.inFlight) > 0 && rapid.Bool().Draw(t, "at once") {
					w.arrive(len(w.inFlight)-1, false)
				}
			}
		}
		w.runWithoutFaults(leader)
	})
}

// round ends the present round of a node's loop, and takes the loop through a whole one
// without pauses. catchesUp: in between, the node applies the whole log.
func (w *clockWorld) round(n *clockNode, leads, catchesUp bool) {
	for n.phase > 0 {
		w.step(n, leads)
	}
	if catchesUp {
		w.catchUp(n, len(w.log))
	}
	for w.step(n, leads); n.phase > 0; {
		w.step(n, leads)
	}
}

// runWithoutFaults continues without pauses and losses, and fails unless all durations
// end in time.
func (w *clockWorld) runWithoutFaults(leader *clockNode) {
	w.put(700)
	most := int64(0)
	for _, x := range w.waiting {
		most = max(most, x.ttl)
	}
	// A duration begins with the second advance after its entry. The leader may have
	// proposed an advance that was lost, and waits for it first. Each round proposes
	// one advance at most, which is applied before the next round.
	interval := clockInterval.Milliseconds()
	for end := w.ms + advanceLost.Milliseconds() + most + 4*interval; len(w.waiting) > 0; w.ms += interval {
		if w.ms > end {
			w.t.Fatalf("at %d ms, %v have not expired", end, w.waiting)
		}
		w.round(leader, true, true)
		for len(w.inFlight) > 0 {
			w.arrive(0, false)
		}
	}
}
