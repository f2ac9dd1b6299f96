package consistency_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// appendHistory parses a list-append history. It has a line for each transaction:
// the times of its call and its return (- for never), its outcome, and its
// operations. "local" makes the transaction a local snapshot, and "node=1" one of
// node 1.
func appendHistory(t *testing.T, text string) (txns []appendTxn) {
	t.Helper()
	for line := range strings.Lines(strings.TrimSpace(text)) {
		fields := strings.Fields(line)
		x := appendTxn{worker: len(txns), life: 1 + len(txns), kind: "transaction", strict: true}
		fmt.Sscan(fields[0], &x.call)
		x.ret = never
		if fields[1] != "-" {
			fmt.Sscan(fields[1], &x.ret)
		}
		x.outcome = map[string]outcome{"ok": committed, "fail": aborted, "maybe": unknown}[fields[2]]
		for _, f := range fields[3:] {
			op := appendOp{}
			switch {
			case f == "local":
				x.strict = false
				continue
			case strings.HasPrefix(f, "node="):
				fmt.Sscanf(f, "node=%d", &x.life)
				x.life = -x.life
				continue
			case strings.HasPrefix(f, "a"):
				fmt.Sscanf(f, "a%d+%d", &op.key, &op.value)
			default:
				op.read = true
				key, list, _ := strings.Cut(f[1:], "=")
				op.key = number(key)
				var err error
				if op.list, err = parseList(list); err != nil {
					t.Fatal(err)
				}
			}
			x.ops = append(x.ops, op)
		}
		txns = append(txns, x)
	}
	return txns
}

// The checker of list-append histories finds each kind of violation, and accepts
// correct histories.
func TestAppendModel(t *testing.T) {
	for _, c := range []struct {
		name    string
		history string
		final   map[int][]int
		want    string // part of the violation; "": there is none
	}{
		{"one after the other", "0 1 ok a1+1\n2 3 ok r1=1, a1+2\n4 5 ok r1=1,2,", map[int][]int{1: {1, 2}}, ""},
		{"concurrent", "0 9 ok a1+1\n0 9 ok r1= a1+2\n0 9 ok r1=2,", map[int][]int{1: {2, 1}}, ""},
		{"own appends", "0 1 ok a1+1 a1+2 r1=1,2,", map[int][]int{1: {1, 2}}, ""},
		{"stale snapshot", "0 1 ok a1+1\n2 3 ok local r1=", map[int][]int{1: {1}}, ""},
		{"unknown, applied", "0 - maybe a1+1\n5 6 ok r1=1,", map[int][]int{1: {1}}, ""},
		{"unknown, applied later", "0 - maybe a1+1\n5 6 ok r1=", map[int][]int{1: {1}}, ""},
		{"unknown, not applied", "0 - maybe a1+1\n5 6 ok r1=", nil, ""},

		{"lost", "0 1 ok a1+1", nil, "is missing"},
		{"twice", "0 1 ok a1+1", map[int][]int{1: {1, 1}}, "appended twice"},
		{"a value that nobody appended", "0 1 ok r1=", map[int][]int{1: {1}}, "nobody appended"},
		{"a failed one was applied", "0 1 fail a1+1", map[int][]int{1: {1}}, "its transaction failed"},
		{"one half of a transaction", "0 - maybe a1+1 a2+2", map[int][]int{1: {1}}, "is missing"},
		{"dirty read", "0 1 fail a1+1\n0 1 ok r1=1,", nil, "never was"},
		{"wrong read of a failed transaction", "0 1 ok a1+1\n0 1 ok a1+2\n0 9 fail local r1=2,", map[int][]int{1: {1, 2}}, "never was"},
		{"without the transaction's appends", "0 1 ok a1+1 r1=", map[int][]int{1: {1}}, "what it appended"},
		{"not repeatable", "0 1 ok a1+1\n0 9 ok local r1= r1=1,", map[int][]int{1: {1}}, "between two reads"},
		{"lost update", "0 9 ok r1= a1+1\n0 9 ok r1= a1+2", map[int][]int{1: {1, 2}}, "one after the other"},
		{"write skew", "0 9 ok r1= a2+1\n0 9 ok r2= a1+2", map[int][]int{1: {2}, 2: {1}}, "one after the other"},
		{"read skew", "0 9 ok a1+1 a2+2\n0 9 ok local r1=1, r2=", map[int][]int{1: {1}, 2: {2}}, "one after the other"},
		{"long fork", "0 9 ok a1+1\n0 9 ok a2+2\n0 9 ok local r1=1, r2=\n0 9 ok local r1= r2=2,", map[int][]int{1: {1}, 2: {2}}, "one after the other"},
		{"an append between those of another transaction", "0 9 ok a1+1 a1+3\n0 9 ok a1+2", map[int][]int{1: {1, 2, 3}}, "one after the other"},
		{"a failed transaction that saw one half of another", "0 9 ok a1+1 a2+2\n0 9 fail local r1=1, r2=", map[int][]int{1: {1}, 2: {2}}, "one after the other"},
		{"stale", "0 1 ok a1+1\n2 3 ok r1=", map[int][]int{1: {1}}, "returned before"},
		{"wrong order", "0 1 ok a1+1\n2 3 ok a1+2", map[int][]int{1: {2, 1}}, "returned before"},
		{"stale, through two other transactions", "0 1 ok a1+1\n2 3 ok a2+2\n4 5 ok local r2=2,\n6 7 ok r1=", map[int][]int{1: {1}, 2: {2}}, "returned before"},
		{"a snapshot without a write that its node acknowledged", "0 1 ok node=1 a1+1\n2 3 ok local node=1 r1=", map[int][]int{1: {1}}, "returned before"},
		{"back in time on a node", "0 9 ok a1+1\n1 2 ok local node=1 r1=1,\n3 4 ok local node=1 r1=", map[int][]int{1: {1}}, "returned before"},
	} {
		wrong := strings.Join(checkAppends(appendHistory(t, c.history), c.final), "\n")
		if c.want == "" && wrong != "" || !strings.Contains(wrong, c.want) {
			t.Errorf("%s: %q, want %q", c.name, wrong, c.want)
		}
	}
	undone := []appendTxn{{outcome: committed, undone: []int{1}}}
	if wrong := checkAppends(undone, map[int][]int{1: {1}}); len(wrong) == 0 {
		t.Error("the checker accepts an append that was rolled back")
	}
}

func TestRegisterModel(t *testing.T) {
	read := func(call, ret int64, found int) registerOp { return registerOp{call: call, ret: ret, found: found} }
	write := func(call, ret int64, value int) registerOp {
		return registerOp{kind: writeRegister, call: call, ret: ret, value: value, unknown: ret == never}
	}
	swap := func(call, ret int64, from, to int, swapped bool) registerOp {
		return registerOp{kind: swapRegister, call: call, ret: ret, compare: from, value: to, swapped: swapped, unknown: ret == never}
	}
	for _, c := range []struct {
		name string
		ops  []registerOp
		ok   bool
	}{
		{"in order", []registerOp{read(0, 1, 0), write(2, 3, 1), swap(4, 5, 1, 2, true), swap(6, 7, 1, 3, false), read(8, 9, 2)}, true},
		{"unknown, happened", []registerOp{write(0, never, 1), read(2, 3, 1)}, true},
		{"unknown, happened later", []registerOp{write(0, never, 1), read(2, 3, 0), read(4, 5, 1)}, true},
		{"unknown, did not happen", []registerOp{write(0, never, 1), swap(0, never, 7, 8, false), read(2, 3, 0)}, true},
		{"stale", []registerOp{write(0, 1, 1), read(2, 3, 0)}, false},
		{"an older value again", []registerOp{write(0, 9, 1), read(2, 3, 1), read(4, 5, 0)}, false},
		{"two swaps", []registerOp{swap(0, 9, 0, 1, true), swap(0, 9, 0, 2, true)}, false},
		{"no swap", []registerOp{swap(0, 1, 0, 1, false)}, false},
		{"unknown, twice", []registerOp{write(0, never, 1), read(2, 3, 1), write(4, 5, 2), read(6, 7, 1)}, false},
	} {
		if wrong := checkRegisters(c.ops, time.Minute); (len(wrong) == 0) != c.ok {
			t.Errorf("%s: %v", c.name, wrong)
		}
	}
}

func TestBankModel(t *testing.T) {
	good := func() bankHistory {
		return bankHistory{
			accounts: 2, opening: 10,
			transfers: []transfer{
				{id: "a", dst: 1, amount: 3}, {id: "b", dst: 1, amount: 3, outcome: aborted},
				{id: "c", dst: 1, amount: 3, outcome: unknown}, {id: "d", dst: 1, amount: 3, refused: true},
			},
			readings: []reading{{totals: []int{20, 20}, journal: []int{1, 1}, linearizable: true, acked: 1}},
			last:     bankStatement{balances: map[int]int{0: 7, 1: 13}, journal: []entry{{"a", 0, 1, 3}}},
		}
	}
	check := func(h *bankHistory) []string { return append(h.checkReadings(), h.checkLast()...) }
	h := good()
	if wrong := check(&h); len(wrong) > 0 {
		t.Errorf("%q", wrong)
	}
	addTransfer := func(h *bankHistory, id string) {
		h.last.journal = append(h.last.journal, entry{id, 0, 1, 3})
		h.last.balances = map[int]int{0: 4, 1: 16}
	}
	h = good()
	addTransfer(&h, "c")
	if wrong := check(&h); len(wrong) > 0 {
		t.Errorf("%q", wrong)
	}
	for name, spoil := range map[string]func(*bankHistory){
		"money made":    func(h *bankHistory) { h.readings[0].totals[1] = 21 },
		"not one view":  func(h *bankHistory) { h.readings[0].journal[1] = 2 },
		"stale":         func(h *bankHistory) { h.readings[0].acked = 2 },
		"negative":      func(h *bankHistory) { h.readings[0].least = -1 },
		"not journaled": func(h *bankHistory) { h.readings[0].wrong = []string{"1"} },
		"lost":          func(h *bankHistory) { h.last = bankStatement{balances: map[int]int{0: 10, 1: 10}} },
		"twice":         func(h *bankHistory) { addTransfer(h, "a") },
		"failed":        func(h *bankHistory) { addTransfer(h, "b") },
		"rolled back":   func(h *bankHistory) { addTransfer(h, "d") },
		"nobody's":      func(h *bankHistory) { addTransfer(h, "e") },
		"other balance": func(h *bankHistory) { h.last.balances[0] = 8 },
		"other amount":  func(h *bankHistory) { h.transfers[0].amount = 4 },
	} {
		h := good()
		spoil(&h)
		if len(check(&h)) == 0 {
			t.Errorf("%s: the model finds no violation", name)
		}
	}
}
