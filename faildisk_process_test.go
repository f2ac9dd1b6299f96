//go:build unix

package hiqlite_test

import (
	"fmt"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// failDisk makes every write of this process to a file fail.
func failDisk() error {
	signal.Ignore(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	limit.Cur = 0
	return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit)
}

// The disk of a node fails while it runs: its program lives on and says why the
// node takes no part; the others go on, and lose nothing.
func TestFailingDisk(t *testing.T) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) {
			all := processes(t, size, 2)
			all[0].ask("table")
			for _, p := range all {
				p.ask("write")
			}
			testrun.WaitFor(t, "some rows", func() bool { return all[0].ask("status").Acked[0] > 20 })
			victim := leads(t, all)
			if _, err := victim.try("fail disk"); err != nil {
				t.Fatalf("the program ends with its disk: %v: %s", err, victim.said)
			}
			testrun.WaitFor(t, "the node to say why it takes no part", func() bool {
				r, err := victim.try("status")
				if err != nil {
					t.Fatalf("the program ends with its disk: %v", err)
				}
				return strings.Contains(strings.Join(r.Errors, "\n"), "this node's replica stopped")
			})
			if r, err := victim.try("rows"); err != nil || !strings.Contains(strings.Join(r.Errors, "\n"), "this node's replica stopped") {
				t.Errorf("reading says %v, %v", r.Errors, err)
			}
			var others []*process
			for _, p := range all {
				if p != victim {
					others = append(others, p)
					before := p.ask("status").Acked[0]
					testrun.WaitFor(t, "the others to go on", func() bool { return p.ask("status").Acked[0] > before+10 })
				}
			}
			for _, p := range others {
				p.ask("stop")
			}
			r, err := victim.try("close")
			if err != nil || strings.Contains(strings.Join(r.Errors, "\n"), "panic") {
				t.Errorf("closing the node: %v, %v", err, r.Errors)
			}
			victim.kill()
			victim.start(2)
			for _, p := range all {
				p.ask("ready")
			}
			for _, p := range all {
				if n := p.ask("missing").Count; n != 0 {
					t.Errorf("node %d lacks %d rows that were acknowledged", p.cfg.NodeID, n)
				}
			}
		})
	}
}
