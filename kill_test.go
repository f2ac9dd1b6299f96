package hiqlite_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/hiqlite/hiqlite"
	"github.com/hiqlite/hiqlite/internal/testrun"
)

// leads returns the process that leads, as the others know it.
func leads(t *testing.T, all []*process) *process {
	t.Helper()
	var leader *process
	testrun.WaitFor(t, "a leader that all agree on", func() bool {
		seen := map[uint64]bool{}
		for _, p := range all {
			seen[p.ask("status").Status.Leader] = true
		}
		if len(seen) != 1 || seen[0] {
			return false
		}
		for _, p := range all {
			if seen[p.cfg.NodeID] {
				leader = p
			}
		}
		return leader != nil
	})
	return leader
}

// The leader's process is killed twenty times while writers run on all nodes:
// no writer on a survivor sees an error, and every acknowledged row is there
// once.
func TestKilledLeadersLoseNothing(t *testing.T) {
	const writers, kills = 8, 20 // 16 writers survive each
	all := processes(t, 3, writers)
	all[0].ask("table")
	for _, p := range all {
		p.ask("write")
	}
	for range kills {
		leader := leads(t, all)
		leader.kill()
		var survivors []*process
		for _, p := range all {
			if p != leader {
				survivors = append(survivors, p)
			}
		}
		for _, p := range survivors {
			before := p.ask("status").Acked
			testrun.WaitFor(t, "every writer of a survivor to go on", func() bool {
				for i, n := range p.ask("status").Acked {
					if n < before[i]+2 {
						return false
					}
				}
				return true
			})
		}
		leader.start(writers)
		leader.ask("ready")
		leader.ask("write")
	}
	for _, p := range all {
		p.ask("stop")
	}
	hash := ""
	for _, p := range all {
		p.ask("ready")
		h := p.ask("hash").Hash
		if hash != "" && h != hash {
			t.Errorf("node %d holds something else", p.cfg.NodeID)
		}
		hash = h
	}
	checkAcks(t, all)
}

// A leader's process is paused until another leads, and goes on where it was:
// what it kept back, and proposes late, is not applied a second time.
func TestPausedLeadersRepeatNothing(t *testing.T) {
	all := processes(t, 3, 6)
	all[0].ask("table")
	for _, p := range all {
		p.ask("write")
	}
	for range 6 {
		leader := leads(t, all)
		leader.signal(syscall.SIGSTOP)
		for _, p := range all {
			if p == leader {
				continue
			}
			before := p.ask("status").Acked
			testrun.WaitFor(t, "writers to go on without the paused leader", func() bool {
				for i, n := range p.ask("status").Acked {
					if n < before[i]+5 {
						return false
					}
				}
				return true
			})
		}
		leader.signal(syscall.SIGCONT)
		leader.ask("ready")
	}
	for _, p := range all {
		p.ask("stop")
	}
	checkAcks(t, all)
}

// checkAcks opens the nodes here, after their processes have ended, and
// compares the rows with what was acknowledged.
func checkAcks(t *testing.T, all []*process) {
	t.Helper()
	var nodes []*hiqlite.Node
	for _, p := range all {
		p.kill()
		node, err := hiqlite.Open(testrun.Context(t), p.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer node.Close()
		nodes = append(nodes, node)
	}
	if err := nodes[0].Ready(testrun.Context(t)); err != nil {
		t.Fatal(err)
	}
	rows := map[string]int{}
	r, err := nodes[0].DB().QueryContext(testrun.Context(t), "SELECT writer, n, count(*) FROM w GROUP BY writer, n")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for r.Next() {
		var writer string
		var n, count int
		if err := r.Scan(&writer, &n, &count); err != nil {
			t.Fatal(err)
		}
		rows[fmt.Sprintf("%s %d", writer, n)] = count
		if count != 1 {
			t.Errorf("write %d of %s was applied %d times", n, writer, count)
		}
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	acked := 0
	for _, p := range all {
		f, err := os.Open(p.acks)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); acked++ {
			if rows[lines.Text()] == 0 {
				t.Errorf("%s was acknowledged and is lost", lines.Text())
			}
		}
	}
	t.Logf("%d writes acknowledged, %d rows", acked, len(rows))
	if acked == 0 {
		t.Error("nothing was acknowledged")
	}
}

// Nodes are killed while all count and tell, their snapshots being written: no
// writer on a survivor sees an error, and each count and message is there once.
func TestKilledNodesCountOnce(t *testing.T) {
	const writers, kills = 4, 6
	all := processes(t, 3, writers)
	for _, p := range all {
		p.ask("count")
	}
	acked := int64(0) // by processes that were killed
	lines := func(p *process) (n int64) {
		data, err := os.ReadFile(p.acks)
		if err != nil {
			t.Fatal(err)
		}
		return int64(bytes.Count(data, []byte("\n")))
	}
	for i := range kills {
		victim := all[i%len(all)]
		victim.kill()
		for _, p := range all {
			if p == victim {
				continue
			}
			before := p.ask("status").Acked
			testrun.WaitFor(t, "every writer of a survivor to go on", func() bool {
				for i, n := range p.ask("status").Acked {
					if n < before[i]+2 {
						return false
					}
				}
				return true
			})
			p.ask("compact")
		}
		victim.start(writers)
		victim.ask("ready")
		victim.ask("count")
	}
	for _, p := range all {
		p.ask("stop")
	}
	for _, p := range all {
		acked += lines(p)
	}
	for _, p := range all {
		p.ask("ready")
		r := p.ask("counted")
		// What a killed process had in flight may be there or not.
		if most := acked + kills*writers; r.Count < acked || r.Count > most || r.Told < acked || r.Told > most {
			t.Errorf("node %d counts %d, and was told of %d: %d were acknowledged, up to %d may be there", p.cfg.NodeID, r.Count, r.Told, acked, most)
		}
	}
	t.Logf("%d acknowledged", acked)
}
