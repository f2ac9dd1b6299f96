package consistency_test

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// goodFences returns a correct history of six holders of one lock. The third one is
// paused, and the fourth one gets the lock meanwhile; the fifth one is cut off.
func goodFences() (h *fenceHistory, holds []*hold) {
	write := func(id string, call, ret int64) fencedWrite {
		return fencedWrite{id: id, call: call, ret: ret, outcome: committed, accepted: true}
	}
	tooLate := &refusal{Text: "lost", Lost: true}
	holds = []*hold{
		{node: 1, token: 10, called: 1, at: 2, until: 9, unlockCalled: 9, ended: 10, saw: &sighting{3, 0, 0}, writes: []fencedWrite{write("a", 4, 5), write("b", 6, 7)}},
		{node: 2, token: 11, called: 3, queued: 4, at: 11, until: 19, unlockCalled: 19, ended: 20, saw: &sighting{12, 10, 2}, writes: []fencedWrite{write("c", 13, 14)}},
		{node: 3, token: 12, called: 5, queued: 6, at: 21, until: 23, unlockCalled: 48, ended: 49, end: lost, err: tooLate, saw: &sighting{22, 11, 3},
			writes: []fencedWrite{write("d", 22, 23), {id: "e", call: 24, ret: 47, outcome: committed}}},
		{node: 1, token: 13, called: 7, queued: 8, at: 31, until: 39, unlockCalled: 39, ended: 40, saw: &sighting{32, 12, 4}, writes: []fencedWrite{write("f", 33, 34)}},
		{node: 2, token: 14, called: 35, queued: 36, at: 51, until: 53, unlockCalled: 59, ended: 60, end: lost, err: tooLate, saw: &sighting{52, 13, 5},
			writes: []fencedWrite{{id: "g", call: 53, ret: 70, outcome: unknown}}},
		{node: 3, token: 15, called: 36, queued: 37, at: 54, until: 61, unlockCalled: 61, ended: 62, saw: &sighting{55, 13, 5}, writes: []fencedWrite{write("h", 56, 57)}},
	}
	for _, x := range holds {
		x.key, x.ttl = "k", longTTL
	}
	return &fenceHistory{
		holds: holds,
		misses: []miss{
			{node: 1, called: 1, till: 2, hurried: true, err: &refusal{Text: "too late", Context: true}},
			{node: 3, called: 23, till: 24, err: errDied},
		},
		faults: []fault{
			{nodes: map[uint64]bool{3: true}, from: 23, to: 47},
			{nodes: map[uint64]bool{2: true}, from: 52, to: 70},
		},
		resources: map[string]resource{"k": {15, 6, []journalEntry{{"a", 10}, {"b", 10}, {"c", 11}, {"d", 12}, {"f", 13}, {"h", 15}}}},
	}, holds
}

// The model of locks finds each kind of violation, and accepts correct histories.
func TestFenceModel(t *testing.T) {
	journal := func(h *fenceHistory, change func(*resource)) {
		r := h.resources["k"]
		r.journal = append([]journalEntry(nil), r.journal...)
		change(&r)
		r.writes, r.token = len(r.journal), r.journal[len(r.journal)-1].token
		h.resources["k"] = r
	}
	insert := func(h *fenceHistory, at int, e journalEntry) {
		journal(h, func(r *resource) {
			r.journal = append(r.journal[:at:at], append([]journalEntry{e}, r.journal[at:]...)...)
		})
	}
	for _, c := range []struct {
		name  string
		spoil func(*fenceHistory, []*hold)
		want  string // part of the violation; "": there is none
	}{
		{"good", func(*fenceHistory, []*hold) {}, ""},
		{"a write with an unknown outcome was applied", func(h *fenceHistory, x []*hold) { insert(h, 5, journalEntry{"g", 14}) }, ""},
		{"a killed holder", func(h *fenceHistory, x []*hold) { x[4].end, x[4].err = failed, errDied }, ""},
		{"lost on a node without a fault, with a short TTL", func(h *fenceHistory, x []*hold) {
			x[5].ttl, x[5].end, x[5].err = time.Second, lost, &refusal{Lost: true}
		}, ""},
		{"paused when Lock returned", func(h *fenceHistory, x []*hold) { x[2].until, x[2].at = 0, 33 }, ""},
		{"a read sees more than was there before Lock", func(h *fenceHistory, x []*hold) { x[1].saw.writes = 3 }, ""},
		{"a read after the lock was lost", func(h *fenceHistory, x []*hold) { *x[2].saw = sighting{35, 13, 5} }, ""},

		{"the same token", func(h *fenceHistory, x []*hold) { x[1].token = 10 }, "the same token"},
		{"a lower token than before", func(h *fenceHistory, x []*hold) { x[0].token, x[1].token = 11, 10 }, "has a lower token"},
		{"a lower token than before, of a paused holder", func(h *fenceHistory, x []*hold) {
			x[2].until, x[2].called, x[2].queued = 0, 12, 0
			x[1].token, x[2].token = 12, 11
		}, "was requested after"},
		{"two holders", func(h *fenceHistory, x []*hold) { x[1].at = 8 }, "began during"},
		{"two holders, one during the other", func(h *fenceHistory, x []*hold) { x[5].at, x[5].until = 56, 57; x[4].until = 58 }, "began during"},
		{"two holders, before one is paused", func(h *fenceHistory, x []*hold) { x[2].until = 31 }, "began during"},
		{"cut off, and Done closed too late", func(h *fenceHistory, x []*hold) { x[4].until = 54 }, "began during"},
		{"a lost lock was unlocked without an error", func(h *fenceHistory, x []*hold) { x[2].end, x[2].err = unlocked, nil }, "was unlocked at"},
		{"overtaken", func(h *fenceHistory, x []*hold) { x[1].called, x[1].queued = 7, 8 }, "began first"},
		{"overtaken during a fault", func(h *fenceHistory, x []*hold) {
			h.faults[0].from = 5
			x[1].called, x[1].queued = 7, 8
		}, ""},

		{"refused while the lock was held", func(h *fenceHistory, x []*hold) {
			x[1].writes[0].accepted = false
			journal(h, func(r *resource) { r.journal = append(r.journal[:2:2], r.journal[3:]...) })
		}, "was refused while it held the lock"},
		{"an old token was accepted", func(h *fenceHistory, x []*hold) {
			x[2].writes[1].accepted = true
			insert(h, 5, journalEntry{"e", 12})
		}, "was accepted after one with"},
		{"refused, and applied", func(h *fenceHistory, x []*hold) { insert(h, 4, journalEntry{"e", 12}) }, "was refused, and was applied"},
		{"failed, and applied", func(h *fenceHistory, x []*hold) { x[1].writes[0].outcome = aborted }, "failed, and was applied"},
		{"lost", func(h *fenceHistory, x []*hold) {
			journal(h, func(r *resource) { r.journal = r.journal[:5] })
		}, "is lost"},
		{"twice", func(h *fenceHistory, x []*hold) { insert(h, 1, journalEntry{"a", 10}) }, "was applied before"},
		{"a write of no worker", func(h *fenceHistory, x []*hold) { insert(h, 1, journalEntry{"z", 10}) }, "no worker made"},
		{"with another token", func(h *fenceHistory, x []*hold) {
			journal(h, func(r *resource) { r.journal[1].token = 11 })
		}, "was applied with token"},
		{"the resource and its journal differ", func(h *fenceHistory, x []*hold) {
			r := h.resources["k"]
			r.writes++
			h.resources["k"] = r
		}, "in the journal"},

		{"a read misses a write of an earlier holder", func(h *fenceHistory, x []*hold) { x[1].saw.writes = 1 }, "it saw 1 writes"},
		{"a read misses an acknowledged write of a holder that lost the lock", func(h *fenceHistory, x []*hold) { x[3].called, x[3].queued, x[3].saw.writes = 24, 25, 3 }, "it saw 3 writes"},
		{"a read sees a write of a later holder", func(h *fenceHistory, x []*hold) { x[4].saw.token, x[4].saw.writes = 15, 6 }, "it saw a write with token 15"},

		{"lost without a fault", func(h *fenceHistory, x []*hold) { h.faults = h.faults[:1] }, "ended at"},
		{"lost on a node without a fault", func(h *fenceHistory, x []*hold) { h.faults[1].nodes = map[uint64]bool{1: true} }, "ended at"},
		{"killed without a fault", func(h *fenceHistory, x []*hold) { x[1].end, x[1].err = failed, errDied }, "ended at"},
		{"an error that must not happen", func(h *fenceHistory, x []*hold) { x[4].end, x[4].err = failed, &refusal{Text: "not held"} }, "ended at"},
		{"a timeout that was not short", func(h *fenceHistory, x []*hold) { h.misses[0].hurried = false }, "Lock: too late"},
		{"no lock without a fault", func(h *fenceHistory, x []*hold) { h.misses[1].node = 1 }, "Lock: the node's process"},
		{"Lock returned an error that must not happen", func(h *fenceHistory, x []*hold) { h.misses[1].err = errors.New("surprise") }, "Lock: surprise"},
	} {
		h, holds := goodFences()
		c.spoil(h, holds)
		wrong := strings.Join(h.check(), "\n")
		if c.want == "" && wrong != "" || !strings.Contains(wrong, c.want) {
			t.Errorf("%s: %q, want %q", c.name, wrong, c.want)
		}
	}
}
