package consistency_test

import "fmt"

// A bankHistory is what the workers and auditors of a bank did and saw.
type bankHistory struct {
	accounts, opening int
	transfers         []transfer
	readings          []reading
	last              bankStatement
}

// A transfer is one transfer, as its worker saw it.
type transfer struct {
	id       string
	node     uint64
	src, dst int
	amount   int
	refused  bool // no money was moved, without an error
	outcome  outcome
	error    string
}

// A reading is what one query, or one read-only transaction, saw.
type reading struct {
	node         uint64
	linearizable bool
	acked        int64    // the number of transfers that were acknowledged before it began
	totals       []int    // the sum of all accounts, by query
	least        int      // the lowest balance in the last query
	journal      []int    // the length of the journal, by query
	wrong        []string // accounts whose balance is not that of the journal
}

// An entry is an entry of the journal.
type entry struct {
	id               string
	src, dst, amount int
}

// A bankStatement is the final rows of a node.
type bankStatement struct {
	balances map[int]int
	journal  []entry
}

// checkReadings checks what was read during the run.
func (h *bankHistory) checkReadings() (wrong []string) {
	fault := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	total := h.accounts * h.opening
	for _, k := range h.readings {
		for i := range k.totals {
			if k.totals[i] != total {
				fault("node %d saw a total of %d, there is %d", k.node, k.totals[i], total)
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
			fault("node %d saw balances of the accounts %v that differ from the journal", k.node, k.wrong)
		}
	}
	return wrong
}

// checkLast checks the final rows.
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
			fault("account %d has %d, by the journal %d", id, got, want)
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
			fault("transfer %s through node %d was rolled back, and is in the journal", t.id, t.node)
		case t.outcome == committed && !t.refused && n == 0:
			fault("transfer %s through node %d was acknowledged and is lost", t.id, t.node)
		case t.outcome == aborted && n > 0:
			fault("transfer %s through node %d failed and is in the journal: %s", t.id, t.node, t.error)
		}
		if e := entries[t.id]; n > 0 && e != (entry{t.id, t.src, t.dst, t.amount}) {
			fault("transfer %v became %v", t, e)
		}
	}
	for id := range found {
		if !known[id] {
			fault("no worker made the transfer %s", id)
		}
	}
	return wrong
}
