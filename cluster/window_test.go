//lint:file-ignore SA1019 the fake shard answers through CompletedC, which is the channel that AppliedC returns

package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lni/dragonboat/v4"

	"github.com/hiqlite/hiqlite/internal/datadriven"
)

// A windowHistory runs the commands of a file in testdata/window. Time passes only in the
// command wait. The output of a command is what is proposed and what callers learn because
// of it.
type windowHistory struct {
	*fixture
	calls  map[string]*testCall // whose callers wait
	copies map[uint64]proposal  // the latest copy of each entry, by sequence
	opened proposal             // the latest entry that opens a session
}

// run executes a command:
//
//	do OP...         callers call Do, one after the other; an operation !OP is exclusive
//	leave OP...      the contexts of the callers end
//	open SESSION     the machine has opened the session
//	apply N...       the machine has applied entry N, or answers a copy of it
//	unknown N        the machine has refused entry N, because the session does not exist
//	drop N           Raft has dropped the latest copy of entry N
//	busy             Raft refuses the next proposal
//	leader NODE      another node leads; 0: none is known
//	wait DURATION    time passes
//	hold DURATION    the leader asks to propose nothing for so long
//	close            the combiner is closed
func (h *windowHistory) run(line string) string {
	words := strings.Fields(line)
	number := func(i int) uint64 {
		n, err := strconv.ParseUint(words[i], 10, 64)
		if err != nil {
			h.t.Fatalf("%s: %v", line, err)
		}
		return n
	}
	duration := func() time.Duration {
		d, err := time.ParseDuration(words[1])
		if err != nil {
			h.t.Fatalf("%s: %v", line, err)
		}
		return d
	}
	switch words[0] {
	case "do":
		for _, op := range words[1:] {
			h.calls[op] = h.do(op)
			synctest.Wait()
		}
	case "leave":
		for _, op := range words[1:] {
			h.calls[op].cancel()
		}
	case "open":
		h.c.SessionOpened(h.opened.Nonce, number(1))
	case "apply":
		for i := range words[1:] {
			h.apply(h.copies[number(i+1)])
		}
	case "unknown":
		p := h.copies[number(1)]
		h.c.SessionUnknown(p.Session, p.Sequence)
	case "drop":
		h.copies[number(1)].rs.CompletedC <- result(h.t, (*dragonboat.RequestResult).Dropped)
	case "busy":
		h.mu.Lock()
		h.refusals = append(h.refusals, dragonboat.ErrSystemBusy)
		h.mu.Unlock()
	case "leader":
		h.setLeader(number(1), h.Leader().Term+1)
	case "wait":
		time.Sleep(duration()) // in the bubble
	case "hold":
		h.c.Hold(duration())
	case "close":
		h.c.Close()
	default:
		h.t.Fatalf("there is no command %q", line)
	}
	synctest.Wait()
	return h.output()
}

// output returns what was proposed and what callers have learned since the last call.
func (h *windowHistory) output() string {
	var out strings.Builder
	for len(h.proposals) > 0 {
		p := <-h.proposals
		if p.Nonce != 0 {
			h.opened = p
			out.WriteString("opens a session\n")
			continue
		}
		h.copies[p.Sequence] = p
		fmt.Fprintf(&out, "proposed %d", p.Sequence)
		if p.Oldest != 0 {
			fmt.Fprintf(&out, " with those from %d", p.Oldest)
		}
		fmt.Fprintf(&out, " in %d: %s\n", p.Session, strings.Join(p.Ops, " "))
	}
	for _, op := range slices.Sorted(maps.Keys(h.calls)) {
		call := h.calls[op]
		select {
		case <-call.done:
			fmt.Fprintf(&out, "%s: %s\n", op, learned(call.result, call.err))
			delete(h.calls, op)
		default:
		}
	}
	return out.String()
}

// learned describes what Do returned.
func learned(result string, err error) string {
	if err == nil {
		return result
	}
	var all []string
	for _, known := range []error{ErrOutcomeUnknown, ErrNoLeader, ErrClosed, context.Canceled, errBad} {
		if errors.Is(err, known) {
			all = append(all, strings.TrimPrefix(known.Error(), "hiqlite: "))
		}
	}
	return strings.Join(all, ", ")
}

func TestWindow(t *testing.T) {
	files, err := filepath.Glob("testdata/window/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &windowHistory{
					fixture: newFixture(t, CombinerConfig{LongRound: defaultLongRound, Resubmit: defaultResubmit, MaxEntryBytes: 40, MaxOperations: 8}),
					calls:   map[string]*testCall{}, copies: map[uint64]proposal{},
				}
				datadriven.RunFile(t, file, h.run)
				h.c.Close()
				synctest.Wait()
				if left := h.output(); left != "" {
					t.Errorf("at the end of the file there is more:\n%s", left)
				}
			})
		})
	}
}
