package memory

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
)

// timers measure durations on a shard's clock, which is moved only by entries of
// the log (see wire.ClockAdvance). No timer ends early, whatever the clocks of the machines
// say and however long a leader was paused:
//
// A clock advance moves the clock by at most the time that passed on its proposer's
// monotonic clock between two moments: when the proposer learned the present value
// of the clock, from the log or from an advance of its own, and when it proposed
// the advance. So the spans of real time that consecutive advances stand for follow
// each other and never overlap, whoever leads. An advance after some entry may
// stand for a span that began before that entry. But the proposer of the second
// advance after the entry had seen the first one applied, so the span of the second
// one ends after the entry was in the log. A duration that begins with the second
// advance therefore measures only time after its entry.
//
// The states of a timer:
//
//	waitingTwo   start was called; two advances are missing until it begins
//	waitingOne   one advance is missing
//	running      it has an end on the clock; the advance that reaches it returns
//	             the timer and forgets it
//
// Timers cannot be stopped. The caller ignores those whose payload means nothing any
// more, and prune removes them when there are many.
type timers[T any] struct {
	waitingTwo []timer[T]
	waitingOne []timer[T]
	running    timerHeap[T]
	serial     uint64 // of the last timer that was started
}

type timer[T any] struct {
	end     uint64 // on the clock; of a timer that is not running: its duration
	serial  uint64 // orders timers with the same end
	payload T
}

// start starts a timer: once duration milliseconds have been measured, advance
// returns its payload.
func (t *timers[T]) start(duration uint64, payload T) {
	t.serial++
	t.waitingTwo = append(t.waitingTwo, timer[T]{duration, t.serial, payload})
}

// advance moves the clock to now. It returns the timers that have ended, ordered by
// their ends and then by their starts.
func (t *timers[T]) advance(now uint64) (due []timer[T]) {
	for t.running.Len() > 0 && t.running[0].end <= now {
		due = append(due, heap.Pop(&t.running).(timer[T]))
	}
	for _, x := range t.waitingOne {
		if x.end += now; x.end < now {
			x.end = math.MaxUint64 // the sum overflows: it never ends
		}
		heap.Push(&t.running, x)
	}
	clear(t.waitingOne)
	t.waitingOne, t.waitingTwo = t.waitingTwo, trimmed(t.waitingOne[:0])
	t.running = trimmed(t.running)
	return due
}

// next says when the clock has to be advanced next: at once, if a timer waits to
// begin; when the clock can reach end; or, if any is false, not at all.
func (t *timers[T]) next() (atOnce bool, end uint64, any bool) {
	if len(t.waitingTwo)+len(t.waitingOne) > 0 {
		return true, 0, true
	}
	if t.running.Len() == 0 {
		return false, 0, false
	}
	return false, t.running[0].end, true
}

// prune removes outdated timers if there are far more timers than live ones.
func (t *timers[T]) prune(live int, outdated func(payload T) bool) {
	const slack = 1024
	if t.len() <= 2*live+slack {
		return
	}
	match := func(x timer[T]) bool { return outdated(x.payload) }
	t.waitingTwo = slices.DeleteFunc(t.waitingTwo, match)
	t.waitingOne = slices.DeleteFunc(t.waitingOne, match)
	t.running = slices.DeleteFunc(t.running, match)
	heap.Init(&t.running)
}

// trimmed returns s, or a copy in less memory if s takes far more than it needs.
func trimmed[S ~[]E, E any](s S) S {
	const slack = 1024
	if cap(s) <= 4*len(s)+slack {
		return s
	}
	return append(S(nil), s...)
}

func (t *timers[T]) len() int { return len(t.waitingTwo) + len(t.waitingOne) + len(t.running) }

// A phase is the state of a timer, in a snapshot.
type phase uint8

const (
	phaseRunning phase = iota
	phaseWaitingTwo
	phaseWaitingOne
)

// clone returns a copy whose all may be called while the original changes.
func (t *timers[T]) clone() *timers[T] {
	return &timers[T]{waitingTwo: slices.Clone(t.waitingTwo), waitingOne: slices.Clone(t.waitingOne), running: slices.Clone(t.running)}
}

// all returns all timers with their phases, in an order in which restore accepts
// them.
func (t *timers[T]) all() (out []timer[T], phases []phase) {
	running := slices.Clone(t.running)
	slices.SortFunc(running, func(a, b timer[T]) int { return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.serial, b.serial)) })
	out = make([]timer[T], 0, t.len())
	for _, part := range []struct {
		timers []timer[T]
		phase  phase
	}{{running, phaseRunning}, {t.waitingOne, phaseWaitingOne}, {t.waitingTwo, phaseWaitingTwo}} {
		out = append(out, part.timers...)
		for range part.timers {
			phases = append(phases, part.phase)
		}
	}
	return out, phases
}

// restore adds a timer of a snapshot. Timers must be added in the order of all.
func (t *timers[T]) restore(end uint64, p phase, payload T) {
	t.serial++
	x := timer[T]{end, t.serial, payload}
	switch p {
	case phaseRunning:
		heap.Push(&t.running, x)
	case phaseWaitingOne:
		t.waitingOne = append(t.waitingOne, x)
	default:
		t.waitingTwo = append(t.waitingTwo, x)
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
