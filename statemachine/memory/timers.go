package memory

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
)

// timers count durations on a shard's clock, which only entries of the log move
// (see wire.Tick). None ends early, whatever the machines' clocks say and
// however long a leader was paused:
//
// A tick moves the clock by at most what passed, on its proposer's monotonic
// clock, between the moment at which that saw the clock's present value, in the
// log or in a tick of its own, and the moment at which it proposed the tick. So
// the spans that ticks count follow each other in real time, and never overlap,
// whoever leads. The span of the second tick after an entry ends after the entry
// was in the log: its proposer had seen the first tick applied. A duration that
// begins with the second tick therefore counts only time behind its entry.
type timers[T any] struct {
	young  []timer[T] // asked for since the last tick
	older  []timer[T] // asked for before it: they begin with the next one
	heap   timerHeap[T]
	serial uint64
}

type timer[T any] struct {
	end    uint64 // on the clock; before it begins: its duration
	serial uint64 // which of those with the same end is the first
	of     T
}

// start makes tick return of, when so many ticks have passed, rounded up.
func (t *timers[T]) start(ticks uint64, of T) {
	t.serial++
	t.young = append(t.young, timer[T]{ticks, t.serial, of})
}

// tick tells that the clock moved to now, and returns what is due, in order. The
// slice is good until the next call.
func (t *timers[T]) tick(now uint64) (due []timer[T]) {
	for t.heap.Len() > 0 && t.heap[0].end <= now {
		due = append(due, heap.Pop(&t.heap).(timer[T]))
	}
	for _, o := range t.older {
		if o.end += now; o.end < now {
			o.end = math.MaxUint64 // beyond what can be counted
		}
		heap.Push(&t.heap, o)
	}
	clear(t.older)
	t.older, t.young = t.young, trimmed(t.older[:0])
	t.heap = trimmed(t.heap)
	return due
}

// next says when a tick is needed at the latest: at once, if something is to
// begin; at end; or never.
func (t *timers[T]) next() (atOnce bool, end uint64, any bool) {
	if len(t.young)+len(t.older) > 0 {
		return true, 0, true
	}
	if t.heap.Len() == 0 {
		return false, 0, false
	}
	return false, t.heap[0].end, true
}

// prune forgets timers that came to nothing, once most have: live is how many
// have not.
func (t *timers[T]) prune(live int, stale func(T) bool) {
	const slack = 1024
	if t.len() <= 2*live+slack {
		return
	}
	gone := func(x timer[T]) bool { return stale(x.of) }
	t.young = slices.DeleteFunc(t.young, gone)
	t.older = slices.DeleteFunc(t.older, gone)
	t.heap = slices.DeleteFunc(t.heap, gone)
	heap.Init(&t.heap)
}

// trimmed returns s in less memory, if it takes far more than it needs.
func trimmed[S ~[]E, E any](s S) S {
	const slack = 1024
	if cap(s) <= 4*len(s)+slack {
		return s
	}
	return append(S(nil), s...)
}

func (t *timers[T]) len() int { return len(t.young) + len(t.older) + len(t.heap) }

// A phase says where a timer stands, in a snapshot.
type phase uint8

const (
	runs phase = iota
	isYoung
	isOlder
)

// clone returns a copy, of which all can be asked beside the original.
func (t *timers[T]) clone() *timers[T] {
	return &timers[T]{young: slices.Clone(t.young), older: slices.Clone(t.older), heap: slices.Clone(t.heap)}
}

// all returns all timers: of two with the same end, the one that was asked for
// first comes first.
func (t *timers[T]) all() (out []timer[T], phases []phase) {
	running := slices.Clone(t.heap)
	slices.SortFunc(running, func(a, b timer[T]) int { return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.serial, b.serial)) })
	out = make([]timer[T], 0, t.len())
	for _, part := range []struct {
		timers []timer[T]
		phase  phase
	}{{running, runs}, {t.older, isOlder}, {t.young, isYoung}} {
		out = append(out, part.timers...)
		for range part.timers {
			phases = append(phases, part.phase)
		}
	}
	return out, phases
}

// restore takes over a timer. Those of a phase must come in order.
func (t *timers[T]) restore(end uint64, p phase, of T) {
	t.serial++
	x := timer[T]{end, t.serial, of}
	switch p {
	case runs:
		heap.Push(&t.heap, x)
	case isOlder:
		t.older = append(t.older, x)
	default:
		t.young = append(t.young, x)
	}
}

type timerHeap[T any] []timer[T]

func (h timerHeap[T]) Len() int      { return len(h) }
func (h timerHeap[T]) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *timerHeap[T]) Push(x any)   { *h = append(*h, x.(timer[T])) }
func (h timerHeap[T]) Less(i, j int) bool {
	return h[i].end < h[j].end || h[i].end == h[j].end && h[i].serial < h[j].serial
}

func (h *timerHeap[T]) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = timer[T]{}
	*h = old[:len(old)-1]
	return x
}
