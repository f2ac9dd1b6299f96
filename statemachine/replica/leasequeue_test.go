package replica

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/datadriven"
	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// leaseIDBit is set in the ids of leases, as proposers choose them.
const leaseIDBit = 1 << 63

// A leaseHistory drives a lease queue without SQLite. Its lines are:
//
//	session ID                       the session begins
//	end ID                           the session ends
//	advance MS                       the clock moves; silent sessions expire
//	SESSION OPERATION; OPERATION...  an entry of the session, with operations:
//	    write NAME [under=LEASE]         a plain write; one whose name begins with
//	                                     "bad" fails
//	    acquire LEASE ttl=MS
//	    commit NAME under=LEASE base=N [keep]
//	    use                              the session uses its lease
//	    release ID...                    of leases (L1) or of waiters (1)
//	    vacuum
type leaseHistory struct {
	t        *testing.T
	queue    leaseQueue
	clock    uint64
	changed  uint64
	index    uint64
	sessions map[uint64]*wire.Session[wire.Result]
	out      strings.Builder
}

func (h *leaseHistory) apply(op *wire.Operation, result *wire.Result) error {
	name := op.Statements[0].SQL
	h.changed = h.index
	if strings.HasPrefix(name, "bad") {
		result.Err = sqlite.Busy(name)
		fmt.Fprintf(&h.out, "  applied %s: it failed\n", name)
		return nil
	}
	fmt.Fprintf(&h.out, "  applied %s\n", name)
	return nil
}

func (h *leaseHistory) now() uint64                                  { return h.clock }
func (h *leaseHistory) lastChange() uint64                           { return h.changed }
func (h *leaseHistory) session(id uint64) *wire.Session[wire.Result] { return h.sessions[id] }

func (h *leaseHistory) holderChanged(ended uint64) {
	if ended != 0 {
		fmt.Fprintf(&h.out, "  lease %s ended\n", leaseName(ended))
	}
}

func (h *leaseHistory) settled(w *wire.Waiter, result *wire.Result) {
	fmt.Fprintf(&h.out, "  settled %s of session %d: %s\n", leaseName(waiterID(w)), w.Session, resultText(result))
}

func (h *leaseHistory) keep(w *wire.Waiter, result *wire.Result) {
	fmt.Fprintf(&h.out, "  client %d's operation %d keeps %s\n", w.Operation.Origin.Session, w.Operation.Origin.Sequence, resultText(result))
}

func leaseName(id uint64) string {
	if id&leaseIDBit != 0 {
		return fmt.Sprintf("L%d", id&^leaseIDBit)
	}
	return fmt.Sprint(id)
}

func (h *leaseHistory) id(name string) uint64 {
	n, err := strconv.ParseUint(strings.TrimPrefix(name, "L"), 10, 63)
	if err != nil {
		h.t.Fatalf("%q is not an id", name)
	}
	if strings.HasPrefix(name, "L") {
		n |= leaseIDBit
	}
	return n
}

func resultText(r *wire.Result) string {
	text := map[wire.LeaseState]string{wire.LeaseNone: "done", wire.LeaseQueued: "queued as", wire.LeaseGranted: "granted", wire.LeaseKept: "done, kept", wire.LeaseExpired: "expired"}[r.Lease.State]
	if r.Lease.ID != 0 {
		text += " " + leaseName(r.Lease.ID)
	}
	if s := r.Lease.State; s == wire.LeaseGranted || s == wire.LeaseKept {
		text += fmt.Sprintf(", base %d", r.Lease.Base)
	}
	if r.Err != nil {
		text += ", error " + strconv.Quote(r.Err.Message)
	}
	return text
}

// state describes the queue in one line.
func (h *leaseHistory) state() string {
	q := &h.queue
	if q.held.ID == 0 {
		return "free"
	}
	text := fmt.Sprintf("held as %s by session %d, base %d", leaseName(q.held.ID), q.held.Session, q.held.Base)
	if q.held.Idle {
		text += ", idle"
	}
	for i := range q.waiters {
		w := &q.waiters[i]
		text += fmt.Sprintf(" <- %s of %d", leaseName(waiterID(w)), w.Session)
	}
	return text
}

// operation parses one operation.
func (h *leaseHistory) operation(text string) *wire.Operation {
	words := strings.Fields(text)
	op := &wire.Operation{Statements: []wire.Statement{{}}}
	var lease wire.Lease
	for _, word := range words[1:] {
		name, value, _ := strings.Cut(word, "=")
		switch {
		case name == "under":
			lease.Under = h.id(value)
		case name == "base":
			lease.Base = h.id(value)
		case name == "ttl":
			lease.TTLMS = h.id(value)
		case word == "keep":
			lease.Keep = true
		case words[0] == "acquire":
			lease.Acquire = h.id(word)
		case words[0] == "release":
			lease.Release = append(lease.Release, h.id(word))
		default:
			op.Statements[0].SQL = word
		}
	}
	switch words[0] {
	case "write":
		if lease.Under != 0 {
			op.Lease = &lease
		}
		return op
	case "commit":
		lease.Transaction = true
	case "use":
		lease.InUse = true
	case "vacuum":
		op.Vacuum, op.Statements[0].SQL = true, "VACUUM"
		return op
	case "acquire", "release":
	default:
		h.t.Fatalf("unknown operation %q", text)
	}
	op.Lease = &lease
	return op
}

// run executes one line and returns what happened.
func (h *leaseHistory) run(line string) string {
	h.out.Reset()
	h.index++
	fmt.Fprintf(&h.out, "%d: %s\n", h.index, line)
	first, rest, _ := strings.Cut(line, " ")
	var err error
	switch first {
	case "session":
		h.sessions[h.id(rest)] = &wire.Session[wire.Result]{ID: h.id(rest), LastUsed: h.clock}
	case "end":
		delete(h.sessions, h.id(rest))
		err = h.queue.dropGoneSessions(&entry{})
	case "advance":
		h.clock += h.id(rest)
		err = h.queue.expireSilent(&entry{})
	default:
		s := h.sessions[h.id(first)]
		s.Sequence, s.LastUsed = s.Sequence+1, h.clock
		operations := strings.Split(rest, ";")
		e := &entry{session: s.ID, sequence: s.Sequence, results: make([]wire.Result, len(operations))}
		for i, text := range operations {
			if err = h.queue.applyOrQueue(e, i, h.operation(text), &e.results[i]); err != nil {
				break
			}
		}
		for i := range e.results {
			fmt.Fprintf(&h.out, "  result %d: %s\n", i, resultText(&e.results[i]))
		}
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.queue.checkInvariants()
	fmt.Fprintf(&h.out, "  %s\n", h.state())
	return h.out.String()
}

// The files in testdata/lease are histories of the lease queue. They show the results of
// each entry, which waiters it settles, and the lease and the queue afterwards.
func TestLeaseHistories(t *testing.T) {
	datadriven.Run(t, "testdata/lease/*.txt", func(t *testing.T) func(string) string {
		h := &leaseHistory{t: t, sessions: map[uint64]*wire.Session[wire.Result]{}}
		h.queue.host = h
		h.queue.load(&wire.State{}, &wire.State{})
		return h.run
	})
}
