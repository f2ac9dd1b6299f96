package consistency_test

import "fmt"

// A bankHistory is what was seen of a bank.
type bankHistory struct {
	accounts, opening int
	transfers         []transfer
	looks             []look
	last              bankStatement
}

// A transfer as its worker knows it.
type transfer struct {
	id       string
	node     uint64
	src, dst int
	amount   int
	refused  bool // nothing was to be moved, though nothing failed
	outcome  outcome
	error    string
}

// A look is what one read, or one transaction that reads, saw.
type look struct {
	node         uint64
	linearizable bool
	acked        int64 // transfers acknowledged before it
	totals       []int
	least        int
	journal      []int // its length
	wrong        []string
}

// An entry of the journal.
type entry struct {
	id               string
	src, dst, amount int
}

// A bankStatement is what a node holds.
type bankStatement struct {
	balances map[int]int
	journal  []entry
}

// checkLooks judges what was seen meanwhile.
func (h *bankHistory) checkLooks() (wrong []string) {
	fault := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	total := h.accounts * h.opening
	for _, k := range h.looks {
		for i := range k.totals {
			if k.totals[i] != total {
				fault("node %d saw %d in all, there are %d", k.node, k.totals[i], total)
			}
			if k.journal[i] != k.journal[0] {
				fault("node %d saw %d entries of the journal, then %d, in one transaction", k.node, k.journal[0], k.journal[i])
			}
			if k.linearizable && int64(k.journal[i]) < k.acked {
				fault("node %d saw %d transfers in a linearizable read, after %d were acknowledged", k.node, k.journal[i], k.acked)
			}
		}
		if k.least < 0 {
			fault("node %d saw a balance of %d", k.node, k.least)
		}
		if len(k.wrong) > 0 {
			fault("node %d saw balances of the accounts %v that were not those of the journal", k.node, k.wrong)
		}
	}
	return wrong
}

// checkLast judges what was left in the end.
func (h *bankHistory) checkLast() (wrong []string) {
	fault := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	found := map[string]int{}
	balances := map[int]int{}
	for id := range h.accounts {
		balances[id] = h.opening
	}
	entries := map[string]entry{}
	for _, e := range h.last.journal {
		found[e.id]++
		entries[e.id] = e
		balances[e.src] -= e.amount
		balances[e.dst] += e.amount
	}
	for id, want := range balances {
		if got := h.last.balances[id]; got != want || want < 0 {
			fault("account %d holds %d, by the journal %d", id, got, want)
		}
	}
	if len(h.last.balances) != h.accounts {
		fault("there are %d accounts", len(h.last.balances))
	}
	known := map[string]bool{}
	for _, t := range h.transfers {
		known[t.id] = true
		n := found[t.id]
		switch {
		case n > 1:
			fault("transfer %s through node %d was applied %d times (%s)", t.id, t.node, n, t.error)
		case t.refused && n > 0:
			fault("transfer %s through node %d was rolled back, and is there", t.id, t.node)
		case t.outcome == committed && !t.refused && n == 0:
			fault("transfer %s through node %d was acknowledged and is lost", t.id, t.node)
		case t.outcome == aborted && n > 0:
			fault("transfer %s through node %d failed and is there: %s", t.id, t.node, t.error)
		}
		if e := entries[t.id]; n > 0 && e != (entry{t.id, t.src, t.dst, t.amount}) {
			fault("transfer %v became %v", t, e)
		}
	}
	for id := range found {
		if !known[id] {
			fault("nobody made the transfer %s", id)
		}
	}
	return wrong
}
