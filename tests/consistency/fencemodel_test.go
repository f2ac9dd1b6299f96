package consistency_test

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A hold is one time that a worker had a lock, with what it did under it. Times
// are in nanoseconds of clock.
type hold struct {
	worker int
	node   uint64
	ttl    time.Duration
	key    string
	token  uint64

	called int64 // Lock was called
	queued int64 // the place in the queue was made at the latest; 0: unknown
	at     int64 // Lock returned
	until  int64 // until when the holder surely believed to have it; 0: maybe never
	left   int64 // Unlock was called; 0: that is not known
	end    holdEnd
	ended  int64 // Unlock returned, or its process was dead
	err    error // of Unlock

	saw    *sighting // what the holder read on its node at first; nil: it could not
	writes []fencedWrite
}

type holdEnd int

const (
	unlocked holdEnd = iota // Unlock returned nil
	lost                    // it returned ErrLost
	broke                   // Unlock returned another error, or could not be called
)

func (h *hold) String() string {
	return fmt.Sprintf("the hold of %s by worker %d of node %d, token %d, from %d to %d us", h.key, h.worker, h.node, h.token, h.at/1000, h.until/1000)
}

// A sighting is what a holder reads of the resource.
type sighting struct {
	at     int64 // the answer came
	token  uint64
	writes int // that were made ever
}

// A fencedWrite is a write of the resource that its lock guards.
type fencedWrite struct {
	id        string
	call, ret int64
	outcome   outcome
	accepted  bool // else the resource has refused it; if it is committed
}

// A miss is a Lock, or TryLock, that returned an error.
type miss struct {
	worker       int
	node         uint64
	called, till int64
	hurried      bool // its context was to end soon
	err          error
}

// A fault is harm that was done. What it explains happened between its times.
type fault struct {
	name     string
	nodes    map[uint64]bool // that were harmed
	from, to int64
}

// A resource is what a lock guards, in the end.
type resource struct {
	token   uint64 // of the last write
	writes  int
	journal []journalEntry // of the accepted writes, in their order
}

type journalEntry struct {
	id    string
	token uint64
}

// fenceHistory is what happened to locks and what they guard.
type fenceHistory struct {
	holds     []*hold
	misses    []miss
	faults    []fault
	resources map[string]resource
}

// check returns what must not be.
func (h *fenceHistory) check() (wrong []string) {
	byKey := map[string][]*hold{}
	for _, x := range h.holds {
		byKey[x.key] = append(byKey[x.key], x)
	}
	for key, holds := range byKey {
		wrong = append(wrong, checkTokens(holds)...)
		wrong = append(wrong, checkExclusion(holds)...)
		wrong = append(wrong, checkUnlocks(holds)...)
		wrong = append(wrong, h.checkQueue(holds)...)
		wrong = append(wrong, checkWrites(key, holds, h.resources[key])...)
		wrong = append(wrong, checkSightings(holds, h.resources[key])...)
	}
	return append(wrong, h.checkErrors()...)
}

func byToken(a, b *hold) int { return cmp.Compare(a.token, b.token) }

// checkTokens: each hold of a key has a higher token than those that began
// before.
func checkTokens(holds []*hold) (wrong []string) {
	holds = slices.SortedFunc(slices.Values(holds), byToken)
	for i := 1; i < len(holds); i++ {
		if holds[i].token == holds[i-1].token {
			wrong = append(wrong, fmt.Sprintf("%v and %v have the same token", holds[i-1], holds[i]))
		}
	}
	// Of the later ones, by their tokens, the one that began, or whose Lock
	// returned, first.
	var began, returned *hold
	for _, x := range slices.Backward(holds) {
		switch {
		case returned != nil && returned.at < x.called:
			wrong = append(wrong, fmt.Sprintf("%v was asked for when %v had begun, and has a lower token", x, returned))
		case began != nil && x.until != 0 && began.at < x.at:
			wrong = append(wrong, fmt.Sprintf("%v began after %v, and has a lower token", x, began))
		}
		if returned == nil || x.at < returned.at {
			returned = x
		}
		if x.until != 0 && (began == nil || x.at < began.at) {
			began = x
		}
	}
	return wrong
}

// checkExclusion: while one believes to hold a lock nobody else does. Whoever
// is cut off knows before the next has it; whoever is stopped is not asked.
func checkExclusion(holds []*hold) (wrong []string) {
	holds = slices.DeleteFunc(slices.Clone(holds), func(x *hold) bool { return x.until == 0 })
	slices.SortFunc(holds, func(a, b *hold) int { return cmp.Compare(a.at, b.at) })
	var last *hold // of those that began before, the one that ends last
	for _, x := range holds {
		if last != nil && x.at <= last.until {
			wrong = append(wrong, fmt.Sprintf("%v began within %v", x, last))
		}
		if last == nil || x.until > last.until {
			last = x
		}
	}
	return wrong
}

// checkUnlocks: whoever gives a lock back, and is told that he had it, did so
// before the next one got it.
func checkUnlocks(holds []*hold) (wrong []string) {
	var next *hold // of those with higher tokens, the one that began first
	for _, x := range slices.Backward(slices.SortedFunc(slices.Values(holds), byToken)) {
		if next != nil && x.end == unlocked && next.at < x.left {
			wrong = append(wrong, fmt.Sprintf("%v was unlocked at %d us, when %v had begun", x, x.left/1000, next))
		}
		if next == nil || x.at < next.at {
			next = x
		}
	}
	return wrong
}

// checkQueue: who had a place in the queue before another came gets the lock
// before him. Where something was harmed meanwhile, places may have been lost.
func (h *fenceHistory) checkQueue(holds []*hold) (wrong []string) {
	var first *hold // of those with higher tokens, the one that was in the queue first
	for _, x := range slices.Backward(slices.SortedFunc(slices.Values(holds), byToken)) {
		if first != nil && first.queued < x.called {
			wrong = append(wrong, fmt.Sprintf("%v was asked for when %v was in the queue, and came first", x, first))
		}
		if x.queued != 0 && h.harm(x.called, x.at) == nil && (first == nil || x.queued < first.queued) {
			first = x
		}
	}
	return wrong
}

// harm returns a fault at that time.
func (h *fenceHistory) harm(from, to int64) *fault {
	for i := range h.faults {
		if f := &h.faults[i]; f.from <= to && from <= f.to {
			return f
		}
	}
	return nil
}

// checkWrites: the resource has seen the tokens in order, what it has accepted
// and nothing else, and has refused nobody who held the lock.
func checkWrites(key string, holds []*hold, r resource) (wrong []string) {
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	kept := map[string]uint64{}
	last := uint64(0)
	for i, e := range r.journal {
		if e.token < last {
			complain("%s: a write with token %d was accepted after one with %d", key, e.token, last)
		}
		last = e.token
		if kept[e.id] != 0 {
			complain("%s: write %s, the %dth, was made before", key, e.id, i+1)
		}
		kept[e.id] = e.token
	}
	if r.token != last || r.writes != len(r.journal) {
		complain("%s: it was written %d times, the last time with token %d, of %d times and %d in the journal", key, r.writes, r.token, len(r.journal), last)
	}
	for _, x := range holds {
		for _, w := range x.writes {
			token, there := kept[w.id]
			delete(kept, w.id)
			switch {
			case there && token != x.token:
				complain("%v: its write %s was made with token %d", x, w.id, token)
			case there && w.outcome == aborted:
				complain("%v: its write %s failed, and was made", x, w.id)
			case there && w.outcome == committed && !w.accepted:
				complain("%v: its write %s was refused, and was made", x, w.id)
			case !there && w.outcome == committed && w.accepted:
				complain("%v: its write %s is lost", x, w.id)
			case w.outcome == committed && !w.accepted && w.ret <= x.until:
				complain("%v: its write %s was refused while it held", x, w.id)
			}
		}
	}
	for id := range kept {
		complain("%s: nobody made write %s", key, id)
	}
	return wrong
}

// checkSightings: whoever gets a lock sees on his node what was written under it
// by those who gave it back, and what holders, lost as they may be now, had
// acknowledged before he asked; and nothing of later holders while he holds it.
func checkSightings(holds []*hold, r resource) (wrong []string) {
	place := map[string]int{} // of a write, from 1
	for i, e := range r.journal {
		place[e.id] = i + 1
	}
	var acked []fencedWrite
	for _, x := range holds {
		for _, w := range x.writes {
			if w.outcome == committed && w.accepted && w.ret <= x.until {
				acked = append(acked, w)
			}
		}
	}
	slices.SortFunc(acked, func(a, b fencedWrite) int { return cmp.Compare(a.ret, b.ret) })
	there := make([]int, len(acked)+1) // so many at least, when so many are acknowledged
	for i, w := range acked {
		there[i+1] = max(there[i], place[w.id])
	}
	given := 0 // how many are there when the holds so far were given back
	for _, x := range slices.SortedFunc(slices.Values(holds), byToken) {
		if s := x.saw; s != nil {
			before, _ := slices.BinarySearchFunc(acked, x.called, func(w fencedWrite, at int64) int { return cmp.Compare(w.ret, at) })
			least := max(given, there[before])
			if s.writes < least {
				wrong = append(wrong, fmt.Sprintf("%v: it saw %d writes, there were %d", x, s.writes, least))
			}
			if s.token > x.token && s.at <= x.until {
				wrong = append(wrong, fmt.Sprintf("%v: it saw a write with token %d while it held", x, s.token))
			}
		}
		if x.end != unlocked {
			continue
		}
		for _, w := range x.writes {
			if w.outcome == committed && w.accepted {
				given = max(given, place[w.id])
			}
		}
	}
	return wrong
}

// checkErrors: errors are those that may be, and there is a reason for each.
func (h *fenceHistory) checkErrors() (wrong []string) {
	for _, m := range h.misses {
		kind := lockKindOf(m.err)
		if m.hurried && kind == "timed out" || (kind == "killed" || kind == "closed") && h.harmed(m.node, m.called, m.till) {
			continue
		}
		wrong = append(wrong, fmt.Sprintf("worker %d of node %d, at %d to %d us: Lock: %v", m.worker, m.node, m.called/1000, m.till/1000, m.err))
	}
	for _, x := range h.holds {
		ok := x.end == unlocked
		switch lockKindOf(x.err) {
		case "killed", "closed":
			ok = h.harmed(x.node, x.at, x.ended)
		case "lost", "timed out", "not released":
			// If it is short, others may be harmed: who leads, or who shares
			// the processor.
			ok = h.harmed(x.node, x.at, x.ended) || x.ttl <= shortTTL && h.harm(x.at, x.ended) != nil
		}
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%v ended at %d us: %v", x, x.ended/1000, x.err))
		}
	}
	return wrong
}

// shortTTL is up to which time to live the bystanders of a fault may lose locks:
// an election takes about half a second.
const shortTTL = 2 * time.Second

// harmed tells whether a fault has harmed the node at that time.
func (h *fenceHistory) harmed(node uint64, from, to int64) bool {
	return slices.ContainsFunc(h.faults, func(f fault) bool { return f.nodes[node] && f.from <= to && from <= f.to })
}

// lockKindOf names an error of Lock and Unlock. That of one which must not
// happen is empty.
func lockKindOf(err error) string {
	var r *refusal
	switch {
	case err == nil:
		return "unlocked"
	case errors.Is(err, errDied):
		return "killed"
	case !errors.As(err, &r):
		return ""
	case r.Closed:
		return "closed"
	case r.Lost:
		return "lost"
	case r.Context: // with ErrNoLeader and ErrOutcomeUnknown, or without
		return "timed out"
	case r.Unknown, r.NoLeader: // of an Unlock that gave up when TTL had passed
		return "not released"
	}
	return ""
}
