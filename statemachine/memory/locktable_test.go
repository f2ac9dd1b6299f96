package memory

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/datadriven"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// A lockHistory drives a lock table alone. Its lines are:
//
//	acquire OWNER ID KEY ttl=MS [more]   more: the owner believes that it has other locks
//	try OWNER ID KEY ttl=MS
//	release OWNER ID [caughtup] [more]   more: the owner has asked for another lock
//	renew OWNER LAST ID...               LAST is the last waiter that it asked for
//	leave NODE INCARNATION               the owners that came through a node end
//	via NODE INCARNATION                 the node of the following commands
//	wrote INDEX                          commands have named this entry of the SQL log
//	advance MS
type lockHistory struct {
	t       *testing.T
	table   lockTable
	seen    wire.Seen
	clock   uint64
	session wire.Session[wire.Outcome]
	line    int
	out     strings.Builder
}

func (h *lockHistory) number(word string) uint64 {
	n, err := strconv.ParseUint(word, 10, 64)
	if err != nil {
		h.t.Fatalf("%q is not a number", word)
	}
	return n
}

// command parses a command; words that are not numbers or options are keys.
func (h *lockHistory) command(kind wire.CommandKind, words []string) *wire.Command {
	c := &wire.Command{Kind: kind, Owner: h.number(words[0])}
	if kind == wire.KindLockRenew {
		c.LastWaiter = h.number(words[1])
	} else {
		c.Waiter = h.number(words[1])
	}
	for _, word := range words[2:] {
		ttl, isTTL := strings.CutPrefix(word, "ttl=")
		switch {
		case isTTL:
			c.OwnerTTLMS = h.number(ttl)
		case word == "caughtup":
			c.CaughtUp = true
		case word == "more" && kind == wire.KindLockRelease:
			c.OwnerStays = true
		case word == "more":
			c.OwnerExists = true
		case kind == wire.KindLockRenew:
			c.Waiters = append(c.Waiters, h.number(word))
		default:
			c.Key = word
		}
	}
	return c
}

func lockOutcome(o wire.Outcome) string {
	switch o.Code {
	case wire.Done:
	case wire.Waits:
		return fmt.Sprintf("waits, epoch %d", o.Epoch)
	case wire.Held:
		return fmt.Sprintf("held with token %d", o.Token)
	case wire.Missing:
		return "missing"
	default:
		return fmt.Sprintf("code %d", o.Code)
	}
	text := "done"
	if o.Token > 0 {
		text = fmt.Sprintf("holds with token %d", o.Token)
	}
	if o.HolderLost {
		text += ", holder lost"
	}
	if o.Seen != (wire.Seen{}) {
		text += fmt.Sprintf(", seen SQL entry %d", o.Seen.SQL)
	}
	if o.Epoch > 0 {
		text += fmt.Sprintf(", epoch %d", o.Epoch)
	}
	return text
}

// state describes the queues, one a line.
func (h *lockHistory) state() {
	for _, key := range slices.SortedFunc(maps.Keys(h.table.queues), cmp.Compare[string]) {
		fmt.Fprintf(&h.out, "  %s:", key)
		for i, w := range h.table.queues[key].waiters {
			switch {
			case i > 0:
				fmt.Fprintf(&h.out, " <- %d/%d", w.owner, w.id)
			case w.holderLost:
				fmt.Fprintf(&h.out, " %d/%d with token %d, holder lost", w.owner, w.id, w.token)
			default:
				fmt.Fprintf(&h.out, " %d/%d with token %d", w.owner, w.id, w.token)
			}
		}
		fmt.Fprintln(&h.out)
	}
	if empty := len(h.table.owners); len(h.table.queues) == 0 {
		fmt.Fprintf(&h.out, "  no locks, %d owners\n", empty)
	}
}

func (h *lockHistory) run(line string) string {
	h.out.Reset()
	h.line++
	fmt.Fprintf(&h.out, "%d: %s\n", h.line, line)
	words := strings.Fields(line)
	kind, isCommand := map[string]wire.CommandKind{"acquire": wire.KindLockAcquire, "try": wire.KindLockTry, "release": wire.KindLockRelease, "renew": wire.KindLockRenew}[words[0]]
	switch {
	case isCommand:
		o := h.table.apply(h.command(kind, words[1:]), &h.session)
		fmt.Fprintf(&h.out, "  %s\n", lockOutcome(o))
	case words[0] == "via":
		h.session.Node, h.session.Incarnation = h.number(words[1]), h.number(words[2])
		return h.out.String()
	case words[0] == "leave":
		h.table.apply(&wire.Command{Kind: wire.KindLockLeave}, &wire.Session[wire.Outcome]{Node: h.number(words[1]), Incarnation: h.number(words[2])})
	case words[0] == "wrote":
		h.seen.SQL = h.number(words[1])
		return h.out.String()
	case words[0] == "advance":
		h.clock += h.number(words[1])
		h.table.advance(h.clock)
	default:
		h.t.Fatalf("unknown line %q", line)
	}
	h.table.checkInvariants()
	h.state()
	return h.out.String()
}

// The files in testdata/locks are histories of the locks. They show the outcome of each
// command, and the queues after it.
func TestLockHistories(t *testing.T) {
	datadriven.Run(t, "testdata/locks/*.txt", func(t *testing.T) func(string) string {
		h := &lockHistory{t: t}
		h.table = newLockTable(&h.seen, func(w waiterID) { fmt.Fprintf(&h.out, "  changed: %d/%d\n", w.owner, w.id) })
		return h.run
	})
}
