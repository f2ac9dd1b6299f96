package consistency_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// An appendTxn is a transaction of the list-append traffic.
type appendTxn struct {
	worker, life int
	kind         string
	strict       bool // it is ordered in real time with all transactions, not only with those of its process
	ops          []appendOp
	undone       []int // values that it appended and rolled back
	call, ret    int64 // nanoseconds
	outcome      outcome
	rolledBack   bool // the client rolled it back
	error        string
}

// never is the time of return of an operation that did not return.
const never = math.MaxInt64

// An appendOp appends a value to a list, or reads the list.
type appendOp struct {
	key, value int
	read       bool
	list       []int
}

func (x *appendTxn) writes() bool {
	return slices.ContainsFunc(x.ops, func(op appendOp) bool { return !op.read })
}

func (x *appendTxn) String() string {
	var ops []string
	for _, op := range x.ops {
		if op.read {
			list := fmt.Sprint(op.list)
			if len(op.list) > 4 {
				list = fmt.Sprintf("[... %v]", op.list[len(op.list)-4:])
			}
			ops = append(ops, fmt.Sprintf("r(%d)=%s", op.key, list))
		} else {
			ops = append(ops, fmt.Sprintf("a(%d,%d)", op.key, op.value))
		}
	}
	end := "never"
	if x.ret != never {
		end = fmt.Sprint(x.ret / 1000)
	}
	return fmt.Sprintf("{%s of worker %d in process %d, %d..%s us, outcome %d: %s%s}",
		x.kind, x.worker, x.life, x.call/1000, end, x.outcome, strings.Join(ops, " "), x.error)
}

// appendCheck is the check of one history. It first finds out which transactions
// were applied, and then in which order they must have happened.
type appendCheck struct {
	txns   []appendTxn
	final  map[int][]int
	writer map[int]int // for each value, the index in txns of the transaction that appended it
	seen   []bool      // by transaction: it was applied
	graph  graph
	wrong  []string
}

// checkAppends checks that there is an order in which the transactions can have
// happened one after the other. The reads of failed transactions must fit into this
// order too, and nobody must see the appends of failed transactions.
func checkAppends(txns []appendTxn, final map[int][]int) []string {
	c := &appendCheck{txns: txns, final: final, writer: map[int]int{}, seen: make([]bool, len(txns))}
	c.applied()
	if len(c.wrong) > 0 {
		return c.wrong
	}
	c.graph.grow(len(txns))
	c.versions()
	for i := range txns {
		c.reads(i)
	}
	if len(c.wrong) > 0 {
		return c.wrong
	}
	c.realTime(func(x *appendTxn) bool { return x.strict && x.outcome != aborted })
	lives := map[int]bool{}
	for i := range txns {
		lives[txns[i].life] = true
	}
	for life := range lives {
		c.realTime(func(x *appendTxn) bool { return x.life == life })
	}
	for _, cycle := range c.graph.cycles() {
		text := "these cannot have happened one after the other:"
		for i, e := range cycle {
			if e.from < len(txns) {
				text += "\n\t" + txns[e.from].String()
			}
			if e.why != "" && (e.why != realTimeWhy || i == 0 || cycle[i-1].why != realTimeWhy) {
				text += "\n\t\t-> " + e.why
			}
		}
		c.fault("%s", text)
	}
	return c.wrong
}

func (c *appendCheck) fault(format string, args ...any) {
	c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
}

// applied finds out which transactions were applied, and checks that each was
// applied either once and wholly, or not at all.
func (c *appendCheck) applied() {
	undone := map[int]int{}
	for i := range c.txns {
		for _, op := range c.txns[i].ops {
			if !op.read {
				c.writer[op.value] = i
			}
		}
		for _, value := range c.txns[i].undone {
			undone[value] = i
		}
	}
	inFinal := map[int]bool{}
	for key, list := range c.final {
		for _, value := range list {
			i, ok := c.writer[value]
			switch {
			case inFinal[value]:
				c.fault("%d was appended twice: %v", value, &c.txns[i])
			case !ok:
				if i, ok := undone[value]; ok {
					c.fault("%d was rolled back and is there: %v", value, &c.txns[i])
				} else {
					c.fault("nobody appended %d to %d", value, key)
				}
				continue
			case c.txns[i].outcome == aborted:
				c.fault("%d is there although its transaction failed: %v", value, &c.txns[i])
			}
			inFinal[value] = true
			c.seen[i] = true
		}
	}
	for i := range c.txns {
		x := &c.txns[i]
		for _, op := range x.ops {
			if !op.read && !inFinal[op.value] && (x.outcome == committed || c.seen[i]) {
				c.fault("%d is missing: %v", op.value, x)
			}
		}
		if x.outcome == committed {
			c.seen[i] = true
		}
	}
}

// versions adds the edges between transactions that appended one after the other to
// the same list.
func (c *appendCheck) versions() {
	for key, list := range c.final {
		for n := 1; n < len(list); n++ {
			c.graph.add(c.writer[list[n-1]], c.writer[list[n]], fmt.Sprintf("%d before %d in list %d", list[n-1], list[n], key))
		}
	}
}

// reads adds the edges that follow from the reads of transaction i: to the
// transactions whose appends it read, and to the first one whose append it did not
// read. It must read a prefix of the final list, and after that what it appended
// itself.
func (c *appendCheck) reads(i int) {
	x := &c.txns[i]
	appended, prefix := map[int][]int{}, map[int]int{}
	for _, op := range x.ops {
		if !op.read {
			appended[op.key] = append(appended[op.key], op.value)
			continue
		}
		final, n := c.final[op.key], len(op.list)-len(appended[op.key])
		if n < 0 || !slices.Equal(op.list[n:], appended[op.key]) {
			c.fault("it did not read what it appended to %d, %v: %v read %v", op.key, appended[op.key], x, op.list)
			continue
		}
		if n > len(final) || !slices.Equal(op.list[:n], final[:n]) {
			c.fault("it read of %d what never was there: %v read %v of %v", op.key, x, op.list, final)
			continue
		}
		if first, ok := prefix[op.key]; ok && first != n {
			c.fault("others appended to %d between two reads of it: %v", op.key, x)
		}
		prefix[op.key] = n
		if n > 0 {
			c.graph.add(c.writer[final[n-1]], i, fmt.Sprintf("which read %d in list %d", final[n-1], op.key))
		}
		if n < len(final) {
			c.graph.add(i, c.writer[final[n]], fmt.Sprintf("which appended %d to list %d, not read before", final[n], op.key))
		}
	}
}

const realTimeWhy = "returned before the call of"

// realTime adds the edges between transactions of which one returned before the other
// was called, if selected returns true for both. Instead of an edge for each pair, it
// adds a node for each return, a moment, and connects the moments to a chain.
func (c *appendCheck) realTime(selected func(*appendTxn) bool) {
	type event struct {
		at   int64
		txn  int
		call bool
	}
	var events []event
	for i := range c.txns {
		x := &c.txns[i]
		if !selected(x) || x.outcome == unknown && !c.seen[i] {
			continue
		}
		events = append(events, event{x.call, i, true})
		if x.ret != never {
			events = append(events, event{x.ret, i, false})
		}
	}
	slices.SortFunc(events, func(a, b event) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		case a.call && !b.call: // at the same time: neither is before the other
			return -1
		case b.call && !a.call:
			return 1
		}
		return a.txn - b.txn
	})
	moment := -1
	for _, e := range events {
		if e.call {
			if moment >= 0 {
				c.graph.add(moment, e.txn, "")
			}
			continue
		}
		next := c.graph.grow(1)
		if moment >= 0 {
			c.graph.add(moment, next, "")
		}
		c.graph.add(e.txn, next, realTimeWhy)
		moment = next
	}
}
