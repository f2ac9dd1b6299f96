package memory

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// payloads returns the payloads of timers.
func payloads(all []timer[int]) (out []int) {
	for _, t := range all {
		out = append(out, t.payload)
	}
	return out
}

// A duration begins with the second advance after start, however far that moves the clock. It
// ends with the first advance that reaches its end.
func TestTimersBeginWithTheSecondAdvance(t *testing.T) {
	var x timers[int]
	expect := func(now uint64, due ...int) {
		t.Helper()
		if got := payloads(x.advance(now)); !slices.Equal(got, due) {
			t.Errorf("at %d %v are due, want %v", now, got, due)
		}
	}
	next := func(atOnce bool, end uint64, any bool) {
		t.Helper()
		if a, e, y := x.next(); a != atOnce || e != end || y != any {
			t.Errorf("next is %v, %d, %v, want %v, %d, %v", a, e, y, atOnce, end, any)
		}
	}
	next(false, 0, false)
	x.start(100, 1)
	next(true, 0, true)
	expect(1_000_000)
	next(true, 0, true)
	x.start(50, 2)
	x.start(0, 3)
	expect(2_000_000)
	next(true, 0, true)
	expect(2_000_010)
	next(false, 2_000_010, true)
	expect(2_000_011, 3)
	next(false, 2_000_060, true)
	expect(2_000_100, 2, 1)
	next(false, 0, false)
	expect(3_000_000)
}

// Timers that end at the same time end in the order in which they were started, also after a
// restore.
func TestTimersThatEndTogetherHaveAnOrder(t *testing.T) {
	var x timers[int]
	for i := range 50 {
		x.start(uint64(100-i%2), i) // the two kinds begin at different times and end together
	}
	x.advance(1)
	x.advance(2)
	for i := range 20 {
		x.start(uint64(90+i%2), 50+i)
	}
	y := restoredTimers(&x)
	for _, now := range []uint64{5, 11, 50, 101, 102, 200} {
		if a, b := payloads(x.advance(now)), payloads(y.advance(now)); !slices.Equal(a, b) {
			t.Errorf("at %d %v are due, after a restore %v", now, a, b)
		}
	}
	if x.len() != 0 || y.len() != 0 {
		t.Errorf("%d and %d timers are left", x.len(), y.len())
	}
}

// restoredTimers returns timers that are restored from what a snapshot has of x.
func restoredTimers(x *timers[int]) *timers[int] {
	var y timers[int]
	all, phases := x.all()
	for i, t := range all {
		y.restore(t.end, phases[i], t.payload)
	}
	return &y
}

// A duration that would end after the clock's last value does not end early.
func TestDurationsBeyondTheLastClockValueDoNotEnd(t *testing.T) {
	for _, ttl := range []uint64{math.MaxUint64, math.MaxUint64 - 5} {
		var x timers[int]
		x.start(ttl, 1)
		for now := uint64(10); now < 100; now += 10 {
			if due := x.advance(now); len(due) > 0 {
				t.Errorf("a timer of %d ms ended at %d", ttl, now)
			}
		}
	}
}

// Timers that are started, forgotten and restored at random do the same as a list.
func TestTimersBehaveLikeAList(t *testing.T) {
	type want struct {
		of, seen int
		ttl, end uint64
	}
	rapid.Check(t, func(t *rapid.T) {
		x := new(timers[int])
		var list []want
		gone := map[int]bool{}
		now, n := uint64(0), 0
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0, 1, 2:
				n++
				ttl := rapid.SampledFrom([]uint64{0, 1, 10, 50, 100}).Draw(t, "ttl")
				x.start(ttl, n)
				list = append(list, want{of: n, ttl: ttl})
			case 3: // many, so that forgotten ones are pruned
				for range 700 {
					n++
					x.start(40, n)
					list = append(list, want{of: n, ttl: 40})
					gone[n] = n%3 > 0
				}
			case 4:
				x.prune(0, func(n int) bool { return gone[n] })
			case 5:
				x = restoredTimers(x)
			default:
				now += rapid.SampledFrom([]uint64{1, 10, 40, 300}).Draw(t, "advance")
				var due []want
				for i := range list {
					w := &list[i]
					w.seen++
					switch {
					case w.seen == 2:
						w.end = now + w.ttl
					case w.seen > 2 && w.end <= now && !gone[w.of]:
						due = append(due, *w)
					}
				}
				slices.SortStableFunc(due, func(a, b want) int { return int(a.end) - int(b.end) })
				list = slices.DeleteFunc(list, func(w want) bool { return w.seen > 2 && w.end <= now })
				var wants []int
				for _, w := range due {
					wants = append(wants, w.of)
				}
				got := slices.DeleteFunc(payloads(x.advance(now)), func(n int) bool { return gone[n] })
				if !slices.Equal(got, wants) {
					t.Fatalf("at %d %v are due, want %v", now, got, wants)
				}
			}
			if live := slices.DeleteFunc(slices.Clone(list), func(w want) bool { return gone[w.of] }); x.len() < len(live) || x.len() > len(list) {
				t.Fatalf("there are %d timers, want %d to %d", x.len(), len(live), len(list))
			}
		}
	})
}

// A timer that is replaced again and again needs bounded memory.
func TestForgottenTimersArePruned(t *testing.T) {
	var x timers[string]
	for i := range 100_000 {
		x.start(3600_000, fmt.Sprint(i))
		if i%100 == 0 {
			x.advance(uint64(i) + 1)
			x.prune(1, func(s string) bool { return s != fmt.Sprint(i) })
		}
		if x.len() > 2000 {
			t.Fatalf("there are %d timers instead of one", x.len())
		}
	}
}

// The memory of timers is released when they have ended.
func TestTheMemoryOfTimersIsReleased(t *testing.T) {
	var x timers[int]
	for i := range 100_000 {
		x.start(10, i)
	}
	for now := range uint64(5) {
		x.advance(100 * now)
	}
	if room := cap(x.waitingTwo) + cap(x.waitingOne) + cap(x.running); x.len() != 0 || room > 4096 {
		t.Errorf("there are %d timers, and memory for %d", x.len(), room)
	}
}
