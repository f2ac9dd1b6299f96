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

// A look is one call of next, and what it has to propose.
type look struct {
	ms    int64
	c     statemachine.Clock
	leads bool
	want  *wire.ClockAdvance

	others bool // another's tick has moved the clock there
}

func TestWhenAClockIsMoved(t *testing.T) {
	still := func(now uint64) statemachine.Clock { return statemachine.Clock{Now: now} }
	for name, looks := range map[string][]look{
		"nothing runs": {{0, still(0), true, nil, false}, {5000, still(0), true, nil, false}},
		"it counts from when something runs": {
			{0, still(0), true, nil, false}, {5000, still(0), true, nil, false}, {5100, runs(0, 0), true, &wire.ClockAdvance{Next: 100}, false}},
		"it follows":                    {{0, runs(0, 0), false, nil, false}, {5000, runs(0, 0), false, nil, false}},
		"a new leader counts its watch": {{0, runs(0, 0), false, nil, false}, {700, runs(0, 0), true, &wire.ClockAdvance{Next: 700}, false}},
		"not before it has to be": {
			{0, runs(0, 1000), true, nil, false}, {999, runs(0, 1000), true, nil, false}, {1000, runs(0, 1000), true, &wire.ClockAdvance{Next: 1000}, false}},
		"its own tick: since it proposed that": {
			{0, runs(0, 0), true, nil, false}, {100, runs(0, 0), true, &wire.ClockAdvance{Next: 100}, false}, {180, runs(0, 0), true, nil, false}, {250, runs(100, 0), true, &wire.ClockAdvance{Expected: 100, Next: 250}, false}},
		"another's tick: since it saw that": {
			{0, runs(0, 0), true, nil, false}, {100, runs(0, 0), true, &wire.ClockAdvance{Next: 100}, false}, {250, runs(90, 0), true, nil, true}, {300, runs(90, 0), true, &wire.ClockAdvance{Expected: 90, Next: 140}, true}},
		"not twice while it is on its way, again when it is lost": {
			{0, runs(0, 0), true, nil, false}, {100, runs(0, 0), true, &wire.ClockAdvance{Next: 100}, false}, {599, runs(0, 0), true, nil, false},
			{600, runs(0, 0), true, &wire.ClockAdvance{Next: 600}, false}, {1000, runs(0, 0), true, nil, false}, {1100, runs(0, 0), true, &wire.ClockAdvance{Next: 1100}, false}},
		"the first of two is applied after all": {
			{0, runs(0, 0), true, nil, false}, {100, runs(0, 0), true, &wire.ClockAdvance{Next: 100}, false}, {600, runs(0, 0), true, &wire.ClockAdvance{Next: 600}, false},
			{650, runs(100, 0), true, nil, false}, {700, runs(100, 0), true, &wire.ClockAdvance{Expected: 100, Next: 150}, false}},
		"what it cannot count yet it counts later": {
			{0, runs(0, 0), true, nil, false}, {100, runs(0, 0), true, &wire.ClockAdvance{Next: 100}, false}, {150, runs(100, 0), false, nil, false}, {900, runs(100, 0), true, &wire.ClockAdvance{Expected: 100, Next: 900}, false}},
	} {
		var s shardClock
		nonces := map[uint64]uint64{} // of its ticks, by where they move the clock
		for i, l := range looks {
			if !l.others {
				l.c.Nonce = nonces[l.c.Now]
			}
			tick, due := s.next(l.c, after(l.ms), l.leads)
			if due {
				nonces[tick.Next] = tick.Nonce
				tick.Nonce = 0
			}
			if due != (l.want != nil) || due && tick != *l.want {
				t.Errorf("%s: look %d proposes %v, %v, want %v", name, i, tick, due, l.want)
			}
		}
	}
}

// What is beyond the bound of a step is not counted by the next.
func TestAStepIsBounded(t *testing.T) {
	s := shardClock{maxStep: func(statemachine.Clock) uint64 { return 200 }}
	s.next(runs(0, 0), after(0), true)
	first, due := s.next(runs(0, 0), after(5000), true)
	if !due || first.Next != 200 {
		t.Errorf("it proposes %v, %v", first, due)
	}
	c := runs(200, 0)
	c.Nonce = first.Nonce
	if tick, due := s.next(c, after(5150), true); !due || tick.Expected != 200 || tick.Next != 350 {
		t.Errorf("then it proposes %v, %v", tick, due)
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
		if tick, due := s.next(c, now, true); due {
			c.Now, c.Nonce = tick.Next, tick.Nonce
		}
	}
	if passed := uint64(now.Sub(clockStart).Milliseconds()); c.Now == 0 || c.Now > passed {
		t.Errorf("it counted %d ms of %d", c.Now, passed)
	}
}

// A node that sees the clock where a tick of its own would have moved it, which
// was lost, must not take another node's for it: the time since its own was
// proposed has been counted by that.
func TestALostTickIsNotTakenForAnothers(t *testing.T) {
	var a, b shardClock
	b.next(runs(0, 0), after(0), true)
	a.next(runs(0, 0), after(0), false)
	lost, _ := b.next(runs(0, 0), after(100), true)
	// a leads from here on; it has not seen the clock for as long.
	a = shardClock{}
	a.next(runs(0, 0), after(300), true)
	applied, due := a.next(runs(0, 0), after(400), true)
	if !due || applied.Expected != lost.Expected || applied.Next != lost.Next {
		t.Fatalf("the ticks are %v and %v", lost, applied)
	}
	// b leads again: at 400 a had counted what was before.
	c := runs(100, 0)
	c.Nonce = applied.Nonce
	tick, due := b.next(c, after(450), true)
	if due && tick.Next-tick.Expected > 50 {
		t.Errorf("at 450 it moves the clock by %d ms, of which others had counted all before 400", tick.Next-tick.Expected)
	}
}

// A clockNode is one of the nodes of a simulation: a replica, its clock, and
// where its loop stands.
type clockNode struct {
	kv    *memory.KV
	clock shardClock
	seen  int // entries applied

	phase    int // of the loop: it may rest between any two
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
	inFlight []measured // on their way to the log
	counted  int64      // until when the clock has counted
	seq      uint64
	waiting  map[string][2]int64 // keys that expire: when they came to the log, and their time to live
}

// measured is a tick with the moment until which it counts.
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
	w := &clockWorld{t: t, first: memory.NewKV(memory.Config{Listener: nobody{t}}), waiting: map[string][2]int64{}}
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
		if passed := w.ms - x[0]; passed < x[1] {
			w.t.Fatalf("%s ended after %d ms, its time to live is %d", key, passed, x[1])
		}
	}
}

// put begins a duration.
func (w *clockWorld) put(ttl int64) {
	w.seq++
	key := fmt.Sprint("k", w.seq)
	w.waiting[key] = [2]int64{w.ms, ttl}
	w.append(wire.EncodeCommands(1, w.seq, [][]byte{wire.EncodeCommand(&wire.Command{Kind: wire.KindKVPut, Bucket: "b", Key: key, TTLMS: uint64(ttl)})}))
}

// catchUp has a node apply entries.
func (w *clockWorld) catchUp(n *clockNode, entries int) {
	to := min(len(w.log), n.seen+entries)
	if _, err := n.kv.Update(slices.Clone(w.log[n.seen:to])); err != nil {
		w.t.Fatal(err)
	}
	n.seen = to
}

// step takes a node's loop one step further: what Node.tick does.
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

// arrive takes a tick from the way, into the log or not. It fails if the tick
// counts what was counted before.
func (w *clockWorld) arrive(i int, lost bool) {
	tick := w.inFlight[i]
	w.inFlight = slices.Delete(w.inFlight, i, i+1)
	if lost {
		return
	}
	if w.first.Clock().Now == tick.Expected {
		if step := int64(tick.Next - tick.Expected); tick.until-step < w.counted {
			w.t.Fatalf("a tick counts from %d to %d: what was before %d has been counted", tick.until-step, tick.until, w.counted)
		}
		w.counted = tick.until
	}
	w.append(wire.EncodeClockAdvance(tick.ClockAdvance))
}

// jump has a node take over another's snapshot.
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

// No duration ends before it has passed, since its entry was in the log, in real
// time: whoever leads or believes to, wherever nodes rest, and whatever ticks
// are late, lost or overtaken. If nodes do not rest and ticks arrive, it ends.
func TestNoDurationEndsEarly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newClockWorld(t)
		// Steps of the same few lengths make different nodes come to the same
		// values of the clock.
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
			case 4: // any node, one step; it may take itself for the leader
				w.step(node(), rapid.Bool().Draw(t, "leads"))
			case 5:
				w.catchUp(node(), rapid.IntRange(1, 3).Draw(t, "entries"))
			case 6:
				n, from := node(), node()
				if rapid.IntRange(0, 3).Draw(t, "restart") == 0 { // from a snapshot or from the log alone
					*n = clockNode{kv: memory.NewKV(memory.Config{Listener: nobody{t}})}
				}
				if n.seen < from.seen {
					w.takeSnapshot(n, from)
				}
			case 7, 8:
				if len(w.inFlight) > 0 {
					w.arrive(rapid.IntRange(0, len(w.inFlight)-1).Draw(t, "which"), rapid.Bool().Draw(t, "lost"))
				}
			default: // a round of a loop without rests
				pause()
				n := leader
				if rapid.IntRange(0, 2).Draw(t, "another") == 0 {
					n = node()
				}
				for _, other := range w.nodes { // all look at where the clock stands
					w.round(other, other == n, rapid.IntRange(0, 2).Draw(t, "hears") > 0)
				}
				if len(w.inFlight) > 0 && rapid.Bool().Draw(t, "at once") {
					w.arrive(len(w.inFlight)-1, false)
				}
			}
		}
		w.runWithoutFaults(leader)
	})
}

// round takes a node's loop through one round.
func (w *clockWorld) round(n *clockNode, leads, catchesUp bool) {
	for n.phase > 0 { // the one that it is in
		w.step(n, leads)
	}
	if catchesUp {
		w.catchUp(n, len(w.log))
	}
	for w.step(n, leads); n.phase > 0; {
		w.step(n, leads)
	}
}

// calm goes on without rests and losses, and fails unless all that is left ends
// in time.
func (w *clockWorld) runWithoutFaults(leader *clockNode) {
	w.put(700)
	most := int64(0)
	for _, x := range w.waiting {
		most = max(most, x[1])
	}
	// Two ticks until it begins, of which the first may be taken for lost; each is
	// proposed with a look, and applied before the next.
	look := clockInterval.Milliseconds()
	for end := w.ms + advanceLost.Milliseconds() + most + 4*look; len(w.waiting) > 0; w.ms += look {
		if w.ms > end {
			w.t.Fatalf("%v are left after %d ms", w.waiting, end)
		}
		w.round(leader, true, true)
		for len(w.inFlight) > 0 {
			w.arrive(0, false)
		}
	}
}
