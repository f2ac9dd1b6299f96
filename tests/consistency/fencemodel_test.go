package consistency_test

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A hold is what a worker did with a lock between Lock and Unlock. Times are values
// of clock.
type hold struct {
	worker int
	node   uint64
	ttl    time.Duration
	key    string
	token  uint64

	called       int64 // Lock was called
	queued       int64 // the waiter was in the queue at this time at the latest; 0: unknown
	at           int64 // Lock returned
	until        int64 // the holder certainly believed until then that it held the lock; 0: maybe it never did
	unlockCalled int64 // 0: unknown
	end          holdEnd
	ended        int64 // Unlock returned, or the process was found dead
	err          error // the error of Unlock

	saw    *sighting // what the holder read first, on its node; nil: the read failed
	writes []fencedWrite
}

type holdEnd int

const (
	unlocked holdEnd = iota // Unlock returned nil
	lost                    // Unlock returned ErrLost
	failed                  // Unlock returned another error, or could not be called
)

func (h *hold) String() string {
	return fmt.Sprintf("the hold of %s by worker %d of node %d, token %d, from %d to %d us", h.key, h.worker, h.node, h.token, h.at/1000, h.until/1000)
}

// A sighting is what a holder read from the resource.
type sighting struct {
	at     int64 // the read returned
	token  uint64
	writes int // the number of all writes until then
}

// A fencedWrite is a write of the resource that a lock guards.
type fencedWrite struct {
	id        string
	call, ret int64
	outcome   outcome
	accepted  bool // if the write is committed: the resource accepted its token
}

// A miss is a Lock, or TryLock, that returned an error.
type miss struct {
	worker       int
	node         uint64
	called, till int64
	hurried      bool // its context had a short timeout
	err          error
}

// A fault is an injected fault. It explains errors between its times.
type fault struct {
	name     string
	nodes    map[uint64]bool // the nodes that it affects directly
	from, to int64
}

// A resource is the final state of what a lock guards.
type resource struct {
	token   uint64 // the token of the last write
	writes  int
	journal []journalEntry // the accepted writes, in their order
}

type journalEntry struct {
	id    string
	token uint64
}

// A fenceHistory is what happened to locks and to the resources that they guard.
type fenceHistory struct {
	holds     []*hold
	misses    []miss
	faults    []fault
	resources map[string]resource
}

// check returns the violations that it finds in the history.
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

// checkTokens checks that each hold of a key has a higher token than those that
// began before it.
func checkTokens(holds []*hold) (wrong []string) {
	holds = slices.SortedFunc(slices.Values(holds), byToken)
	for i := 1; i < len(holds); i++ {
		if holds[i].token == holds[i-1].token {
			wrong = append(wrong, fmt.Sprintf("%v and %v have the same token", holds[i-1], holds[i]))
		}
	}
	// Among the holds with higher tokens: the one that began first, and the one
	// whose Lock returned first.
	var began, returned *hold
	for _, x := range slices.Backward(holds) {
		switch {
		case returned != nil && returned.at < x.called:
			wrong = append(wrong, fmt.Sprintf("%v was requested after %v had begun, and has a lower token", x, returned))
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

// checkExclusion checks that no two holders believed at the same time that they held
// a lock. A holder that is cut off learns of its loss before the next hold begins.
// What a paused holder believes does not count: its until is before the pause.
func checkExclusion(holds []*hold) (wrong []string) {
	holds = slices.DeleteFunc(slices.Clone(holds), func(x *hold) bool { return x.until == 0 })
	slices.SortFunc(holds, func(a, b *hold) int { return cmp.Compare(a.at, b.at) })
	var last *hold // among the holds that began before, the one that ends last
	for _, x := range holds {
		if last != nil && x.at <= last.until {
			wrong = append(wrong, fmt.Sprintf("%v began during %v", x, last))
		}
		if last == nil || x.until > last.until {
			last = x
		}
	}
	return wrong
}

// checkUnlocks checks that Unlock returned ErrLost if it was called after the next
// hold had begun.
func checkUnlocks(holds []*hold) (wrong []string) {
	var next *hold // among the holds with higher tokens, the one that began first
	for _, x := range slices.Backward(slices.SortedFunc(slices.Values(holds), byToken)) {
		if next != nil && x.end == unlocked && next.at < x.unlockCalled {
			wrong = append(wrong, fmt.Sprintf("%v was unlocked at %d us without an error, after %v had begun", x, x.unlockCalled/1000, next))
		}
		if next == nil || x.at < next.at {
			next = x
		}
	}
	return wrong
}

// checkQueue checks that a waiter that was in the queue before another one asked for
// the lock got the lock first. Waiters that waited during a fault do not count,
// because they may have lost their places in the queue.
func (h *fenceHistory) checkQueue(holds []*hold) (wrong []string) {
	var first *hold // among the holds with higher tokens, the one that was in the queue first
	for _, x := range slices.Backward(slices.SortedFunc(slices.Values(holds), byToken)) {
		if first != nil && first.queued < x.called {
			wrong = append(wrong, fmt.Sprintf("%v was requested when %v was in the queue, and began first", x, first))
		}
		if x.queued != 0 && h.faultBetween(x.called, x.at) == nil && (first == nil || x.queued < first.queued) {
			first = x
		}
	}
	return wrong
}

// faultBetween returns a fault that overlaps a time, or nil.
func (h *fenceHistory) faultBetween(from, to int64) *fault {
	for i := range h.faults {
		if f := &h.faults[i]; f.from <= to && from <= f.to {
			return f
		}
	}
	return nil
}

// checkWrites checks that the resource has exactly the writes that it accepted, that
// it accepted tokens in their order only, and that it refused no write of a holder
// that still held the lock.
func checkWrites(key string, holds []*hold, r resource) (wrong []string) {
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	tokens := map[string]uint64{} // by write
	last := uint64(0)
	for i, e := range r.journal {
		if e.token < last {
			complain("%s: a write with token %d was accepted after one with %d", key, e.token, last)
		}
		last = e.token
		if tokens[e.id] != 0 {
			complain("%s: write %s, the %dth, was applied before", key, e.id, i+1)
		}
		tokens[e.id] = e.token
	}
	if r.token != last || r.writes != len(r.journal) {
		complain("%s: there were %d writes, the last one with token %d; in the journal there are %d, the last one with token %d", key, r.writes, r.token, len(r.journal), last)
	}
	for _, x := range holds {
		for _, w := range x.writes {
			token, there := tokens[w.id]
			delete(tokens, w.id)
			switch {
			case there && token != x.token:
				complain("%v: its write %s was applied with token %d", x, w.id, token)
			case there && w.outcome == aborted:
				complain("%v: its write %s failed, and was applied", x, w.id)
			case there && w.outcome == committed && !w.accepted:
				complain("%v: its write %s was refused, and was applied", x, w.id)
			case !there && w.outcome == committed && w.accepted:
				complain("%v: its write %s is lost", x, w.id)
			case w.outcome == committed && !w.accepted && w.ret <= x.until:
				complain("%v: its write %s was refused while it held the lock", x, w.id)
			}
		}
	}
	for id := range tokens {
		complain("%s: no worker made the write %s", key, id)
	}
	return wrong
}

// checkSightings checks what a holder reads on its node. It must see the writes of
// all earlier holders that released the lock without an error, and all writes that
// were acknowledged to a holder before the lock was requested, even if that holder
// lost the lock later. It must not see writes of later holders while it holds the
// lock.
func checkSightings(holds []*hold, r resource) (wrong []string) {
	position := map[string]int{} // of a write in the journal, from 1
	for i, e := range r.journal {
		position[e.id] = i + 1
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
	least := make([]int, len(acked)+1) // how many writes there are at least, by the number of acknowledged ones
	for i, w := range acked {
		least[i+1] = max(least[i], position[w.id])
	}
	released := 0 // how many writes there are after the holds that were released so far
	for _, x := range slices.SortedFunc(slices.Values(holds), byToken) {
		if s := x.saw; s != nil {
			before, _ := slices.BinarySearchFunc(acked, x.called, func(w fencedWrite, at int64) int { return cmp.Compare(w.ret, at) })
			want := max(released, least[before])
			if s.writes < want {
				wrong = append(wrong, fmt.Sprintf("%v: it saw %d writes, there were %d", x, s.writes, want))
			}
			if s.token > x.token && s.at <= x.until {
				wrong = append(wrong, fmt.Sprintf("%v: it saw a write with token %d while it held the lock", x, s.token))
			}
		}
		if x.end != unlocked {
			continue
		}
		for _, w := range x.writes {
			if w.outcome == committed && w.accepted {
				released = max(released, position[w.id])
			}
		}
	}
	return wrong
}

// checkErrors checks that a fault, or a short timeout, explains each error.
func (h *fenceHistory) checkErrors() (wrong []string) {
	for _, m := range h.misses {
		kind := lockKindOf(m.err)
		if m.hurried && kind == "timed out" || (kind == "killed" || kind == "closed") && h.affected(m.node, m.called, m.till) {
			continue
		}
		wrong = append(wrong, fmt.Sprintf("worker %d of node %d, at %d to %d us: Lock: %v", m.worker, m.node, m.called/1000, m.till/1000, m.err))
	}
	for _, x := range h.holds {
		ok := x.end == unlocked
		switch lockKindOf(x.err) {
		case "killed", "closed":
			ok = h.affected(x.node, x.at, x.ended)
		case "lost", "timed out", "not released":
			// A lock with a short TTL may also be lost on other nodes: by an
			// election, or because the nodes share the processor.
			ok = h.affected(x.node, x.at, x.ended) || x.ttl <= shortTTL && h.faultBetween(x.at, x.ended) != nil
		}
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%v ended at %d us: %v", x, x.ended/1000, x.err))
		}
	}
	return wrong
}

// shortTTL is the longest TTL with which nodes that a fault does not affect directly
// may lose locks. An election takes about half a second.
const shortTTL = 2 * time.Second

// affected reports whether a fault affected the node directly at a time.
func (h *fenceHistory) affected(node uint64, from, to int64) bool {
	return slices.ContainsFunc(h.faults, func(f fault) bool { return f.nodes[node] && f.from <= to && from <= f.to })
}

// lockKindOf returns a name for an error of Lock or Unlock, or "" for an error that
// must not happen.
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
	case r.Unknown, r.NoLeader: // from an Unlock that gave up when the TTL had passed
		return "not released"
	}
	return ""
}
