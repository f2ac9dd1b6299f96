//go:build unix

package faults

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// The disk of a node fails while the node runs. Its program continues to run and reports why
// the node takes no part. The other nodes continue, and no acknowledged write is lost.
func TestFailingDisk(t *testing.T) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) {
			t.Parallel()
			nodes := process.NewNodes(t, size, 2)
			nodes[0].Ask("table")
			for _, n := range nodes {
				n.Ask("write")
			}
			nodes[0].WaitForWrites(20)
			victim := process.Leader(t, nodes)
			if _, err := victim.Try("fail-disk"); err != nil {
				t.Fatalf("the program ended when the disk failed: %v: %s", err, victim.Log())
			}
			stopped := func(r process.Report) bool {
				return strings.Contains(strings.Join(r.Errors, "\n"), "this node's replica stopped")
			}
			testrun.WaitFor(t, "the node to say why it takes no part", func() bool {
				r, err := victim.Try("status")
				if err != nil {
					t.Fatalf("the program ended when the disk failed: %v", err)
				}
				return stopped(r)
			})
			if r, err := victim.Try("rows"); err != nil || !stopped(r) {
				t.Errorf("the errors of a read are %v, %v; want one that says that the replica stopped", r.Errors, err)
			}
			for _, n := range process.Others(nodes, victim) {
				n.WaitForWrites(10)
			}
			for _, n := range process.Others(nodes, victim) {
				n.Ask("stop")
			}
			r, err := victim.Try("close")
			if err != nil || strings.Contains(strings.Join(r.Errors, "\n"), "panic") {
				t.Errorf("closing the node: %v, %v", err, r.Errors)
			}
			victim.Kill()
			victim.Start()
			for _, n := range nodes {
				n.Ask("ready")
			}
			for _, n := range nodes {
				if missing := n.Ask("missing").Count; missing != 0 {
					t.Errorf("node %d lacks %d rows that were acknowledged", n.Config.NodeID, missing)
				}
			}
		})
	}
}
